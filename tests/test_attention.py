"""The attention that a block pays: what is measured against decoding itself, the command, its records and figures.

    bash tests/run.sh tests/test_attention.py
"""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from helpers import left_padded, prompts_of

import run
from dpad.engine import loading
from dpad.engine.attention import HeadAttention, MeanAttention, Moment, Moments, heads_at
from dpad.engine.decoding import decode
from dpad.engine.loading import FAMILIES
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.interact import attention
from dpad.results import attentions, files, records, tables
from sampler import AnchorSampler, AttentionSampler, GaussianSampler


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


# --- Measuring --------------------------------------------------------------------------------------------------------

PROMPT = "Dan is 33 years old. Zoe is 38 years older than Dan. How old is Zoe?"


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def settings_of(loaded, **options):
    return loaded.family.settings(**{"gen_length": 64, "block_length": 16} | options)


def series(view, name="mean"):
    """Of every layer, by place: float64 [layers, places], NaN where nothing is seen."""
    return torch.tensor([[math.nan if weight is None else weight for weight in layer[name]]
                         for layer in view["layers"]], dtype=torch.float64)


def test_a_record_is_the_attention_of_decoding(loaded):
    """Guards the numbers: the mean of the layers is what samplers choose by, the parts sum to 1, places are right."""
    prompt = len(loaded.encode_text([PROMPT])["input_ids"][0])
    settings = settings_of(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6))
    record = attention.measure(loaded, [PROMPT], settings, block=1)
    whole, kept = record["views"]
    [moment], _ = attention.find_moments(loaded, PROMPT, settings, 1, 0)
    watch = MeanAttention(slice(prompt + 16, prompt + 32))
    with torch.no_grad():
        loaded.model.hidden_states(moment.tokens[None], torch.arange(prompt + 64)[None], watch=watch)
    torch.testing.assert_close(series(whole).mean(0), watch.scores()[0].double(), atol=1e-7, rtol=1e-4)
    assert whole["first"] == kept["first"] == -prompt - 16 and (record["samples"], record["block"]) == (1, 1)
    seen = (~series(kept)[0].isnan()).nonzero()[:, 0]
    assert torch.equal(seen, moment.columns) and kept["kept_suffix"] == len(moment.columns) - prompt - 32
    for view in (whole, kept):
        assert [sum(layer[part] for part in ("before", "block", "behind")) for layer in view["layers"]] \
            == pytest.approx([1, 1], abs=1e-4)
        known = ~series(view).isnan()
        assert (series(view, "low") <= series(view))[known].all()
        assert (series(view, "high") >= series(view))[known].all()
    suffix = series(whole)[:, prompt + 32 :]
    expected = (suffix[:, -1] / suffix[:, :-1].quantile(0.5, dim=1)).tolist()
    assert [attentions.rise_of([layer]) for layer in whole["layers"]] == pytest.approx(expected, rel=1e-3)
    assert all(layer["last"] is None for layer in kept["layers"]) == (prompt + 63 not in moment.columns)


def test_problems_are_averaged_at_their_blocks(loaded):
    """Guards prompts of different lengths: a place is the mean over the answers that have it."""
    prompts = [PROMPT, f"Once more. {PROMPT}"]
    settings = settings_of(loaded)
    both = attention.measure(loaded, prompts, settings)["views"][0]
    alone = [attention.measure(loaded, [prompt], settings)["views"][0] for prompt in prompts]
    shift = alone[0]["first"] - alone[1]["first"]
    assert both["first"] == alone[1]["first"] and shift > 0 and both["counts"] == [1] * shift + [2] * len(
        alone[0]["counts"])
    expected = (series(alone[0]) + series(alone[1])[:, shift:]) / 2
    torch.testing.assert_close(series(both)[:, shift:], expected, atol=1e-8, rtol=1e-4)
    cut = attention.measure(loaded, prompts, settings, before=5)["views"][0]
    assert cut["first"] == -5 and torch.equal(series(cut), series(both)[:, -both["first"] - 5 :])
    assert cut["layers"][0]["before"] == both["layers"][0]["before"], "the share counts what is not shown"


def test_all_blocks_lie_over_each_other(loaded):
    """Guards the average over blocks: suffixes of 48, 32 and 16 positions, each from its block on."""
    settings = settings_of(loaded, cache="dual", suffix_sampler=AnchorSampler(4, 0, True))
    record = attention.measure(loaded, [PROMPT], settings, block=None, step=3, before=0)
    whole, kept = record["views"]
    assert record["samples"] == 3 and whole["kept_suffix"] == 32 and kept["kept_suffix"] == 5
    assert whole["counts"] == [3] * 32 + [2] * 16 + [1] * 16 and sum(kept["counts"][16:]) == 15
    alone = [attention.measure(loaded, [PROMPT], settings, block, 3, 0)["views"][1] for block in range(3)]
    expected = sum(series(view)[:, :20] for view in alone) / 3
    torch.testing.assert_close(series(kept)[:, :20], expected, atol=1e-8, rtol=1e-4)


def test_a_sampler_that_chooses_by_attention(loaded):
    """Guards the second view of a scored sampler: the positions that it selects by the block's first forward."""
    settings = settings_of(loaded, suffix_sampler=AttentionSampler(window=2, top_k=5))
    whole, kept = attention.measure(loaded, [PROMPT], settings, before=0)["views"]
    best = series(whole).mean(0)[16:].argsort(descending=True)[:5].tolist()
    seen = [place for place, count in enumerate(kept["counts"][16:]) if count]
    assert seen == sorted({0, 1, *best}) and kept["kept_suffix"] == len(seen)
    inputs = loaded.encode_text([PROMPT])["input_ids"]
    decided = loaded.generate(inputs, settings).kept_suffix[0]
    assert [place + inputs.shape[1] + 16 for place in seen] == decided, "it is what decoding selects"
    with pytest.raises(ValueError, match="step is 2, but cache prefix beside dropout_strategy attention is shown at"):
        attention.check_place(settings_of(loaded, cache="prefix", suffix_sampler=AttentionSampler()), "0", 2, 0)


def test_no_more_is_decoded_than_is_looked_at(loaded, monkeypatch):
    """Guards the time for a large model: the first block's first forward needs no other one."""
    calls = []
    true_forward = type(loaded.model).hidden_states
    monkeypatch.setattr(type(loaded.model), "hidden_states", lambda *arguments, **options: (
        calls.append(1), true_forward(*arguments, **options))[1])
    attention.measure(loaded, [PROMPT], settings_of(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6)))
    assert len(calls) == 3  # decoding's, and one for each view


# --- In words and pictures --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(loaded):
    settings = settings_of(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6, True))
    return json.loads(json.dumps(files._to_json(attention.measure(loaded, [PROMPT], settings))))


def with_suffix(record, weights):
    """The record with these weights in the suffix of its last layer, with the whole suffix."""
    record = copy.deepcopy(record)
    view = record["views"][0]
    view["layers"][-1]["mean"][-len(weights) :] = weights
    return record, view, view["layers"][-1]


def test_spikes_stand_out_from_their_neighbourhood(record):
    """Guards the marks: local maxima of twice the median around them, apart from each other; a slope has none."""
    slope = [0.01 * 0.9**distance for distance in range(48)]
    assert attentions.spikes_of(*with_suffix(record, slope)) == []
    spiky = [0.001] * 48
    for index, weight in ((10, 0.004), (12, 0.003), (30, 0.0019), (47, 0.009)):
        spiky[index] = weight
    spikes = attentions.spikes_of(*with_suffix(record, spiky))
    assert spikes == [attentions.Spike(48, 0.009), attentions.Spike(11, 0.004)]
    gaps = [None if index % 3 else weight for index, weight in enumerate(spiky)]
    assert [spike.distance for spike in attentions.spikes_of(*with_suffix(record, gaps))] == [13]


def test_the_last_position_in_words(record):
    """Guards what figure and terminal say of the rise: over layers and in one; or that the position was dropped."""
    layers = [{"last": 0.004, "median": 0.001}, {"last": 0.001, "median": 0.004}]
    assert attentions.rise_of(layers) == 1
    assert attentions.describe_rise(layers) == (
        "the last position gets 1.00× the median of the suffix before it (more than the median in 1 of 2 layers, 0.25× "
        "in the last)")
    assert attentions.describe_last({"last": None, "median": None}) == "last position: not kept"
    assert "its whole suffix; the last position gets" in attentions.summarize(record)
    assert "positions of it that gaussian keeps; the last" in attentions.summarize(record)


def test_a_table_has_every_layer_and_a_figure_every_view(record, tmp_path, capsys):
    """Guards `run.py table`: layers of both views, several records told apart, PNG and SVG."""
    headings, cells = tables.table_of([record])
    assert [line[:2] for line in cells] == [[view, layer] for view in ("whole", "gaussian")
                                           for layer in ("mean", "0", "1")]
    assert sum(float(cell) for cell in cells[1][2:5]) == pytest.approx(100, abs=0.2)
    assert tables.table_of([record, record | {"block": None}]).cells[-1][0].endswith("all blocks, step 0")
    files.write_json(tmp_path / "a.json", record)
    assert records.load([tmp_path / "a.json"]) == [record]
    for name in ("a.png", "a.svg"):
        assert run.main(["table", str(tmp_path / "a.json"), "--plot", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 20_000
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml") and "mathdefault" not in text
    assert "| whole | mean |" in tables.markdown_table([record]) and "one prompt" in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    lambda view: view["layers"][0].update(mean=[0.5]), lambda view: view["layers"].append(view["layers"][0]),
    lambda view: view.update(first=10**6), lambda view: view.update(first=-10**6),
    lambda view: view["layers"][-1].update(low=[None] * 200, mean=[0.0]),
    lambda view: view["layers"][-1].update(mean=[0] * 99, low=[0] * 99, high=[0] * 99, last=0, median=0),
])
def test_any_record_of_this_form_is_drawn(record, tmp_path, change):
    """Guards records that others wrote: whatever has the form makes a table and a picture."""
    record = copy.deepcopy(record)
    change(record["views"][0])
    files.write_json(tmp_path / "a.json", record)
    assert run.main(["table", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]) == 0


@pytest.mark.parametrize("change, message", [
    ({"views": []}, "views is []"), ({"views": [{}]}, "it has no views[0].suffix"), ({"step": -1}, "step is -1"),
    ({"samples": 0}, "samples is 0"), ({"block": "all"}, "block is 'all'"), ({"settings": {}}, "settings.gen_length"),
])
def test_a_spoilt_record_is_refused(record, tmp_path, capsys, change, message):
    files.write_json(tmp_path / "a.json", record | change)
    assert run.main(["table", str(tmp_path / "a.json")]) == 2
    assert message in capsys.readouterr().err


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(checkpoint_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return ["attention", "-m", str(checkpoint_folder), "--device", "cpu", "-l", "64", "-b", "16"]


def test_the_command_measures_writes_and_draws(command, tmp_path, capsys):
    """Guards the whole way: a prompt, a record with how it was made, a picture, and words on the terminal."""
    assert run.main([*command, "--prompt", PROMPT, "-d", "gaussian", "-k", "3", "--block", "all", "--step", "1",
                     "--record", "a.json", "--plot", "a.png"]) == 0
    output = capsys.readouterr().out
    assert "of its attention to its whole suffix" in output and "drawn in a.png" in output
    [record] = records.load(["a.json"])
    assert record["prompt"] == PROMPT and record["block"] is None and record["step"] == 1
    assert record["settings"]["suffix_sampler"]["k_sigma"] == 3 and record["settings"]["dtype"] == "float32"
    assert "--block all" in record["command"] and record["environment"]["torch"] and record["samples"] == 3
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert run.main([*command, "--prompt", PROMPT]) == 0 and "gaussian" not in capsys.readouterr().out


def test_a_task_is_averaged(command, capsys):
    """Guards prompts of a task: as many as --limit, in the form that an evaluation gives them."""
    assert run.main([*command, "-t", "arithmetic-50", "--limit", "3", "--record", "a.json"]) == 0
    [record] = records.load(["a.json"])
    assert (record["task"], record["limit"], record["problems"], record["samples"]) == ("arithmetic-50", 3, 3, 3)
    assert "arithmetic-50, G = 64, block 0, step 0, mean of 3 blocks" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    ([], "give a prompt with --prompt or a task with --task, one of the two"),
    (["--prompt", "a", "-t", "arithmetic-50"], "one of the two"),
    (["--prompt", "a", "--limit", "3"], "--limit is 3, which --task alone uses"),
    (["--prompt", "a", "-s", "3"], "--num_fewshot is 3, which --task alone uses"),
    (["--prompt", " "], "the prompt is empty"),
    (["--prompt", "a", "--block", "3"], "block is 3, the last one, which has no suffix to attend to; it must be"),
    (["--prompt", "a", "--block", "4"], "block is '4'; it must be a number from 0 to 2, or all"),
    (["--prompt", "a", "--block", "-1"], "block is '-1'; it must be a number"),
    (["--prompt", "a", "--block", "al"], "did you mean 'all'?"), (["--prompt", "a", "--block", "²"], "block is '²'"),
    (["--prompt", "a", "-b", "64"], "block_length is 64; it must be less than gen_length (64)"),
    (["--prompt", "a", "--step", "16"], "step is 16; it must be an integer from 0 to 15"),
    (["--prompt", "a", "--steps", "8", "--step", "3"], "step is 3; it must be at most 1: the block took 2 forwards"),
    (["--prompt", "a", "--before", "-1"], "before is -1"),
    (["-t", "arithmetic-50", "--limit", "0"], "limit is 0"),
    (["-t", "arithmetic-50", "-s", "1000"], "num_fewshot is 1000"),
    (["--prompt", "a", "--plot", "a.gif"], "--plot is 'a.gif'; the name must end in .png or .svg"),
    (["--prompt", "a", "--record", "a.txt"], "--record is 'a.txt'; the name must end in .json"),
    (["--prompt", "a", "--blok", "1"], "did you mean '--block'?"), (["--prompt", "a", "-k", "3"], "k_sigma is 3.0"),
    (["--prompt", "a", "-d", "gausian"], "did you mean 'gaussian'?"),
    (["--prompt", "a " * 2000], "there is room for"),
    (["--prompt", "a", "--soft_suffix"], "soft_suffix is on, but attention is shown for a suffix of plain masks"),
])
def test_mistakes_are_one_line(command, capsys, tmp_path, flags, message):
    """Guards every flag of the command: one sentence says what is allowed, and nothing is written."""
    with_length = [word for word in command if flags[-2:-1] != ["-b"] or word not in ("-b", "16")]
    try:
        status = run.main([*with_length, *flags])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert not list(tmp_path.iterdir())


def test_a_block_that_no_answer_reaches(loaded, monkeypatch):
    """Guards early termination: there is nothing to show, and that is said."""
    settings = settings_of(loaded, early_termination=True)
    first = loaded.generate(loaded.encode_text([PROMPT])["input_ids"], settings_of(loaded)).sequences[0, -64]
    monkeypatch.setattr(loaded.model.config, "eos_token_id", int(first))
    with pytest.raises(ValueError, match="block is 2, but with early termination no answer came that far"):
        attention.measure(loaded, [PROMPT], settings, 2)
    assert attention.measure(loaded, [PROMPT], settings, None)["samples"] == 1


def test_other_files_are_never_replaced(command, capsys, tmp_path):
    """Guards the record of an evaluation under the name of a record of attention."""
    (tmp_path / "a.json").write_text('{"kind": "evaluation"}')
    assert run.main([*command, "--prompt", PROMPT, "--record", "a.json"]) == 2
    assert "an existing file that is not a record of attention" in capsys.readouterr().err
