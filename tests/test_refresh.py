"""Prefixes that are not recomputed in every block (`refresh`), and equal rows of a batch, which are decoded once.

    bash tests/run.sh tests/test_refresh.py
"""

import copy
import json

import pytest
import torch
from helpers import SAMPLERS, left_padded, name_of, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st

import dream.generate
import llada.generate
import run
from dpad.engine import cuda_graphs
from dpad.engine.attention import check_plain
from dpad.engine.methods import METHODS, combine
from dpad.engine.soft import SoftSuffix
from dpad.engine.transformer import SlotCache
from dpad.interact.canvas import describe_settings
from dpad.interact.typed_settings import read_words, suggest_word
from dpad.results.evaluations import evaluation_rows
from dream.settings import DreamSettings
from llada.settings import LLaDASettings
from sampler import AttentionSampler, GaussianSampler

CACHES = ("prefix", "dual")
REFRESHES = ("never", 2, 3)
LENGTHS = [3, 17, 8, 30, 1, 17]
# With these the models finish blocks at different steps and end at different blocks.
LIVELY = {"llada": {"threshold": 0.1, "eos_id": 91}, "dream": {"threshold": 0.04, "eos_id": 30}}


@pytest.fixture(scope="module")
def subjects(random_llada, random_dream):
    """Each family's random model and its generate call."""
    return {"llada": (random_llada, llada.generate.generate), "dream": (random_dream, dream.generate.generate)}


@pytest.fixture(scope="module")
def exact_subjects(subjects):
    """The same in float64, where rounding decides no token: soft states carry it from forward to forward."""
    return {family: (copy.deepcopy(model).double(), generate) for family, (model, generate) in subjects.items()}


def equal(first, second):
    return torch.equal(first.sequences, second.sequences) and torch.equal(first.decided_at, second.decided_at)


# --- What is computed -------------------------------------------------------------------------------------------------


class Forwards:
    """A streamer that notes for every forward its block and the columns that it computed."""

    def __init__(self):
        self.seen = []

    def put(self, value):
        pass

    def put_step(self, block, columns, *_):
        self.seen.append((block, columns.tolist()))

    def end(self):
        pass


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("refresh", ["always", *REFRESHES, 99])
def test_an_opening_forward_computes_what_it_must(subjects, family, cache, refresh):
    """Guards the work: all in blocks 0, N, 2N, ...; else from the block before on, which was partly masked when it was
    computed last. `tokens_processed` counts just that, without the padding."""
    model, generate = subjects[family]
    ids, streamer = prompts_of([21])[0][None], Forwards()
    options = dict(gen_length=96, block_length=16, steps=24, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6),
                   refresh=refresh)
    output = generate(model, ids, streamer=streamer, **options)
    openings = {}
    for block, columns in streamer.seen:
        openings.setdefault(block, columns)
    for block, columns in openings.items():
        whole = refresh == "always" or block == 0 or (refresh != "never" and block % refresh == 0)
        start = 0 if whole else 21 + (block - 1) * 16
        assert columns == [*range(start, 21 + (block + 1) * 16), *output.kept_suffix[block]]
    assert output.tokens_processed == sum(len(columns) for _, columns in streamer.seen)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("mode", ["off", "on"])
@pytest.mark.parametrize("schedule", [{}, {"threshold": None, "steps": 12}, {"temperature": 0.7}], ids=name_of)
def test_one_layer_needs_no_refresh(subjects, family, cache, mode, schedule):
    """The exact case: in the first layer keys and values depend on token and position alone, so that a model of one
    layer gives the same tokens. Guards which slots are kept, those of rows that sit out a block or leave the batch, and
    the last tokens of a block, which no step of their own block computes."""
    model, generate = subjects[family]
    shallow = copy.deepcopy(model)
    del shallow.layers[1:]
    ids, mask = left_padded(prompts_of(LENGTHS))
    options = dict(gen_length=96, block_length=16, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6), seed=5,
                   early_termination=True, attention_mask=mask) | LIVELY[family] | schedule
    with cuda_graphs.use(mode):
        always, *others = [generate(shallow, ids, refresh=refresh, **options) for refresh in ("always", *REFRESHES)]
    if not schedule:
        assert len(set(always.forwards.tolist())) > 3 and len(set(always.blocks.tolist())) > 1
    for other in others:
        assert equal(always, other)
        assert other.tokens_processed < always.tokens_processed


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("cache", CACHES)
def test_deeper_layers_notice(subjects, family, cache):
    """Guards the tests of this file: with three layers, keys that are not recomputed change some token."""
    model, generate = subjects[family]
    options = dict(gen_length=64, block_length=8, steps=32, cache=cache)
    ids = prompts_of([21])[0][None]
    always = generate(model, ids, **options)
    assert not any(equal(always, generate(model, ids, refresh=refresh, **options)) for refresh in REFRESHES)


@settings(max_examples=20, deadline=None)
@given(refresh=st.integers(1, 9), cache=st.sampled_from(CACHES), sampler=st.sampled_from(SAMPLERS),
       family=st.sampled_from(["llada", "dream"]), seed=st.integers(0, 2**31))
def test_the_ends_of_the_scale(subjects, refresh, cache, sampler, family, seed):
    """The laws of N: 1 is always, and as many as there are blocks, or more, is never."""
    model, generate = subjects[family]
    ids, mask = left_padded(prompts_of([4, 11], seed))
    options = dict(gen_length=64, block_length=16, cache=cache, suffix_sampler=sampler, threshold=0.02, seed=seed,
                   attention_mask=mask)
    given = generate(model, ids, refresh=refresh, **options)
    if refresh == 1 or refresh >= 4:
        expected = generate(model, ids, refresh="always" if refresh == 1 else "never", **options)
        assert equal(given, expected) and given.tokens_processed == expected.tokens_processed


@torch.inference_mode()
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_what_a_shared_prefix_keeps(subjects, family):
    """Why few-shot examples are not computed once for all questions: attention is bidirectional, so that the keys and
    values of a prefix depend on what follows it, but for those of the first layer."""
    model, _ = subjects[family]
    examples, *questions = prompts_of([40, 12, 12])
    ids = torch.stack([torch.cat((examples, question)) for question in questions])
    cache = SlotCache(model, 2, 52)
    cache.begin(range(2), 52)
    model.hidden_states(ids, torch.arange(52).expand(2, -1), cache=cache)
    one, other = cache.buffer[:, :, :, :, :40].unbind(2)  # [layers, 2, K, 40, D]
    assert torch.equal(one[0], other[0])
    assert all(not torch.allclose(one[layer], other[layer], atol=1e-3) for layer in range(1, model.layer_count))


# --- Batches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=2, max_size=4), cache=st.sampled_from(CACHES),
    sampler=st.sampled_from([*SAMPLERS, AttentionSampler(4, 8)]), refresh=st.sampled_from(REFRESHES),
    soft=st.sampled_from([None, SoftSuffix()]), threshold=st.sampled_from([None, 0.04, 0.1]),
    family=st.sampled_from(["llada", "dream"]), mode=st.sampled_from(["off", "on"]), seed=st.integers(0, 2**31),
)
def test_batch_is_alone(exact_subjects, lengths, cache, sampler, refresh, soft, threshold, family, mode, seed):
    """The law of batches where prefixes are kept, with and without padded steps: a row that sits out a block finds its
    keys again, and each row's suffix may be its own."""
    model, generate = exact_subjects[family]
    options = dict(gen_length=64, block_length=8, steps=16, cache=cache, suffix_sampler=sampler, refresh=refresh,
                   soft_suffix=soft, seed=seed, early_termination=True) | LIVELY[family] | {"threshold": threshold}
    prompts = prompts_of(lengths, seed)
    ids, mask = left_padded(prompts, filler=510)
    with cuda_graphs.use(mode):
        together = generate(model, ids, attention_mask=mask, **options)
    for row, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], **options)
        assert torch.equal(together.sequences[row, ids.shape[1] - len(prompt):], alone.sequences[0])
        assert torch.equal(together.decided_at[row], alone.decided_at[0])


class Blocks:
    """A streamer that takes every row's blocks; rows leave after the block that `wanted` gives."""

    def __init__(self, wanted):
        self.wanted = torch.tensor(wanted)
        self.blocks = []
        self.drafts = []

    def put(self, value):
        self.blocks.append(value)

    def put_draft(self, value):
        self.drafts.append(value)

    def unwanted(self):
        return self.wanted <= len(self.blocks) - 1

    def end(self):
        pass


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("options", [
    {"cache": "none", "steps": 12}, {"cache": "dual", "threshold": 0.02, "refresh": "never"},
    {"cache": "prefix", "threshold": 0.02, "temperature": 0.9, "soft_suffix": SoftSuffix()},
], ids=name_of)
def test_equal_rows_are_decoded_once(subjects, family, options, monkeypatch):
    """Guards the exact kind of sharing: rows of one prompt, whatever their padding holds, cost what one of them costs
    and get what it gets, noise included; every row is reported."""
    model, generate = subjects[family]
    first, second = prompts_of([7, 12])
    ids, mask = left_padded([first, second, first, first])
    ids[2, 0] = 3  # of the padding
    options = dict(gen_length=48, block_length=16, seed=3, suffix_sampler=GaussianSampler(24, 3, 1.6)) | options
    apart = [generate(model, prompt[None], **options) for prompt in (first, second)]
    rows, plain = set(), type(model).hidden_states

    def hidden_states(self, inputs, *args, **kwargs):
        rows.add(len(inputs))
        return plain(self, inputs, *args, **kwargs)

    streamer = Blocks([9, 9, 9, 9])
    with monkeypatch.context() as watched:
        watched.setattr(type(model), "hidden_states", hidden_states)
        output = generate(model, ids, attention_mask=mask, streamer=streamer, **options)
    assert max(rows) == 2
    assert output.tokens_processed == sum(alone.tokens_processed for alone in apart)
    for row, alone in enumerate(apart[place] for place in (0, 1, 0, 0)):
        assert torch.equal(output.sequences[row, 12:], alone.sequences[0, -48:])
        assert torch.equal(output.decided_at[row], alone.decided_at[0]) and output.forwards[row] == alone.forwards[0]
        assert (output.kept[row], output.blocks[row]) == (alone.kept[0], alone.blocks[0])
    assert torch.equal(output.sequences[:, :12], ids)
    assert torch.equal(torch.cat(streamer.blocks, dim=1), output.sequences)
    assert {draft.shape for draft in streamer.drafts} == {(4, 16)}


def test_a_copy_leaves_with_its_original(subjects):
    """Guards `unwanted`: decoding goes on while one of several equal rows is wanted, and ends with the last."""
    model, generate = subjects["llada"]
    first, second = prompts_of([7, 7])
    ids = torch.stack([first, second, first])
    options = dict(gen_length=64, block_length=16, steps=4)
    whole = generate(model, ids, **options).sequences
    output = generate(model, ids, streamer=Blocks([1, 2, 3]), **options).sequences
    assert torch.equal(output[0], whole[0][: 7 + 48].new_tensor([*whole[0, : 7 + 48], *[510] * 16]))
    assert torch.equal(output[2], output[0])
    assert torch.equal(output[1], whole[1].new_tensor([*whole[1, : 7 + 32], *[510] * 32]))


# --- The setting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [LLaDASettings, DreamSettings])
def test_the_setting(family):
    """Guards words and numbers as values, what is kept in records, and that old records stay as they were."""
    assert "refresh" not in family(cache="dual").to_json()
    assert family(cache="dual", refresh=1) == family(cache="dual", refresh="always") == family(cache="dual")
    for refresh in REFRESHES:
        made = family(cache="prefix", refresh=refresh)
        assert made.to_json()["refresh"] == made.as_choices()["refresh"] == refresh
        assert family.from_choices(made.as_choices()) == made
        blocks = [block for block in range(7) if made.refreshes(block)]
        assert blocks == {"never": [0], 2: [0, 2, 4, 6], 3: [0, 3, 6]}[refresh]
    entries = family.choices()
    assert read_words(entries, ["refresh", "never", "-c"]) == {"refresh": "never", "cache": "prefix"}
    assert read_words(entries, ["refresh=4"]) == {"refresh": 4}
    assert [entry.text for entry in suggest_word(entries, {}, ["refresh"], "n")] == ["never"]


@pytest.mark.parametrize("value, message", [
    (0, "refresh is 0; it must be an integer of at least 1 or always or never"),
    (-1, "refresh is -1; it must be"), (True, "refresh is True; it must be"), (2.5, "refresh is 2.5; it must be"),
    ("nevr", "refresh is 'nevr'; it must be an integer of at least 1 or always or never; did you mean 'never'?"),
    (None, "refresh is None; it must be"), (["never"], r"refresh is \['never'\]; it must be"),
])
def test_a_wrong_value_is_refused(value, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        LLaDASettings(cache="dual", refresh=value)


def test_without_a_cache_there_is_nothing_to_refresh(subjects, capsys):
    """Guards one sentence where the setting would mean nothing, in both families and on the command line."""
    for refresh in REFRESHES:
        for model, generate in subjects.values():
            with pytest.raises(ValueError, match=f"^refresh is {refresh}, but cache is none, which keeps nothing"):
                generate(model, prompts_of([4])[0][None], gen_length=32, refresh=refresh)
    assert LLaDASettings(refresh="always").cache == "none"
    for flags in (["--refresh", "never"], ["-c", "--refresh", "0"], ["-c", "--refresh", "often"], ["--refresh", "--5"]):
        try:
            status = run.main(["generate", "-m", "tiny", *flags, "--prompt", "x"])
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and "refresh" in error and error.count("\n") == 1


def test_the_command_line(capsys):
    """Guards the flag from end to end, and the numbers that show what it saves."""
    command = ["generate", "-m", "tiny", "-l", "64", "-b", "8", "-th", "0.9", "-c", "--json", "--prompt",
               "Dan is 33. Zoe is 5 years older. How old is Zoe?"]
    processed = []
    for flags in ([], ["--refresh", "1"], ["--refresh", "2"], ["--refresh", "never"]):
        assert run.main([*command, *flags]) == 0
        answer = json.loads(capsys.readouterr().out)
        processed.append(answer["tokens_processed"] / answer["forwards"])
    assert processed[0] == processed[1] > processed[2] > processed[3]


def test_among_several_methods():
    """Guards comparisons: a shared refresh is for methods with a cache alone, and an own one must have a cache."""
    for name, uses in (("vanilla", False), ("dpad", False), ("dpad-parallel-cache", True), ("streaming", True)):
        choices, used = combine(METHODS[name], {}, {"refresh": "never"}, LLaDASettings, "tiny")
        assert ("refresh" in used) == uses
        assert LLaDASettings.from_choices(choices).refresh == ("never" if uses else "always")
    choices, _ = combine(METHODS["dpad"], {"refresh": "never"}, {}, LLaDASettings, "tiny")
    with pytest.raises(ValueError, match="^refresh is never, but cache is none"):
        LLaDASettings.from_choices(choices)


@pytest.mark.parametrize("refresh", REFRESHES)
def test_attention_is_shown_for_whole_forwards_alone(refresh):
    """Guards pictures: what is drawn computes the whole prefix anew, which decoding did not."""
    check_plain(LLaDASettings(cache="dual"))
    with pytest.raises(ValueError, match=f"^refresh is {refresh}, but attention is shown"):
        check_plain(LLaDASettings(cache="dual", refresh=refresh))


def test_words_for_people():
    """Guards labels that come from settings: what is kept is said beside the cache."""
    record = {"name": "x", "task": "t", "model": "m", "samples": 2, "latency_s": 1.0, "metrics": {}}
    records = [record | {"settings": LLaDASettings(cache="dual", refresh=refresh).to_json()}
               for refresh in ("always", "never")]
    assert [row.label for row in evaluation_rows(records)] == ["+DualCache (x)", "+DualCache (x, refresh never)"]
    settings = LLaDASettings(cache="dual", refresh="never", threshold=0.9)
    assert describe_settings(settings.to_json()) == "Vanilla, threshold 0.9, dual cache, refresh never"
