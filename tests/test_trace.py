"""Traces: they record what happened, their files are read back or refused, and the GIF has the right frames.

    bash tests/run.sh tests/test_trace.py
"""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import run
from dpad.engine import completion, loading
from dpad.engine.methods import METHODS
from dpad.interact import trace as trace_module
from dpad.interact.attention import measure
from dpad.interact.canvas import SAMPLER_WORDS, canvas_after, describe_settings, summarize
from dpad.interact.denoiser import Denoiser
from dpad.interact.gif import write_gif
from dpad.interact.markup import FORMULAS, render_canvas, render_curve
from dpad.interact.trace import Tracer, read_trace
from dpad.results import files
from llada.settings import LLaDASettings
from sampler import SAMPLERS, GaussianSampler

PROMPT = "Tom has 3 bags with 4 apples in each bag. How many apples does Tom have?"


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def record(loaded, attention=False, **options):
    options = {"gen_length": 96, "block_length": 16, "steps": 24, "seed": 3} | options
    settings = loaded.family.settings(**options)
    tracer = Tracer(loaded, PROMPT, settings, attention=attention)
    [answer] = completion.complete(loaded, [PROMPT], settings, streamer=tracer)
    return tracer.finish(answer), settings


def test_every_way_of_decoding_has_words():
    """Guards what chat, the page and GIFs say of an answer: nothing but the whole suffix is called Vanilla; and the
    page's curve has a sentence for each strategy."""
    words = {}
    for name, method in METHODS.items():
        settings = LLaDASettings.from_choices(method.choices(256))
        words[name] = describe_settings(settings.to_json())
        assert words[name].startswith("Vanilla") == (settings.to_json()["suffix_sampler"] is None), words[name]
        assert ". On average" in render_curve(settings) and "{" not in render_curve(settings)
    assert words["dpad-parallel-cache"] == "DPad, threshold 0.9, prefix cache, early termination"
    assert words["streaming"] == "anchors, rule falling, prefix cache, early termination"
    assert words["ssm"] == "anchors, soft suffix, threshold 0.9, early termination"
    assert words["margin"] == "Vanilla, threshold 0.9, alg topk_margin"
    assert SAMPLERS.keys() == FORMULAS.keys() == {"null", *SAMPLER_WORDS}


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_trace_is_what_happened(loaded, cache):
    """Every token, the forward that decided it, the slots computed and the kept suffix are those of the output."""
    trace, settings = record(loaded, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6))
    inputs = loaded.encode_text([PROMPT])
    output = loaded.generate(**inputs, settings=settings)
    prompt = inputs["input_ids"].shape[1]
    decided = {place: (token, number) for number, entry in enumerate(trace.forwards)
               for place, token, _, _ in entry["decided"]}
    assert len(decided) == 96
    for place, (token, number) in decided.items():
        assert output.sequences[0, prompt + place] == token and output.decided_at[0, place] == number
    assert len(trace.forwards) == output.forwards[0]
    assert sum(entry["computed"] for entry in trace.forwards) == output.tokens_processed
    kept = [entry["kept"] for entry in trace.forwards if "kept" in entry]
    assert kept == [[place - prompt for place in block] for block in output.kept_suffix]
    assert trace.tail["forwards"] == len(trace.forwards)


def test_the_canvas_tells_the_kinds_apart(loaded):
    """At first all is masks, the suffix either kept or dropped; at last all is decided."""
    trace, _ = record(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6))
    first = canvas_after(trace, 0)
    kinds = [cell.kind for cell in first.cells]
    kept = set(trace.forwards[0]["kept"])
    assert kinds[:16] == ["block"] * 16 and first.suffix == 80 and first.kept_suffix == len(kept)
    assert all(kinds[place] == ("kept" if place in kept else "dropped") for place in range(16, 96))
    last = canvas_after(trace, len(trace.forwards))
    assert last.done and {cell.kind for cell in last.cells} == {"decided"} and 0 < last.share < 1
    middle = canvas_after(trace, 6)
    assert middle.block == 1 and sum(cell.kind == "decided" for cell in middle.cells) == 24


def test_early_termination_fills(loaded, monkeypatch):
    """Places after the block with EOS were never decided: they are shown as filled."""
    trace, _ = record(loaded)
    monkeypatch.setattr(loaded.model.config, "eos_token_id", trace.forwards[5]["decided"][0][1])
    trace, _ = record(loaded, early_termination=True)
    kinds = {cell.kind for cell in canvas_after(trace, len(trace.forwards)).cells}
    assert kinds == {"decided", "filled"}


def test_attention_is_that_of_each_blocks_first_forward(loaded, tmp_path):
    """Guards the overlay: what a trace says equals what is measured, survives its file, and changes nothing else."""
    trace, settings = record(loaded, attention=True, suffix_sampler=GaussianSampler(48, 3, 1.6))
    plain, _ = record(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6))
    assert [entry["decided"] for entry in trace.forwards] == [entry["decided"] for entry in plain.forwards]
    assert all(("attention" in entry) == ("kept" in entry) for entry in trace.forwards)
    assert not any("attention" in entry for entry in plain.forwards)
    path = tmp_path / "a.jsonl"
    trace.write(path)
    trace = read_trace(path)
    _, kept = measure(loaded, [PROMPT], settings, 2, before=0)["views"]
    forwards = next(number for number, entry in enumerate(trace.forwards, start=1) if entry["block"] == 2)
    for layer in (1, 2):
        expected = [weight or 0 for weight in kept["layers"][layer - 1]["mean"]]
        assert canvas_after(trace, forwards, layer).attention[32:] == pytest.approx(expected, abs=1e-5)
    mean = [sum(column) / 2 for column in zip(*trace.forwards[forwards - 1]["attention"])]
    for count, layer in ((forwards, 0), (forwards + 1, 0)):
        assert canvas_after(trace, count, layer).attention == mean, "it stays for the whole block"
    assert canvas_after(trace, forwards, 9).attention == canvas_after(trace, forwards, 2).attention
    assert canvas_after(trace, forwards).attention is None and canvas_after(plain, forwards, 0).attention is None


def test_attention_of_a_soft_suffix_is_refused(loaded):
    """Guards against showing what decoding did not compute: the page says it in a sentence."""
    settings = loaded.family.settings.from_choices({"soft_suffix": True})
    with pytest.raises(ValueError, match="soft_suffix is on, but attention is shown for a suffix of plain masks"):
        Denoiser(loaded).start(PROMPT, settings, attention=True)


def test_attention_is_left_out_of_the_clock(loaded, monkeypatch):
    """Guards what a visitor compares: looking at attention does not make an answer slower."""
    true_look = Tracer._attention_at

    def look(self, moment):
        time.sleep(0.2)
        return true_look(self, moment)

    monkeypatch.setattr(Tracer, "_attention_at", look)
    trace, _ = record(loaded, attention=True)
    assert trace.seconds < 6 * 0.2 and trace.tail["seconds"] < 6 * 0.2


def test_attention_on_the_canvas(loaded):
    """Guards the markup: bars and numbers where it is asked for, a sentence where a trace has none, else nothing."""
    trace, _ = record(loaded, attention=True)
    plain, _ = record(loaded)
    shown = render_canvas(trace, 3, layer=0)
    assert shown.count("--bar:") == 96 and "--bar:1.00" in shown and "attention to prompt" in shown
    assert "; attention 0." in shown and "full height" in shown
    assert "ask again" in render_canvas(plain, 3, layer=0) and "--bar" not in render_canvas(plain, 3, layer=0)
    assert render_canvas(trace, 3).count("attention") == 0 == render_canvas(plain, 3).count("attention")


@pytest.mark.parametrize("attention, message", [
    ("x", "attention is 'x'"), ([], "attention is []"), ([3], "attention[0] is 3"), ([[0.5] * 95], "all places of"),
    ([[2.0] * 96], "a number from 0 to 1"), ([[0.5] * 96] * 300, "at most 256 layers"), ([["a"] * 96], "'a'"),
])
def test_spoilt_attention_is_refused(loaded, tmp_path, attention, message):
    """Guards the page against traces from anywhere."""
    trace, _ = record(loaded)
    trace.forwards[0]["attention"] = attention
    trace.write(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="line 2: not a line of a trace") as caught:
        read_trace(tmp_path / "a.jsonl")
    assert message in str(caught.value)


def test_only_one_prompt(loaded):
    settings = loaded.family.settings(gen_length=32, steps=2)
    with pytest.raises(ValueError, match="the batch has 2 prompts; a trace can record only one"):
        completion.complete(loaded, [PROMPT, PROMPT], settings, streamer=Tracer(loaded, PROMPT, settings))


def test_the_command_line_writes_reads_and_draws(checkpoint_folder, tmp_path, capsys):
    """generate --trace, then trace --gif with two of them: a GIF of the size and length that was asked for."""
    flags = ["-m", str(checkpoint_folder), "--device", "cpu", "-l", "64", "--steps", "8", "--prompt", PROMPT]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert run.main(["generate", *flags, "--trace", str(paths[0])]) == 0
    assert run.main(["generate", *flags, "-d", "gaussian", "-e", "--trace", str(paths[1])]) == 0
    gif = tmp_path / "new" / "out.gif"
    assert run.main(["trace", *map(str, paths), "--gif", str(gif), "--seconds", "3"]) == 0
    assert "Vanilla: 8 forwards" in capsys.readouterr().out
    with Image.open(gif) as image:
        assert image.n_frames > 2 and image.width > 1000
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
    assert sum(durations) == pytest.approx(5000, abs=400)
    again = read_trace(paths[1])
    again.write(tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("spoil, message", [
    (lambda lines: lines[:-1], "not a complete trace"),
    (lambda lines: [], "not a complete trace"),
    (lambda lines: ["{}", *lines[1:]], "line 1: not a line of a trace"),
    (lambda lines: [lines[0], "nonsense", *lines[2:]], "line 2: not a line of a trace"),
    (lambda lines: [lines[0], json.dumps({"block": "<script>"}), *lines[2:]], "line 2: not a line"),
    (lambda lines: [lines[0], change(lines[1], kept=5), *lines[2:]], "line 2: not a line"),
    (lambda lines: [lines[0], change(lines[1], decided=[[0, 5, "x", "high"]]), *lines[2:]], "line 2: not a line"),
    (lambda lines: [change(lines[0], settings=[]), *lines[1:]], "line 1: not a line"),
    (lambda lines: [change(lines[0], settings={"suffix_sampler": {"name": []}}), *lines[1:]], "line 1: not a line"),
    (lambda lines: [change(lines[0], settings={"threshold": "x"}), *lines[1:]], "line 1: not a line"),
    (lambda lines: [*lines[:-1], change(lines[-1], answer=5)], "line 26: not a line of a trace .*: answer is 5"),
    (lambda lines: [*lines, lines[1]], "line 27: not a line of a trace .*: it follows the answer"),
    (lambda lines: [lines[0], *lines[1:-1] * 9, lines[-1]], "more than 2 forwards for each token"),
    (lambda lines: [lines[0], "[" * 100_000, *lines[2:]], "line 2: not a line of a trace .*: is nested deeper than 64"),
    (lambda lines: [lines[0], '"\\ud800"', *lines[2:]], "line 2: not a line of a trace .*: holds half of a surrogate"),
    (lambda lines: [lines[0], change(lines[1], seconds=float("nan")), *lines[2:]], "holds a number that is out of"),
    (lambda lines: [lines[0], change(lines[1], seconds=-1), *lines[2:]], "seconds is -1"),
    (lambda lines: [lines[0], change(lines[1], block=-1), *lines[2:]], "block is -1"),
    (lambda lines: [lines[0], change(lines[1], computed=True), *lines[2:]], "computed is True"),
    (lambda lines: [lines[0], change(lines[1], kept=[-5]), *lines[2:]], "kept.0. is -5"),
    (lambda lines: [lines[0], change(lines[1], decided=[[2**40, 5, "x", 1]]), *lines[2:]], "decided.0. is "),
    (lambda lines: [lines[0], change(lines[1], more=1), *lines[2:]], "it has more"),
    (lambda lines: [change(lines[0], gen_length=2**40), *lines[1:]], "gen_length is 1099511627776; it must be"),
    (lambda lines: [change(lines[0], gen_length=0), *lines[1:]], "gen_length is 0"),
    (lambda lines: [change(lines[0], ends=[3]), *lines[1:]], "ends.0. is 3"),
    (lambda lines: [change(lines[0], environment={"hardware": {"gpus": [1]}}), *lines[1:]], "hardware.gpus.0. is 1"),
    (lambda lines: [change(lines[0], settings={"cache": {}}), *lines[1:]], "settings.cache is {}"),
    (lambda lines: [lines[0], "3", *lines[2:]], "line 2: not a line"),
    (lambda lines: ["", *lines], "line 1: not a line"),
])
def test_what_is_no_trace_is_refused(loaded, tmp_path, spoil, message):
    trace, _ = record(loaded)
    file = tmp_path / "trace.jsonl"
    trace.write(file)
    file.write_text("\n".join(spoil(file.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        read_trace(file)
    assert run.main(["trace", str(file)]) == 2


def test_a_trace_has_a_size(loaded, tmp_path, monkeypatch):
    """Guards memory: a file that is too large is not read to its end, whether its lines are long or many."""
    record(loaded)[0].write(tmp_path / "t.jsonl")
    monkeypatch.setattr(trace_module, "MAX_SIZE", 2**10)
    with pytest.raises(ValueError, match="is beyond the 0 MB that are read of such a file"):
        read_trace(tmp_path / "t.jsonl")
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(ValueError, match="line 1: not a line of a trace .*: is longer than 0 MB"):
        read_trace(tmp_path / "t.jsonl")


def test_control_characters_of_a_trace_are_shown_as_text(loaded, tmp_path, capsys):
    """Guards terminals against traces from elsewhere; line ends of the answer stay."""
    trace, _ = record(loaded)
    trace.tail["answer"] = "one\x1b[2J\ntwo\x9b\u202e 中 \u200d"
    trace.head["settings"]["cache"] = "\x1b]0;title\x07"
    trace.head["environment"]["hardware"]["processor"] = "\x1b[31m"
    trace.write(tmp_path / "t.jsonl")
    assert run.main(["trace", str(tmp_path / "t.jsonl")]) == 0
    output = capsys.readouterr().out
    assert "one\\x1b[2J\ntwo\\x9b\\u202e 中 \u200d\n" in output
    assert not set(output) & set("\x1b\x07\x9b\u202e")


def test_a_gif_of_an_absurd_length_is_refused(loaded, tmp_path, capsys):
    """Guards memory and time: a head may claim a million tokens, or there may be many traces."""
    trace, _ = record(loaded)
    trace.head["gen_length"] = 2**17
    trace.write(tmp_path / "t.jsonl")
    assert run.main(["trace", str(tmp_path / "t.jsonl"), "--gif", str(tmp_path / "x.gif")]) == 2
    output, error = capsys.readouterr()
    assert not output
    assert "the answers have 131072 tokens together; a GIF shows at most 8192" in error and error.count("\n") == 1
    trace.head["gen_length"] = 96
    with pytest.raises(ValueError, match="19200 tokens together"):
        write_gif([trace] * 200, tmp_path / "x.gif")
    assert not (tmp_path / "x.gif").exists()


def test_forwards_that_name_too_many_places_are_refused(loaded, tmp_path):
    """Guards the time of a picture, in which every place that a forward names is drawn."""
    for key, entry in (("decided", [0, 1, "x", 0.5]), ("kept", 0)):
        trace, _ = record(loaded)
        trace.forwards[0][key] = [entry] * (trace.gen_length + 1)
        trace.write(tmp_path / "t.jsonl")
        with pytest.raises(ValueError, match=f"line 2.*: it names {trace.gen_length + 1} places; the answer has fewer"):
            read_trace(tmp_path / "t.jsonl")


def test_names_of_a_trace_are_short(loaded, tmp_path):
    """Guards pictures whose header is a megabyte of text, and messages with names from a file."""
    trace, _ = record(loaded)
    trace.head["settings"]["cache"] = "x" * 1000
    trace.write(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match="settings.cache is .*; it must be text of at most 500 characters"):
        read_trace(tmp_path / "t.jsonl")
    trace, _ = record(loaded)
    trace.forwards[0]["\x1b" + "x" * 1000] = 1
    trace.write(tmp_path / "t.jsonl")
    with pytest.raises(ValueError) as error:
        read_trace(tmp_path / "t.jsonl")
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 400


def change(line, **fields):
    return json.dumps(json.loads(line) | fields)


def test_lines_end_with_newlines_alone(loaded, tmp_path):
    """Guards answers and questions with line ends of other kinds, such as U+2028: the file opens again as it was."""
    trace, _ = record(loaded)
    trace.head["prompt"] = trace.tail["answer"] = "one\u2028two\x85three"
    trace.write(tmp_path / "trace.jsonl")
    assert read_trace(tmp_path / "trace.jsonl") == trace


def test_a_gif_needs_sensible_numbers(loaded, tmp_path):
    trace, _ = record(loaded)
    for seconds, frames in ((0, 10), (100, 10), (3, 1)):
        with pytest.raises(ValueError, match="a GIF (lasts|has)"):
            write_gif([trace], tmp_path / "x.gif", seconds, frames)
    with pytest.raises(ValueError, match="at least one forward"):
        write_gif([], tmp_path / "x.gif")
    with pytest.raises(ValueError, match="path is '.*x.mp4'; the name must end in .gif"):
        write_gif([trace], tmp_path / "x.mp4")


def test_seconds_without_a_gif_are_refused(loaded, tmp_path, capsys):
    record(loaded)[0].write(tmp_path / "t.jsonl")
    assert run.main(["trace", str(tmp_path / "t.jsonl"), "--seconds", "3"]) == 2
    assert "--seconds is 3, but nothing is drawn without --gif FILE" in capsys.readouterr().err


@pytest.fixture(scope="module")
def short_trace(loaded):
    """The head, two forwards and the tail of a trace."""
    trace, _ = record(loaded, suffix_sampler=GaussianSampler(48, 3, 1.6))
    return [trace.head, *trace.forwards[:2], trace.tail]


VALUES = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=3) | st.sampled_from(
    [[], {}, [[]], {"name": []}, [0, 1, "x", 0.5]])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_trace_with_any_fault_is_shown_or_refused(short_trace, tmp_path, data):
    """Guards the canvas and the summary: whatever stands in one place of a trace, there is a result or one sentence."""
    lines = json.loads(json.dumps(short_trace))
    place = data.draw(st.sampled_from(lines))
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 5))):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        again = read_trace(tmp_path / "t.jsonl")
    except ValueError as error:
        assert "\n" not in str(error)
        return
    if again.gen_length < 1000:
        assert summarize(again)
        for forwards in range(3):
            canvas_after(again, forwards)
