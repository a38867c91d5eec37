"""What a terminal can show: colour, the live view of an answer, and the line that says what an answer cost.

    python run.py generate -m tiny --watch --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"

Imported by run.py and chat.py, never run.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING

from dpad.results.formatting import LAYOUT, printable

if TYPE_CHECKING:
    from torch import Tensor

    from dpad.engine.completion import Completion
    from dpad.engine.loading import LoadedModel

SAVE_CURSOR = "\x1b7"
RESTORE_CURSOR = "\x1b8"
CLEAR_BELOW = "\x1b[J"
SCROLL = "\x1bD"  # one line down in the same column; at the bottom, the screen scrolls
YELLOW = "\x1b[33m"
PLAIN = "\x1b[0m"


def can_redraw() -> bool:
    """Whether standard output is a terminal on which drafts can be drawn over each other."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def wants_colour() -> bool:
    """Whether standard output is a terminal that may be coloured (no-color.org)."""
    return can_redraw() and not os.environ.get("NO_COLOR")


def cost(completion: Completion) -> str:
    """What an answer cost, in a line."""
    return (f"[{completion.forwards} forwards · {completion.tokens} tokens · "
            f"{completion.tokens_per_second:.1f} tokens/s · {completion.seconds:.2f} s]")


def fit(text: str, size: os.terminal_size) -> tuple[str, int]:
    """As much of a text as a screen holds, which begins anywhere in a line, and how many lines it takes at most."""
    rows, cells = 1, size.columns  # the first character may be the last one of its line
    for place, character in enumerate(text):
        width = 8 if character == "\t" else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        cells += width
        if character == "\n" or cells > size.columns:
            rows, cells = rows + 1, 0 if character == "\n" else width
        if rows >= max(2, size.lines - 1):
            return f"{text[: place]}…", rows
    return text, rows


class LiveView:
    """A streamer that shows an answer while it is decoded, and at the end leaves its final text.

    Finished blocks stay; the block being decoded is drawn over itself, with ░ for its masks. Nothing is shown after the
    answer's end, nor any special token; control characters that a model writes are shown as escapes.

    Args:
        colour: whether the drafts may be yellow.
    """

    def __init__(self, loaded: LoadedModel, colour: bool) -> None:
        self.answer_text = loaded.answer_text
        self.colour = colour
        self.ids: list[int] | None = None  # of the finished blocks; None until the prompt has come
        self.written = ""  # what stays on the screen
        self.has_draft = False
        self.size = shutil.get_terminal_size()

    def put(self, value: Tensor) -> None:
        """Receive the prompt, int64 [1, P], and after it each finished block."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value[0].tolist()
        # A character that the next block completes is a replacement sign until then.
        self._write(printable(self.answer_text.decode(self.ids).rstrip("\ufffd"), LAYOUT))

    def put_draft(self, value: Tensor) -> None:
        """Receive the block as it stands after a forward, int64 [1, L]."""
        ids = [*(self.ids or []), *value[0].tolist()]
        if self.size != (size := shutil.get_terminal_size()):  # nobody knows where the text is now: it begins again
            self.size = size
            self.has_draft = False
            print(f"\n{self.written}", end="")
        draft, rows = fit(printable(self.answer_text.decode_draft(ids), LAYOUT)[len(self.written) :], size)
        self._clear_draft()
        painted = f"{YELLOW}{draft}{PLAIN}" if self.colour else draft
        # Make room first: a screen that scrolls under the draft would move the text, but not the saved cursor.
        print(f"{SCROLL * rows}\x1b[{rows}A{SAVE_CURSOR}{painted}", end="", flush=True)
        self.has_draft = True

    def end(self) -> None:
        self._clear_draft()

    def finish(self, text: str) -> None:
        """Complete the answer: what is on the screen becomes `text`, and the line ends."""
        text = printable(text, LAYOUT)
        self._clear_draft()
        if not text.startswith(self.written):
            print()
            self.written = ""
        self._write(text)
        print(flush=True)

    def _write(self, text: str) -> None:
        """Leave this text of the answer on the screen, of which `written` is there already."""
        self._clear_draft()
        if text.startswith(self.written):
            print(text[len(self.written) :], end="", flush=True)
            self.written = text

    def _clear_draft(self) -> None:
        if self.has_draft:
            print(f"{RESTORE_CURSOR}{CLEAR_BELOW}", end="", flush=True)
            self.has_draft = False
