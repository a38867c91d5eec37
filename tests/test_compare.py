"""`run.py compare`: methods beside each other, resumed after a kill, over seeds, in tables, plots and records.

    bash tests/run.sh tests/test_compare.py
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

import run
from dpad.engine.methods import METHODS
from dpad.evaluation import compare, runs
from dpad.results import charts, comparisons, files, forms, tables
from dpad.results.evaluations import share_interval
from dpad.results.records import load
from dream.settings import DreamSettings
from llada.settings import LLaDASettings
from sampler import AnchorSampler, GaussianSampler

SHORT = ["-t", "arithmetic-50", "-l", "32", "-b", "16", "-th", "0.02"]
FLAGS = [*run.all_settings()[0], *run.all_settings()[1]]


@pytest.fixture
def model(checkpoint_folder, monkeypatch, tmp_path):
    """Flags for a small random model; relative paths of the test land in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return ["-m", str(checkpoint_folder), "--device", "cpu"]


def entries_of(*texts, shared=None, family=LLaDASettings, note=lambda _: None):
    return {entry.name: entry for entry in compare.read_methods(texts, shared or {}, family, "tiny", FLAGS, note)}


def refused(capsys, arguments):
    """The one line on standard error with which a command line ends."""
    try:
        status = run.main(["compare", *arguments])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1, captured.err
    return captured.err


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_comparison_from_beginning_to_end(model, capsys, monkeypatch, tmp_path):
    """The table has every method once and both vanilla rows, the files are written, and the same command shows them
    again without a model."""
    command = ["compare", *model, *SHORT, "--limit", "2", "--seeds", "2", "--methods", "dpad,streaming",
               "--methods", "mine=-d anchor -w 8 --stride 4 -e", "--output", "out", "--record", "copy.json"]
    assert run.main(command) == 0
    captured = capsys.readouterr()
    [folder] = (tmp_path / "out").glob("compare-*")
    assert "written to out/compare-arithmetic-50-random-llada-" in captured.err
    [record] = load([folder / "comparison.json"])
    assert record == load(["copy.json"])[0] and record["seeds"] == [1234, 1235]
    rows = {row["method"]: row for row in record["rows"]}
    assert list(rows) == ["vanilla", "vanilla-stop", "dpad", "streaming", "mine"]
    assert {name: len(row["runs"]) for name, row in rows.items()} == {
        "vanilla": 1, "vanilla-stop": 1, "dpad": 2, "streaming": 1, "mine": 1}, "only what draws has several runs"
    assert rows["mine"]["settings"]["suffix_sampler"] == {"name": "anchor", "window": 8, "stride": 4, "last": True}
    assert rows["dpad"]["settings"]["threshold"] == 0.02 and rows["vanilla"]["settings"]["threshold"] is None
    assert rows["streaming"]["settings"]["rule"]["threshold"] == 0.02
    assert rows["vanilla"]["runs"][0]["nfe"] == 32 and record["samples"] == 2
    assert {"commit", "hardware", "torch"} <= record["environment"].keys() and record["command"].endswith("copy.json")

    lines = captured.out.splitlines()
    assert lines[1].split()[:2] == ["method", "seeds"] and "ms/token" in lines[1]
    assert [line.split()[0] for line in lines[3:8]] == list(rows)
    assert lines[3].split()[1] == "1" and lines[5].split()[1] == "2" and "1.00×" in lines[3]
    assert "1234, 1235 for the methods that draw" in captured.out
    for name in compare.FILES:
        assert (folder / name).stat().st_size > 100, name
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "table.md").read_text().startswith("**arithmetic-50, 0-shot")
    values = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [row["method"] for row in values] == list(rows) and float(values[0]["nfe"]) == 32

    monkeypatch.setattr(run, "load_model", None)
    (folder / "table.md").unlink()
    assert run.main(command) == 0
    assert capsys.readouterr().out == captured.out and (folder / "table.md").exists()
    assert run.main(["table", str(folder / "comparison.json")]) == 0
    assert capsys.readouterr().out == captured.out
    # The flags of a row decode in the same way.
    settings = run.settings_from(run.parser_of("evaluate").parse_args([*model, *rows["streaming"]["flags"].split()]))
    assert settings.to_json() == rows["streaming"]["settings"]


def test_finished_runs_serve_other_comparisons(model, capsys, monkeypatch, tmp_path):
    """A method more, or more documents, cost only what is new; the earlier table stays where it is."""
    command = ["compare", *model, *SHORT, "--output", "out", "--format", "csv", "--limit"]
    assert run.main([*command, "1", "--methods", "window"]) == 0
    asked = count_answers(monkeypatch)
    assert run.main([*command, "1", "--methods", "window,no-suffix"]) == 0
    assert len(asked) == 2, "one that does not count and one that does, of the new method alone"
    assert run.main([*command, "2", "--methods", "window"]) == 0
    assert len(asked) == 2 + 3 * 2 and len(list((tmp_path / "out").glob("compare-*"))) == 3
    text = capsys.readouterr().out
    assert [line.split(",")[0] for line in text.splitlines()] == [
        "method", "vanilla", "vanilla-stop", "window", "method", "vanilla", "vanilla-stop", "window", "no-suffix",
        "method", "vanilla", "vanilla-stop", "window"]


def count_answers(monkeypatch, stop_at=None):
    """A list that grows with every prompt that is answered; at the answer `stop_at` somebody presses Ctrl-C."""
    from dpad.evaluation import adapter

    asked = []
    complete = adapter.complete

    def counted(loaded, prompts, *arguments, **options):
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return complete(loaded, prompts, *arguments, **options)

    monkeypatch.setattr(adapter, "complete", counted)
    return asked


def test_an_interrupted_comparison_goes_on(model, capsys, monkeypatch, tmp_path):
    """Ctrl-C in the middle keeps what is finished; the same command answers the rest, and ends as if nothing was."""
    command = ["compare", *model, *SHORT, "--limit", "2", "--methods", "dpad", "--seeds", "2", "--output"]
    assert run.main([*command, "whole"]) == 0
    whole = capsys.readouterr().out
    with monkeypatch.context() as patch:
        asked = count_answers(patch, stop_at=5)  # of four runs of three: in the second one
        assert run.main([*command, "out"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err and len(asked) == 5
    assert not list((tmp_path / "out").glob("compare-*")), "no table of half a comparison"
    asked = count_answers(monkeypatch)
    assert run.main([*command, "out"]) == 0
    assert len(asked) == 2 + 3 + 3, "one that does not count, and those that were missing"
    again = capsys.readouterr().out
    assert "3 of the answers were timed in an earlier, interrupted session" in again
    lines = [[line.split() for line in text.splitlines()[3:6]] for text in (whole, again)]
    for first, second in zip(*lines):
        assert first[:2] == second[:2] and first[-6:] == second[-6:], "the method, its seeds, and its accuracies"


@pytest.mark.slow
def test_a_killed_comparison_goes_on(model, tmp_path):
    """SIGKILL, which nothing can catch: every finished answer is in a journal."""
    command = [sys.executable, str(ROOT / "run.py"), "compare", *model, *SHORT[:-2], "--limit", "6", "--methods",
               "dpad", "--seeds", "2", "--output", str(tmp_path / "out"), "--format", "csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    def count() -> int:
        return sum(path.read_bytes().count(b"\n") for path in (tmp_path / "out").glob("runs/*/answers-0.jsonl"))

    deadline = time.monotonic() + 120
    while count() < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = count()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert 8 <= kept <= count() == 4 * 6
    [path] = (tmp_path / "out").glob("compare-*/comparison.json")
    record = files.read_json(path)
    assert sum(entry["reused"] for row in record["rows"] for entry in row["runs"]) == kept
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.slow
def test_two_processes_share_a_comparison(model, tmp_path):
    """The rows of two processes are those of one."""
    command = [sys.executable, str(ROOT / "run.py"), "compare", *model, *SHORT, "--limit", "3", "--methods", "dpad",
               "--seeds", "2", "--format", "csv"]
    texts = []
    for count in (1, 2):
        done = subprocess.run([*command, "--num_processes", str(count), "--output", str(tmp_path / str(count))],
                              capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        texts.append(list(csv.DictReader(io.StringIO(done.stdout))))
    for first, second in zip(*texts, strict=True):
        for name in ("method", "nfe", "slots", "kept_suffix", "answer_length", "flexible", "strict_high"):
            assert first[name] == second[name]


def test_code_or_weights_that_changed_are_measured_again(model, capsys, monkeypatch, checkpoint_folder):
    """Guards a complete comparison of another program or model, which must not be shown as this one's."""
    command = ["compare", *model, *SHORT, "--limit", "1", "--methods", "no-suffix"]
    assert run.main(command) == 0
    folder = next(Path("results").glob("compare-*"))
    for key, other in (("code", "0" * 16), ("checkpoint", [["model.safetensors", 1, "0"]])):
        record = files.read_json(folder / "comparison.json")
        identity = record["identity"]
        record["identity"] = identity | {key: other}
        files.write_json(folder / "comparison.json", record)
        assert run.main(command) == 0
        assert files.read_json(folder / "comparison.json")["identity"] == identity
    capsys.readouterr()


def test_repeats_time_everything_again(model, capsys):
    """Latency gets its spread, and accuracy does not count the same answer twice."""
    assert run.main(["compare", *model, *SHORT, "--limit", "1", "--methods", "window", "--repeats", "2"]) == 0
    [record] = load([next(Path("results").glob("compare-*")) / "comparison.json"])
    assert [[entry["repeat"] for entry in row["runs"]] for row in record["rows"]] == [[0, 1]] * 3
    summary = comparisons.summarize(record)[0]
    assert summary.seeds == 1 and summary.latency.low < summary.latency.middle < summary.latency.high
    assert summary.metrics["strict"].interval == pytest.approx(share_interval(summary.metrics["strict"].value / 100, 1))
    assert "all of it 2 times" in capsys.readouterr().out


# --- Which methods ----------------------------------------------------------------------------------------------------


def test_methods_are_read_from_lists_and_flags():
    """Names and own methods, in one list and in several; a known name with flags is that method with other settings."""
    entries = entries_of("dpad, streaming=-w 32 --fall 0.5", "mine=--method ssm -w 16,last=-d gaussian --keep_last")
    assert list(entries) == ["vanilla", "vanilla-stop", "dpad", "streaming", "mine", "last"]
    assert entries["streaming"].settings.rule.fall == 0.5 and entries["streaming"].settings.suffix_sampler.window == 32
    assert entries["streaming"].source == METHODS["streaming"].source and entries["mine"].source == ""
    assert entries["mine"].settings.suffix_sampler == AnchorSampler(16, 32) and entries["mine"].settings.soft_suffix
    assert entries["last"].settings.suffix_sampler == GaussianSampler(256, 4, 2, last=True)
    assert [name for name, entry in entries.items() if entry.draws] == ["dpad", "last"]
    assert entries_of("x=--temperature 0.5")["x"].draws and entries_of("x=--remasking random")["x"].draws
    assert list(entries_of("vanilla-stop,window,vanilla")) == ["vanilla", "vanilla-stop", "window"]
    assert list(entries_of()) == list(compare.DEFAULT) and set(entries_of("all")) == set(METHODS)


def test_a_default_that_the_model_cannot_do_is_left_out(monkeypatch):
    """Guards the default list, and `all`, for a model that lacks something; named, such a method is refused."""
    notes: list[str] = []
    monkeypatch.setitem(METHODS, "parallel", METHODS["parallel"].__class__("parallel", "", "", {"factor": 1.0}))
    assert "parallel" not in entries_of(family=DreamSettings, note=notes.append)
    assert "parallel" not in entries_of("all", family=DreamSettings, note=notes.append)
    start = "parallel is left out: method parallel: factor: not a setting of Dream"
    assert len(notes) == 2 and all(note.startswith(start) for note in notes)
    with pytest.raises(ValueError, match="method parallel: factor: not a setting of Dream"):
        entries_of("all,parallel", family=DreamSettings)


@pytest.mark.parametrize("texts, shared, message", [
    (["dpda"], {}, "method is 'dpda'; it must be one of .* did you mean 'dpad'"),
    (["dpad,dpad"], {}, "methods has 'dpad' twice"),
    (["a=-w 8 -d window", "a=-d block"], {}, "methods has 'a' twice"),
    (["dpad,"], {}, "method is ''; it must be one of"),
    (["vanilla=-th 0.5"], {}, "method vanilla is what the others are compared with, and takes no flags"),
    (["a=-d windw"], {}, "method a: dropout_strategy is 'windw'; it must be one of .* did you mean 'window'"),
    (["a=--strid 8"], {}, "method a: unrecognized arguments: --strid 8; did you mean '--stride'"),
    (["a=-w 8"], {}, "method a: window is 8, but dropout_strategy null does not use it"),
    (["a=-w"], {}, "method a: argument -w/--window: expected one argument"),
    (["a=-d 'window"], {}, "method a: \"-d 'window\" cannot be read, no closing quotation"),
    (["a=--seed 3"], {}, "method a: unrecognized arguments: --seed 3"),
    (["a b=-d block"], {}, "method is 'a b'; a name has at most 40 letters"),
    (["../a=-d block"], {}, "method is '../a'; a name has"),
    (["all=-d block"], {}, "method is 'all'; a name has"),
    (["a=--method dpda"], {}, "method a: argument --method: invalid choice: 'dpda' .* did you mean 'dpad'"),
    (["eb=-th 0.5"], {}, "method eb: threshold is 0.5 while rule is eb"),
    (["dpad"], {"stride": 4}, "stride: no method uses this"),
    (["a=-d window -w 8"], {"window": 16}, "window: no method uses this, or each has its own"),
    (["dpad"], {"block_length": 48}, "method vanilla: block_length is 48; it must divide"),
])
def test_methods_that_cannot_be_used(texts, shared, message):
    """One sentence that names the method, and what is meant where a name is nearly right."""
    with pytest.raises(ValueError, match=message) as caught:
        entries_of(*texts, shared=shared)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags, message", [
    (["--methods", "streming"], "did you mean 'streaming'?"),
    (["--methods", "mine=-d anchor --strid 4"], "method mine: unrecognized arguments: --strid 4; did you mean '--stri"),
    (["--seeds", "0"], "seeds is 0; it must be an integer from 1 to 1000"),
    (["--repeats", "0"], "repeats is 0"),
    (["--limit", "0"], "limit is 0; it must be"),
    (["-t", "choices-local"], "choices-local asks for log-likelihoods, for which nothing is decoded"),
    (["-t", "arithmetic-5"], "there is no task 'arithmetic-5'"),
    (["--record", "table.txt"], "--record is 'table.txt'; the name must end in .json"),
    (["--mc_samples", "3"], "unrecognized arguments: --mc_samples 3"),
])
def test_bad_input_is_one_sentence(model, capsys, flags, message):
    assert message in refused(capsys, [*model, "--methods", "dpad", *flags])


@pytest.mark.parametrize("family", [LLaDASettings, DreamSettings])
def test_flags_say_what_settings_are(family):
    """Guards the flags below a table: typed after run.py, they decode in the same way."""
    for entry in entries_of("all,a=-d uniform -nt 4 -w 9,b=-d anchor --no_keep_last,c=-dc --steps 64", family=family,
                            shared={"gen_length": 128}).values():
        parser = compare._MethodParser(prog="x", add_help=False)
        run.add_flags(parser, FLAGS)
        arguments = parser.parse_args(compare.flags_of(entry.settings).split())
        assert family.from_choices(run.read_flags(arguments, FLAGS)) == entry.settings, entry.name


# --- Accuracy over seeds ----------------------------------------------------------------------------------------------


def test_seeds_count_for_what_they_tell():
    """Guards intervals that shrink with copies of the same answers: three equal seeds tell no more than one, three
    independent ones as much as three times the problems; whatever they are, the interval is between these two."""
    one = "1101100111"
    share, low, high = comparisons.pooled_interval([one])
    assert (share, (low, high)) == (0.7, share_interval(0.7, 10))
    assert comparisons.pooled_interval([one, one, one])[1:] == pytest.approx((low, high))
    assert comparisons.pooled_interval(["1111", "1111"])[1:] == pytest.approx(share_interval(1, 4))
    rng = random.Random(1)
    coins = ["".join(rng.choice("01") for _ in range(4000)) for _ in range(3)]
    mean, low, high = comparisons.pooled_interval(coins)
    assert (high - low) == pytest.approx(200 * 0.98 * (0.25 / 12000) ** 0.5 * 2, rel=0.06)
    for _ in range(100):
        draws = ["".join(rng.choice("0111") for _ in range(12)) for _ in range(3)]
        share, low, high = comparisons.pooled_interval(draws)
        widest, narrowest = share_interval(share, 12), share_interval(share, 36)
        assert narrowest[1] - narrowest[0] - 1e-9 <= high - low <= widest[1] - widest[0] + 1e-9
        assert low <= 100 * share <= high


# --- Records, tables, plots -------------------------------------------------------------------------------------------


def comparison(**more):
    """A record that never ran: three methods, one of them with two seeds."""
    def one(seed, seconds, right, **fields):
        return {"seed": seed, "repeat": 0, "samples": 4, "latency_s": seconds, "nfe": 8.0, "slots": 900.0,
                "kept_suffix": 12.5, "answer_length": 10.0, "ms_per_token": 100 * seconds, "answer_tokens": 40,
                "seconds": 4 * seconds, "reused": 0, "right": {"strict-match": right},
                "metrics": {"strict-match": {"value": right.count("1") / 4, "stderr": 0.2}}} | fields

    rows = [("vanilla", [one(1, 2.0, "1101")]), ("vanilla-stop", [one(1, 1.0, "1101", slots=500.0)]),
            ("dpad", [one(1, 0.4, "1111"), one(2, 0.6, "1101")])]
    return {
        "kind": "comparison", "name": "comparison", "task": "arithmetic-50", "model": "tiny", "samples": 4,
        "seeds": [1, 2], "repeats": 1,
        "settings": {"gen_length": 64, "block_length": 32, "device": "cpu", "dtype": "float32"},
        "rows": [{"method": name, "source": "", "flags": "-l 64", "draws": name == "dpad", "runs": entries}
                 for name, entries in rows],
        "environment": {"commit": "abc1234", "hardware": {"processor": "Test CPU", "cores": 2, "gpus": []}},
    } | more


def test_the_table_has_what_the_records_say(tmp_path):
    files.write_json(tmp_path / "c.json", comparison())
    records = load([tmp_path / "c.json"])
    table = tables.table_of(records)
    assert table.headings == ["method", "seeds", "latency (s)", "speedup", "NFE", "slots", "kept", "tokens", "ms/token",
                              "strict (%)"]
    assert table.cells[0][:9] == ["vanilla", "1", "2.00", "1.00×", "8.0", "900", "12.5", "10.0", "200.0"]
    assert table.cells[2][:4] == ["dpad", "2", "0.50 [0.40, 0.60]", "4.00×"] and table.cells[2][8] == "50.0"
    assert table.cells[2][9].startswith("87.5 [")
    for part in ("Test CPU, 2 cores", "seeds 1, 2 for the methods that draw", "abc1234", "batch size 1",
                 "- dpad: `-l 64`", "design effect", "one process"):
        assert part in tables.caption(records), part
    other = comparison(model="dream-tiny")
    assert tables.table_of([*records, other]).headings[1] == "model"
    assert tables.render([*records, other], form="markdown").count("| vanilla |") == 2
    bare = comparison(rows=[row | {"runs": [run_ | {"metrics": {"bleu": {"value": 27.5, "stderr": 0.5}}, "right": None,
                                                     "ms_per_token": None, "answer_tokens": 0} for run_ in row["runs"]]}
                            for row in comparison()["rows"][1:]])
    [line] = [cells for cells in tables.table_of([bare]).cells if cells[0] == "dpad"]
    assert line[-1] == "27.5 ± 1.0" and line[3] == "–" and line[-2] == "–", "neither a share nor a baseline"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_names_every_method(tmp_path, suffix):
    """Both panels have every point's name, and nothing is drawn outside of the figure."""
    path = tmp_path / f"pareto.{suffix}"
    charts.pareto_chart(comparison(), path)
    if suffix == "svg":
        text = path.read_text()
        assert all(text.count(f"<!-- {name} -->") == 2 for name in ("vanilla", "vanilla-stop", "dpad"))
    assert path.stat().st_size > 5000
    assert [str(target.name) for target in charts.draw([comparison()], path)] == [path.name]
    with pytest.raises(ValueError, match="nothing to draw"):
        charts.pareto_chart(comparison(rows=[row | {"runs": [entry | {"metrics": {}} for entry in row["runs"]]}
                                             for row in comparison()["rows"]]), path)


@pytest.mark.parametrize("change, message", [
    ({"rows": []}, "rows is .*; it must be a list of at least one entry"),
    ({"seeds": [-1]}, r"seeds\[0\] is -1"),
    ({"rows": [{"method": "dpad", "runs": []}]}, r"rows\[0\]\.runs is "),
    ({"rows": [{"method": "dpad", "runs": [{"seed": 1}]}]}, r"it has no rows\[0\]\.runs\[0\]\.latency_s"),
    ({"settings": {"gen_length": 0}}, "settings.gen_length is 0"),
])
def test_forms_refuse_what_cannot_be_shown(tmp_path, change, message):
    assert forms.fault(comparison(), forms.COMPARISON) is None
    files.write_json(tmp_path / "c.json", comparison(**change))
    with pytest.raises(ValueError, match=message):
        load([tmp_path / "c.json"])


def test_examples_of_a_run_come_from_their_own_seed(checkpoint_folder, tmp_path):
    """Guards seeds that would ask other questions: the worked examples in the prompts are those of the first seed."""
    from dpad.engine.loading import load as load_model

    loaded = load_model(str(checkpoint_folder), device="cpu", dtype="float32")
    prompts = []
    for seed in (1, 2):
        settings = LLaDASettings(gen_length=32, block_length=16, threshold=0.02, seed=seed)
        record = runs.evaluate(loaded, "arithmetic-50", settings, limit=1, num_fewshot=1, output=tmp_path,
                               progress=False, fewshot_seed=1)
        prompts.append(json.loads((Path(record["folder"]) / "samples.jsonl").read_text().splitlines()[0])["prompt"])
    assert prompts[0] == prompts[1] and record["settings"]["fewshot_seed"] == 1
