"""An answer's text while its blocks are finished, one after the other: stop strings, the token limit, what is certain.

    answer = GrowingAnswer(loaded.answer_text, max_tokens=100, stop=["Question:"])
    delta = answer.add(ids, last=False)      # text that nothing later can change; all of them together are the answer

Imported, never run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dpad.engine.answer_text import AnswerText

UNREADABLE = "\ufffd"  # what bytes of a character become whose other bytes are still missing


class GrowingAnswer:
    """The text of one answer, in pieces that never have to be taken back.

    An answer ends before the stop string that is complete first, at a token that ends it, or after `max_tokens`.

    Attributes:
        ids: the tokens of the finished blocks. text: all that `add` has returned. finish_reason: "stop", "length", or
        None while the answer may go on. tokens: of the answer, without what ends it; once there is a reason.
    """

    def __init__(self, answer_text: AnswerText, max_tokens: int, stop: Sequence[str] = ()) -> None:
        self.answer_text = answer_text
        self.max_tokens = max_tokens
        self.stop = stop
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.tokens = 0

    def add(self, block: Sequence[int], last: bool) -> str:
        """Take the tokens of the next finished block, and return the text that is certain now.

        last: no block follows.
        """
        self.ids += block
        length = self.answer_text.length(self.ids)
        self.tokens = min(length, self.max_tokens)
        text = self.answer_text.decode(self.ids[: self.tokens])
        if length < len(self.ids) and length <= self.max_tokens:
            self.finish_reason = "stop"
        elif last or len(self.ids) >= self.max_tokens:
            self.finish_reason = "length"
        else:
            text = text.rstrip(UNREADABLE)

        place = self._first_stop(text)
        if place is not None:
            self.finish_reason = "stop"
            text = text[:place]
            self.tokens = self._tokens_until(text)
        elif self.finish_reason is None:
            text = text[: len(text) - self._begun_stop(text)]
        if not text.startswith(self.text):  # of a tokenizer in which later tokens change earlier text
            return ""
        delta = text[len(self.text) :]
        self.text = text
        return delta

    def draft(self, block: Sequence[int]) -> str:
        """What stands behind the certain text while a block is decoded, with ░ for the masks."""
        draft = self.answer_text.decode_draft([*self.ids, *block][: self.max_tokens])
        return draft[len(self.text) :] if draft.startswith(self.text) else ""

    def restart(self) -> None:
        """Begin with the first block again, in which the same tokens come; text that was given out is not repeated."""
        self.ids = []

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that is complete first; of those that end together, the longest."""
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stop if stop in text]
        return min(ends)[1] if ends else None

    def _begun_stop(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        return max((length for stop in self.stop for length in range(1, len(stop)) if text.endswith(stop[:length])),
                   default=0)

    def _tokens_until(self, text: str) -> int:
        """How many of the tokens it takes to write this beginning of the answer's text."""
        counts = range(self.tokens)
        return bisect_left(counts, len(text), key=lambda count: len(self.answer_text.decode(self.ids[:count])))
