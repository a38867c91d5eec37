"""Tests of the study of training with dropout: its statistics, table and figure, its evaluator, and its script.

    bash tests/run.sh tests/test_study.py

The script runs with a stand-in for Python that writes down how it was called, and pretends to train.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from example_records import study as record_of
from helpers import ROOT, with_flags

import run
from benchmarks.training import study
from dpad.engine import loading
from dpad.results import charts, files, studies, tables
from dpad.results.records import load
from sampler import NoSuffix

FULL = ("arithmetic", "full")
FAKE = """\
#!/bin/bash
printf '%s\\n' "$*" >> "{calls}"
case "$*" in *"${{FAIL_AT:-nothing}}"*) echo "it broke"; exit 3 ;; esac
while [ $# -gt 0 ]; do [ "$1" = --output ] && output="$2"; shift; done
case "$output" in
*.json) mkdir -p "${{output%/*}}" && echo '{{}}' > "$output" ;;
?*) mkdir -p "$output" && touch "$output/model.safetensors" ;;
esac
exit 0
"""


# --- Statistics, table and figure -------------------------------------------------------------------------------------


def test_shares_are_pooled_over_seeds():
    """Guards against a mean of means, and Wilson's interval by its known value for 81 of 263 (Newcombe 1998)."""
    rows = [{"right": "1" * 81 + "0" * 119}, {"right": "0" * 63}]
    assert studies.share(rows) == pytest.approx(100 * 81 / 263)
    assert studies.interval(rows) == pytest.approx((25.53, 36.62), abs=0.01)


def test_differences_are_taken_problem_by_problem():
    """Guards the pairing: two models with the same share differ by 0, but how surely depends on where they disagree."""
    same = studies.compare({1: {"right": "1100"}, 2: {"right": "10"}}, {1: {"right": "1100"}, 2: {"right": "10"}})
    other = studies.compare({1: {"right": "1100"}, 2: {"right": "10"}}, {1: {"right": "0011"}, 2: {"right": "01"}})
    assert same.points == other.points == 0 and other.high > same.high > 0
    gained = studies.compare({1: {"right": "1110"}, 7: {"right": "0"}}, {1: {"right": "0100"}})
    assert gained.points == 50 and gained == studies.paired_difference(2, 0, 4)  # seed 7 has no counterpart
    assert studies.compare({1: {"right": "1"}}, {2: {"right": "1"}}) is None


def test_the_interval_of_a_paired_difference():
    """Guards Bonett and Price's formula by numbers worked out by hand: 11/102 and 6/102 disagree."""
    difference = studies.paired_difference(10, 5, 100)
    reach = 1.959964 * ((11 + 6) / 102 - (5 / 102) ** 2) ** 0.5 / 102**0.5
    assert difference == pytest.approx((5, 100 * (5 / 102 - reach), 100 * (5 / 102 + reach)))
    assert -100 <= studies.paired_difference(0, 3, 3).low


def example() -> list[dict]:
    right = {"base": "1000", "full": "1100", "dropout": "1101", "none": "0001"}
    return [
        record_of(arm, seed, {FULL: answers, ("countdown", "DPad-1/4"): answers[::-1]})
        for seed in (1, 2) for arm, answers in sorted(right.items())
    ]


def test_the_table_pools_seeds_and_orders_arms():
    headings, cells = tables.table_of(example())
    assert headings == ["task", "decoded with", "first block keeps", "slots per answer", "base (%)", "full (%)",
                        "dropout (%)", "none (%)", "dropout − full", "by seed"]
    assert [line[:4] for line in cells] == [["arithmetic", "full", "12", "225"],
                                            ["countdown", "DPad-1/4", "12", "225"]]
    assert cells[0][4].startswith("25.0 [") and cells[0][6].startswith("75.0 [")
    assert cells[0][8].startswith("+25.0 [") and cells[0][9] == "+25.0, +25.0"
    caption = tables.caption(example())
    assert "2 seeds, 4 problems a seed, threshold 0.9, float32" in caption and "commit abc1234" in caption


def test_a_study_without_both_arms_has_no_difference():
    table = tables.table_of([record_of("none", 1, {FULL: "1100"}), record_of("mine", 1, {FULL: "11"})])
    assert {line[-1] for line in table.cells} == {"–"} and table.headings[2] == "conditions" and len(table.cells) == 2


def test_rows_that_would_count_twice_are_refused():
    twice = [*example(), example()[0] | {"model": "a copy"}]
    with pytest.raises(ValueError, match="two records of a study have arm base, seed 1 and task arithmetic"):
        tables.table_of(twice)


def test_the_figure_is_drawn(tmp_path):
    """Guards `run.py table --plot`: one picture for all records, also where a cell is missing."""
    records = example()
    del records[0]["rows"][1]
    files.write_json(tmp_path / "records.json", records)
    assert run.main(["table", str(tmp_path / "records.json"), "--plot", str(tmp_path / "study.png")]) == 0
    assert (tmp_path / "study.png").stat().st_size > 5000
    assert len(charts.plan(records + [record_of("full", 1, {FULL: "11"})])) == 2  # other conditions


@pytest.mark.parametrize("change", [
    {"rows": []}, {"rows": [{"task": "t", "decoding": "d", "right": "12"}]}, {"seed": -1}, {"settings": {}},
])
def test_records_of_another_form_are_refused(tmp_path, change):
    files.write_json(tmp_path / "x.json", example()[0] | change)
    with pytest.raises(ValueError, match="cannot be used"):
        load([tmp_path / "x.json"])


# --- The evaluator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", study.TASKS)
def test_the_levels_keep_what_their_names_say(name):
    task = study.TASKS[name]
    kept = {decoding: task.expected_suffix(sampler) / task.suffix for decoding, sampler in task.samplers().items()}
    expected = {"full": 1, "DPad-1/2": 1 / 2, "DPad-1/4": 1 / 4, "DPad-1/8": 1 / 8, "window": 1 / 4, "none": 0}
    assert kept == pytest.approx(expected, abs=0.005)
    for sampler in task.samplers().values():
        sampler.check(task.gen_length)


@pytest.fixture(scope="module")
def tiny():
    return loading.load("tiny", device="cpu")


def test_a_cell_counts_what_decoding_did(tiny):
    """Guards scores, order and batches: 0 or 1 stands where the problem stood, whatever batch it was in."""
    task = study.Task(study.arithmetic, 96, 32)
    problems = study.arithmetic.take(5, 3, "test")
    settings = {"gen_length": 96, "block_length": 32, "threshold": 0.9, "early_termination": True, "seed": 1,
                "suffix_sampler": NoSuffix()}
    row = study.decode_cell(tiny, task, problems, settings, batch_size=2)
    alone = [study.decode_cell(tiny, task, [problem], settings, batch_size=1) for problem in problems]
    assert row["right"] == "".join(entry["right"] for entry in alone) and "1" in row["right"]
    assert row["kept_suffix"] == 0
    assert row["tokens_processed"] == sum(entry["tokens_processed"] for entry in alone)
    assert row["nfe"] == pytest.approx(sum(entry["nfe"] for entry in alone) / 5)


@pytest.fixture
def small(monkeypatch):
    """The study with one task and two ways of decoding."""
    task = study.Task(study.countdown, 16, 8)
    samplers = dict(list(study.Task.samplers(task).items())[::5])
    monkeypatch.setattr(study, "TASKS", {"countdown": task})
    monkeypatch.setattr(study.Task, "samplers", lambda self: samplers)
    return ["evaluate", "--model", "tiny", "--arm", "full", "--seed", "2", "--problems", "2", "--device", "cpu"]


def test_an_evaluation_continues_where_it_stopped(small, tmp_path, monkeypatch, capsys):
    """Guards resume: a finished cell is not decoded again, and a complete record stays as it is."""
    path = tmp_path / "full-2.json"
    command = [*small, "--output", str(path)]
    assert study.main(command) == 0
    whole = json.loads(path.read_text())
    assert [row["decoding"] for row in whole["rows"]] == ["full", "none"]
    assert all(row["correct"] == row["right"].count("1") and len(row["right"]) == 2 for row in whole["rows"])
    assert load([path])[0]["training"]["settings"]["steps"] >= 1

    files.write_json(path, whole | {"rows": whole["rows"][:1]})
    decoded = []
    decode_cell = study.decode_cell
    monkeypatch.setattr(study, "decode_cell", lambda *args: decoded.append(args[3]) or decode_cell(*args))
    assert study.main(command) == 0 and len(decoded) == 1
    assert [row | {"seconds": 0} for row in json.loads(path.read_text())["rows"]] == [
        row | {"seconds": 0} for row in whole["rows"]]
    assert study.main(command) == 0 and len(decoded) == 1


@pytest.mark.parametrize("flags, message", [
    (["--arm", "none"], "a record with arm full, which is now none"),
    (["--problems", "3"], "a record with problems 2, which is now 3"),
    (["--threshold", "0"], "a record with threshold 0.9, which is now None"),
    (["--model", "dream-tiny"], "a record with model llada-tiny"),
])
def test_a_record_of_something_else_is_not_written_over(small, tmp_path, flags, message, capsys):
    path = tmp_path / "x.json"
    record = record_of("full", 2, {("countdown", "full"): "10"}, batch_size=100)
    weights = study.digest_of(loading.resolve("tiny"))
    files.write_json(path, record | {"model": "llada-tiny", "weights": weights})
    before = path.read_text()
    assert study.main([*with_flags(small, flags), "--output", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and path.read_text() == before


def test_the_plan_is_printed(capsys):
    assert study.main(["plan"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(study.TASKS) * 6


# --- The script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    """Runs study.sh with the stand-in; returns the status, the calls since the last time, and what it said."""
    python = tmp_path / "python"
    python.write_text(FAKE.format(calls=tmp_path / "calls"))
    python.chmod(0o755)

    def call(**variables):
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            ["bash", ROOT / "benchmarks" / "training" / "study.sh"], capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "PYTHON": str(python), "OUTPUT": str(tmp_path / "out"), "QUICK": "1",
                 "OMP_NUM_THREADS": "1"} | variables,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done.returncode, [line for line in calls if "--output" in line], done.stdout + done.stderr

    call.out = tmp_path / "out"
    return call


def test_the_script_trains_the_arms_alike(script):
    status, calls, said = script(SEEDS="1 2")
    assert status == 0, said
    assert "-m dpad.training.scratch" in calls[0] and "-d null" in calls[0]
    trained = [line for line in calls if line.startswith("run.py train")]
    assert len(trained) == 6
    arms = {line.split("--output")[1].split("/")[-1]: line for line in trained}
    alike = {line.split(" -d ")[0] for line in trained}
    assert len(alike) == 1 and "--objective blockwise" in alike.pop()
    assert "-d null --steps 5" in arms["full-1"] and "-d block --steps 5" in arms["none-1"]
    assert "-d gaussian -w 64,128 -k 3,4 -sc 0.8,1.6,3.2 --steps 5" in arms["dropout-1"]
    assert "--seed 2" in arms["full-2"]
    assert sum("study evaluate" in line for line in calls) == 8
    assert (script.out / "records" / "base-2.json").exists()


def test_the_script_continues_and_repeats_nothing(script):
    """Guards what took hours: complete models are not trained again, an unfinished one is resumed."""
    assert script()[0] == 0
    (script.out / "full-1" / "train-state.pt").touch()
    status, calls, _ = script()
    trained = [line for line in calls if "study evaluate" not in line]
    assert status == 0 and len(trained) == 1 and trained[0].endswith("--resume") and "full-1" in trained[0]


def test_the_script_goes_on_after_a_failure(script):
    status, calls, said = script(FAIL_AT="-d gaussian")
    assert status == 1 and "dropout, seed 1: it broke" in said
    assert not any("evaluate" in line and "dropout-1" in line for line in calls)
    assert any("evaluate" in line and "none-1" in line for line in calls)


def test_the_script_keeps_studies_apart(script):
    assert script()[0] == 0
    status, calls, said = script(STEPS="9")
    assert status == 2 and not calls and "a study of other settings" in said
