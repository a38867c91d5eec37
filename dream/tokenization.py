"""Dream's tokenizer: Qwen2's byte-level BPE over the hub's vocab.json and merges.txt, with Dream's special tokens.

Imported, never run. `DreamTokenizer.from_pretrained(folder_or_hub_id)`; AutoTokenizer finds it too once `dream` is
imported. The hub's repository names a class of its own that is remote code; this one needs none.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from dream.configuration import DreamConfig

SPECIAL_TOKENS = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": "<|beginoftext|>",
                  "mask_token": "<|mask|>"}
TURN_TOKENS = ["<|im_start|>", "<|im_end|>"]


class DreamTokenizer(Qwen2Tokenizer):
    """Encodes as Qwen2's tokenizer does; the turn markers, `<|beginoftext|>` and `<|mask|>` are special tokens.

    So `decode(..., skip_special_tokens=True)` leaves `<|im_end|>` out, which transformers' Qwen2 class prints where a
    folder has no list of added tokens. Ids beyond the vocabulary (the embedding has spare rows) decode to nothing.
    """

    def __init__(
        self, vocab: str | dict[str, int] | None = None, merges: str | list[str] | None = None, **options: Any
    ) -> None:
        options = SPECIAL_TOKENS | {"additional_special_tokens": TURN_TOKENS} | options
        super().__init__(vocab=vocab, merges=merges, **options)


AutoTokenizer.register(DreamConfig, DreamTokenizer)
