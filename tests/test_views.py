"""What training shows to a model and asks of it: the same as decoding does, and a loss that estimates what it should.

    bash tests/run.sh tests/test_views.py
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import SAMPLERS, name_of, prompts_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpad.engine.decoding import decode, draw_suffix
from dpad.engine.settings import TokenIds
from dpad.training.examples import Example
from dpad.training.objective import MaskedLoss
from dpad.training.settings import Mixture, SuffixMixture, TrainingSettings
from dpad.training.views import collate, draw_view, grouped, levels, mask_block
from dream.generate import DreamRule
from dream.settings import DreamSettings
from llada.generate import LLaDARule
from llada.settings import LLaDASettings
from sampler import FullSuffix

TOKENS = TokenIds(mask=510, eos=509)
FAMILIES = {"random_llada": (LLaDARule, LLaDASettings), "random_dream": (DreamRule, DreamSettings)}


class Watched:
    """A model that keeps what each of its forwards got and gave."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.forwards: list[tuple[Tensor, Tensor, Tensor]] = []

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def hidden_states(self, ids, positions, *others):
        hidden = self.model.hidden_states(ids, positions, *others)
        self.forwards.append((ids.clone(), positions.clone(), hidden))
        return hidden


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_sees_what_decoding_sees(family, sampler, request):
    """Guards the point of the training: of the same canvas, the same ids at the same positions, and so the same logits
    to the bit as every uncached forward of `decode`; the suffix is what the same generator keeps."""
    model = request.getfixturevalue(family)
    rule_class, settings_class = FAMILIES[family]
    watched = Watched(model)
    settings = settings_class(gen_length=48, block_length=16, steps=12, suffix_sampler=sampler)
    [prompt] = prompts_of([9])
    blocks: list[int] = []
    output = decode(watched, rule_class(settings, TOKENS), prompt[None],
                    on_forward=lambda block, first: blocks.append(block))

    generator = torch.Generator().manual_seed(settings.seed)
    canvas, decided = output.sequences[0], output.decided_at[0]
    assert len(blocks) == len(watched.forwards)
    for block in range(3):
        begin, end = 9 + 16 * block, 25 + 16 * block
        kept = draw_suffix(sampler or FullSuffix(), end, len(canvas), generator)
        assert kept.tolist() == output.kept_suffix[block]
        for number in (number for number, forward_block in enumerate(blocks) if forward_block == block):
            ids, positions, hidden = watched.forwards[number]
            masked = decided[begin - 9 : end - 9] >= number
            view = mask_block(canvas, begin, end, kept, masked, 0.5, torch.ones(len(canvas)), TOKENS)
            assert torch.equal(view.ids, ids[0]) and torch.equal(view.positions, positions[0])
            assert torch.equal(view.weights.nonzero().flatten(), begin + masked.nonzero().flatten())
            batch = collate([view])
            assert batch.key_mask is None
            with torch.no_grad():
                same = model.hidden_states(batch.ids, batch.positions, batch.key_mask)
                assert torch.equal(model.head(same), model.head(hidden))
                loss, _ = MaskedLoss(model, bfloat16=False)(batch)
                places = view.weights.nonzero().flatten()
                logits = model.head(hidden[0, places - model.prediction_offset])
            expected = (F.cross_entropy(logits, canvas[places], reduction="none") * view.weights[places]).sum()
            assert torch.equal(loss, expected)


def settings_of(**values) -> TrainingSettings:
    return TrainingSettings(**{"gen_lengths": Mixture((32,)), "block_lengths": Mixture((4,))} | values)


EXAMPLE = Example([5, 6, 7], list(range(20, 29)))


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_the_mean_over_masks_is_the_exact_expectation(random_llada, t):
    """Guards the estimator: over many draws, the loss at one noise level is the sum over all 16 masks of a block, each
    with its probability, of the masked tokens' cross-entropies over t and over the block's length."""
    settings = settings_of(noise_min=t, noise_max=t, suffix=SuffixMixture(Mixture(("block",))))
    canvas = torch.tensor([*EXAMPLE.prompt, *EXAMPLE.answer, *[509] * 23])
    loss_of = {}
    expected = 0.0
    for block in range(3):  # the answer has 9 tokens, so the first EOS is in the third block of four
        begin = 3 + 4 * block
        for bits in itertools.product((False, True), repeat=4):
            masked = torch.tensor(bits)
            ids = canvas[: begin + 4].clone()
            ids[begin:][masked] = 510
            with torch.no_grad():
                logits = random_llada(ids[None]).logits[0, begin:][masked]
            loss = F.cross_entropy(logits, canvas[begin : begin + 4][masked], reduction="sum") / (t * 4)
            loss_of[begin, bits] = loss.item()
            probability = t ** sum(bits) * (1 - t) ** (4 - sum(bits))
            expected += probability * loss.item() / 3

    rng = random.Random(0)
    draws = []
    views = [draw_view(EXAMPLE, settings, TOKENS, rng, rng.random()) for _ in range(3000)]
    for view in views:
        bits = tuple((view.ids[-4:] == 510).tolist())
        draws.append(loss_of[len(view.ids) - 4, bits])
    draws = torch.tensor(draws)
    assert abs(draws.mean() - expected) < 4 * draws.std() / 3000**0.5
    for view in views[:40]:  # and the loss that is trained on is the one in the table
        with torch.no_grad():
            loss, _ = MaskedLoss(random_llada, bfloat16=False)(collate([view]))
        bits = tuple((view.ids[-4:] == 510).tolist())
        assert loss.item() == pytest.approx(loss_of[len(view.ids) - 4, bits], rel=1e-4, abs=1e-6)


def test_full_is_lladas_formula(random_llada):
    """Guards the objective `full`: the loss of LLaDA's fine-tuning, as its guidelines have it: cross-entropy of the
    masked tokens over their masking probability, over the answer's length with its padding, over the batch."""
    settings = settings_of(objective="full", block_lengths=Mixture((32,)))
    rng = random.Random(3)
    examples = [Example(list(range(10, 10 + n)), list(range(100, 100 + 2 * n))) for n in (3, 5, 9)]
    views = [draw_view(example, settings, TOKENS, rng, level) for example, level in zip(examples, levels(3, rng))]
    total = 0.0
    for example, view in zip(examples, views):
        answer_length = len(view.ids) - len(example.prompt)
        assert answer_length == 32
        masked = view.ids == 510
        with torch.no_grad():
            logits = random_llada(view.ids[None]).logits[0]
        token_loss = F.cross_entropy(logits[masked], view.targets[masked], reduction="none")
        probability = 1 / (view.weights[masked] * answer_length)  # one for the whole sample
        assert torch.allclose(probability, probability[:1])
        total += (token_loss / probability / answer_length).sum().item()
        assert not masked[: len(example.prompt)].any()
    with torch.no_grad():
        losses = sum(MaskedLoss(random_llada, False)(collate(group))[0].item() for group in grouped(views, 10_000))
    assert losses / 3 == pytest.approx(total / 3, rel=1e-4)


def test_the_masking_probability_of_full_is_its_t(random_llada):
    """Guards t: the weight of a masked token is 1 / (t * length) for the t that masks each token, drawn evenly."""
    settings = settings_of(objective="full", noise_min=0.2, noise_max=0.6)
    rng = random.Random(1)
    shares, ts = [], []
    for level in levels(400, rng):
        view = draw_view(EXAMPLE, settings, TOKENS, rng, level)
        t = 0.2 + 0.4 * level
        weights = view.weights[view.weights > 0]
        assert torch.allclose(weights, torch.tensor(1 / (t * 32)))
        shares.append((view.ids == 510).sum().item() / 32)
        ts.append(t)
    assert abs(sum(shares) / 400 - 0.4) < 0.02
    assert torch.corrcoef(torch.tensor([shares, ts]))[0, 1] > 0.7


@given(st.integers(0, 2**32), st.sampled_from(["null", "gaussian", "uniform", "window", "block"]),
       st.sampled_from(["blockwise", "full"]), st.integers(1, 40))
def test_samples_keep_to_their_form(seed, strategy, objective, length):
    """Guards every sample: prompts and what stands before the block are clean, what is behind it is masks, targets are
    the canvas, and the loss covers masks of one block alone, none beyond the one with the first EOS."""
    parameters = {"number": Mixture((5,))} if strategy == "uniform" else {}
    suffix = SuffixMixture() if objective == "full" else SuffixMixture(Mixture((strategy,)), parameters)
    settings = settings_of(objective=objective, suffix=suffix, gen_lengths=Mixture((32, 64)),
                           block_lengths=Mixture((4, 8)), eos_weight=0.5)
    rng = random.Random(seed)
    example = Example([5, 6, 7], [20 + number % 400 for number in range(length)])
    view = draw_view(example, settings, TOKENS, rng, rng.random())
    canvas = torch.tensor([*example.prompt, *example.answer, *[509] * 64])
    assert torch.equal(view.targets, canvas[view.positions])
    assert (view.positions.diff() > 0).all() and view.positions[-1] < 3 + 64
    masks = view.ids == 510
    assert torch.equal(view.ids[~masks], view.targets[~masks]) and not masks[:3].any()
    assert (view.weights[~masks] == 0).all() and (view.weights >= 0).all()
    scored = view.positions[view.weights > 0]
    if objective == "blockwise" and len(scored):
        assert (scored[0] - 3) // 8 == (scored[-1] - 3) // 8 and scored[-1] - 3 < 8 * (length // 8 + 1)
        behind = view.positions >= 3 + 8 * ((scored[-1] - 3) // 8 + 1)
        assert masks[behind].all()


def test_runs_that_differ_in_the_suffix_alone_mask_the_same_tokens():
    """Guards control arms: whatever suffix is drawn, the block and its masks are those of the full suffix."""
    for seed in range(20):
        seen = set()
        for strategies in (("null",), ("block",), ("gaussian", "null"), ("window",)):
            settings = settings_of(suffix=SuffixMixture(Mixture(strategies)), block_lengths=Mixture((4, 8)))
            view = draw_view(EXAMPLE, settings, TOKENS, random.Random(seed), 0.7)
            seen.add(tuple(view.positions[view.weights > 0].tolist()))
        assert len(seen) == 1


def test_padding_weighs_what_it_is_given():
    """Guards eos_weight: with 0 the EOS behind the first one is not in the loss, and the first one is."""
    rng = random.Random(5)
    for weight in (0.0, 0.25, 1.0):
        settings = settings_of(objective="full", noise_min=1.0, noise_max=1.0, eos_weight=weight)
        view = draw_view(EXAMPLE, settings, TOKENS, rng, 0.0)
        assert view.weights.sum().item() == pytest.approx(1)
        assert view.weights[12] == view.weights[3] and torch.allclose(view.weights[13:], weight * view.weights[12])


def test_batches_give_what_samples_give_alone(random_dream):
    """Guards padding: the losses of a batch of samples of other lengths add up to those of the samples alone."""
    settings = settings_of(suffix=SuffixMixture(Mixture(("gaussian",)), {"window": Mixture((16,))}))
    rng = random.Random(2)
    views = [draw_view(EXAMPLE, settings, TOKENS, rng, level) for level in levels(6, rng)]
    loss = MaskedLoss(random_dream, bfloat16=False)
    with torch.no_grad():
        alone = sum(loss(collate([view]))[0] for view in views)
        together, right = loss(collate(views))
    assert torch.allclose(alone, together, rtol=1e-5)
    assert len(right) == sum((view.weights > 0).sum() for view in views)


def test_groups_keep_every_sample_and_their_bound():
    """Guards memory: no group is larger than asked unless a single sample is, and none is lost."""
    rng = random.Random(4)
    views = [draw_view(EXAMPLE, settings_of(gen_lengths=Mixture((16, 32, 64))), TOKENS, rng, 0.5) for _ in range(30)]
    groups = grouped(views, 150)
    assert sorted(map(id, itertools.chain(*groups))) == sorted(map(id, views))
    assert all(len(group) * max(len(view.ids) for view in group) <= 150 for group in groups)
    assert len(grouped(views, 1)) == 30


@given(st.integers(1, 50), st.integers(0, 1000))
def test_levels_are_spread_evenly(count, seed):
    """Guards the noise levels of a step: one in each equal part of [0, 1)."""
    assert sorted(int(level * count) for level in levels(count, random.Random(seed))) == list(range(count))


def test_mixtures_draw_their_shares():
    """Guards mixtures: values come up as often as their shares say, and those that are not allowed never."""
    rng = random.Random(0)
    drawn = [Mixture((1, 2, 3), (1, 2, 1)).draw(rng) for _ in range(4000)]
    assert abs(drawn.count(2) / 4000 - 0.5) < 0.03 and abs(drawn.count(1) / 4000 - 0.25) < 0.03
    assert {Mixture((1, 2, 3)).draw(rng, lambda value: value > 1) for _ in range(50)} == {2, 3}
