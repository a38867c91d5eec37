"""The layers that both models share: attention against the textbook formula, and what the forward pass refuses.

    bash tests/run.sh tests/test_transformer.py
"""

from __future__ import annotations

import pytest
import torch
from helpers import prompts_of

from dpad.engine.transformer import MaskedDiffusionModel


@pytest.fixture(params=["llada", "dream"])
def model(request, random_llada, random_dream) -> MaskedDiffusionModel:
    return {"llada": random_llada, "dream": random_dream}[request.param]


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 4])
def test_kernels_give_what_the_textbook_formula_gives(model, padding, monkeypatch):
    """Guards torch's kernels, the grouping of heads that share keys (Dream), and padding masks."""
    ids = torch.stack(prompts_of([19, 19]))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    expected = model(ids, attention_mask=mask).logits
    monkeypatch.setattr(model.config, "_attn_implementation", "eager")
    logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_mask_can_be_added_to_the_scores(model, monkeypatch):
    """Guards the form in which GPU kernels take a mask: 0 and -inf, instead of True and False."""
    ids = torch.stack(prompts_of([11]))
    positions = torch.arange(11)[None]
    mask = torch.arange(11)[None] >= 3
    added = torch.zeros(1, 11).masked_fill(~mask, float("-inf"))
    for implementation in ("sdpa", "eager"):
        monkeypatch.setattr(model.config, "_attn_implementation", implementation)
        hidden = model.hidden_states(ids, positions, mask)
        torch.testing.assert_close(model.hidden_states(ids, positions, added), hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arguments, message", [
    ({"input_ids": torch.arange(5)}, r"input_ids has shape \[5\]; it must be \[rows, tokens\]"),
    ({"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \[1, 4\]; it must have input_ids' shape"),
    ({"position_ids": torch.arange(4)}, r"position_ids has shape \[4\]; it must be \[5\] or \[1, 5\]"),
])
def test_shapes_that_do_not_fit_are_refused(model, arguments, message):
    """Guards the forward pass against broadcasting what was meant otherwise."""
    with pytest.raises(ValueError, match=message):
        model(**({"input_ids": torch.arange(5)[None]} | arguments))
