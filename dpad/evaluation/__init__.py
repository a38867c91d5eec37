"""Evaluation: tasks, runs, their journal, and the code that they run."""
