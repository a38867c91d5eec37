"""What a terminal can show: colour, the live view of an answer, and the line that says what an answer cost.

    python run.py generate -m tiny --watch --prompt "Tom has 3 bags with 4 apples each. How many apples?"

Imported by run.py and chat.py, never run.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TextDiffusionStreamer

    from dpad.engine.completion import Completion
    from dpad.engine.loading import LoadedModel

MASK_SIGN = "░"
SAVE_CURSOR = "\x1b7"


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


def live_view(loaded: LoadedModel, colour: bool) -> TextDiffusionStreamer:
    """A streamer that shows an answer while it is decoded: masks as ░, special tokens not at all.

    colour: whether transformers may paint the drafts, in yellow.
    """
    from transformers import TextDiffusionStreamer

    class PlainStreamer(TextDiffusionStreamer):
        """The same without colour."""

        def put_draft(self, value: Any, **kwargs: Any) -> None:
            self._clear_draft()
            print(f"{SAVE_CURSOR}{self.tokenizer.decode(value[0])}", end="", flush=True)
            self._has_draft = True

    tokenizer: Any = _DisplayTokenizer(loaded)
    return (TextDiffusionStreamer if colour else PlainStreamer)(tokenizer, skip_prompt=True)


class _DisplayTokenizer:
    """A tokenizer that decodes for display. transformers' streamer needs nothing but `decode`."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.tokenizer = loaded.tokenizer
        self.mask = self.tokenizer.convert_ids_to_tokens(loaded.model.config.mask_token_id)
        self.hidden = [token for token in self.tokenizer.all_special_tokens if token != self.mask]

    def decode(self, ids: Any, **options: Any) -> str:
        text = self.tokenizer.decode(ids, **options).replace(self.mask, MASK_SIGN)
        for token in self.hidden:
            text = text.replace(token, "")
        return text
