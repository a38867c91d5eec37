"""Evaluation: measure models on tasks through lm-eval, keep every answer, and run the code that models write safely."""
