"""The published decoding rules: their formulas by hand and by slow loops, and the laws that the block loop relies on.

    bash tests/run.sh tests/test_rules.py
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpad.engine.fields import settings_of
from dpad.engine.rules import (
    RULES,
    Credit,
    EntropyBound,
    FallingThreshold,
    Hierarchy,
    Klass,
    LocalLeap,
    ParallelRule,
    RuleState,
    choose_by_entropy_bound,
    choose_falling,
    choose_hierarchy,
    choose_leaping,
    choose_rested,
    divergence,
    earn_credit,
    falling_threshold,
)
from dpad.engine.selection import best_but_mask, choose_above, log_probability

NOTHING = -math.inf
MASK = 0  # the mask token of the small vocabularies below
unit = st.integers(0, 64).map(lambda number: number / 64)  # exact in binary, so that sums and ties are exact
confidences = st.lists(st.just(NOTHING) | unit | st.floats(0, 1), min_size=1, max_size=14)
thresholds = st.floats(0.05, 1)
ONE_OF_EACH = [FallingThreshold(0.6, 0.5), EntropyBound(0.5), LocalLeap(0.7, 0.4, 2), Hierarchy(0.7, 0.3),
               Klass(0.5, 0.2, 1), Credit(0.6)]
each_rule = pytest.mark.parametrize("rule", ONE_OF_EACH, ids=lambda rule: type(rule).__name__)


def row_of(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def places(choice: Tensor) -> set[int]:
    """The places that are chosen in the only row of bool [1, L]."""
    assert choice.dtype == torch.bool and len(choice) == 1
    return set(choice[0].nonzero().squeeze(1).tolist())


def competing(values: list[float]) -> list[int]:
    return [place for place, value in enumerate(values) if value != NOTHING]


def best_of(values: list[float]) -> set[int]:
    """The leftmost of the largest, as a set; empty where nothing competes."""
    return set(competing(values) and [values.index(max(values))])


# --- Formulas by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "fall", "at_32", "at_16", "at_1"), [
    (97, 0.3, 0.9000, 0.8665, 0.8351),
    (129, 0.6, 0.9000, 0.8463, 0.7960),
    (0, 0.3, 0.9000, 0.7650, 0.6384),  # the last block
    (0, 0.6, 0.9000, 0.6300, 0.3769),
])
def test_falling_threshold_has_the_published_values(kept, fall, at_32, at_16, at_1):
    """Guards Streaming-dLLM's formula, with the suffix in the share: three points of a block of 32, from 0.9."""
    found = falling_threshold(torch.tensor([32, 16, 1]), torch.tensor([kept] * 3), 32, 0.9, fall)
    assert found.tolist() == pytest.approx([at_32, at_16, at_1], abs=5e-5)


def test_falling_threshold_differs_between_rows_by_their_masks_and_suffix():
    """Guards the rows' own shares: with 2 of 4 masks left, 0.8 * (1 - 0.5 * 0.5) where no suffix is kept."""
    confidence = torch.tensor([[0.9, 0.61, NOTHING, NOTHING]] * 2, dtype=torch.float64)
    choice = choose_falling(confidence, torch.tensor([0, 96]), 0.8, 0.5)  # 0.6 and 0.792
    assert choice.tolist() == [[True, True, False, False], [True, False, False, False]]


@pytest.mark.parametrize(("gamma", "count"), [(0, 1), (0.124, 1), (0.125, 2), (0.374, 2), (0.375, 3), (0.875, 4)])
def test_entropy_bound_by_hand(gamma, count):
    """Guards EB-Sampler's bound: entropies 1/8, 1/4, 1/2, 1 leave 0, 1/8, 3/8, 7/8 without the largest."""
    entropy = row_of([0.5, 0.125, 99, 1, 0.25])
    confidence = -entropy
    confidence[0, 2] = NOTHING
    assert places(choose_by_entropy_bound(confidence, entropy, gamma)) == set([1, 4, 0, 3][:count])


def test_entropy_bound_subtracts_the_largest_of_the_run_and_not_the_last():
    """Guards against a slip of other implementations, in an order that is not by entropy: 1/2 comes before 1/8."""
    confidence = row_of([0.9, 0.8, 0.7])
    entropy = row_of([0.5, 0.125, 0.25])
    assert places(choose_by_entropy_bound(confidence, entropy, 0.125)) == {0, 1}
    assert places(choose_by_entropy_bound(confidence, entropy, 0.375)) == {0, 1, 2}
    # Nor the largest of other rows: the second row's 9 is none of the first row's business.
    both = choose_by_entropy_bound(confidence.repeat(2, 1), torch.cat((entropy, row_of([9, 9, 9]))), 0.125)
    assert both.tolist() == [[True, True, False], [True, False, False]]


def test_leaping_by_hand():
    """Guards LocalLeap: place 3 is an anchor; 1 and 5 are near and above 0.75, 4 is near and below, 0 and 6 are far."""
    values = [0.76, 0.80, 0.50, 0.92, 0.74, 0.75, 0.89, NOTHING, 0.88]
    assert places(choose_leaping(row_of(values), 0.9, 0.75, 2)) == {1, 3, 5}
    assert places(choose_leaping(row_of(values), 0.9, 0.75, 3)) == {0, 1, 3, 5, 6}
    assert places(choose_leaping(row_of(values), 0.93, 0.75, 2)) == {3}  # no anchor: the best alone
    assert places(choose_leaping(row_of(values), 0.9, 0.75, 10**12)) == {0, 1, 3, 5, 6, 8}


def test_hierarchy_by_hand():
    """Guards dInfer's rule: the best of each gap above 0.4, everything above 0.9, and no best of a hopeless gap."""
    values = [0.5, 0.45, NOTHING, 0.41, 0.3, NOTHING, NOTHING, 0.35, 0.2]
    assert places(choose_hierarchy(row_of(values), 0.9, 0.4)) == {0, 3}
    values[4] = 0.95
    assert places(choose_hierarchy(row_of(values), 0.9, 0.4)) == {0, 4}
    values[0] = values[1] = 0.91
    assert places(choose_hierarchy(row_of(values), 0.9, 0.4)) == {0, 1, 4}
    assert places(choose_hierarchy(row_of([NOTHING, 0.2, 0.1]), 0.9, 0.4)) == {1}


def test_divergence_by_hand():
    """Guards KLASS's measure: 1/2 ln 2 + 1/2 ln 2/3 from (1/4, 3/4) to (1/2, 1/2), and a large one from nothing."""
    p = torch.tensor([[0.5, 0.5]] * 3, dtype=torch.float64)
    previous = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0, 0]], dtype=torch.float64)
    assert divergence(p, previous).tolist() == pytest.approx([0.1438410362, 0, math.log(0.5e12)], abs=1e-9)


def test_rested_positions_by_hand():
    """Guards KLASS's choice: confident and rested; the most confident one only where a row has none of these."""
    confidence = torch.tensor([[0.95, 0.91, 0.99, 0.9], [0.95, 0.91, 0.99, NOTHING]], dtype=torch.float64)
    rested = torch.tensor([[2, 3, 1, 9], [1, 0, 1, 9]])
    choice = choose_rested(confidence, rested, 0.9, 2)
    assert choice.tolist() == [[True, True, False, False], [False, False, True, False]]


def test_klass_waits_for_its_history():
    """Guards the block's start: predictions that never move are stable from the forward after `history` others on."""
    state = Klass(kl_history=2).begin(torch.tensor([0]), 6, MASK)
    masked = torch.ones(1, 6, dtype=torch.bool)
    counts = []
    while masked.any():
        choice = step(state, masked, torch.tensor([0.01, 0.95, 0.04]).log().expand(1, 6, 3))
        counts.append(int(choice.sum()))
        masked &= ~choice
    assert counts == [1, 1, 4]


def test_credit_by_hand():
    """Guards CreditDecoding: the likeliest token earns 1/2 ** 1/2, of which 0.8 is left when the next one earns it."""
    rule = Credit(credit_weight=0.7, credit_decay=0.8, credit_power=0.5)
    state = rule.begin(torch.tensor([0]), 1, MASK)
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log()
    place = torch.tensor([0]), torch.tensor([0])
    first = state.adjust(logits, *place) - logits
    assert first.tolist()[0] == pytest.approx([0, 0, 0.7 * math.log(1 + math.sqrt(0.5))], abs=1e-6)
    other = torch.tensor([[0.25, 0.5, 0.25]]).log()
    second = state.adjust(other, *place) - other
    assert second.tolist()[0] == pytest.approx(
        [0, 0.7 * math.log(1 + math.sqrt(0.5)), 0.7 * math.log(1 + 0.8 * math.sqrt(0.5))], abs=1e-6)


def test_the_mask_token_earns_no_credit():
    """Guards against credit for what is never decoded: the next best token earns it, by its own probability."""
    state = Credit(credit_power=1).begin(torch.tensor([0]), 1, MASK)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    adjusted = state.adjust(logits.clone(), torch.tensor([0]), torch.tensor([0]))
    assert (adjusted - logits).tolist()[0] == pytest.approx([0, 0.7 * math.log(1.3), 0], abs=1e-6)


# --- Formulas by slow loops -------------------------------------------------------------------------------------------


@given(confidences, st.integers(0, 40), thresholds, st.floats(0, 1))
def test_falling_equals_a_slow_loop(values, kept, threshold, fall):
    share = (len(competing(values)) + kept) / (len(values) + kept)
    lowered = threshold * (1 - fall * (1 - share))
    expected = {place for place in competing(values) if values[place] >= lowered} | best_of(values)
    assert places(choose_falling(row_of(values), torch.tensor([kept]), threshold, fall)) == expected


@given(st.lists(st.tuples(st.just(NOTHING) | unit, unit), min_size=1, max_size=14), unit.map(lambda number: 2 * number))
def test_entropy_bound_equals_a_slow_loop(pairs, gamma):
    values, entropies = [c for c, _ in pairs], [h for _, h in pairs]
    order = sorted(competing(values), key=lambda place: -values[place])
    runs = [order[:count] for count in range(1, len(order) + 1)]
    fitting = [run for run in runs if sum(entropies[i] for i in run) - max(entropies[i] for i in run) <= gamma]
    expected = set(max(fitting, key=len, default=[]))
    assert places(choose_by_entropy_bound(row_of(values), row_of(entropies), gamma)) == expected


@given(confidences, thresholds, thresholds, st.integers(0, 20))
def test_leaping_equals_a_slow_loop(values, one, another, reach):
    threshold, near_threshold = max(one, another), min(one, another)
    expected = best_of(values)
    for place in competing(values):
        near = any(values[other] >= threshold for other in competing(values) if abs(other - place) <= reach)
        if values[place] >= (near_threshold if near else threshold):
            expected.add(place)
    assert places(choose_leaping(row_of(values), threshold, near_threshold, reach)) == expected


@given(confidences, thresholds, st.floats(0, 1))
def test_hierarchy_equals_a_slow_loop(values, threshold, low_threshold):
    expected = best_of(values) | {place for place in competing(values) if values[place] > threshold}
    for masked, group in itertools.groupby(range(len(values)), key=lambda place: values[place] != NOTHING):
        run = list(group)
        highest = max(values[place] for place in run)
        if masked and highest > low_threshold:
            expected |= {place for place in run if values[place] == highest}
    assert places(choose_hierarchy(row_of(values), threshold, low_threshold)) == expected


# --- At work ----------------------------------------------------------------------------------------------------------


def step(state: RuleState, masked: Tensor, logits: Tensor) -> Tensor:
    """One step of the block loop: which positions bool [R, L] are decoded, given the logits [R, L, V] of all."""
    rows, columns = masked.nonzero().unbind(1)
    adjusted = state.adjust(logits[rows, columns].clone(), rows, columns)
    confidence = torch.full(masked.shape, NOTHING, dtype=torch.float64)
    confidence[rows, columns] = log_probability(adjusted, best_but_mask(adjusted, MASK)).exp()
    p = logits.double().softmax(-1)
    return state.choose(confidence, -(p * (p + 1e-300).log()).sum(-1))


def predictions(seed: int, rows: int, length: int = 5, vocabulary: int = 7, steps: int = 9) -> Tensor:
    """Logits [steps, R, L, V] as of a model that grows more and more certain: noise on a drift that comes to rest."""
    generator = torch.Generator().manual_seed(seed)
    shape = steps, rows, length, vocabulary
    scale = torch.tensor([0.5**number for number in range(steps)])[:, None, None, None]
    return 3 * torch.randn(shape[1:], generator=generator) + 2 * scale * torch.randn(shape, generator=generator)


def decode_block(rule: ParallelRule, logits: Tensor, kept: list[int], shuffle: bool = False) -> Tensor:
    """At which step each position is decoded, int64 [R, L], when rows that are complete leave the batch."""
    rows, length = logits.shape[1:3]
    state = rule.begin(torch.tensor(kept), length, MASK)
    decided_at = torch.full((rows, length), -1)
    present = list(range(rows))
    for number, now in enumerate(logits):
        masked = decided_at[present] < 0
        choice = step(state, masked, now[present])
        assert not (choice & ~masked).any() and choice.any(dim=1).all()
        decided_at[present] = torch.where(choice, number, decided_at[present])
        staying = [place for place, row in enumerate(present) if (decided_at[row] < 0).any()]
        if shuffle:
            staying.reverse()
        if not staying:
            return decided_at
        state.keep(staying)
        present = [present[place] for place in staying]
    raise AssertionError("the rule needed more steps than there are positions")


@each_rule
@given(seed=st.integers(0, 2**31), shuffle=st.booleans())
def test_a_batch_decodes_what_its_rows_decode_alone(rule, seed, shuffle):
    """Guards batch = alone, in a batch whose rows leave at different steps and in changing order."""
    logits = predictions(seed, rows=4)
    kept = [0, 3, 20, 100]
    together = decode_block(rule, logits, kept, shuffle)
    for row in range(4):
        assert torch.equal(decode_block(rule, logits[:, [row]], [kept[row]])[0], together[row])


@each_rule
def test_a_broken_model_does_not_loop(rule):
    """Guards the end of a block when logits are NaN, in some rows or all: the loop then reports it."""
    logits = predictions(1, rows=3)
    logits[:, 1] = math.nan
    logits[3:, 2, 2:] = math.nan
    assert (decode_block(rule, logits, [0, 0, 0]) >= 0).all()
    assert (decode_block(rule, torch.full_like(logits, math.nan), [0, 0, 0]) >= 0).all()


@given(st.integers(0, 2**31), thresholds, st.floats(1e-3, 1), st.integers(1, 3))
def test_klass_equals_a_slow_loop(seed, threshold, max_kl, history):
    logits = predictions(seed, rows=1)
    decided_at: dict[int, int] = {}
    distributions = []
    for number, now in enumerate(logits[:, 0].double().softmax(-1).tolist()):
        distributions.append(now)
        confidence = {place: max(p[1:]) for place, p in enumerate(now) if place not in decided_at}
        ready = []
        for place in confidence:
            divergences = [
                sum(p * (math.log(p + 1e-12) - math.log(q + 1e-12)) for p, q in zip(later[place], earlier[place]))
                for earlier, later in itertools.pairwise(distributions)
            ]
            latest = divergences[-history:]
            if len(latest) == history and max(latest) < max_kl and confidence[place] > threshold:
                ready.append(place)
        for place in ready or sorted(confidence, key=lambda place: -confidence[place])[:1]:
            decided_at[place] = number
    found = decode_block(Klass(threshold, max_kl, history), logits, [0])
    assert found[0].tolist() == [decided_at[place] for place in range(5)]


@given(st.integers(0, 2**31), st.floats(0, 2), st.floats(0, 1), st.floats(0, 2))
def test_credit_equals_a_slow_loop(seed, weight, decay, power):
    logits = predictions(seed, rows=1, length=1)
    state = Credit(credit_weight=weight, credit_decay=decay, credit_power=power).begin(torch.tensor([0]), 1, MASK)
    credit = [0.0] * 7
    for now in logits[:, 0]:
        p = now[0].double().softmax(-1).tolist()
        best = max(range(1, 7), key=lambda token: p[token])
        credit = [decay * value for value in credit]
        credit[best] += p[best] ** power
        expected = [value + weight * math.log(1 + earned) for value, earned in zip(now[0].tolist(), credit)]
        adjusted = state.adjust(now.clone(), torch.tensor([0]), torch.tensor([0]))
        assert adjusted[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_credit_decays_before_more_is_earned():
    """Guards the formula as a function: decay first, then the new credit, which is not decayed."""
    credit = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]])
    earned = earn_credit(credit, torch.tensor([1, 0]), torch.tensor([0.25, 1.0]).double(), 0.5, 0.5)
    assert earned.tolist() == [[0.5, 1.5, 0.0], [1.0, 0.0, 2.0]]
    assert credit.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 4.0]]


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_logits_given_stay_as_they_are(rule, dtype):
    """Guards the caller's logits, of every dtype that models have: rules return others or the same, unchanged."""
    state = rule.begin(torch.tensor([0, 0]), 5, MASK)
    logits = predictions(3, rows=2)[0].flatten(0, 1).to(dtype)
    rows, columns = torch.ones(2, 5).nonzero().unbind(1)
    before = logits.clone()
    for _ in range(3):
        adjusted = state.adjust(logits, rows, columns)
        assert torch.equal(logits, before) and adjusted.shape == logits.shape and adjusted.isfinite().all()
        if not isinstance(rule, Credit):
            assert adjusted is logits


@pytest.mark.parametrize("rule", [Klass(0.5, 0.2, 1), Credit(0.6)], ids=["klass", "credit"])
def test_many_logits_are_worked_on_in_pieces(rule, monkeypatch):
    """Guards the memory: the result does not depend on how many logits are turned into float64 at a time."""
    logits = predictions(5, rows=3)
    whole = decode_block(rule, logits, [0, 0, 0])
    monkeypatch.setattr("dpad.engine.selection.PIECE_ON_CPU", 14)  # two rows of 7
    assert torch.equal(decode_block(rule, logits, [0, 0, 0]), whole)


def test_a_suffix_that_is_chosen_late_counts():
    """Guards the loop's right to replace `kept` after a block's first forward, and its order after rows have left."""
    state = FallingThreshold(0.8, 0.5).begin(torch.tensor([96, 96, 96]), 4, MASK)
    confidence = torch.tensor([[0.9, 0.61, NOTHING, NOTHING]] * 3, dtype=torch.float64)
    assert state.choose(confidence, None).sum(dim=1).tolist() == [1, 1, 1]
    state.kept = torch.tensor([96, 0, 96])
    assert state.choose(confidence, None).sum(dim=1).tolist() == [1, 2, 1]
    state.keep([2, 1])
    assert state.choose(confidence[:2], None).sum(dim=1).tolist() == [1, 2]


# --- Laws -------------------------------------------------------------------------------------------------------------


choosing = st.one_of(  # functions of confidence and entropy
    st.builds(lambda kept, *settings: lambda c, _: choose_falling(c, torch.full((len(c),), kept), *settings),
              st.integers(0, 300), thresholds, st.floats(0, 1)),
    st.builds(lambda gamma: lambda c, h: choose_by_entropy_bound(c, h, gamma), st.floats(0, 5)),
    st.builds(lambda one, another, reach: lambda c, _: choose_leaping(c, max(one, another), min(one, another), reach),
              thresholds, thresholds, st.integers(0, 40)),
    st.builds(lambda *settings: lambda c, _: choose_hierarchy(c, *settings), thresholds, st.floats(0, 1)),
    st.builds(lambda rested, *settings: lambda c, _: choose_rested(c, torch.full(c.shape, rested), *settings),
              st.integers(0, 3), thresholds, st.integers(1, 3)),
)
lengths = st.integers(1, 9)
anything = st.one_of(st.just(NOTHING), st.just(math.nan), unit, st.floats(-30, 2))


@given(choosing, lengths.flatmap(lambda length: st.lists(
    st.lists(st.tuples(anything, st.floats(0, 12) | st.just(math.nan)), min_size=length, max_size=length),
    min_size=1, max_size=4)))
def test_every_step_makes_progress_and_only_competing_positions_are_chosen(choose, rows):
    """Guards the loop's end: a row with masks gets one at least, whatever is NaN; and rows do not see each other."""
    confidence, entropy = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    choice = choose(confidence, entropy)
    masks = confidence != NOTHING
    assert choice.shape == masks.shape and not (choice & ~masks).any()
    assert torch.equal(choice.any(dim=1), masks.any(dim=1))
    for row in range(len(rows)):
        assert torch.equal(choose(confidence[[row]], entropy[[row]])[0], choice[row])


def is_subset(smaller: Tensor, larger: Tensor) -> bool:
    return not (smaller & ~larger).any()


@given(confidences, thresholds, thresholds, st.integers(0, 60), st.floats(0, 1), st.integers(0, 12))
def test_a_lower_threshold_decodes_as_much_and_more(values, one, another, kept, portion, reach):
    """Guards monotony in every threshold, where a rule has it. KLASS does not: its fallback is another position."""
    low, high = sorted((one, another))
    c, suffix = row_of(values), torch.tensor([kept])
    assert is_subset(choose_falling(c, suffix, high, portion), choose_falling(c, suffix, low, portion))
    assert is_subset(choose_falling(c, suffix, one, portion / 2), choose_falling(c, suffix, one, portion))
    assert is_subset(choose_falling(c, suffix + 50, one, portion), choose_falling(c, suffix, one, portion))
    near = low * portion
    assert is_subset(choose_leaping(c, high, near, reach), choose_leaping(c, low, near, reach))
    assert is_subset(choose_leaping(c, high, low, reach), choose_leaping(c, high, near, reach))
    assert is_subset(choose_leaping(c, high, low, reach), choose_leaping(c, high, low, reach + 1))
    assert is_subset(choose_hierarchy(c, high, portion), choose_hierarchy(c, low, portion))
    assert is_subset(choose_hierarchy(c, one, portion), choose_hierarchy(c, one, portion / 2))
    for rule_of in (FallingThreshold, Credit):
        strict, loose = (rule_of(threshold).begin(suffix, len(values), MASK) for threshold in (high, low))
        assert is_subset(strict.choose(c, None), loose.choose(c, None))


@given(confidences, st.data(), st.floats(0, 4), st.floats(0, 4))
def test_a_larger_entropy_bound_decodes_as_much_and_more(values, data, one, another):
    entropy = row_of(data.draw(st.lists(st.floats(0, 12), min_size=len(values), max_size=len(values))))
    low, high = sorted((one, another))
    c = row_of(values)
    assert is_subset(choose_by_entropy_bound(c, entropy, low), choose_by_entropy_bound(c, entropy, high))


@given(st.lists(st.tuples(st.just(NOTHING) | unit, st.floats(1e-6, 12)), min_size=1, max_size=14))
def test_without_an_entropy_bound_one_token_is_decoded(pairs):
    """Guards gamma 0: the best position alone, where nothing is certain."""
    values = [c for c, _ in pairs]
    assert places(choose_by_entropy_bound(row_of(values), row_of([h for _, h in pairs]), 0)) == best_of(values)


@given(confidences.filter(competing), thresholds, st.integers(0, 100), st.floats(0, 1))
def test_rules_whose_effect_is_turned_off_are_the_plain_threshold(values, threshold, kept, portion):
    """Guards the special cases that tell a rule's effect from the threshold's: no fall, no reach, no low threshold."""
    c = row_of(values)
    plain = choose_above(c, threshold)
    assert torch.equal(choose_falling(c, torch.tensor([kept]), threshold, 0), plain)
    assert torch.equal(choose_leaping(c, threshold, threshold * portion, 0), plain)
    assert torch.equal(Credit(threshold).begin(torch.tensor([kept]), len(values), MASK).choose(c, None), plain)
    if threshold not in values:  # at the threshold itself dInfer's code does not decode
        assert torch.equal(choose_hierarchy(c, threshold, 1), plain)


@given(st.integers(0, 2**31))
def test_credit_without_weight_leaves_the_logits_alone(seed):
    state = Credit(credit_weight=0).begin(torch.tensor([0, 0]), 5, MASK)
    rows, columns = torch.ones(2, 5).nonzero().unbind(1)
    for now in predictions(seed, rows=2):
        logits = now.flatten(0, 1)
        assert torch.equal(state.adjust(logits, rows, columns), logits)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FallingThreshold(threshold=0), "threshold is 0; it must be a finite number above 0 and at most 1"),
    (lambda: Credit(threshold=1.5), "threshold is 1.5; it must be"),
    (lambda: Klass(threshold=math.nan), "threshold is nan; it must be"),
    (lambda: Hierarchy(threshold="0.9"), "threshold is '0.9'; it must be"),
    (lambda: FallingThreshold(fall=-0.1), "fall is -0.1; it must be a finite number of at least 0 and at most 1"),
    (lambda: FallingThreshold(fall=1.1), "fall is 1.1; it must be"),
    (lambda: EntropyBound(gamma=-1), "gamma is -1; it must be a finite number of at least 0"),
    (lambda: EntropyBound(gamma=math.inf), "gamma is inf; it must be"),
    (lambda: LocalLeap(near_threshold=0), "near_threshold is 0; it must be a finite number above 0"),
    (lambda: LocalLeap(threshold=0.7), r"near_threshold is 0.75; it must be at most threshold \(0.7\)"),
    (lambda: LocalLeap(reach=-1), "reach is -1; it must be an integer of at least 0"),
    (lambda: LocalLeap(reach=True), "reach is True; it must be an integer"),
    (lambda: Hierarchy(low_threshold=1.1), "low_threshold is 1.1; it must be"),
    (lambda: Klass(max_kl=0), "max_kl is 0; it must be a finite number above 0"),
    (lambda: Klass(kl_history=0), "kl_history is 0; it must be an integer of at least 1"),
    (lambda: Klass(kl_history=1.5), "kl_history is 1.5; it must be an integer"),
    (lambda: Credit(credit_weight=-1), "credit_weight is -1; it must be"),
    (lambda: Credit(credit_decay=1.1), "credit_decay is 1.1; it must be"),
    (lambda: Credit(credit_power=-0.1), "credit_power is -0.1; it must be"),
])
def test_bad_settings_are_refused(make, message):
    """Guards the one sentence: the setting, its value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        make()


def test_defaults_and_names_are_the_published_ones():
    """Guards the names that flags and records have, and the values that their sources give."""
    found = {name: {entry.name: entry.default for entry in settings_of(rule)} for name, rule in RULES.items()}
    assert found == {
        "falling": {"threshold": 0.9, "fall": 0.3},
        "eb": {"gamma": 0.001},
        "localleap": {"threshold": 0.9, "near_threshold": 0.75, "reach": 4},
        "hierarchy": {"threshold": 0.9, "low_threshold": 0.4},
        "klass": {"threshold": 0.9, "max_kl": 0.01, "kl_history": 2},
        "credit": {"threshold": 0.9, "credit_weight": 0.7, "credit_decay": 0.8, "credit_power": 0.2},
    }
    for rule in RULES.values():
        assert rule() == rule() and rule.orders[0] in ("maskgit_plus", "entropy")
        assert rule().begin(torch.tensor([0]), 4, MASK).observes == (rule in (Klass, Credit))


def test_rules_are_named_without_torch():
    """Guards a quick --help: the settings name the rules, and torch takes seconds to import."""
    code = "import sys, dpad.engine.rules; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
