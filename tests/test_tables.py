"""Tests of dpad/results/tables.py and `run.py table`: rows, speedups, intervals, captions, and every kind of record.

    bash tests/run.sh tests/test_tables.py
"""

from __future__ import annotations

import csv
import io
import json

import pytest
from example_records import evaluation, settings_of, vanilla_and_dpad
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run
from dpad import ROOT
from dpad.results import charts, evaluations, files, paper, tables
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

LOAD = {
    "kind": "load", "model": "tiny", "task": "arithmetic-50", "problems": 50, "server": "run.py serve", "seconds": 60,
    "settings": {"gen_length": 128, "block_length": 16, "max_batch": 32}, "remark": "beside nothing",
    "rows": [
        {"clients": 1, "answers": 100, "wrong": 0, "lost": 0, "tokens_per_second": 50.0,
         "latency_s": {"p50": 0.25, "p95": 0.5}, "rows_per_batch": 1.0, "memory_mb": {"start": 450.2, "end": 451.0},
         "tokens": 3000, "processor_s": 60.0},
        {"clients": 64, "answers": 300, "wrong": 1, "lost": 2, "tokens_per_second": 150.0,
         "latency_s": {"p50": 4.5, "p95": 9.0}},
    ],
    "environment": AGREEMENT["environment"],
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


@pytest.mark.parametrize("more, settings", [
    ({"samples": 20}, {}), ({}, {"num_fewshot": 4}), ({}, {"limit": 20}), ({}, {"dtype": "bfloat16"}),
    ({}, {"batch_size": 8}), ({}, {"device": "cuda"}), ({}, {"after_eos": "drop"}),
])
def test_speedups_never_compare_other_work(more, settings):
    """Guards ratios of runs on other problems, with other prompts, or on another device."""
    dpad = evaluation("+DPad", 0.5, **more)
    dpad["settings"] |= settings
    dpad["environment"]["hardware"]["gpus"] = [{"name": "GPU"}]
    assert [row.speedup for row in evaluation_rows([evaluation("Vanilla", 2.0), dpad])] == [1, None]
    assert len(evaluations.group_by_table([evaluation("Vanilla", 2.0), dpad])) == 2


def test_all_of_the_problems_are_all_of_them():
    """Guards --limit 50 of 50 problems, which is the same work as no limit."""
    dpad = evaluation("+DPad", 0.5)
    dpad["settings"]["limit"] = 50
    assert evaluation_rows([evaluation("Vanilla", 2.0), dpad])[1].speedup == 4


def test_the_baseline_is_known_by_its_settings(pair):
    """Guards names, which say nothing: what runs are stands in their settings."""
    pair[0]["name"] = "arithmetic-50-tiny-0a1b2c"
    assert evaluation_rows(pair)[1].speedup == pytest.approx(2.0 / 0.483)
    early = evaluation("Vanilla", 1.0, settings=settings_of("Vanilla+EarlyTermination", 256) | {"device": "cpu"})
    assert evaluation_rows([early, pair[1]])[1].speedup is None, "a name alone does not make a baseline"
    again = evaluation("Vanilla", 4.0)
    assert evaluation_rows([*pair, again])[1].speedup is None, "neither of two is the baseline"
    assert evaluation_rows([*pair, evaluation("mine", 2.0)])[1].speedup is not None, "the same run, kept twice"
    again["settings"]["seed"] = pair[1]["settings"]["seed"] = 5
    assert evaluation_rows([*pair, again])[1].speedup == pytest.approx(4.0 / 0.483), "the one with the same seed"
    with pytest.raises(ValueError, match="no records"):
        evaluation_rows([])


def test_rows_are_called_what_they_are(pair, capsys, tmp_path):
    """Guards runs without -n, which are called after their folder: they appear as their configuration, with its rows
    of papers; a name that a person gave stands beside it, and so do settings that tell rows apart."""
    pair[0]["name"], pair[1]["name"] = "arithmetic-50-tiny-0a1b2c3d4e", "Vanilla"
    files.write_json(tmp_path / "a.json", pair)
    assert run.main(["table", str(tmp_path), "--paper", "llada-1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:6] == ["Vanilla", "measured", "–", "0", "2.00", "1.00×"]
    assert lines[4].split()[:6] == ["Vanilla", "DPad", "(authors,", "A100)", "main", "–"] and "27.61" in lines[4]
    [ours, theirs] = [line for line in lines if line.startswith("+DPad ")]
    assert ours.split()[:6] == ["+DPad", "measured", "–", "Vanilla", "0", "0.48"] and "18.26" in theirs

    narrow = evaluation("+DPad", 0.4, sampler={"name": "gaussian", "window": 64, "k_sigma": 3, "scale": 1.6})
    wide = evaluation("+DPad", 0.5)
    other = evaluation("+DPad", 0.6, sampler={"name": "uniform", "window": 64, "number": 32})
    assert [row.label for row in evaluation_rows([pair[0], narrow, wide])] == [
        "Vanilla", "+DPad (window 64)", "+DPad (window 256)"]
    assert [row.label for row in evaluation_rows([other])] == ["+DPad (sampler uniform)"]
    again = evaluation("Vanilla", 3.0)
    again["environment"] |= {"commit": "def5678", "date": "2026-11-26"}
    assert [row.label for row in evaluation_rows([evaluation("Vanilla", 2.0), again])] == [
        "Vanilla (commit abc1234)", "Vanilla (commit def5678, date 2026-11-26)"]


@pytest.mark.parametrize("share, count, low, high", [(0.5, 10, 0.2366, 0.7634), (0, 20, 0, 0.1611), (1, 20, 0.8389, 1)])
def test_interval(share, count, low, high):
    """Guards the formula by values from published tables of Wilson's interval."""
    assert share_interval(share, count) == pytest.approx((100 * low, 100 * high), abs=5e-2)


def test_an_interval_holds_its_share():
    """Guards charts of runs without a mistake: rounding put the end of the interval of 4 of 4 below 100 %."""
    for count in range(1, 200):
        for hits in {0, 1, count // 3, count - 1, count}:
            low, high = share_interval(hits / count, count)
            assert 0 <= low <= 100 * (hits / count) <= high <= 100, (hits, count)


# --- One table --------------------------------------------------------------------------------------------------------


def test_markdown_table(pair):
    lines = markdown_table(pair).splitlines()
    assert lines[0] == ("| configuration | latency (s) | speedup | TPS | ms/token | tokens | NFE | flexible (%) "
                        "| strict (%) |")
    assert lines[3] == "| +DPad | 0.48 | 4.14× | 12.3 | 81.0 | 6.0 | 256.0 | 82.0 | 50.0 |"
    for part in ("tiny", "arithmetic-50", "50 samples", "G = 256", "Test CPU, 2 cores", "float32", "abc1234", "0-shot"):
        assert part in lines[-1]


def test_columns_follow_the_metrics_and_what_varies():
    records = [evaluation("Vanilla", 2.0, metrics={"pass@1": {"value": 0.25, "stderr": None}}),
               evaluation("Vanilla", 4.0, length=512, metrics={"exact": {"value": None}})]
    lines = markdown_table(records).splitlines()
    assert lines[0] == ("| configuration | G | latency (s) | speedup | TPS | ms/token | tokens | NFE | pass@1 (%) "
                        "| exact (%) |")
    assert lines[2] == "| Vanilla | 256 | 2.00 | 1.00× | 12.3 | 81.0 | 24.7 | 256.0 | 25.0 | – |"
    assert lines[3] == "| Vanilla | 512 | 4.00 | 1.00× | 12.3 | 81.0 | 49.4 | 256.0 | – | – |"


def test_terminal_table_is_aligned_and_narrow(pair):
    names = ["Vanilla", "+DPad", "+Parallel+PrefixCache+DPad"]
    table = [evaluation("Vanilla", 127.41, tps=1180.3, nfe=1024.0), evaluation("+Parallel+PrefixCache+DPad", 2.07)]
    lines = terminal_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 112
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
    """Below each row stand those of the same benchmark, length and configuration that papers report, with their own
    speedup; methods that were not measured follow in order."""
    assert run.main(["table", str(folder), "--paper", "llada-1.5"]) == 0
    output = capsys.readouterr().out
    first, second = output.split("\n\n")[:2]
    assert "G = 256" in first and "G = 1024" in second
    ours, theirs = [line for line in first.splitlines() if line.startswith("+DPad ")]
    assert ours.split() == ["+DPad", "measured", "–", "0", "8.00", "2.50×", "10.0", "1.00×", "100.0", "80.0", "32.0",
                            "60.0", "[46.2,", "72.4]", "30.0", "[19.1,", "43.8]", "–"]
    assert theirs.split() == ["+DPad", "DPad", "(authors,", "A100)", "main", "4", "18.26", "1.51×", "–", "–", "–", "–",
                              "–", "80.14", "78.47", "–"]
    names = [line.split("  ")[0] for line in second.splitlines()[3:]]
    assert names == sorted(names, key=paper.name_order) and names[-1] == "+Parallel+PrefixCache+SSM"
    fastest = [line for line in second.splitlines() if line.startswith("+Parallel+PrefixCache+DPad")]
    assert [text in line for text, line in zip(("90.00×", "61.35×", "59.89×"), fastest)] == [True] * 3
    assert "SSM's rerun of DPad (A800)" in fastest[2] and "≈ 141" in fastest[2]
    assert "no soft states" not in output, "parts of a method stand in benchmarks/paper.json alone"
    for text in ("NVIDIA A100-PCIe-80GB", "arXiv 2608.23167 v1; NVIDIA A800 40 GB", "(a): does not agree with TPS"):
        assert text in output


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
    assert "exact       50.0% [36.6, 63.4]\n" in evaluations.summarize(entry)


def test_three_right_answers_are_not_certain():
    """Guards the summary of a run: 100.0% ± 0.0% after three samples says more than is known."""
    entry = evaluation("Vanilla", 1.0, samples=3, flexible=1.0, reused=0, folder="f", latency_median_s=1.0,
                       empty_answers=0, cut_prompts=0)
    assert "flexible-extract  100.0% [43.9, 100.0]\n" in evaluations.summarize(entry)


def test_both_conventions_for_text_after_eos_are_shown(pair):
    """A score that depends on the convention has a column for either; runs scored differently share no table."""
    vanilla, dpad = pair
    for entry in pair:
        entry["settings"]["after_eos"] = "drop"
        entry["other_metrics"] = {"after_eos": "keep", "metrics": entry["metrics"]}
    assert "after EOS" not in "".join(tables.table_of(pair).headings)
    dpad["other_metrics"] = {"after_eos": "keep", "metrics": dpad["metrics"] | {"strict-match": {"value": 0.44}}}
    table = tables.table_of(pair)
    assert table.headings[-1] == "strict with text after EOS (%)"
    assert [cells[-1] for cells in table.cells][1] == "44.0"
    assert "other_strict" in evaluations.evaluation_values(pair)[0]
    dpad |= {"reused": 0, "folder": "f", "latency_median_s": 1.0, "empty_answers": 0, "cut_prompts": 0}
    assert "with text after EOS  flexible" in evaluations.summarize(dpad)
    dpad["settings"]["after_eos"] = "keep"
    assert len(evaluations.group_by_table(pair)) == 2
    assert evaluation_rows(pair)[1].speedup is None
    assert "text after EOS kept" in evaluations.describe_tables([[dpad]])[0]


def test_rows_come_in_the_papers_order():
    """Guards folders, whose files are read by name; rows that the paper does not have come last."""
    records = [evaluation(name, 1.0) for name in ("+Parallel+DPad", "+DualCache", "+DPad", "Vanilla")]
    [table] = evaluations.group_by_table(records)
    assert [row["name"] for row in table] == ["Vanilla", "+DPad", "+Parallel+DPad", "+DualCache"]


def test_csv_and_markdown(folder, capsys):
    assert run.main(["table", str(folder), "--paper", "llada-1.5", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    measured = [row for row in rows if row["source"] == "measured"]
    assert rows[:4] == measured and float(rows[1]["speedup"]) == 2.5 and float(rows[1]["answer_length"]) == 80
    [rerun] = [row for row in rows if "rerun of DPad" in row["source"] and "Cache" in row["configuration"]]
    assert float(rerun["latency_s"]) == 2.14 and rerun["hardware"] == "NVIDIA A800 40 GB" and rerun["nfe"] == ""
    assert float(rerun["answer_length"]) == pytest.approx(141.2, abs=0.1)
    assert rerun["answer_length_from"] == "tps * latency_s"
    assert float(rows[1]["flexible_low"]) < 60 < float(rows[1]["flexible_high"])
    assert run.main(["table", str(folder), "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert "| +DPad | 8.00 | 2.50× |" in output and "source" not in output


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
    reported = "27.61" if form == "csv" else "hours on an A100"
    for text in (part, "latency", "roofline (s)", "+DPad growth", "SSM's rerun of DPad (A800)", reported, "bfloat16"):
        assert text in output


def test_committed_records_are_shown():
    """Guards old records: each file is read and makes a table with a caption."""
    paths = [*ROOT.glob("benchmarks/*.json"), *ROOT.glob("checkpoints/*/records.json")]
    assert len(paths) >= 10
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        lines = markdown_table(load([path])).splitlines()
        assert len(lines) > 4 and "unknown" not in lines[-1], (path, content)


def test_a_server_under_load():
    """Guards what a reader must see: the gain over one client, and what went wrong."""
    table = tables.table_of([LOAD])
    assert dict(zip(table.headings, table.cells[1])) == {
        "clients": "64", "answers": "300", "wrong": "1", "lost": "2", "p50 (s)": "4.50", "p95 (s)": "9.00",
        "tokens/s": "150", "gain": "3.00×", "prompts a batch": "–", "tokens per CPU s": "–", "memory (MB)": "–"}
    assert table.cells[0][-3:] == ["1.0", "50", "450 to 451"]
    assert "run.py serve; beside nothing. Gain" in tables.caption([LOAD]) and "abc1234" in tables.caption([LOAD])
    assert tables.table_of([LOAD, LOAD | {"server": "Ray Serve"}]).headings[1] == "server"


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


# --- A user's own folder ----------------------------------------------------------------------------------------------


def test_folders_are_searched_with_all_their_subfolders(tmp_path, capsys, monkeypatch, pair):
    """Guards `run.py table results`: records lie in run folders, next to other files; what was skipped is said."""
    monkeypatch.chdir(tmp_path)
    for name, record in zip("ab", pair):
        files.write_json(tmp_path / "results" / "runs" / f"arithmetic-{name}" / "record.json", record)
        files.write_json(tmp_path / "results" / f"{name}.json", record)  # the same again, by --record
    files.write_json(tmp_path / "results" / "notes.json", {"mine": 1})
    (tmp_path / "results" / "broken.json").write_text("{")
    (tmp_path / "results" / ".hidden").mkdir()
    files.write_json(tmp_path / "results" / ".hidden" / "x.json", evaluation("Vanilla", 9.0))
    assert run.main(["table", "results"]) == 0
    output, error = capsys.readouterr()
    assert output.count("Vanilla") == 1 and output.count("4.14×") == 1
    first, second = error.splitlines()
    assert first.startswith("run.py: note: skipped: results/broken.json is not JSON: ")
    assert second == "run.py: note: skipped: 1 .json file in results without records"


def test_tables_do_not_mix_what_cannot_be_compared(tmp_path, capsys):
    """Guards titles: a table has one model, task, length, number of examples and of samples, and names them."""
    records = [evaluation("Vanilla", 1.0), evaluation("Vanilla", 1.0, model="dream-tiny"),
               evaluation("Vanilla", 1.0, length=512), evaluation("Vanilla", 1.0, samples=3)]
    records.append(evaluation("Vanilla", 1.0))
    records[-1]["settings"]["num_fewshot"] = 4
    records.append(evaluation("Vanilla", 1.0))
    records[-1]["settings"]["batch_size"] = 8
    files.write_json(tmp_path / "a.json", records)
    assert run.main(["table", str(tmp_path)]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("arithmetic-50, ")]
    assert len(titles) == 6 == len(set(titles))
    for part in ("dream-tiny", "G = 512", " 3 samples", "4-shot", "batch size 8"):
        assert sum(part in title for title in titles) == 1, part


@pytest.mark.parametrize("content, message", [
    ("[]", "empty list"), ("{}", "not a record"), ("3", "not a record"), ("null", "not a record"),
    ("[[]]", "not a record"), ('{"kind": []}', "not a record"), ('{"kind": "evaluation"}', "it has no name, task"),
    ("[" * 100_000, "nested deeper"), ("[" * 80 + "]" * 80, "nested deeper"), ('{"a": 1e999}', "out of range"),
    ('{"a": NaN}', "out of range"), ("9" * 5000, "out of range"), ('"\\ud800"', "half of a surrogate pair"),
    ("\ufeff{}", "not JSON"), ("", "not JSON"), ('{"kind": "evaluation"', "not JSON"),
])
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_no_record_is_one_line(tmp_path, capsys, content, message, inside):
    """Guards against tracebacks, whether the file is named or the folder it lies in."""
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert run.main(["table", str(tmp_path if inside else tmp_path / "a.json")]) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1
    assert message in error or (inside and "holds no record of a run in its 1 .json file" in error)


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch, capsys):
    """Guards memory: no more than the limit is read of a file."""
    monkeypatch.setattr(files, "MAX_JSON", 1000)
    (tmp_path / "a.json").write_text("[" + "1," * 1000 + "1]")
    assert run.main(["table", str(tmp_path / "a.json")]) == 2
    assert "is larger than" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    assert run.main(["table", str(tmp_path / "b")]) == 2
    assert "holds no .json file" in capsys.readouterr().err


SPOILT = [
    ("samples", 0, "0 samples"), ("samples", "50", "samples is '50'"), ("samples", True, "samples is True"),
    ("latency_s", None, "latency_s is None"), ("latency_s", -1, "latency_s is -1"), ("metrics", [], "metrics is []"),
    ("metrics", {"m": 3}, "metrics.m is 3"), ("metrics", {"m": {"value": "x"}}, "metrics.m.value is 'x'"),
    ("settings", None, "settings is None"), ("name", {"a": 1}, "name is {'a': 1}"), ("model", 5, "model is 5"),
    ("task", "x" * 1000, "task is 'xxx"), ("settings", {"gen_length": "256"}, "settings.gen_length is '256'"),
    ("settings", {"suffix_sampler": "gaussian"}, "settings.suffix_sampler is 'gaussian'"),
    ("settings", {"suffix_sampler": {}}, "settings.suffix_sampler.name"), ("settings", {"cache": 1}, "settings.cache"),
    ("environment", [], "environment is []"), ("environment", {"hardware": {"gpus": [1]}}, "hardware.gpus[0] is 1"),
    ("environment", {"hardware": {"processor": 1}}, "environment.hardware.processor is 1"),
]


@pytest.mark.parametrize("key, value, message", SPOILT)
def test_a_malformed_record_is_named(tmp_path, capsys, key, value, message):
    """Guards fields of other types: one line names the file, the field and its value; others are shown without it."""
    bad = evaluation("+DPad", 1.0) | {key: value}
    files.write_json(tmp_path / "bad.json", bad)
    assert run.main(["table", str(tmp_path / "bad.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bad.json" in error and message in error
    files.write_json(tmp_path / "good.json", evaluation("Vanilla", 1.0))
    assert run.main(["table", str(tmp_path)]) == 0
    output, error = capsys.readouterr()
    assert "Vanilla" in output and "+DPad" not in output and error.count("\n") == 1 and message in error


def test_control_characters_never_reach_the_terminal(tmp_path, capsys):
    """Guards terminals against names from files: escapes are shown as text, and a name stays on its line."""
    hostile = "a\x1b[2Jb\x9bc\nd\u202ee\x07"
    record = evaluation(hostile, 1.0, model=hostile, task=hostile, metrics={hostile: {"value": 0.5}})
    record["environment"] = {"commit": hostile, "hardware": {"processor": hostile, "gpus": []}}
    files.write_json(tmp_path / "a.json", record)
    for form in ("terminal", "markdown", "csv"):
        assert run.main(["table", str(tmp_path), "--format", form]) == 0
        output = capsys.readouterr().out
        assert not set(output.replace("\n", "")) & set("\x1b\x9b\u202e\x07") and "\\x1b[2Jb" in output
    assert run.main(["table", str(tmp_path / "a\x1b[2J.json")]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--figure", "heatmap"], "--figure is 'heatmap', but nothing is drawn without --plot FILE"),
    (["--figure", "bars"], "--figure is 'bars', but nothing is drawn without --plot FILE"),
])
def test_flags_are_not_ignored(tmp_path, capsys, flags, message):
    files.write_json(tmp_path / "a.json", vanilla_and_dpad())
    assert run.main(["table", str(tmp_path), *flags]) == 2
    output, error = capsys.readouterr()
    assert output == "" and message in error
    assert run.main(["table", str(ROOT / "benchmarks" / "cpu-small.json"), "--paper", "llada-1.5"]) == 2
    assert "stand beside evaluations, and there are none" in capsys.readouterr().err


def test_what_papers_report_without_a_record(capsys):
    """Guards `run.py table benchmarks/paper.json`: in each format all reported numbers, or a part, with sources."""
    path = str(ROOT / "benchmarks" / "paper.json")
    assert run.main(["table", path, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == sum(len(source["rows"]) for source in paper.read()["sources"].values())
    assert {row["source"] for row in rows} == {
        "DPad (authors, A100)", "SSM (authors, A800)", "SSM's rerun of DPad (A800)",
        "SSM's rerun of Streaming-dLLM (A800)", "Streaming-dLLM (authors, A800)"}
    assert run.main(["table", path, "--paper", "llada-instruct/humaneval", "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert "**LLaDA-8B-Instruct, humaneval, 0-shot, G = 256, as reported**" in output and "hours" not in output
    assert "| +Parallel+SSM (no soft states) | SSM (authors, A800) | 2 | 4.26 |" in output
    assert "| 43.4 (d) |" in output and "- (d): no number of right answers" in output and "- (a):" not in output
    assert run.main(["table", path]) == 0
    output = capsys.readouterr().out
    assert "hours on an A100" in output and output.count("as reported\n") == 30


def test_nothing_reported_is_said(tmp_path, capsys):
    """Guards answer lengths and tasks that no paper has: the flag is not ignored in silence."""
    files.write_json(tmp_path / "a.json", evaluation("Vanilla", 1.0, length=384))
    assert run.main(["table", str(tmp_path), "--paper", "llada-1.5"]) == 0
    assert "Nothing is reported for LLaDA-1.5 on these tasks and answer lengths." in capsys.readouterr().out


def test_benchmarks_of_other_machines_and_work_are_told_apart():
    """Guards rows and curves that would take each other's place."""
    [one] = load([ROOT / "benchmarks" / "cpu-growth.json"])
    other = json.loads(json.dumps(one))
    other["settings"]["prompt_length"] = 7
    assert [heading for heading in tables.table_of([one, other]).headings if "growth" in heading] == [
        "128 Vanilla growth", "128 +DPad growth", "7 Vanilla growth", "7 +DPad growth"]
    assert len(tables.table_of([one, one]).headings) == 9
    [one] = load([ROOT / "benchmarks" / "cpu-small.json"])
    other = json.loads(json.dumps(one))
    other["settings"]["dtype"], other["environment"]["hardware"]["processor"] = "bfloat16", "Other CPU"
    assert tables.table_of([one, other]).headings[1:3] == ["dtype", "hardware"]
    assert tables.table_of([AGREEMENT, AGREEMENT | {"device": "cuda"}]).headings[2] == "device"


def test_a_benchmark_without_vanilla_has_no_speedups(tmp_path, capsys):
    """Guards `bench --only`: ratios to whatever row came first would look like speedups."""
    [record] = load([ROOT / "benchmarks" / "cpu-small.json"])
    record["rows"] = record["rows"][1:3]
    text = terminal_table([record])
    assert "–" in text and tables.caption([record]).endswith(
        "There is no baseline: Vanilla was not timed, so there are no speedups.")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4)
COMMITTED = [load([ROOT / "benchmarks" / name])[0] for name in ("demo-cpu.json", "cpu-batch.json", "cpu-growth.json",
                                                                "paper.json")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_record_with_any_fault_is_shown_or_refused(tmp_path, data):
    """Guards tables and charts: whatever stands in one place of a record, there is a result or one sentence."""
    record = json.loads(json.dumps(data.draw(st.sampled_from([*COMMITTED, AGREEMENT]))))
    place = record
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 5))):
            break
        place = place[key]
    if data.draw(st.booleans()) and isinstance(place, dict):
        del place[key]
    else:
        place[key] = data.draw(JSON_VALUES)

    path = tmp_path / "a.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    for use in (lambda records: tables.render(records), lambda records: tables.render(records, form="csv"),
                lambda records: charts.plan(records * 2)):
        try:
            use(load([path]))
        except ValueError as error:
            assert "\n" not in str(error)
