"""A stand-in for a file of the authors' code."""

from textbook import DREAM, Model


class DreamModel(Model):
    names = DREAM
