"""Tests of dpad/results/paper.py: the reported numbers obey what the papers say of them, and laws that a typo breaks.

    bash tests/run.sh tests/test_paper.py
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter

import pytest

import run
from dpad.engine.configurations import LONG_SEQUENCES
from dpad.results import files, paper
from dpad.results.tables import csv_table, markdown_table

RECORD = paper.read()
ROWS = {
    (theirs.source, theirs.row["table"], theirs.row["model"], *theirs.place, theirs.row["name"],
     theirs.row.get("variant")): theirs
    for theirs in paper.reported()
}
CACHED = "+Parallel+PrefixCache"
METRICS = {"gsm8k": {"flexible", "strict"}, "minerva_math": {"math_verify", "exact_match"}, "humaneval": {"pass@1"},
           "mbpp": {"pass@1"}}
DECIMALS = {"dpad": 2, "ssm": 2, "streaming": 1}
# Of each source: latencies, TPS, answer tokens and scores summed up, in hundredths, after every cell was compared.
SUMS = {
    "dpad": (172802, 88131, 964100, 513741),
    "ssm": (125642, 215905, 1625900, 869798),
    "streaming": (123440, 354930, 0, 494620),
}
# The speedups that DPad's main tables state: +DPad, +Parallel, +Parallel+DPad.
STATED = {
    ("llada-instruct", "gsm8k", 256): (1.50, 3.21, 4.14), ("llada-instruct", "minerva_math", 256): (1.18, 2.56, 2.76),
    ("llada-instruct", "humaneval", 512): (1.26, 3.02, 3.79), ("llada-instruct", "mbpp", 512): (3.91, 4.36, 10.32),
    ("llada-1.5", "gsm8k", 256): (1.51, 3.42, 4.43), ("llada-1.5", "minerva_math", 256): (1.22, 2.65, 2.93),
    ("llada-1.5", "humaneval", 512): (3.01, 3.12, 6.61), ("llada-1.5", "mbpp", 512): (4.17, 11.39, 14.14),
    ("dream-base", "gsm8k", 256): (2.17, 1.61, 4.25), ("dream-base", "minerva_math", 256): (1.26, 2.38, 2.72),
    ("dream-base", "humaneval", 512): (3.47, 2.01, 7.01), ("dream-base", "mbpp", 512): (1.19, 3.97, 4.98),
}


def metrics_of(*place):
    return ROWS[place].row["metrics"]


def is_uncertain(theirs, field):
    return field in theirs.row.get("uncertain", {})


# --- What the papers say of their numbers -----------------------------------------------------------------------------


def test_the_headline_ratios():
    """Guards the latencies and TPS of the best rows by the ratios that abstracts and texts state."""
    dpad = ROWS["dpad", "long", "llada-1.5", "gsm8k", 1024, CACHED + "+DPad", None]
    assert dpad.speedup == pytest.approx(61.39, abs=0.1)
    assert ROWS["dpad", "long", "llada-1.5", "gsm8k", 1024, "+DPad", None].speedup == pytest.approx(20.3, abs=0.1)
    dream = {length: ROWS["dpad", "long", "dream-base", "humaneval", length, CACHED + "+DPad", None].speedup
             for length in (1024, 2048)}
    assert dream == {1024: pytest.approx(30.58, abs=0.2), 2048: pytest.approx(97.32, abs=0.6)}

    ssm = ROWS["ssm", "4", "llada-1.5", "gsm8k", 1024, CACHED + "+SSM", None]
    assert ssm.speedup == pytest.approx(72.81, abs=0.02)
    rerun = ROWS["ssm", "4", "llada-1.5", "gsm8k", 1024, CACHED + "+DPad", None]
    assert rerun.whose == "SSM's rerun of DPad (A800)" and rerun.speedup == pytest.approx(59.89, abs=0.01)

    best = CACHED + "+Streaming", None
    assert ROWS["streaming", "main", "llada-1.5", "mbpp", 512, *best].tps_ratio == pytest.approx(68.2, abs=0.05)
    assert ROWS["streaming", "lengths", "llada-1.5", "gsm8k", 2048, *best].tps_ratio == pytest.approx(225, abs=0.5)


@pytest.mark.parametrize("place", STATED)
def test_the_speedups_that_dpads_tables_state(place):
    names = ("+DPad", "+Parallel", "+Parallel+DPad")
    speedups = [ROWS["dpad", "main", *place, name, None].speedup for name in names]
    assert speedups == pytest.approx(STATED[place], rel=5e-3)


def test_ssms_rows_of_dpad_beside_dpads_own():
    """Guards both sources by each other: in the main tables all latencies and scores agree as SSM's note says, in the
    long row the strict scores differ by 3.9 and 1.4 points, the flexible ones by 1.5 and 3.6."""
    compared = Counter()
    for (source, table, *place), theirs in ROWS.items():
        own = ROWS.get(("dpad", "main", *place))
        if source != "ssm" or table != "1 and 5" or own is None:
            continue
        compared[theirs.row["name"]] += 1
        pruned = "DPad" in theirs.row["name"]
        assert theirs.row["latency_s"] == pytest.approx(own.row["latency_s"], rel=0.07 if pruned else 0.08), place
        for metric, value in theirs.row["metrics"].items():
            taken = metric not in ("flexible", "math_verify")
            limit = (0.015 if taken else 0.25 if metric == "math_verify" else 2.06) if pruned else 1.38
            assert abs(value - own.row["metrics"][metric]) < limit, (place, metric)
        assert abs(theirs.row["answer_tokens"] - own.row.get("answer_tokens", theirs.row["answer_tokens"])) <= 1
    assert compared == {"Vanilla": 12, "+Parallel": 12, "+Parallel+DPad": 12}

    for name, flexible, strict in (("+Parallel+DPad", 1.51, -3.86), (CACHED + "+DPad", 3.57, 1.44)):
        rerun, own = (ROWS[*source, "llada-1.5", "gsm8k", 1024, name, None].row["metrics"]
                      for source in (("ssm", "4"), ("dpad", "long")))
        assert rerun["flexible"] - own["flexible"] == pytest.approx(flexible, abs=0.005)
        assert rerun["strict"] - own["strict"] == pytest.approx(strict, abs=0.005)


def test_vanilla_rows_that_ssm_took_over():
    """Guards SSM's table 6, two of whose baselines are DPad's to the digit, measured on another GPU."""
    for benchmark in ("humaneval", "mbpp"):
        place = "llada-instruct", benchmark, 512, "Vanilla", None
        taken, own = ROWS["ssm", "6", *place].row, ROWS["dpad", "main", *place].row
        assert {**taken, "table": "main"} == own
    dpad = ROWS["ssm", "6", "llada-instruct", "gsm8k", 256, "+DPad", None]
    assert dpad.row["metrics"] == metrics_of("dpad", "main", "llada-instruct", "gsm8k", 256, "+DPad", None)
    assert dpad.speedup == pytest.approx(28.52 / 18.8), "over the Vanilla of table 1, as table 6 has none of its own"


def test_milliseconds_per_answer_token():
    """Guards the column that tells a fast method from a terse one: the values of SSM and DPad on four benchmarks."""
    stated = {("gsm8k", 256): (41.8, 44.3), ("minerva_math", 256): (44.5, 46.3), ("mbpp", 512): (54.8, 51.5),
              ("humaneval", 512): (21.1, 15.2)}
    for place, values in stated.items():
        for method, value in zip(("DPad", "SSM"), values):
            theirs = ROWS["ssm", "1 and 5", "llada-instruct", *place, f"+Parallel+{method}", None]
            assert theirs.ms_per_token == pytest.approx(value, abs=0.06)


def test_the_parts_of_ssm_and_streaming():
    """Guards the ablations by what their texts conclude from them."""
    whole, none = (ROWS["ssm", table, "llada-instruct", "gsm8k", 256, "+Parallel+SSM", variant].row["metrics"]
                   for table, variant in (("1 and 5", None), ("2", "no soft states")))
    assert whole["flexible"] - none["flexible"] == pytest.approx(2, abs=0.05)
    assert whole["strict"] - none["strict"] == pytest.approx(3.4, abs=0.05)
    for place in (("gsm8k", 256), ("humaneval", 512)):
        late = ROWS["ssm", "2", "llada-instruct", *place, "+Parallel+SSM", "no early termination"].row
        plain = ROWS["ssm", "1 and 5", "llada-instruct", *place, "+Parallel+SSM", None].row
        assert late["metrics"] == plain["metrics"] and late["latency_s"] > plain["latency_s"]
        margin = ROWS["ssm", "3", "llada-instruct", *place, "+Parallel", "margin rule"].row
        parallel = ROWS["ssm", "1 and 5", "llada-instruct", *place, "+Parallel", None].row
        assert margin["metrics"] == parallel["metrics"] and margin["latency_s"] == pytest.approx(
            parallel["latency_s"], rel=0.02)

    for model in RECORD["models"]:
        place = model, "gsm8k", 512
        none = ROWS["streaming", "main", *place, CACHED, None].row
        suffix, rule, dropped = (
            ROWS["streaming", "parts", *place, CACHED + "+Streaming", variant].row
            for variant in ("suffix alone", "suffix and falling threshold", "last position dropped"))
        whole = ROWS["streaming", "main", *place, CACHED + "+Streaming", None].row
        assert none["tps"] < suffix["tps"] < rule["tps"] < whole["tps"]
        assert 1.07 < rule["tps"] / suffix["tps"] < 1.121, "the rule gives 7 to 12 percent"
        assert 1.15 < whole["metrics"]["accuracy"] - dropped["metrics"]["accuracy"] < 1.95


# --- Laws -------------------------------------------------------------------------------------------------------------


def test_latency_times_tps_is_the_answers_length():
    """Guards all three numbers: they agree within the last digit, a length being rounded or cut off; those that do not
    are marked."""
    checked = Counter()
    for place, theirs in ROWS.items():
        latency, tps, tokens = (theirs.row.get(key) for key in ("latency_s", "tps", "answer_tokens"))
        if latency and tps and tokens:
            rounding = 0.005 * (latency + tps)
            agrees = -0.5 - rounding <= latency * tps - tokens <= 1 + rounding
            assert agrees != is_uncertain(theirs, "answer_tokens"), (place, latency * tps, tokens)
            checked[theirs.source] += 1
    assert checked == {"dpad": 32, "ssm": 71}


def test_lengths_that_follow_from_latency_and_tps_are_possible():
    """Guards rows without a length: the answers fit to 2 %, and parallel decoding leaves their length as it is. Only
    Streaming-dLLM's rows of Dream on GSM8K say otherwise."""
    for (source, table, model, benchmark, length, name, _), theirs in ROWS.items():
        if theirs.row.get("latency_s") and theirs.row.get("tps"):
            half = 0.5 * 10 ** -DECIMALS[source]
            rounding = half * (theirs.row["latency_s"] + theirs.row["tps"])
            assert theirs.row["latency_s"] * theirs.row["tps"] <= 1.02 * length + 1 + rounding, theirs.row
            vanilla = ROWS.get((source, table, model, benchmark, length, "Vanilla", None))
            if name in ("+Parallel", CACHED) and vanilla and (model, benchmark) != ("dream-base", "gsm8k"):
                rounding += half * (vanilla.row["latency_s"] + vanilla.row["tps"])
                difference = abs(theirs.answer_tokens - vanilla.answer_tokens)
                assert difference <= 0.08 * vanilla.answer_tokens + rounding, theirs.row


def test_every_score_is_a_share_of_the_problems():
    """Guards each score: some number of right answers gives it, rounded or, where SSM has Dream's HumanEval, cut off.
    Five cells of Streaming-dLLM are no such share; they are marked."""
    impossible = 0
    for place, theirs in ROWS.items():
        count = RECORD["problems"][theirs.row["benchmark"]]
        digit = 10 ** -DECIMALS[theirs.source]
        cut_off = theirs.source == "ssm" and theirs.row["model"] == "dream-base" and theirs.place[0] == "humaneval"
        for metric, value in theirs.row["metrics"].items():
            right = round(value / 100 * count)
            low, high = (0, digit) if cut_off else (-digit / 2, digit / 2)
            possible = any(low - 1e-9 <= 100 * number / count - value <= high + 1e-9 for number in (right, right + 1))
            marked = theirs.row.get("uncertain", {}).get(metric) == "d"
            assert possible != marked, (place, metric, value)
            impossible += marked
    assert impossible == 5


def test_rows_are_complete_and_named_like_configurations():
    """Guards names, metrics, shots and decimals: a source has one protocol, and every cell of its main tables."""
    main = Counter((theirs.source, theirs.row["table"]) for theirs in ROWS.values())
    assert main == {("dpad", "main"): 48, ("dpad", "long"): 19,
                    ("ssm", "1 and 5"): 60, ("ssm", "4"): 7, ("ssm", "6"): 11, ("ssm", "3"): 8, ("ssm", "2"): 18,
                    ("streaming", "main"): 72, ("streaming", "lengths"): 8, ("streaming", "parts"): 9}
    assert {theirs.row["name"] for theirs in ROWS.values() if theirs.source == "dpad"} == set(LONG_SEQUENCES)
    for place, theirs in ROWS.items():
        row = theirs.row
        labels = {"accuracy"} if theirs.source == "streaming" else METRICS[row["benchmark"]]
        assert row["metrics"].keys() == labels, place
        shots = {"minerva_math": 4, "humaneval": 0, "mbpp": 3}.get(row["benchmark"])
        gsm8k = 5 if theirs.source == "streaming" else 1 if row["gen_length"] == 1024 else 4
        assert row["shots"] == (gsm8k if shots is None else shots), place
        for value in (row.get("latency_s"), row.get("tps"), *row["metrics"].values()):
            assert value is None or math.isclose(value, round(value, DECIMALS[theirs.source])), place
    assert [key for key, theirs in ROWS.items() if is_uncertain(theirs, "answer_tokens")] == [
        ("ssm", "1 and 5", "llada-1.5", "gsm8k", 256, "+Parallel+SSM", None),
        ("ssm", "1 and 5", "llada-1.5", "humaneval", 512, "+Parallel+Streaming", None)]
    marks = Counter(mark for theirs in ROWS.values() for mark in theirs.row.get("uncertain", {}).values())
    assert marks == {"a": 2, "b": 11, "c": 3, "d": 5}


def test_no_cell_has_changed():
    """Guards the digits that no law binds: an edit of any number needs a new look at the paper, and a new sum here."""
    sums = {
        key: tuple(sum(round(100 * (row.get(field) or 0)) for row in source["rows"])
                   for field in ("latency_s", "tps", "answer_tokens"))
        + (sum(round(100 * value) for row in source["rows"] for value in row["metrics"].values()),)
        for key, source in RECORD["sources"].items()
    }
    assert sums == SUMS


def test_every_method_is_faster_than_its_baseline():
    """Guards digits before the point: pruning never slows a row of the same rule and cache down."""
    for (source, table, *place, name, variant), theirs in ROWS.items():
        base, plus, method = name.rpartition("+")
        if method not in ("DPad", "Streaming", "SSM"):
            continue
        plain = ROWS.get((source, table, *place, base or "Vanilla", variant))
        for key, sign in (("latency_s", 1), ("tps", -1)) if plain and source == "streaming" else (("latency_s", 1),):
            if plain and key in plain.row and key in theirs.row:
                assert sign * theirs.row[key] < sign * plain.row[key], (name, place)


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection, message", [
    ("gpt", "model is 'gpt'; the paper has llada-instruct, llada-1.5, dream-base"),
    ("llada-1.6", "llada-instruct, llada-1.5, dream-base; did you mean 'llada-1.5'"),
    ("", "model is ''; the paper has llada-instruct"),
    ("llada-1.5/gsm", "benchmark is 'gsm'; for llada-1.5 papers report gsm8k, minerva_math, humaneval, mbpp"),
    ("dream-base/humaneval/64", "gen_length is '64'; for dream-base/humaneval papers report 256, 512, 1024, 2048"),
    ("dream-base/humaneval/512/0", "must be MODEL, MODEL/TASK or MODEL/TASK/LENGTH"),
])
def test_a_selection_of_nothing_is_refused(selection, message, capsys):
    with pytest.raises(ValueError, match=message):
        paper.reported(selection)
    assert run.main(["table", str(paper.REPORTED), "--paper", selection]) == 2
    output, error = capsys.readouterr()
    assert output == "" and message in error and error.count("\n") == 1


@pytest.mark.parametrize("key, value, message", [
    ("model", "gpt", "sources.ssm.rows[0].model is 'gpt'; the record has llada-instruct"),
    ("benchmark", "gsm", "rows[0].benchmark is 'gsm'; the record has gsm8k"),
    ("table", "7", "rows[0].table is '7'; the record has 1 and 5"),
    ("name", "+Paralel", "rows[0].name is '+Paralel'; its parts must be DPad, DualCache"),
    ("name", "+Parallel", "rows[1] is there twice: table 1 and 5, gsm8k, +Parallel"),
    ("uncertain", {"tps": "z"}, "rows[0].uncertain.tps is 'z'"),
    ("uncertain", {"speed": "a"}, "rows[0].uncertain.speed is 'a'"),
    ("latency_s", 0, "rows[0].latency_s is 0; it must be a time above 0"), ("tps", "8", "rows[0].tps is '8'"),
    ("answer_tokens", 2.5, "answer_tokens is 2.5"), ("metrics", {"strict": None}, "metrics.strict is None"),
])
def test_a_record_that_contradicts_itself_is_refused(tmp_path, capsys, key, value, message):
    """Guards a file that somebody extends with a paper of their own: one line names the row and what is wrong."""
    record = copy.deepcopy(RECORD)
    record["sources"]["ssm"]["rows"][0][key] = value
    files.write_json(tmp_path / "paper.json", record)
    for form in ("terminal", "csv"):
        assert run.main(["table", str(tmp_path / "paper.json"), "--format", form]) == 2
        output, error = capsys.readouterr()
        assert output == "" and message in error and error.count("\n") == 1


def test_a_further_source_is_shown_like_the_others(tmp_path):
    """Guards the file as the only place to touch for another paper's rerun."""
    record = json.loads(json.dumps(RECORD))
    rows = [{"table": "1", "model": "llada-1.5", "benchmark": "gsm8k", "shots": 4, "gen_length": 256, "name": name,
             "latency_s": latency, "metrics": {"flexible": 80}} for name, latency in (("Vanilla", 9), ("+SSM", 3))]
    record["sources"]["mine"] = record["sources"]["ssm"] | {
        "title": "Mine", "method": "Streaming", "gpu": "H100", "tables": {"1": "All."}, "rows": rows}
    theirs = [entry for entry in paper.reported("llada-1.5/gsm8k/256", record) if entry.source == "mine"]
    assert [(entry.whose, entry.speedup) for entry in theirs] == [
        ("Mine (authors, H100)", 1), ("Mine's rerun of SSM (H100)", 3)]
    assert "Mine's rerun of SSM (H100)" in csv_table([record])
    assert markdown_table([record]).count("\n") == markdown_table([RECORD]).count("\n"), "the scripts are DPad's alone"
