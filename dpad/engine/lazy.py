"""Modules that are imported when they are first used, so that `--help` does not wait seconds for torch.

    torch = lazy_module("torch")     # nothing is imported
    torch.arange(3)                  # now it is

Imported, never run; standard library only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class lazy_module:
    """Stands in for a module until one of its attributes is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
