"""The attention that a block pays: what is measured against the textbook formula, the command, records and figures.

    bash tests/run.sh tests/test_attention.py
"""

from __future__ import annotations

import pytest
import torch
from helpers import left_padded, prompts_of

from dpad.engine.attention import MeanAttention
from dpad.engine.transformer import MaskedDiffusionModel


class EveryWeight:
    """Keeps all weights of one forward: [layers, R, H, watched queries, S]."""

    def __init__(self, queries: slice):
        self.queries = queries
        self.layers: list[torch.Tensor] = []

    def __call__(self, layer: int, weights: torch.Tensor) -> None:
        assert layer == len(self.layers)
        self.layers.append(weights)


@pytest.fixture(params=["llada", "dream"])
def model(request, random_llada, random_dream) -> MaskedDiffusionModel:
    return {"llada": random_llada, "dream": random_dream}[request.param]


@torch.no_grad()
def test_the_mean_is_that_of_all_weights(model):
    """Guards the scores that samplers choose by: over layers, heads and queries, with padding at 0 and sums of 1."""
    ids, mask = left_padded(prompts_of([23, 17]))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    queries = slice(12, 18)
    every = EveryWeight(queries)
    mean = MeanAttention(queries)
    for watch in (every, mean, mean):  # twice: a watch begins anew
        hidden = model.hidden_states(ids, positions, mask.bool(), watch=watch)
    torch.testing.assert_close(mean.scores(), torch.stack(every.layers).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(mean.scores().sum(1), torch.ones(2))
    assert mean.scores().shape == (2, 23) and not mean.scores()[1, :6].any()
    torch.testing.assert_close(model.hidden_states(ids, positions, mask.bool()), hidden)
