"""The attention that a block pays: what is measured against decoding itself, the command, its records and figures.

    bash tests/run.sh tests/test_attention.py
"""

from __future__ import annotations

import pytest
import torch
from helpers import left_padded, prompts_of

from dpad.engine.attention import HeadAttention, MeanAttention, Moment, Moments, heads_at
from dpad.engine.decoding import decode
from dpad.engine.loading import FAMILIES
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel
from sampler import AnchorSampler, GaussianSampler


class EveryWeight:
    """Keeps all weights of one forward: [R, H, watched queries, S] for each layer."""

    def __init__(self, queries: slice):
        self.queries = queries
        self.layers: list[torch.Tensor] = []

    def __call__(self, layer: int, weights: torch.Tensor) -> None:
        assert layer == len(self.layers)
        self.layers.append(weights)


@pytest.fixture(params=["llada", "dream"])
def model(request, random_llada, random_dream) -> MaskedDiffusionModel:
    return {"llada": random_llada, "dream": random_dream}[request.param]


# --- Watches and moments ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_watches_are_means_of_all_weights(model):
    """Guards the scores that samplers choose by and what figures show: over queries, heads and layers, 0 at padding."""
    ids, mask = left_padded(prompts_of([23, 17]))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    queries = slice(12, 18)
    every, mean, heads = EveryWeight(queries), MeanAttention(queries), HeadAttention(queries)
    for watch in (every, heads, mean, mean):  # twice: it begins anew
        hidden = model.hidden_states(ids, positions, mask.bool(), watch=watch)
    torch.testing.assert_close(heads.weights(), torch.stack(every.layers).mean(dim=3))
    torch.testing.assert_close(mean.scores(), torch.stack(every.layers).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(heads.weights().sum(-1), torch.ones(3, 2, 4))
    assert mean.scores().shape == (2, 23) and not mean.scores()[1, :6].any()
    torch.testing.assert_close(model.hidden_states(ids, positions, mask.bool()), hidden)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("sampler", [None, GaussianSampler(24, 3, 1.6), AnchorSampler(4, 8)])
@pytest.mark.parametrize("threshold", [None, 0.4])
def test_what_is_shown_is_what_decoding_computes(model, cache, sampler, threshold, monkeypatch):
    """Guards every forward of an answer, in every cache mode: the weights are those of decoding's own forward."""
    blocks: list[int] = []
    computed = []
    moments: list[Moment] = []
    true_forward = type(model).hidden_states

    def watched(self, inputs, position_ids, key_mask=None, cache=None, start=0, watch=None):
        begin = 19 + 8 * blocks[-1] - start
        watch = HeadAttention(slice(begin, begin + 8))
        hidden = true_forward(self, inputs, position_ids, key_mask, cache, start, watch)
        computed.append(watch.weights()[:, 0])
        return hidden

    family = FAMILIES["dream" if model.prediction_offset else "llada"]
    settings = family.settings(gen_length=32, block_length=8, cache=cache, threshold=threshold, suffix_sampler=sampler)
    streamer = Moments(510, 32, 8, moments.append)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "hidden_states", watched)
        output = decode(model, family.rule(settings, TokenIds.of(model)), prompts_of([19])[0][None], None, streamer,
                        on_forward=lambda block, first: blocks.append(block))
    assert torch.equal(streamer.tokens, output.sequences[0])
    assert [moment.block for moment in moments] == blocks and 4 < len(blocks) == len(computed)
    for moment, expected in zip(moments, computed):
        weights = heads_at(model, moment, moment.columns, cache)
        torch.testing.assert_close(weights, expected, atol=0, rtol=0)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
