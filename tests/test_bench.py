"""The benchmark: what it runs is what it says, its roofline counts every weight product, its records make tables.

    bash tests/run.sh tests/test_bench.py
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

import run
from benchmarks import bench, measurement, rooflines
from benchmarks.measurement import Subject
from benchmarks.workload import ROWS, Workload, choose_rows
from dpad.engine import loading
from dpad.engine.configurations import Configuration, classify
from dpad.results import charts, records, tables
from dpad.results.benchmarks import summarize
from dream import DreamConfig
from llada import LLaDAConfig

WORK = Workload(prompt_length=9, gen_length=64, block_length=16, steps_per_block=4, blocks=2, window=48)


@pytest.fixture(scope="module", params=["llada", "dream"])
def subject(request, random_llada, random_dream):
    """A model of random weights of each family."""
    model = random_llada if request.param == "llada" else random_dream
    return Subject("random", model, loading.FAMILIES[request.param])


@pytest.fixture(scope="module")
def random_subject(random_llada):
    return Subject("random", random_llada, loading.FAMILIES["llada"])


@pytest.fixture(scope="module")
def record(random_subject):
    return measurement.measure(random_subject, ROWS["caches"], [WORK], 2, "command")


def test_shapes_are_the_real_models():
    """Guards the rows `8b` and `7b`: the configurations' defaults are LLaDA-8B's and Dream-7B's (SPEC of both)."""
    llada, dream = LLaDAConfig(**measurement.SHAPES["8b"][1]), DreamConfig(**measurement.SHAPES["7b"][1])
    assert (llada.n_layers, llada.d_model, llada.n_heads, llada.mlp_hidden_size, llada.vocab_size) == (
        32, 4096, 32, 12288, 126464)
    assert (dream.num_hidden_layers, dream.hidden_size, dream.num_key_value_heads, dream.intermediate_size,
            dream.vocab_size) == (28, 3584, 4, 18944, 152064)


@pytest.mark.parametrize("table", ROWS)
def test_rows_do_the_work_they_stand_for(subject, table):
    """Guards the settings of the rows: forwards, blocks entered and suffix kept follow from row and workload."""
    for configuration in ROWS[table].values():
        output = measurement.run(subject, configuration, WORK)
        blocks = WORK.blocks if configuration.early_termination else 4
        assert len(output.kept_suffix) == blocks
        steps = WORK.steps_per_block if configuration.parallel else WORK.block_length
        if subject.family.package == "llada":
            assert output.forwards.tolist() == [blocks * steps]
        assert (len(output.kept_suffix[0]) < 48) == configuration.dpad
        answer = output.sequences[0, WORK.prompt_length:]
        ends = (answer == subject.model.config.eos_token_id).nonzero().flatten()
        assert (int(ends[0]) == 16 * (blocks - 1) if configuration.early_termination else len(ends) == 0)


def test_the_caches_table_compares_the_same_forwards():
    """Guards the meaning of the table: all of its rows decode several tokens a forward, up to the answer's end."""
    for name, configuration in ROWS["caches"].items():
        assert configuration.parallel and not configuration.early_termination
        assert name.endswith("DPad") == configuration.dpad
        assert configuration.cache == ("prefix" if "Prefix" in name else "dual" if "Dual" in name else "none")


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_observed_forwards_are_all_the_work(subject, cache):
    """Guards the roofline: the observed forwards compute every slot that decoding counts, ask the head for every
    decoded token, and give the same answer as the model itself."""
    configuration = Configuration(dpad=True, parallel=True, cache=cache)
    observed = rooflines.ObservedModel(subject.model)
    output = measurement.run(subject, configuration, WORK, model=observed)
    assert torch.equal(output.sequences, measurement.run(subject, configuration, WORK).sequences)
    forwards = observed.forwards
    assert sum(forward.slots for forward in forwards) == output.tokens_processed
    assert len(forwards) == int(output.forwards[0])
    assert all(forward.keys >= forward.slots for forward in forwards)
    assert sum(forward.logits for forward in forwards) >= WORK.gen_length
    assert any(forward.keys > forward.slots for forward in forwards) == (cache != "none")


def test_roofline_is_every_matrix_product_once(subject, monkeypatch):
    """Guards `Products`: each linear layer once a forward with the forward's slots, the head with its logits alone;
    each layer's attention once, of the queries and keys that each row has."""
    model = subject.model
    calls, attended = [], []
    monkeypatch.setattr(rooflines, "multiply", lambda x, weight: calls.append((len(x), weight)))
    monkeypatch.setattr(rooflines.F, "scaled_dot_product_attention", lambda *shapes: attended.append(shapes))
    products = rooflines.Products(model)
    products.compute([rooflines.Forward(slots=10, keys=18, logits=0, rows=2)])
    assert len(attended) == model.layer_count
    queries, keys, values = ([*x.shape] for x in attended[0])
    groups = model.config.num_attention_heads // model.kv_head_count
    assert queries == [2, model.kv_head_count, 5 * groups, model.head_size]
    assert keys == values == [2, model.kv_head_count, 9, model.head_size]
    calls.clear()
    products.compute([rooflines.Forward(slots=5, keys=9, logits=3)])
    linears = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(calls) == len(linears) and {id(w) for _, w in calls} == {id(w) for w in linears}
    assert [count for count, weight in calls if len(weight) == model.vocabulary_size] == [3]
    assert {count for count, weight in calls if len(weight) != model.vocabulary_size} == {5}

    monkeypatch.setattr(rooflines, "MAX_TIMED", 2)
    monkeypatch.setattr(rooflines, "timed", lambda device, call, forwards: call(forwards) or len(forwards))
    forward = rooflines.Forward(slots=5, keys=9, logits=3)
    other = rooflines.Forward(slots=4, keys=9, logits=0)
    assert products.seconds([forward, other, forward, forward]) == 4  # two of the three are timed, and stand for all
    assert products.bytes() == sum(w.numel() * w.element_size() for w in linears)


def test_a_record_becomes_a_table_and_a_picture(record, tmp_path):
    """Guards records: quotients are of the repeats, settings say what a row is, and the table shows every row."""
    for row in record["rows"]:
        assert len(row["latency_s"]) == len(row["floor_s"]) == 2
        quotients = [a / b for a, b in zip(row["latency_s"], row["floor_s"])]
        assert min(quotients) <= row["ratio"] <= max(quotients)
        assert row["read_s"] is None
        assert row["full_ms"] > 0 and (row["cached_ms"] is None) == (row["cache"] == "none")
        assert row["replayed"] == (None if row["cache"] == "none" else 1)
        assert classify(row) == ROWS["caches"][row["name"]]
    assert record["rows"][0]["speedup"] == 1
    assert json.loads(json.dumps(record))["settings"]["sampler"]["window"] == 48
    assert record["environment"]["commit"]
    table = tables.markdown_table([record])
    assert all(f"| {name} |" in table for name in ROWS["caches"])
    assert "G = 64" in table and "in 4 steps" in table and "median of 2 runs" in table
    charts.draw([record], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert tables.csv_table([record]).count("\n") == 7
    assert [row["name"] for row in summarize(record)["rows"]] == list(ROWS["caches"])


def test_batches_are_compared_by_their_answers(random_subject):
    """Guards --batch_size 1,2: a batch's time is shared by its rows, and the first row's answer stays what it was."""
    workloads = [dataclasses.replace(WORK, batch_size=size) for size in (1, 2)]
    rows = choose_rows("caches", ["Vanilla", "+DPad"])
    record = measurement.measure(random_subject, rows, workloads, 1, "command")
    assert [(row["name"], row["batch_size"]) for row in record["rows"]] == [
        ("Vanilla", 1), ("+DPad", 1), ("Vanilla", 2), ("+DPad", 2)]
    assert all(row["same_tokens"] and row["replayed"] is None for row in record["rows"])
    one, _, two, _ = record["rows"]
    assert two["speedup"] == pytest.approx(2 * one["latency_s"][0] / two["latency_s"][0])
    assert two["tokens_processed"] == 2 * one["tokens_processed"]
    table = tables.markdown_table([record])
    assert "| configuration | batch |" in table and "batch size 1, 2" in table


def test_growth_times_the_same_blocks_at_every_length(random_subject, tmp_path):
    """Guards the growth record: as many blocks for every length, each with every repeat."""
    workloads = [Workload(prompt_length=9, gen_length=length, block_length=16, steps_per_block=2, blocks=2, window=32)
             for length in (32, 64)]
    rows = choose_rows("caches", ["Vanilla", "+DPad"])
    record = measurement.growth(random_subject, rows, workloads, 3, "command")
    assert [(row["name"], row["gen_length"]) for row in record["rows"]] == [
        ("Vanilla", 32), ("Vanilla", 64), ("+DPad", 32), ("+DPad", 64)]
    assert all([len(block) for block in row["block_s"]] == [3, 3] for row in record["rows"])
    lines = tables.terminal_table([record]).splitlines()
    assert len(lines) == 4 and "1.00×" in lines[2] and lines[3].split()[0] == "64"
    charts.draw([record], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_profile_names_the_operators(random_subject):
    """Guards --profile: a dozen lines at most, the matrix products among them."""
    text = measurement.profile(random_subject, "Vanilla", ROWS["caches"]["Vanilla"], WORK)
    assert len(text.splitlines()) == 13 and "aten::" in text


@pytest.mark.parametrize("flags, message", [
    (["-l", "100"], "block_length is 32; it must divide gen_length (100)"),
    (["--steps_per_block", "33"], "steps_per_block is 33; it must be at most one a token (32)"),
    (["--blocks", "9"], "blocks is 9; an answer of 256 tokens has only 8"),
    (["--only", "Vanila"], "row is 'Vanila'; it must be one of Vanilla, "),
    (["--profile", "x"], "row is 'x'; it must be one of Vanilla, "),
    (["--gen_lengths", "64,x"], "--gen_lengths is '64,x'; it must be whole numbers with commas between them"),
    (["--repeats", "0"], "repeats is 0; it must be an integer of at least 1"),
    (["--batch_size", "1,2", "--profile", "+DPad"], "--batch_size is '1,2'; it must be one number with --profile"),
    (["--batch_size", "1,1"], "--batch_size is '1,1'; it must be different numbers"),
    (["--gen_lengths", "64,64"], "--gen_lengths is '64,64'; it must be different numbers"),
    (["--only", "+DPad,+DPad"], "row is '+DPad,+DPad'; it must be different rows"),
    (["--only", "+DPad", "--profile", "+DPad"], "--only is '+DPad', which --profile does not use"),
    (["--only", "+DPad", "--gen_lengths", "64,128"], "--only is '+DPad', which --gen_lengths does not use"),
    (["--profile", "+DPad", "--gen_lengths", "64,128"], "--gen_lengths is '64,128', which --profile does not use"),
    (["--profile", "+DPad", "--plot", "x.png"], "--plot is 'x.png', which --profile does not use"),
    (["--profile", "+DPad", "--output", "x.json"], "--output is 'x.json', which --profile does not use"),
    (["-l", "64", "--gen_lengths", "64,128"], "--gen_length is 64, which --gen_lengths does not use"),
    (["-th", "0.9", "--steps_per_block", "2"], "--steps_per_block is 2, which --threshold does not use"),
    (["--blocks", "2"], "--blocks is 2, but no row that is timed ends early"),
    (["--only", "+DPad", "--plot", "x.png"], "--plot is 'x.png', but there is nothing to compare in a chart of one"),
    (["--gen_lengths", "128", "--plot", "x.png"], "nothing to compare in a chart of one length"),
    (["--batch_size", "0"], "batch_size is 0; it must be an integer of at least 1"),
    (["-m", "9b"], "model is '9b'; it must be 8b, 7b, small, small-dream (random weights), tiny, "),
    (["-k", "-1"], "k_sigma is -1.0; it must be a finite number above 0"),
    (["--threshold", "2"], "threshold is 2.0; it must be a finite number above 0 and at most 1"),
    (["--fused", "on"], "--fused is 'on', but without a GPU nothing is recorded; add --graphs on, or leave it out"),
    (["--fused", "on", "--graphs", "off"], "--fused is 'on', but --graphs is 'off'; leave one out"),
])
def test_bad_flags_end_in_one_line(capsys, monkeypatch, random_subject, flags, message):
    """A mistake in the flags ends in one line that names it, with status 2."""
    if "-m" not in flags:
        monkeypatch.setattr(measurement, "make_subject", lambda *_: random_subject)
    assert run.main(["bench", *flags]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("run.py: ") and message in line


def test_command_line_measures_writes_and_ends_in_json(capsys, monkeypatch, tmp_path):
    """Guards `run.py bench` end to end on a small random shape."""
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 48, "vocab_size": 300,
             "mask_token_id": 298, "eos_token_id": 297}
    monkeypatch.setitem(measurement.SHAPES, "small", ("llada", shape))
    flags = ["--prompt_length", "8", "-l", "64", "--repeats", "1", "--rows", "figure", "--blocks", "1"]
    files = ["--output", str(tmp_path / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    assert run.main(["bench", *flags, *files]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["kind"] == "benchmark" and len(last["rows"]) == 7
    written = records.load([tmp_path / "bench.json"])
    assert written[0]["command"].startswith("python run.py bench --prompt_length 8")
    assert (tmp_path / "bench.png").exists()


def test_without_vanilla_there_is_no_baseline(random_subject, tmp_path):
    """Guards --only: ratios to whatever row comes first are no speedups, and the table says so; with Vanilla, its place
    among the rows does not matter."""
    rows = choose_rows("caches", ["+DPad", "+PrefixCache+DPad"])
    record = measurement.measure(random_subject, rows, [WORK], 1, "command")
    assert [row["speedup"] for row in record["rows"]] == [None, None] == [row["speedup"] for row in
                                                                         summarize(record)["rows"]]
    text = tables.markdown_table([record])
    assert "There is no baseline: Vanilla was not timed" in text and "1.00×" not in text
    charts.draw([record], tmp_path / "chart.png")
    rows = choose_rows("caches", ["+DPad", "Vanilla"])
    record = measurement.measure(random_subject, rows, [WORK], 1, "command")
    assert record["rows"][1]["speedup"] == 1 and "no baseline" not in tables.markdown_table([record])


def test_weights_that_do_not_fit_are_refused(monkeypatch, capsys):
    """Guards `-m 8b --device cpu`, which ran out of memory after silent minutes: the size is known before."""
    monkeypatch.setattr(measurement, "free_memory", lambda device: 20 * 2**30)
    assert run.main(["bench", "-m", "8b", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "model is '8b', whose 8.0 billion weights take 29.9 GB in float32; cpu has 20.0 GB free" in error
    measurement.check_memory("8b", 8_000_000_000, torch.bfloat16, torch.device("cpu"))
    assert capsys.readouterr().err == "8b: making 8.0 billion random weights, 14.9 GB in bfloat16 on cpu\n"
    measurement.check_memory("small", 1_000_000, torch.float32, torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_progress_is_plain_lines_in_a_log(random_subject, capsys):
    """Guards minutes of silence where standard error is no terminal: a line for each setting, then for each repeat."""
    rows = choose_rows("caches", ["Vanilla", "+PrefixCache"])
    measurement.measure(random_subject, rows, [WORK], 2, "command")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[0/7] Vanilla, batch size 1: first run", "[1/7] +PrefixCache, batch size 1: first run",
        "[2/7] +PrefixCache, batch size 1: warm-up", "[3/7] timing every row, 1 of 2",
        "[5/7] timing every row, 2 of 2",
    ]


def test_the_gpu_script_asks_for_what_there_is():
    """Guards a script that no test machine can run: every command parses, and its rows and work are possible."""
    text = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("bench ")]
    assert len(commands) == 6
    parser = run.parser_of("bench")
    for command in commands:
        args = parser.parse_args(command)
        bench.plan(args)
        assert args.model in measurement.SHAPES


@pytest.mark.slow
def test_agreement_script_runs(tmp_path):
    """Guards the other half of gpu.sh: on the CPU every answer agrees with the plain path in float32."""
    command = [sys.executable, "-m", "benchmarks.agreement", "--device", "cpu", "--limit", "1", "--output",
               tmp_path / "record.json"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the tests' own process
    printed = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=True).stdout
    assert "float32 equals the plain path in 72 of 72 runs of 1 answers" in printed
    assert len(json.loads((tmp_path / "record.json").read_text())["rows"]) == 24


@pytest.mark.slow
def test_bench_and_training_need_no_lm_eval():
    """Guards machines without lm-eval or matplotlib: the benchmark and the training must import there."""
    program = ("import sys; sys.modules['lm_eval'] = None; sys.modules['datasets'] = sys.modules['matplotlib'] = None\n"
               "from benchmarks import bench, measurement\n"
               "from dpad.results import tables\n"
               "from benchmarks.training import steps, study\n"
               "from dpad.training import command, scratch, trainer\n"
               "measurement.make_subject('tiny', 'cpu', None)")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_flags_need_no_torch():
    """Guards a fast --help: the flags are there before anything heavy is imported."""
    program = ("import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
               "import argparse; from benchmarks import bench; bench.add_flags(argparse.ArgumentParser())")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
