"""What is shown on a terminal: colour, and the live view of a denoising.

    python run.py generate -m tiny --watch --prompt "Tom has 3 bags with 4 apples each. How many apples?"
"""

from __future__ import annotations

import os
import sys


def wants_colour() -> bool:
    """Whether standard output is a terminal that may be coloured (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def watcher(loaded, colour: bool = True):
    """transformers' streamer for diffusion, over a tokenizer that shows a mask as a shade and no special tokens."""
    from transformers import TextDiffusionStreamer

    class Plain(TextDiffusionStreamer):
        """Drafts without the yellow."""

        def put_draft(self, value, **kwargs):
            self._clear_draft()
            print("\x1b7" + self.tokenizer.decode(value[0]), end="", flush=True)  # \x1b7: remember the place
            self._has_draft = True

    tokenizer = loaded.tokenizer
    mask = tokenizer.convert_ids_to_tokens(loaded.model.config.mask_token_id)
    hidden = [token for token in tokenizer.all_special_tokens if token != mask]

    class Display:
        @staticmethod
        def decode(ids, **options) -> str:
            text = tokenizer.decode(ids, **options).replace(mask, "░")
            for token in hidden:
                text = text.replace(token, "")
            return text

    return (TextDiffusionStreamer if colour else Plain)(Display, skip_prompt=True)
