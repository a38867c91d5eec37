"""The block loop: batch = alone, cached = uncached when nothing changes, schedules, early termination, bad input.

    bash tests/run.sh tests/test_decoding.py
"""

import math

import pytest
import torch
from helpers import SAMPLERS, left_padded, name_of, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dpad.engine.selection import choose_above, choose_most_confident, log_probability
from dpad.engine.settings import CACHE_MODES, TokenIds
from dpad.engine.transformer import SlotCache, positions_of
from llada.generate import LLaDARule, LLaDASettings, choose_by_factor, generate
from sampler import GaussianSampler, WindowSampler

SCHEDULES = [{"steps": 12}, {"threshold": 0.02}, {"factor": 0.97}, {"steps": 24, "temperature": 0.8},
             {"steps": 12, "remasking": "random"}]


@pytest.mark.parametrize("cache", CACHE_MODES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_a_batch_gives_each_row_what_it_gets_alone(random_llada, cache, sampler, schedule):
    """Guards padding, RoPE positions, shared draws, rows that sit out a block and rows that leave the batch."""
    prompts = prompts_of([3, 17, 8, 30, 1, 17])
    ids, mask = left_padded(prompts)
    # EOS is a token that this random model likes, so that rows do terminate, at different blocks.
    options = dict(gen_length=96, block_length=16, cache=cache, suffix_sampler=sampler, early_termination=True,
                   eos_id=91, seed=5) | schedule
    if "steps" not in options:
        options["steps"] = 6
    together = generate(random_llada, ids, attention_mask=mask, **options)
    slots = 0
    for row, prompt in enumerate(prompts):
        alone = generate(random_llada, prompt[None], **options)
        assert torch.equal(together.sequences[row, ids.shape[1] - len(prompt):], alone.sequences[0])
        assert torch.equal(together.decided_at[row], alone.decided_at[0])
        assert together.forwards[row] == alone.forwards[0]
        shift = ids.shape[1] - len(prompt)
        relative = [[position - shift for position in block] for block in together.kept_suffix]
        assert relative[: len(alone.kept_suffix)] == alone.kept_suffix
        slots += alone.tokens_processed
    assert together.tokens_processed == slots


def test_padding_that_every_row_has_changes_nothing(random_llada):
    """Guards `kept_suffix` and counts when no row fills the width: positions are those of a row without padding."""
    prompts = prompts_of([5, 9])
    ids, mask = left_padded(prompts)
    wide, wide_mask = (torch.nn.functional.pad(x, (3, 0), value=value) for x, value in ((ids, 7), (mask, 0)))
    options = dict(gen_length=64, block_length=16, steps=8, suffix_sampler=GaussianSampler(48, 3, 1.6), cache="prefix")
    plain = generate(random_llada, ids, attention_mask=mask, **options)
    padded = generate(random_llada, wide, attention_mask=wide_mask, **options)
    assert padded.kept_suffix == plain.kept_suffix
    assert padded.tokens_processed == plain.tokens_processed
    assert torch.equal(padded.sequences[:, 3:], plain.sequences) and (padded.sequences[:, :3] == 7).all()
    padded.sequences.add_(0)  # an ordinary tensor, not one that only inference mode may touch


def test_rows_do_leave_a_batch_at_different_times(random_llada):
    """Guards the test above against a model in which no row ever terminates or finishes a block early."""
    ids, mask = left_padded(prompts_of([3, 17, 8, 30, 1, 17]))
    output = generate(random_llada, ids, attention_mask=mask, gen_length=96, block_length=16, threshold=0.02, eos_id=91,
                      early_termination=True, suffix_sampler=GaussianSampler(48, 3, 1.6))
    assert len(set(output.forwards.tolist())) > 2
    assert len({int((row >= 0).sum()) for row in output.decided_at}) > 1


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=2, max_size=5), cache=st.sampled_from(CACHE_MODES),
    sampler=st.sampled_from(SAMPLERS), blocks=st.integers(1, 4), length=st.sampled_from([4, 8, 16]),
    threshold=st.sampled_from([None, 0.02, 0.5]), seed=st.integers(0, 2**31),
)
def test_batch_is_alone_for_any_settings(random_llada, lengths, cache, sampler, blocks, length, threshold, seed):
    """Guards the same law over drawn settings."""
    window = getattr(sampler, "window", 1)
    blocks = max(blocks, math.ceil(window / length))
    options = dict(gen_length=blocks * length, block_length=length, steps=blocks * min(length, 2), cache=cache,
                   suffix_sampler=sampler, threshold=threshold, seed=seed, early_termination=True, eos_id=91)
    prompts = prompts_of(lengths, seed)
    ids, mask = left_padded(prompts, filler=510)  # padding with masks must not matter either
    together = generate(random_llada, ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        alone = generate(random_llada, prompt[None], **options)
        assert torch.equal(together.sequences[row, ids.shape[1] - len(prompt):], alone.sequences[0])


@torch.inference_mode()
@pytest.mark.parametrize("start, stop", [(0, 40), (20, 40), (20, 28), (39, 40)])
def test_recomputing_unchanged_slots_changes_nothing(random_llada, start, stop):
    """Guards the cache: with no token changed, any recomputed slots give the hidden states of the full forward."""
    ids = torch.randint(0, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.cat((torch.arange(28), torch.arange(31, 55, 2))).expand(2, 40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, :5] = False
    plain = random_llada.hidden_states(ids, positions, mask)
    cache = SlotCache(random_llada, rows=3, capacity=64)
    cache.begin(range(2), 40)
    random_llada.hidden_states(ids, positions, mask, cache, 0)
    again = random_llada.hidden_states(ids[:, start:stop], positions[:, start:stop], mask, cache, start)
    torch.testing.assert_close(again, plain[:, start:stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=name_of)
def test_one_step_a_block_is_the_same_in_every_cache_mode(random_llada, cache, sampler):
    """Guards the opening step: nothing is recomputed when each block takes one forward."""
    ids = torch.stack(prompts_of([21]))
    options = dict(gen_length=64, block_length=16, steps=4, suffix_sampler=sampler)
    plain, cached = generate(random_llada, ids, **options), generate(random_llada, ids, cache=cache, **options)
    assert torch.equal(plain.sequences, cached.sequences)
    assert plain.tokens_processed == cached.tokens_processed


def test_attention_implementations_agree(random_llada):
    """Guards the eager formula (which training uses) and torch's kernels against each other, with a padding mask."""
    ids, mask = left_padded(prompts_of([12, 30, 7]))
    expected = random_llada(ids, attention_mask=mask).logits
    before = random_llada.config._attn_implementation
    assert before == "sdpa"
    random_llada.config._attn_implementation = "eager"
    try:
        given = random_llada(ids, attention_mask=mask).logits
    finally:
        random_llada.config._attn_implementation = before
    torch.testing.assert_close(given[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_logits_for_a_part_of_the_positions(random_llada):
    """Guards `logits_to_keep`: the same numbers as a slice of all logits."""
    ids = torch.stack(prompts_of([33]))
    everything = random_llada(ids).logits
    torch.testing.assert_close(random_llada(ids, logits_to_keep=5).logits, everything[:, -5:])
    torch.testing.assert_close(random_llada(ids, logits_to_keep=torch.tensor([2, 9])).logits, everything[:, [2, 9]])
    with pytest.raises(ValueError, match="logits_to_keep"):
        random_llada(ids, logits_to_keep=34)
    with pytest.raises(ValueError, match="labels"):
        random_llada(ids, labels=ids)
    with pytest.raises(ValueError, match="logits_to_keep"):
        random_llada(ids, logits_to_keep=[9])
    assert random_llada(ids, return_dict=True, use_cache=False, output_hidden_states=False).logits.shape[1] == 33


# --- Selection -------------------------------------------------------------------------------------------------------


def test_confidence_is_the_float64_softmax():
    """Guards the log-sum-exp form against the plain softmax over the vocabulary."""
    logits = torch.randn(40, 512, generator=torch.Generator().manual_seed(3)) * 9
    tokens = logits.argmax(-1)
    plain = logits.double().softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(log_probability(logits, tokens).exp(), plain, atol=0, rtol=1e-13)


def test_most_confident_positions_leftmost_among_equals():
    """Guards ties: a result must not depend on the kernel's order."""
    confidence = torch.tensor([[0.2, 0.9, 0.9, -math.inf, 0.9], [0.1, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    assert choose_most_confident(confidence, 2).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_threshold_takes_equals_and_at_least_one():
    confidence = torch.tensor([[0.2, 0.5, -math.inf], [0.2, 0.1, -math.inf]], dtype=torch.float64)
    assert choose_above(confidence, 0.5).int().tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("confidence, factor, expected", [
    ([0.3, 0.2, 0.1], 0.5, [1, 0, 0]),                # the first passes always; the second needs 1 - 0.5/3
    ([0.3, 0.84, 0.9], 0.5, [1, 1, 1]),               # only 0.3 fails, at n = 3, and it is the last one: decode all
    ([0.9, 0.9, 0.1, 0.1], 0.5, [1, 1, 0, 0]),
    ([0.9, 0.9, 0.9, 0.1], 0.6, [1, 1, 1, 1]),        # only the last one fails: decode all
    ([-math.inf, 0.4, -math.inf], 0.1, [0, 1, 0]),    # one competitor left
])
def test_factor_rule_by_hand(confidence, factor, expected):
    """Guards Fast-dLLM's factor rule at its corners, worked out by hand."""
    given = choose_by_factor(torch.tensor([confidence], dtype=torch.float64), factor)
    assert given[0].int().tolist() == expected


@pytest.mark.parametrize("steps, per_block", [(4, [16]), (8, [8, 8]), (12, [6, 5, 5]), (28, [3, 3, 2, 2, 2, 2, 2])])
def test_fixed_schedule_spreads_the_remainder_first(random_llada, steps, per_block):
    """Guards floor(B/s) tokens a step, one more in the first B mod s steps."""
    output = generate(random_llada, torch.stack(prompts_of([9])), gen_length=64, block_length=16, steps=steps)
    counts = torch.bincount(output.decided_at[0]).tolist()
    assert counts == per_block * 4
    assert output.forwards.tolist() == [steps]


def test_one_token_a_step_by_default(random_llada):
    """Guards `steps=None`."""
    output = generate(random_llada, torch.stack(prompts_of([9])), gen_length=32, block_length=16)
    assert sorted(output.decided_at[0].tolist()) == list(range(32))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name_of)
def test_the_mask_is_never_emitted_even_when_the_model_prefers_it(random_llada, schedule):
    """Guards against the reference's crash: a model whose likeliest token is the mask everywhere."""
    ids = torch.stack(prompts_of([9]))
    answer = generate(random_llada, ids, gen_length=32, block_length=16, steps=2).sequences[0, 9:]
    favourite = answer.mode().values.item()
    output = generate(random_llada, ids, gen_length=32, block_length=16, mask_id=favourite, **(schedule | {
        "steps": 4 if "steps" in schedule else 2}))
    assert not (output.sequences[0, 9:] == favourite).any()
    assert (output.decided_at >= 0).all()


def test_eos_is_suppressed(random_llada):
    """Guards LLaDA's ways against empty answers: "never" leaves EOS out, "last" puts it behind all other candidates."""
    ids = torch.stack(prompts_of([9]))
    favourite = generate(random_llada, ids, gen_length=32, block_length=16).sequences[0, 9:].mode().values.item()
    for schedule in ({}, {"threshold": 0.1}, {"temperature": 0.7}):
        output = generate(random_llada, ids, gen_length=32, block_length=16, eos_id=favourite, suppress_eos="never",
                          **schedule)
        assert not (output.sequences[0, 9:] == favourite).any()
    rule = LLaDARule(LLaDASettings(gen_length=16, block_length=4, suppress_eos="last"),
                     TokenIds(mask=3, eos=1, end_of_turn=2))
    logits = torch.tensor([[0.0, 9.0, 0, 0, 0], [0, 0, 8.0, 0, 0], [1.0, 0, 0, 0, 0], [0, 0, 0, 0, 2.0]])
    tokens, confidence = rule.candidates(logits, torch.arange(4), 0, torch.Generator())
    assert tokens.tolist() == [1, 2, 0, 4]
    assert confidence.argsort(descending=True).tolist() == [3, 2, 0, 1]


def test_early_termination_fills_with_eos_and_stops(random_llada):
    """Guards the stop: blocks after the first with EOS cost nothing and hold EOS alone."""
    ids = torch.stack(prompts_of([6]))
    options = dict(gen_length=96, block_length=16, steps=12, eos_id=91)
    full = generate(random_llada, ids, **options)
    early = generate(random_llada, ids, early_termination=True, **options)
    answer = full.sequences[0, 6:].view(6, 16)
    stop = next(block for block in range(6) if (answer[block] == 91).any())
    assert stop < 5
    assert torch.equal(early.sequences[0, 6:].view(6, 16)[: stop + 1], answer[: stop + 1])
    assert (early.sequences[0, 6:].view(6, 16)[stop + 1:] == 91).all()
    assert (early.decided_at[0].view(6, 16)[stop + 1:] == -1).all()
    assert early.forwards.item() == 2 * (stop + 1) and len(early.kept_suffix) == stop + 1


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"remasking": "random"}], ids=name_of)
def test_the_seed_decides_the_noise(random_llada, options):
    """Guards repeatability: the same seed the same answer, another seed another."""
    ids = torch.stack(prompts_of([9]))
    answers = [generate(random_llada, ids, gen_length=32, block_length=16, seed=seed, **options).sequences.tolist()
               for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_temperature_one_draws_from_the_softmax(random_llada):
    """Guards the Gumbel noise: at T = 1 the first token's frequencies are the model's probabilities."""
    ids = torch.stack(prompts_of([5]))
    with torch.no_grad():
        logits = random_llada(torch.cat((ids, torch.tensor([[510]])), 1)).logits[0, -1] * 6
    rule = LLaDARule(LLaDASettings(gen_length=3000, block_length=3000, temperature=1.0), TokenIds(mask=510, eos=509))
    probability = logits.double().softmax(-1)
    probability[510] = 0
    probability /= probability.sum()
    draws = 3000
    tokens, _ = rule.candidates(logits.expand(draws, -1), torch.arange(draws), 0, torch.Generator().manual_seed(0))
    frequency = torch.bincount(tokens, minlength=512) / draws
    error = (probability * (1 - probability) / draws).sqrt()
    assert ((frequency - probability).abs() <= 5 * error + 1e-3).all()


# --- Streaming and bad input -----------------------------------------------------------------------------------------


def test_streamer_gets_prompt_drafts_blocks_and_end(random_llada):
    """Guards transformers' protocol: put(prompt), put_draft while a block is open, put(block), end."""

    class Recorder:
        def __init__(self):
            self.calls = []

        def put(self, value):
            self.calls.append(("put", value))

        def put_draft(self, value):
            self.calls.append(("draft", value))

        def end(self):
            self.calls.append(("end", None))

    ids = torch.stack(prompts_of([6]))
    recorder = Recorder()
    output = generate(random_llada, ids, gen_length=32, block_length=16, steps=8, streamer=recorder)
    kinds = [kind for kind, _ in recorder.calls]
    assert kinds == ["put"] + (["draft"] * 4 + ["put"]) * 2 + ["end"]
    confirmed = torch.cat([value for kind, value in recorder.calls if kind == "put"], dim=1)
    assert torch.equal(confirmed, output.sequences)


def test_transformers_streamer_works_unchanged(random_llada, capsys):
    """Guards TextDiffusionStreamer itself, with the tokenizer of the embedded model."""
    from transformers import TextDiffusionStreamer

    class Words:
        def decode(self, ids, **_):
            return " ".join(f"w{int(i)}" for i in ids) + "\n"

    ids = torch.stack(prompts_of([6]))
    output = generate(random_llada, ids, gen_length=16, block_length=16, steps=4,
                      streamer=TextDiffusionStreamer(Words(), skip_prompt=True))
    printed = capsys.readouterr().out
    assert " ".join(f"w{token}" for token in output.sequences[0, 6:].tolist()) in printed


@pytest.mark.parametrize("options, words", [
    ({"suppress_eos": "always"}, "suppress_eos is 'always'"),
    ({"block_length": 24}, "block_length is 24"), ({"gen_length": 0}, "gen_length is 0"),
    ({"steps": 7}, "steps is 7"), ({"steps": 128}, "steps is 128"), ({"steps": 0}, "steps is 0"),
    ({"threshold": -0.1}, "threshold is -0.1"), ({"threshold": 1.2}, "threshold is 1.2"),
    ({"threshold": math.nan}, "threshold is nan"), ({"threshold": 0.9, "factor": 1.0}, "factor is 1.0"),
    ({"factor": 0}, "factor is 0"), ({"temperature": -1}, "temperature is -1"),
    ({"temperature": math.inf}, "temperature is inf"), ({"seed": 2**64}, "seed is 1"),
    ({"remasking": "high"}, "remasking is 'high'"), ({"cache": "full"}, "cache is 'full'"),
    ({"suffix_sampler": WindowSampler(65)}, "window is 65"), ({"suffix_sampler": "gaussian"}, "suffix_sampler is"),
    ({"gen_length": 1024}, "gen_length is 1024"), ({"mask_id": 512}, "mask_id is 512"), ({"seed": -1}, "seed is -1"),
    ({"mask_id": 509}, "mask_id is 509"), ({"seed": 1.5}, "seed is 1.5"),
])
def test_bad_arguments_name_themselves(random_llada, options, words):
    """Guards the messages: argument, value and what is allowed, before anything is computed."""
    with pytest.raises(ValueError, match=f"^{words}.*(must|give)"):
        generate(random_llada, torch.stack(prompts_of([9])), **({"gen_length": 64, "block_length": 16} | options))


@pytest.mark.parametrize("ids, mask, words", [
    (torch.zeros(1, 0, dtype=torch.long), None, "the prompt is empty"),
    (torch.zeros(0, 4, dtype=torch.long), None, "the prompt is empty"),
    (torch.zeros(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 0, 0]]), "no token in row 1"),
    (torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, 1, 0]]), "not a left padding"),
    (torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, 0, 1]]), "not a left padding"),
    (torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 2, 1]]), "not a left padding"),
    (torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1, 1]]), "attention_mask has shape"),
    (torch.zeros(3, dtype=torch.long), None, "input_ids is a"), (torch.zeros(1, 3), None, "input_ids is a"),
    (torch.tensor([[1, 512]]), None, "input_ids holds 512"), (torch.tensor([[-1, 5]]), None, "input_ids holds -1"),
])
def test_bad_prompts_are_refused(random_llada, ids, mask, words):
    """Guards prompts that would otherwise give nonsense without a word."""
    with pytest.raises(ValueError, match=words):
        generate(random_llada, ids, attention_mask=mask, gen_length=16, block_length=16)


@pytest.mark.parametrize("schedule", [{"steps": 4}, {"threshold": 0.9}, {"factor": 1.0}, {"remasking": "random"}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(random_llada, monkeypatch, schedule, value):
    """Guards against answers from a broken model or an overflowing dtype."""
    head = type(random_llada).head
    monkeypatch.setattr(type(random_llada), "head", lambda self, hidden: head(self, hidden).index_fill(
        -1, torch.tensor([3]), value))
    with pytest.raises(ValueError, match="NaN or infinite in block 0"):
        generate(random_llada, torch.stack(prompts_of([9])), gen_length=16, block_length=16, **schedule)


def test_positions_count_from_the_first_token():
    """Guards left padding in `forward`."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions_of(mask.bool(), mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
