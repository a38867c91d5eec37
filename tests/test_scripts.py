"""llada/scripts and dream/scripts: they measure exactly the paper's rows, stop at a failure, skip what is complete.

    bash tests/run.sh tests/test_scripts.py

A stand-in for Python writes down how it was called. One script runs for real, and the rows of two main tables.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from transformers import AutoTokenizer

import run
from checkpoints import make
from dpad.engine.configurations import classify
from dpad.engine.soft import SoftSuffix
from dpad.evaluation import compare
from dpad.results.paper import GRID, OWN, STAND_INS, reported
from dream import DreamConfig, DreamModel
from sampler import AnchorSampler, GaussianSampler, UniformSampler

ALL = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*/scripts/*.sh"))
COMPARISONS = [script for script in ALL if script.endswith("compare.sh")]
SCRIPTS = [script for script in ALL if script not in COMPARISONS]
# The settings of the papers for a task, by model: Streaming-dLLM's window and fall, SSM's window, k and alpha.
RIVALS = {
    "1.5": {"gsm8k": (96, 0.4, 72, 7, 0.4), "minerva_math": (96, 0.4, 72, 7, 0.4), "humaneval": (96, 0.4, 160, 7, 0.4),
            "mbpp": (96, 0.3, 48, 7, 0.4)},
    "instruct": {"gsm8k": (96, 0.3, 64, 3, 0.3), "minerva_math": (128, 0.3, 64, 7, 0.4),
                 "humaneval": (256, 0.4, 160, 7, 0.4), "mbpp": (32, 0.3, 80, 7, 0.4)},
    "dream-base": {"gsm8k": (32, 0.3, 48, 5, 0.2), "minerva_math": (32, 0.1, 48, 5, 0.2),
                   "humaneval": (128, 0.4, 72, 5, 0.2), "mbpp": (192, 0.6, 48, 5, 0.2)},
}
TABLES = {  # script -> the authors' rows that it measures: key of paper.json and answer lengths
    "llada/scripts/main_instruct.sh": ("llada-instruct", (256, 512)),
    "llada/scripts/main_1.5.sh": ("llada-1.5", (256, 512)),
    "llada/scripts/long_seq.sh": ("llada-1.5", (1024,)),
    "dream/scripts/main_base.sh": ("dream-base", (256, 512)),
    "dream/scripts/long_seq.sh": ("dream-base", (1024, 2048)),
}
# The paper's settings: model, task and answer length -> shots, then k, a and W of +DPad, then, where they are others,
# of its rows with +Parallel.
SETTINGS = {
    ("llada-instruct", "gsm8k", 256): (4, (4, 2.0, 256)),
    ("llada-instruct", "minerva_math", 256): (4, (4, 2.0, 256)),
    ("llada-instruct", "humaneval", 512): (0, (3, 2.3, 512)),
    ("llada-instruct", "mbpp", 512): (3, (3, 2.3, 128)),
    ("llada-1.5", "gsm8k", 256): (4, (3, 1.6, 256)),
    ("llada-1.5", "minerva_math", 256): (4, (3, 1.6, 256)),
    ("llada-1.5", "humaneval", 512): (0, (3, 1.6, 128), (3, 2.3, 128)),
    ("llada-1.5", "mbpp", 512): (3, (3, 1.6, 512)),
    ("llada-1.5", "gsm8k", 1024): (1, (3, 1.6, 256)),
    ("dream-base", "gsm8k", 256): (4, (4, 1.6, 256)),
    ("dream-base", "minerva_math", 256): (4, (4, 1.6, 128)),
    ("dream-base", "humaneval", 512): (0, (3, 2.3, 128)),
    ("dream-base", "mbpp", 512): (3, (3, 1.6, 128)),
    ("dream-base", "humaneval", 1024): (0, (3, 2.3, 128)),
    ("dream-base", "humaneval", 2048): (0, (3, 2.3, 128)),
}
FAKE = """\
#!/bin/bash
printf '%s\\n' "$(printf '%q ' "$@")" >> "{calls}"
if [ "$2" = table ]; then echo "THE TABLE"; exit 0; fi
case "$*" in *"${{FAIL_AT:-nothing}}"*) echo "run.py: it broke" >&2; exit 3 ;; esac
"""


@pytest.fixture
def house(tmp_path):
    """The scripts in a folder of their own, with a set-up that names the stand-in as Python."""
    for folder in ("llada/scripts", "dream/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "rows.sh", tmp_path / "benchmarks")
    python = tmp_path / "python"
    python.write_text(FAKE.format(calls=tmp_path / "calls"))
    python.chmod(0o755)
    (tmp_path / "environment.sh").write_text(f'ROOT="{tmp_path}"\nPYTHON="{python}"\n')
    return tmp_path


def parse(row):
    """The flags of a command line of `run.py`, and the decoding settings that they stand for."""
    options = run.parser_of("evaluate").parse_args(row)
    return options, run.settings_from(options)


def called(house, script, cwd="/", **variables):
    """Run a script from elsewhere; its process, and the command lines of run.py."""
    (house / "calls").unlink(missing_ok=True)
    taken = ("MODEL", "LIMIT", "OUTPUT", "WINDOWS", "NUM_PROCESSES", "BATCH_SIZE", "SEEDS", "LONG")
    clean = {name: value for name, value in os.environ.items() if name not in taken}
    done = subprocess.run(["bash", str(house / script)], cwd=cwd, env=clean | variables, capture_output=True, text=True)
    return done, [shlex.split(line)[1:] for line in (house / "calls").read_text().splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_line_is_a_command_that_run_takes(house, script):
    """Guards against flags that run.py does not have, or refuses together."""
    done, calls = called(house, script)
    assert done.returncode == 0, done.stderr
    *rows, table = calls
    assert table[0] == "table" and run.parser_of("table").parse_args(table[1:])
    records = []
    for row in rows:
        options, settings = parse(row)
        assert settings.gen_length == options.gen_length
        records.append(options.record)
    assert len(set(records)) == len(records) >= 7


@pytest.mark.parametrize("script, model", [
    ("llada/scripts/compare.sh", "1.5"), ("llada/scripts/compare.sh", "instruct"),
    ("dream/scripts/compare.sh", "dream-base"),
])
def test_comparisons_have_the_published_settings(house, script, model):
    """Guards a fair table: one threshold for all, each method with its authors' settings for the task and length."""
    done, calls = called(house, script, MODEL=model, SEEDS="5", LONG="1" if model == "1.5" else "")
    assert done.returncode == 0, done.stderr
    *rows, table = calls
    assert table[0] == "table" and len(rows) == (5 if model == "1.5" else 4)
    for row in rows:
        assert row[0] == "compare"
        options = run.parser_of("compare").parse_args(row[1:])
        decoding, dropout = run.all_settings()
        shared = run.read_flags(options, [*decoding, *dropout])
        family = run.family_of(model).settings
        entries = {entry.name: entry.settings for entry in compare.read_methods(
            options.methods, shared, family, model, [*decoding, *dropout], print)}
        assert options.seeds == 5 and options.model == model and len(entries) == 15
        key = {"1.5": "llada-1.5", "instruct": "llada-instruct"}.get(model, model)
        shots, *samplers = SETTINGS[key, options.task, options.gen_length]
        k, scale, window = samplers[-1]
        assert options.num_fewshot == shots
        assert entries["dpad-parallel"].suffix_sampler == GaussianSampler(window, k, scale)
        slow = {name for name, settings in entries.items()
                if getattr(settings.rule, "threshold", settings.threshold) != 0.9}
        assert slow == {"vanilla", "vanilla-stop"}
        cached = {name for name, settings in entries.items() if settings.cache == "prefix"}
        assert cached == {"fast-dllm", "dpad-parallel-cache", "streaming", "ssm-cache"}
        if options.gen_length == 1024:
            continue
        window, fall, near, likeliest, alpha = RIVALS[model][options.task]
        for name in ("streaming", "streaming-uncached"):
            assert entries[name].suffix_sampler == AnchorSampler(window, 0) and entries[name].rule.fall == fall
        for name in ("ssm", "ssm-cache", "ssm-hard"):
            assert entries[name].suffix_sampler == AnchorSampler(near, 32)
            assert entries[name].soft_suffix == (None if name == "ssm-hard" else SoftSuffix(likeliest, alpha, 1.0))


@pytest.mark.parametrize("script", TABLES)
def test_the_rows_are_the_papers(house, script):
    """Guards names and lengths: every row of the paper's table is measured once, under the name it has there."""
    key, lengths = TABLES[script]
    _, calls = called(house, script)
    parsed = [parse(row) for row in calls[:-1]]
    measured = [(options.task, options.gen_length, options.name) for options, _ in parsed]
    theirs = [(*entry.place, entry.row["name"]) for entry in reported(key) if entry.source == OWN]
    assert sorted(measured) == sorted(place for place in theirs if place[1] in lengths)
    assert calls[-1][calls[-1].index("--paper") + 1] == key
    for options, settings in parsed:
        shots, *samplers = SETTINGS[key, options.task, options.gen_length]
        k, scale, window = samplers[-1 if "Parallel" in options.name else 0]
        assert options.num_fewshot == shots
        if "DPad" in options.name:
            assert settings.suffix_sampler == GaussianSampler(window, k, scale)
        assert options.after_eos == ("drop" if key.startswith("dream") else "keep")
    _, calls = called(house, script, MODEL="tiny")
    assert all(parse(row)[0].after_eos == "drop" for row in calls[:-1])
    for options, settings in parsed:  # as the paper measured: every row with DPad terminates early
        assert classify(settings.to_json()).name == options.name
        assert settings.early_termination == ("DPad" in options.name or "Early" in options.name)
        assert settings.threshold == (0.9 if "Parallel" in options.name else None)


def test_the_heatmap_has_the_papers_cells(house):
    """36 cells of the Gaussian and 45 of the uniform sampler; WINDOWS takes some of their columns."""
    _, calls = called(house, "llada/scripts/heatmap.sh")
    parsed = [parse(row) for row in calls[:-1]]
    assert sum(options.name.startswith("uniform") for options, _ in parsed) == 45
    assert sum(options.name.startswith("gaussian") for options, _ in parsed) == 36
    for options, settings in parsed:
        name, window, tokens = options.name.split("-")
        sampler = settings.suffix_sampler
        assert (sampler.window, settings.cache, settings.threshold) == (int(window), "prefix", None)
        assert (options.num_fewshot, settings.gen_length) == (4, 512)
        if name == "uniform":
            assert sampler == UniformSampler(int(window), int(tokens))
        else:  # the scale, of one decimal, that keeps about so many on average
            assert isinstance(sampler, GaussianSampler) and sampler.k_sigma == 3
            mean = sampler.retention(int(window)).sum().item()
            assert min(GRID, key=lambda size: abs(size - mean)) == int(tokens)  # the cell that the figure puts it into
    _, calls = called(house, "llada/scripts/heatmap.sh", WINDOWS="64")
    assert [row[row.index("-n") + 1] for row in calls[:-1]] == ["uniform-64-32", "uniform-64-64", "gaussian-64-32"]


def test_the_embedded_models_answer_stand_ins(house):
    """Guards the offline run: no line may name a task of the hub."""
    for script, model in (("llada/scripts/main_1.5.sh", "tiny"), ("dream/scripts/main_base.sh", "dream-tiny")):
        _, calls = called(house, script, MODEL=model, LIMIT="4", NUM_PROCESSES="2")
        for row in calls[:-1]:
            options, _ = parse(row)
            assert options.task in STAND_INS and (options.limit, options.num_processes) == (4, 2)
            assert options.model == model and options.num_fewshot == 0


def test_a_failure_ends_the_script_with_its_log(house):
    """Guards against failures that are swallowed: nothing after it runs, and the status is the failure's."""
    done, calls = called(house, "llada/scripts/long_seq.sh", FAIL_AT="-n +DPad")
    assert done.returncode == 3 and len(calls) == 3
    log = house / "results/long_seq/1.5/gsm8k-1024-+DPad.log"
    assert "run.py: it broke" in log.read_text()
    assert "long_seq stopped with status 3 at: python run.py -n +DPad -t gsm8k" in done.stderr
    assert str(log.relative_to(house)) in done.stderr


def test_paths_count_from_where_the_user_is(house, tmp_path):
    """Guards relative folders: a model's and the results'; a model's name stays a name, whatever lies there."""
    here = tmp_path / "elsewhere"
    (here / "models" / "my-llada").mkdir(parents=True)
    (here / "instruct").mkdir()
    _, calls = called(house, "llada/scripts/long_seq.sh", cwd=here, MODEL="models/my-llada/", OUTPUT="out")
    assert calls[0][calls[0].index("-m") + 1] == str(here / "models" / "my-llada")
    assert calls[0][calls[0].index("--output") + 1] == str(here / "out" / "long_seq" / "my-llada" / "runs")
    _, calls = called(house, "llada/scripts/long_seq.sh", cwd=here, MODEL="instruct")
    assert calls[0][calls[0].index("-m") + 1] == "instruct"


@pytest.fixture
def random_models(checkpoint_folder, tmp_path):
    """A model of random weights of each family, by its scripts' folder; named as the embedded ones, so that they get
    the stand-ins. The tables take seconds with these, and minutes with the embedded models."""
    folders = {family: tmp_path / f"random-{family}-tiny" for family in ("llada", "dream")}
    shutil.copytree(checkpoint_folder, folders["llada"])
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "dream-tiny")
    DreamModel(DreamConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=len(tokenizer), max_position_embeddings=1024, mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )).save_pretrained(folders["dream"])
    make.save_tokenizer(tokenizer, folders["dream"])
    return folders


@pytest.mark.parametrize("script", ["llada/scripts/main_1.5.sh", "dream/scripts/main_base.sh"])
@pytest.mark.slow
def test_a_familys_main_table_offline(house, random_models, capsys, script):
    """Guards the whole path, all four benchmarks' stand-ins: 16 rows, each beside the authors' row of its name.

    The script's command lines run here, one after the other, because starting 16 processes takes minutes.
    """
    _, calls = called(house, script, MODEL=str(random_models[Path(script).parts[0]]), LIMIT="1")
    for call in calls:
        assert run.main(call) == 0, capsys.readouterr().err
    *rows, _ = calls
    records = [json.loads(Path(row[row.index("--record") + 1]).read_text()) for row in rows]
    assert len(records) == 16 and {record["task"] for record in records} == {
        "arithmetic-50", "math-local", "humaneval-local", "mbpp-local"}
    theirs = [entry for entry in reported(TABLES[script][0]) if entry.source == OWN]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    wanted = [(entry.row["name"], str(entry.row["latency_s"])) for entry in theirs if entry.place[1] <= 512]
    assert len(wanted) == 16
    for name, latency in wanted:
        assert any(line[:1] == [name] and latency in line for line in lines), (name, latency)


@pytest.mark.slow
def test_a_script_runs_whole_and_then_skips(random_models, tmp_path):
    """The real thing, offline: measures, draws, prints its table; started again it computes nothing."""
    command = ["bash", str(ROOT / "llada/scripts/heatmap.sh")]
    model = random_models["llada"]
    variables = os.environ | {"MODEL": str(model), "LIMIT": "1", "WINDOWS": "64", "OUTPUT": str(tmp_path)}
    done = subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "heatmap" / f"{model.name}-first-1"
    assert "uniform-64-32" in (output / "table.txt").read_text()
    assert (output / "heatmap.png").stat().st_size > 5000
    record = json.loads((output / "gsm8k-512-gaussian-64-32.json").read_text())
    assert record["task"] == "arithmetic-50" and record["settings"]["cache"] == "prefix"
    again = subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("complete: ") == 3


def test_the_gpu_script_refuses_a_part_that_there_is_not():
    """Guards a misspelt name, of which the script would do nothing and call it a success; and the list of the names."""
    script = ROOT / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=os.environ | {"ONLY": "8b-step"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("gpu.sh: ONLY has 8b-step; it must be some of agreement ")
    parts = [line.split()[1] for line in script.read_text().splitlines() if line.startswith(("check ", "bench "))]
    assert f'PARTS="{" ".join(parts)}"' in script.read_text()


@pytest.mark.parametrize("python, message", [
    (sys.executable, "gpu.sh: torch sees no GPU here, and everything that this script measures needs one"),
    ("python-without-torch", "has no package torch; name another interpreter: PYTHON="),
])
def test_the_gpu_script_says_once_that_there_is_none(tmp_path, python, message):
    """Guards against seven failures of the same kind, one after the other."""
    if python == "python-without-torch":
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        python.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": str(python),
                                            "OUTPUT": str(tmp_path / "new")})
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "new").exists()
    assert done.stderr.count("\n") == 1 and message in done.stderr
