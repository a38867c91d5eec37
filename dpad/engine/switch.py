"""A way of computing that is on, off, or chosen by itself, for the calls inside of a `with`.

    _switch = Switch("graphs")
    with _switch.use("off"):
        ...

Imported, never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpad.engine.checks import check_choice

MODES = ("auto", "on", "off")


class Switch:
    """What is switched, `name` in messages, and its `mode`, one of MODES."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = "auto"

    @contextmanager
    def use(self, mode: str) -> Iterator[None]:
        """Choose a mode for the calls inside; ValueError if it is not one of MODES."""
        check_choice(self.name, mode, MODES)
        before = self.mode
        self.mode = mode
        try:
            yield
        finally:
            self.mode = before
