"""From token ids to text: where an answer ends, and which tokens people never see.

    from dpad import load
    llada = load("tiny")
    print(llada.answer_text.decode(ids))        # ids of an answer; LoadedModel.decode takes a batch

Two conventions for the block in which an answer ends, because a model may write tokens after EOS there (AFTER_EOS):
    drop    the answer ends at its first EOS or end-of-turn token. What people read, and the default everywhere.
    keep    special tokens are left out and the text after them stays: "#### 14<EOS>14==" becomes "#### 1414==". The
            authors of DPad scored LLaDA this way, so the published rows need it.
Imported, never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

AFTER_EOS = ("drop", "keep")
END_OF_TURN = ("<|eot_id|>", "<|im_end|>")  # besides EOS; of LLaDA and of Dream
MASK_SIGN = "░"


def other(after_eos: str) -> str:
    """The other one of the two conventions."""
    return AFTER_EOS[1 - AFTER_EOS.index(after_eos)]


class AnswerText:
    """A tokenizer that turns answers into text.

    Args:
        tokenizer: a fast or slow tokenizer of transformers.
        eos_id, mask_id: of the model.

    Attributes:
        ends: the ids that end an answer: EOS, and the end-of-turn tokens that the tokenizer has.
        hidden: the ids that are not text: `ends`, the mask, and all special tokens, also those that stand only among
            the tokenizer's added tokens, as in the hub's files.
    """

    def __init__(self, tokenizer: Any, eos_id: int, mask_id: int) -> None:
        self.tokenizer = tokenizer
        self.eos_id = eos_id
        self.mask_id = mask_id
        added = tokenizer.added_tokens_decoder  # id -> AddedToken
        self.ends = {eos_id} | {token for token, entry in added.items() if entry.content in END_OF_TURN}
        special = {token for token, entry in added.items() if entry.special}
        self.hidden = self.ends | special | set(tokenizer.all_special_ids) | {mask_id}

    @property
    def end_texts(self) -> list[str]:
        """The texts of the tokens that end an answer."""
        return sorted(self.tokenizer.convert_ids_to_tokens(sorted(self.ends)))

    def length(self, ids: Sequence[int]) -> int:
        """How many tokens stand before the first one that ends the answer."""
        return next((place for place, token in enumerate(ids) if token in self.ends), len(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer up to its end, without special tokens."""
        return self._text([token for token in ids[: self.length(ids)] if token not in self.hidden])

    def decode_draft(self, ids: Sequence[int]) -> str:
        """The same while masks are left, each of which is shown as ░."""
        text = ""
        visible: list[int] = []
        for token in ids[: self.length(ids)]:
            if token == self.mask_id:
                text += self._text(visible) + MASK_SIGN
                visible = []
            elif token not in self.hidden:
                visible.append(token)
        return text + self._text(visible)

    def cut(self, ids: Sequence[int], until: Sequence[str] = (), after_eos: str = "drop") -> tuple[str, int]:
        """An answer's text before the first of the stop strings, and its number of tokens.

        Tokens are counted as in the published numbers: what is left of the text is tokenised again, and every token
        that does not end an answer counts.

        Args:
            until: stop strings; special tokens count as text here.
            after_eos: one of AFTER_EOS.
        """
        length = self.length(ids) if after_eos == "drop" else len(ids)
        answer = self.raw(ids[:length])
        for stop in until:
            if stop:
                answer = answer.partition(stop)[0]
        answer_ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
        text = self._text([token for token in answer_ids if token not in self.hidden])
        return text, sum(token not in self.ends for token in answer_ids)

    def raw(self, ids: Sequence[int]) -> str:
        """All of an answer, special tokens included, except the EOS tokens that fill its end."""
        length = len(ids)
        while length and ids[length - 1] == self.eos_id:
            length -= 1
        return self._text(ids[:length])

    def _text(self, ids: Sequence[int]) -> str:
        """These tokens as they are."""
        if not ids:
            return ""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
