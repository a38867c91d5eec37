"""A stand-in for a file of the authors' code."""

from textbook import LLADA, Model


class LLaDAModelLM(Model):
    names = LLADA
