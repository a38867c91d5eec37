"""A stand-in for a file of the authors' code."""

from textbook import Config


class LLaDAConfig(Config):
    pass
