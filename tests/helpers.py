"""What several test files use: paths, prompts, padding, command lines, and the samplers that laws are tested with.

Fixtures are in conftest.py. Imported by name (`from helpers import ROOT`): pytest puts this folder on the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dpad import ROOT
from dpad.engine.completion import Completion
from sampler import FullSuffix, GaussianSampler, SuffixSampler, UniformSampler, WindowSampler

GOLDEN = ROOT / "tests" / "golden"  # recordings of the authors' published code, and the random models they used
SAMPLERS: list[SuffixSampler | None] = [
    None, FullSuffix(), WindowSampler(20), GaussianSampler(48, 3, 1.6), UniformSampler(40, 12),
]


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Random prompts of these lengths, int64 [P] each, for the recorded models (vocabulary 512)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 500, (length,), generator=generator) for length in lengths]


def left_padded(prompts: Sequence[Tensor], filler: int = 7) -> tuple[Tensor, Tensor]:
    """The prompts as one batch, padded on the left with `filler`: input_ids and attention_mask, int64 [R, P] each."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), filler)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):] = prompt
        mask[row, width - len(prompt):] = 1
    return ids, mask


def completion_of(text: str, **fields: Any) -> Completion:
    """An answer of one token that took one forward and a second, as if a model had given it."""
    answer: dict[str, Any] = {"text": text, "full_text": text, "raw": text, "forwards": 1, "tokens": 1,
                              "full_tokens": 1, "seconds": 1.0, "tokens_processed": 1}
    return Completion(**answer | fields)


def with_flags(base: list, flags: list) -> list:
    """A command line where the flags of `flags` take the place of the same ones in `base`."""
    kept: list[str] = []
    flag = ""
    for word in base:
        flag = word if str(word).startswith("-") else flag
        if flag not in flags:
            kept.append(word)
    return kept + flags


def name_of(value: object) -> str:
    """A readable test id for a sampler or for a dict of settings."""
    if isinstance(value, dict):
        return "-".join(f"{key}{item}" for key, item in value.items())
    return type(value).__name__
