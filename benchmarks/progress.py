"""Progress of a measurement: a bar on a terminal; in a log or a pipe a plain line for each setting, on standard error.

    with Progress(total=12, unit="run") as progress:
        progress.announce("Vanilla: first run")
        progress.advance()

Imported by measurement.py and agreement.py.
"""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """How many of `total` steps are done, and what is being done; a context manager."""

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.done = 0
        self.bar = tqdm(total=total, unit=unit, leave=False, disable=None)

    def announce(self, text: str) -> None:
        """Say what begins now."""
        self.bar.set_description(text)
        if self.bar.disable:  # standard error is no terminal
            print(f"[{self.done}/{self.total}] {text}", file=sys.stderr, flush=True)

    def advance(self) -> None:
        """Count a step."""
        self.done += 1
        self.bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
