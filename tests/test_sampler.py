"""Laws of the suffix samplers: subset, order, window, retention probabilities, repeatable draws.

    bash tests/run.sh tests/test_sampler.py
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampler import (
    AnchorSampler,
    AttentionSampler,
    EvenGaussianSampler,
    FullSuffix,
    GaussianSampler,
    SpotlightSampler,
    SuffixSampler,
    UniformSampler,
    WindowSampler,
)

windows = st.integers(1, 300)
samplers = st.one_of(
    st.just(FullSuffix()),
    st.builds(WindowSampler, windows),
    st.builds(GaussianSampler, windows, st.floats(0.1, 8), st.floats(0.05, 40), st.booleans()),
    st.builds(EvenGaussianSampler, windows, st.floats(0.1, 8), st.floats(0.05, 40), st.booleans()),
    st.builds(AnchorSampler, windows, st.integers(0, 70), st.booleans()),
    st.builds(UniformSampler, windows, st.integers(0, 300)),
)
counts = st.integers(0, 400)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(samplers, counts, st.integers(0, 4000), st.integers(0, 2**31))
def test_kept_positions_are_an_ascending_subset(sampler, count, start, seed):
    """Guards the contract that the block loop relies on: a subset of what was given, in order, without repeats."""
    positions = torch.arange(start, start + count)
    kept = sampler.sample(positions, generator(seed))
    assert set(kept.tolist()) <= set(positions.tolist())
    assert (kept[1:] > kept[:-1]).all()


@given(samplers, counts, st.integers(0, 2**31))
def test_nothing_is_kept_where_retention_is_zero_and_all_where_it_is_one(sampler, count, seed):
    """Guards the agreement of the draw with the published probabilities, and so the window's edge."""
    kept = torch.zeros(count, dtype=torch.bool)
    kept[sampler.sample(torch.arange(count), generator(seed))] = True
    retention = sampler.retention(count)
    assert retention.shape == (count,) and (retention >= 0).all() and (retention <= 1).all()
    assert not kept[retention == 0].any()
    assert kept[retention == 1].all()


@given(samplers, counts, st.integers(0, 2**31), st.integers(0, 4000))
def test_a_draw_depends_on_the_seed_and_the_distance_alone(sampler, count, seed, start):
    """Guards batch = alone: rows with prompts of any length share one draw."""
    near = sampler.sample(torch.arange(count), generator(seed))
    far = sampler.sample(torch.arange(start, start + count), generator(seed))
    assert torch.equal(near + start, far)


@pytest.mark.parametrize("sampler", [GaussianSampler(64, 3, 1.6), GaussianSampler(50, 2, 4.0), UniformSampler(64, 20),
                                     WindowSampler(10), FullSuffix()], ids=lambda sampler: type(sampler).__name__)
def test_mean_of_many_draws_is_the_retention(sampler: SuffixSampler):
    """Guards `retention` (plots show it) against `sample`: 4000 draws, five standard errors."""
    draws, count, source = 4000, 90, generator(7)
    kept = torch.zeros(count)
    for _ in range(draws):
        kept[sampler.indices(count, source)] += 1
    retention = sampler.retention(count)
    error = (retention * (1 - retention) / draws).sqrt()
    assert ((kept / draws - retention).abs() <= 5 * error + 1e-6).all()


def test_gaussian_retention_is_the_papers_formula():
    """Guards the formula with linspace (k i / (W - 1)), which the published numbers used, at hand-computed places."""
    retention = GaussianSampler(window=5, k_sigma=2, scale=1.6).retention(7)
    expected = [1.6 / math.sqrt(2 * math.pi) * math.exp(-((2 * i / 4) ** 2) / 2) for i in range(5)] + [0, 0]
    torch.testing.assert_close(retention, torch.tensor(expected))


def test_gaussian_draws_as_the_reference_did():
    """Guards the recorded randomness: one uniform number for each suffix position, beyond the window too."""
    torch.manual_seed(1234)
    noise = torch.rand(100)
    sampler = GaussianSampler(40, 3, 2.0)
    expected = [i for i in range(40) if noise[i] < sampler.retention(100)[i]]
    source = generator(1234)
    assert sampler.indices(100, source).tolist() == expected
    torch.manual_seed(1234)
    torch.rand(100)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=source))


def test_a_window_of_one():
    """Guards linspace(0, k, 1): the nearest position alone, with the density's peak."""
    assert GaussianSampler(1, 3, 3.0).indices(9, generator(0)).tolist() == [0]


@pytest.mark.parametrize("make, name", [
    (lambda: WindowSampler(0), "window"), (lambda: GaussianSampler(-3, 3, 1), "window"),
    (lambda: GaussianSampler(8, 0, 1), "k_sigma"), (lambda: GaussianSampler(8, 3, math.nan), "scale"),
    (lambda: GaussianSampler(8, 3, -1), "scale"), (lambda: UniformSampler(8, -1), "number"),
    (lambda: UniformSampler(8.0, 1), "window"), (lambda: UniformSampler(8, True), "number"),
    (lambda: WindowSampler(65).check(64), "window"),
])
def test_bad_settings_name_the_argument(make, name):
    """Guards the error messages: argument, value and what is allowed."""
    with pytest.raises(ValueError, match=f"^{name} is .*must be"):
        make()


@pytest.mark.parametrize("count, window, far", [
    (224, 64, [64, 96, 128, 160, 192, 223]), (480, 80, [*range(96, 480, 32), 479]),
    (64, 48, [63]), (96, 72, [95]), (0, 64, []), (30, 64, []),
])
def test_anchors_with_the_blocks_stride_are_what_ssm_keeps(count, window, far):
    """Guards SSM's published structure (arXiv 2608.23167): a window, the start of every later block, the last position.
    """
    kept = AnchorSampler(window, 32).indices(count, generator(0)).tolist()
    assert kept == [*range(min(window, count)), *far]


@pytest.mark.parametrize("count, window, last, expected", [
    (224, 96, True, [*range(96), 223]), (224, 96, False, [*range(96)]), (96, 96, True, [*range(96)]), (1, 1, True, [0]),
])
def test_anchors_without_a_stride_are_what_streaming_keeps(count, window, last, expected):
    """Guards Streaming-dLLM's suffix (arXiv 2601.17917): the nearest positions and the last one."""
    assert AnchorSampler(window, last=last).indices(count, generator(0)).tolist() == expected


@given(windows, st.floats(0.1, 8), st.floats(0.05, 40), st.integers(0, 400))
def test_the_even_gaussian_keeps_what_the_gaussian_keeps_on_average(window, k_sigma, scale, count):
    """Guards the law that makes it the Gaussian's deterministic counterpart: at every distance the numbers kept so far
    differ by half a token at most; it never draws."""
    expected = GaussianSampler(window, k_sigma, scale).retention(count).double().cumsum(0)
    sampler = EvenGaussianSampler(window, k_sigma, scale)
    source = generator(0)
    before = source.get_state()
    kept = torch.zeros(count)
    kept[sampler.indices(count, source)] = 1
    assert ((kept.double().cumsum(0) - expected).abs() <= 0.5 + 1e-6).all()
    assert torch.equal(source.get_state(), before) and not sampler.is_random


@given(windows, st.floats(0.1, 8), st.floats(0.05, 40), st.integers(1, 400), st.integers(0, 2**31))
def test_the_last_position_is_one_more_and_changes_no_draw(window, k_sigma, scale, count, seed):
    """Guards `last` of the Gaussian: the same draws, and the answer's last position."""
    plain = GaussianSampler(window, k_sigma, scale).indices(count, generator(seed)).tolist()
    kept = GaussianSampler(window, k_sigma, scale, last=True).indices(count, generator(seed)).tolist()
    assert kept == sorted({*plain, count - 1})


def test_attention_keeps_the_best_and_the_nearest():
    """Guards the article's choice by scores: the top, the window, and the nearer one of equals."""
    scores = torch.tensor([[0.0, 0.1, 0.3, 0.2, 0.3, 0.3], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])
    kept = AttentionSampler(window=1, top_k=2).select(scores)
    assert [row.nonzero().flatten().tolist() for row in kept] == [[0, 2, 4], [0, 1]]
    assert AttentionSampler(window=0, top_k=0).select(scores).sum() == 0
    assert AttentionSampler(window=3, top_k=64).select(scores).all()
    assert (AttentionSampler().window, AttentionSampler().top_k) == (8, 64)


def test_spotlight_drops_the_most_attended_far_positions():
    """Guards the lottery-ticket test: the nearest 128 stay whatever their scores, and ten others go."""
    scores = torch.arange(300).flip(0)[None].float()  # the nearest has the highest
    kept = SpotlightSampler().select(scores)[0]
    assert (~kept).nonzero().flatten().tolist() == list(range(128, 138))
    assert SpotlightSampler().select(scores[:, :128]).all()
    assert SpotlightSampler().select(scores[:, :131]).sum() == 128
