"""Tests of dpad/results/tables.py and `run.py table`: rows, speedups, intervals, captions, and every kind of record.

    bash tests/run.sh tests/test_tables.py
"""

from __future__ import annotations

import csv
import io
import json

import pytest
from example_records import evaluation, settings_of, vanilla_and_dpad

import run
from dpad import ROOT
from dpad.results import evaluations, files, tables
from dpad.results.evaluations import evaluation_rows, share_interval
from dpad.results.records import load
from dpad.results.tables import markdown_table, terminal_table

AGREEMENT = {
    "kind": "agreement", "device": "cpu", "problems": 16,
    "rows": [
        {"model": "tiny", "cache": "prefix", "suffix_sampler": "GaussianSampler(window=96, k_sigma=3, scale=1.6)",
         "steps": 24, "float32": {"answers": 1.0, "tokens": 1.0}, "bfloat16": {"answers": 0.875, "tokens": 0.9912}},
        {"model": "dream-tiny", "cache": "none", "suffix_sampler": "None", "threshold": 0.9, "steps": 3,
         "float32": {"answers": 1.0, "tokens": 1.0}},
    ],
    "environment": {"commit": "abc1234", "hardware": {"processor": "Test CPU", "cores": 2, "gpus": []}},
}


@pytest.fixture
def pair():
    return vanilla_and_dpad()


# --- Rows of evaluations ----------------------------------------------------------------------------------------------


def test_rows_hold_the_records_numbers(pair):
    vanilla, dpad = evaluation_rows(pair)
    assert vanilla.speedup == 1 and dpad.speedup == pytest.approx(2.0 / 0.483)
    assert {label: metric.value for label, metric in dpad.metrics.items()} == {
        "flexible": pytest.approx(82), "strict": pytest.approx(50)}
    assert dpad.metrics["strict"].error == pytest.approx(6)
    assert [dpad.record[key] for key in ("latency_s", "tps", "nfe")] == [0.483, 12.34, 256.0]


@pytest.mark.parametrize("other", [{"task": "gsm8k-split"}, {"length": 512}, {"cores": 8}, {"model": "1.5"}])
def test_speedup_compares_like_with_like(other):
    fast = evaluation("+DPad", 0.5, **other)
    assert evaluation_rows([evaluation("Vanilla", 2.0), fast])[1].speedup is None
    records = [evaluation("Vanilla", 2.0), fast, evaluation("Vanilla", 3.0, **other)]
    assert evaluation_rows(records)[1].speedup == pytest.approx(6.0)


def test_two_baselines_are_refused(pair):
    with pytest.raises(ValueError, match="two records named Vanilla"):
        evaluation_rows([*pair, evaluation("Vanilla", 1.0)])
    with pytest.raises(ValueError, match="no records"):
        evaluation_rows([])


def test_the_baseline_is_known_by_its_settings(pair):
    """Guards runs without a name, which are called after their folder: what they are stands in their settings."""
    pair[0]["name"] = "arithmetic-50-tiny-0a1b2c"
    assert evaluation_rows(pair)[1].speedup == pytest.approx(2.0 / 0.483)
    again = evaluation("arithmetic-50-tiny-other-seed", 4.0)
    assert evaluation_rows([*pair, again])[1].speedup is None, "neither of two is the baseline"
    assert evaluation_rows([*pair, again, evaluation("Vanilla", 1.0)])[1].speedup == pytest.approx(1.0 / 0.483)
    early = evaluation("Vanilla", 1.0, settings=settings_of("Vanilla+EarlyTermination", 256) | {"device": "cpu"})
    assert evaluation_rows([early, pair[1]])[1].speedup is None, "a name alone does not make a baseline"


@pytest.mark.parametrize("share, count, low, high", [(0.5, 10, 0.2366, 0.7634), (0, 20, 0, 0.1611), (1, 20, 0.8389, 1)])
def test_interval(share, count, low, high):
    """Guards the formula by values from published tables of Wilson's interval."""
    assert share_interval(share, count) == pytest.approx((100 * low, 100 * high), abs=5e-2)


# --- One table --------------------------------------------------------------------------------------------------------


def test_markdown_table(pair):
    lines = markdown_table(pair).splitlines()
    assert lines[0] == "| configuration | latency (s) | speedup | TPS | NFE | flexible (%) | strict (%) |"
    assert lines[3] == "| +DPad | 0.48 | 4.14× | 12.3 | 256.0 | 82.0 | 50.0 |"
    for part in ("tiny", "arithmetic-50", "50 samples", "G = 256", "Test CPU, 2 cores", "float32", "abc1234", "0-shot"):
        assert part in lines[-1]


def test_columns_follow_the_metrics_and_what_varies():
    records = [evaluation("Vanilla", 2.0, metrics={"pass@1": {"value": 0.25, "stderr": None}}),
               evaluation("Vanilla", 4.0, length=512, metrics={"exact": {"value": None}})]
    lines = markdown_table(records).splitlines()
    assert lines[0] == "| configuration | G | latency (s) | speedup | TPS | NFE | pass@1 (%) | exact (%) |"
    assert lines[2] == "| Vanilla | 256 | 2.00 | 1.00× | 12.3 | 256.0 | 25.0 | – |"
    assert lines[3] == "| Vanilla | 512 | 4.00 | 1.00× | 12.3 | 256.0 | – | – |"


def test_terminal_table_is_aligned_and_narrow(pair):
    names = ["Vanilla", "+DPad", "+Parallel+PrefixCache+DPad"]
    table = [evaluation("Vanilla", 127.41, tps=1180.3, nfe=1024.0), evaluation("+Parallel+PrefixCache+DPad", 2.07)]
    lines = terminal_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    # A table that grows row by row keeps its columns when it is told the names to come.
    growing = [terminal_table(pair[: count + 1], names).splitlines() for count in range(2)]
    assert growing[0] == growing[1][:3] and "4.14×" in growing[1][3]


def test_csv_has_full_precision(pair):
    rows = list(csv.DictReader(io.StringIO(tables.csv_table(pair))))
    assert float(rows[1]["speedup"]) == 2.0 / 0.483 and rows[1]["name"] == "+DPad"
    assert rows[0]["hardware"] == "Test CPU, 2 cores" and float(rows[1]["flexible"]) == pytest.approx(82)


def test_records_of_different_kinds_do_not_make_one_table(pair):
    with pytest.raises(ValueError, match="records of different kinds .evaluation, agreement. do not make one table"):
        markdown_table([*pair, AGREEMENT])


# --- run.py table -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four evaluations with LLaDA-1.5's settings, for the paper's main table and its long-sequence figure."""
    more = {"task": "gsm8k", "model": "1.5", "tps": 10.0, "nfe": 32.0}
    for number, entry in enumerate([
        evaluation("Vanilla", 20.0, flexible=0.5, strict=0.25, **more),
        evaluation("+DPad", 8.0, flexible=0.6, strict=0.3, **more),
        evaluation("Vanilla", 90.0, flexible=0.5, strict=0.25, length=1024, **more),
        evaluation("+Parallel+PrefixCache+DPad", 1.0, flexible=0.5, strict=0.25, length=1024, **more),
    ]):
        files.write_json(tmp_path / f"{number}.json", entry)
    return tmp_path


def test_measured_rows_stand_beside_the_authors(folder, capsys):
    """Each row gets the authors' row of the same benchmark, length and configuration, and its own speedup."""
    assert run.main(["table", str(folder), "--paper", "llada-1.5"]) == 0
    output = capsys.readouterr().out
    first, second = output.split("\n\n")[:2]
    assert "G = 256" in first and "G = 1024" in second
    [line] = [line for line in first.splitlines() if line.startswith("+DPad")]
    assert line.split() == ["+DPad", "8.00", "2.50×", "10.0", "32.0", "60.0", "[46.2,", "72.4]", "30.0", "[19.1,",
                            "43.8]", "18.26", "1.51×", "80.14", "78.47"]
    assert "90.00×" in second and "61.35×" in second
    assert "as reported by the authors for LLaDA-1.5 on an NVIDIA A100-PCIe-80GB" in output


def test_a_metric_that_is_no_share_stays_as_it_is(tmp_path, capsys):
    """Guards tasks such as translation: a BLEU of 27.3 ± 0.5 is neither 2730% nor a share with an interval."""
    entry = evaluation("Vanilla", 20.0, metrics={"bleu": {"value": 27.3, "stderr": 0.5}}, reused=0, folder="f",
                       latency_median_s=20.0, empty_answers=0, cut_prompts=0)
    files.write_json(tmp_path / "0.json", entry)
    assert run.main(["table", str(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Vanilla")]
    assert line.split()[-1] == "27.3"
    assert "bleu        27.3 ± 0.5\n" in evaluations.summarize(entry)
    entry["metrics"] = {"exact": {"value": 0.5, "stderr": 0.07}}
    assert "exact       50.0% ± 7.0%\n" in evaluations.summarize(entry)


def test_rows_come_in_the_papers_order():
    """Guards folders, whose files are read by name; rows that the paper does not have come last."""
    records = [evaluation(name, 1.0) for name in ("+Parallel+DPad", "mine", "+DPad", "Vanilla")]
    [table] = evaluations.group_by_table(records)
    assert [row["name"] for row in table] == ["Vanilla", "+DPad", "+Parallel+DPad", "mine"]


def test_csv_and_markdown(folder, capsys):
    assert run.main(["table", str(folder), "--paper", "llada-1.5", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 and float(rows[1]["paper_latency_s"]) == 18.26 and float(rows[1]["speedup"]) == 2.5
    assert float(rows[1]["flexible_low"]) < 60 < float(rows[1]["flexible_high"])
    assert run.main(["table", str(folder), "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert "| +DPad | 8.00 | 2.50× |" in output and "paper" not in output


def test_stand_ins_are_compared_with_what_they_stand_for(tmp_path, capsys):
    files.write_json(tmp_path / "a.json", evaluation("Vanilla", 2.0))
    assert run.main(["table", str(tmp_path / "a.json"), "--paper", "llada-1.5"]) == 0
    assert "27.61" in capsys.readouterr().out


@pytest.mark.parametrize("form, part", [("terminal", "─"), ("markdown", "| --- |"), ("csv", ",")])
def test_every_kind_of_record_is_shown(tmp_path, form, part, capsys):
    """Guards one command for all records: a table for each kind, in every format."""
    files.write_json(tmp_path / "agreement.json", AGREEMENT)
    names = ("demo-cpu.json", "cpu-small.json", "cpu-growth.json", "paper.json")
    paths = [str(ROOT / "benchmarks" / name) for name in names]
    assert run.main(["table", *paths, str(tmp_path / "agreement.json"), "--format", form]) == 0
    output = capsys.readouterr().out
    for text in (part, "latency", "roofline (s)", "+DPad growth", "hours on an A100", "bfloat16"):
        assert text in output


def test_committed_records_are_shown():
    """Guards old records: each file is read and makes a table with a caption."""
    paths = [*ROOT.glob("benchmarks/*.json"), *ROOT.glob("checkpoints/*/records.json")]
    assert len(paths) >= 10
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        lines = markdown_table(load([path])).splitlines()
        assert len(lines) > 4 and "unknown" not in lines[-1], (path, content)


def test_agreement_with_the_plain_path():
    lines = markdown_table([AGREEMENT]).splitlines()
    assert lines[0] == "| configuration | model | float32 | bfloat16 |"
    assert lines[2] == "| +PrefixCache+DPad | tiny | 100.0 / 100.0 | 87.5 / 99.1 |"
    assert lines[3] == "| +Parallel | dream-tiny | 100.0 / 100.0 | – |"
    assert "16 problems, Test CPU, 2 cores, commit abc1234" in lines[-1]


def test_benchmarks_of_different_work_are_told_apart():
    """Guards several records in one call: what differs between them has a column."""
    records = load([ROOT / "benchmarks" / name for name in ("cpu-small.json", "cpu-small-1024.json", "cpu-batch.json")])
    table = tables.table_of(records)
    assert table.headings[:4] == ["configuration", "model", "G", "batch"]
    assert table.cells[0][:4] == ["Vanilla", "small", "256", "1"]
    assert table.cells[-1][:4] == ["+DualCache+DPad", "tiny", "128", "8"]
