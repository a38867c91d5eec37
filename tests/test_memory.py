"""Will it fit? The estimate beside what is measured, the sentence about large models, and `run.py models`.

    bash tests/run.sh tests/test_memory.py
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

import run
from dpad.engine import cuda_graphs, loading, memory
from dpad.engine.rules import RULES
from dpad.engine.soft import SoftSuffix
from llada import LLaDAConfig, LLaDAModelLM
from llada.generate import generate
from llada.settings import LLaDASettings

GIB = 2**30
TOLERANCE = 0.25  # of what is measured


@pytest.fixture(scope="module")
def llada_8b(tmp_path_factory):
    """A folder like that of LLaDA-8B-Instruct: its configuration, and 16 GB of zeros that take no room on the disk."""
    folder = tmp_path_factory.mktemp("models") / "llada-8b"
    config = LLaDAConfig()
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llada"}))
    header, end = {}, 0
    for name, shape in LLaDAModelLM.layout(folder, config).shapes().items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


# --- The estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["tiny", "dream-tiny"])
def test_weights_are_those_of_the_model(name, scheme):
    """Guards the largest part of the estimate, to the byte: from config.json alone, for every way to quantize."""
    model = loading.load(name, device="cpu", quantize=scheme).model
    assert memory.plan(name, "cpu", None, scheme).weights() == memory.size_of(model)


def test_weights_of_the_8b(llada_8b):
    """Guards the sizes that people know: 15 GB in bfloat16, about half of that in int8; and with an adapter all of it.
    """
    plain = memory.plan(str(llada_8b), "cpu", "bfloat16")
    assert plain.layout.count == 8_015_581_184 and plain.weights() == 2 * plain.layout.count
    int8, int4 = (memory.plan(str(llada_8b), "cpu", "bfloat16", scheme).weights() for scheme in ("int8", "int4"))
    assert 8 * GIB < int8 < 9 * GIB and 5.5 * GIB < int4 < 6.5 * GIB
    assert memory.plan(str(llada_8b), "cpu", "bfloat16", "int8", merges=True).weights() > plain.weights()


def test_keys_and_values_of_recorded_steps(llada_8b):
    """Guards the estimate on a GPU, where buffers are rounded up so that few shapes are recorded."""
    settings = LLaDASettings(gen_length=256, cache="prefix")
    plan = replace(memory.plan(str(llada_8b), "cpu", "bfloat16"), device=torch.device("cuda"))
    a_slot = 2 * 32 * 4096 * 2  # keys and values of 32 layers in bfloat16
    assert plan.need(settings, 5, 512).cache == 8 * 1024 * a_slot
    with cuda_graphs.use("off"):
        assert plan.need(settings, 5, 512).cache == 5 * 768 * a_slot


MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from llada import LLaDAConfig, LLaDAModelLM
from llada.generate import generate
def status(field):
    [line] = [line for line in open("/proc/self/status") if line.startswith(field)]
    return int(line.split()[1]) * 1024
rows, prompt, settings = int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
warm = LLaDAModelLM(LLaDAConfig(d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=32, vocab_size=600, mask_token_id=5,
                                eos_token_id=6))
generate(warm, torch.ones(1, 8, dtype=torch.long), gen_length=32, steps=1)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
config = LLaDAConfig.from_pretrained(sys.argv[1])
torch.manual_seed(0)
model = LLaDAModelLM(config).eval()
generate(model, 7 + torch.arange(rows * prompt).reshape(rows, prompt) % 500, **settings)  # equal rows are one
print(status("VmHWM") - before)
"""
MIDDLE = {"d_model": 512, "n_layers": 4, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 32000,
          "mask_token_id": 5, "eos_token_id": 6}


@pytest.mark.slow
@pytest.mark.parametrize("rows, prompt, settings", [
    (1, 32, {"gen_length": 32, "steps": 1}),
    (8, 992, {"gen_length": 32, "steps": 1, "cache": "prefix"}),
    (16, 32, {"gen_length": 64, "steps": 1, "block_length": 64}),
    (4, 32, {"gen_length": 64, "steps": 1, "block_length": 64, "temperature": 0.5}),
], ids=["weights", "keys and values", "logits", "noise"])
def test_the_estimate_is_near_the_peak(tmp_path, rows, prompt, settings):
    """Guards the estimate against what a process takes that decodes, where each part of it is the largest in turn.

    The least of three runs: what the system leaves to a process for longer than it is needed differs, and only adds.
    """
    LLaDAConfig(**MIDDLE).save_pretrained(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(rows), str(prompt), json.dumps(settings)]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(3)]
    measured = min(int(run.stdout) for run in runs)
    config = LLaDAConfig(**MIDDLE)
    plan = memory.Plan(config, LLaDAModelLM.layout(tmp_path, config), torch.device("cpu"), torch.float32)
    estimate = plan.need(LLaDASettings(**settings), rows, prompt)
    assert (1 - TOLERANCE) * measured < estimate.total < (1 + TOLERANCE) * measured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rows, settings", [
    (1, {"gen_length": 256, "steps": 16}), (8, {"gen_length": 512, "steps": 32, "cache": "prefix"}),
    (8, {"gen_length": 256, "steps": 16, "temperature": 0.5}),
])
def test_the_estimate_on_a_gpu(tmp_path, rows, settings):
    """Guards the estimate at the shape of LLaDA-8B with fewer layers, without graphs."""
    config = LLaDAConfig(n_layers=8)
    plan = memory.Plan(config, LLaDAModelLM.layout(tmp_path, config), torch.device("cuda"), torch.bfloat16)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with torch.device("cuda"):
        model = LLaDAModelLM._from_config(config, dtype=torch.bfloat16).eval()
    torch.cuda.reset_peak_memory_stats()
    with cuda_graphs.use("off"):
        prompts = 7 + torch.arange(rows * 512, device="cuda").reshape(rows, 512)  # equal rows are decoded as one
        generate(model, prompts, **settings)
    measured = torch.cuda.max_memory_reserved() - before
    assert (1 - TOLERANCE) * measured < plan.need(LLaDASettings(**settings), rows).total < (1 + TOLERANCE) * measured


# --- The verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free, answer", [
    (40 * GIB, "fits"), (18 * GIB, "tight"), (12 * GIB, "will not fit, try --quantize int8"),
    (8 * GIB, "will not fit, try --quantize int4"), (4 * GIB, "will not fit, and no flag here would make it fit"),
])
def test_the_sentence(llada_8b, free, answer):
    """Guards what people with such cards read, with numbers for LLaDA-8B in bfloat16."""
    plan = replace(memory.plan(str(llada_8b), "cpu", "bfloat16"), device=torch.device("cuda"))
    words = memory.describe(plan, "instruct", LLaDASettings(gen_length=1024, cache="prefix"), free=free)
    assert words.startswith("instruct in bfloat16 needs about 17.") and words.endswith(f" GB are free: {answer}")
    assert "14.9 of it for the weights (-l 1024, batch size 1, prompts of 512 tokens)" in words and "\n" not in words


def test_ways_that_are_smaller_answers_or_batches(llada_8b):
    """Guards the suggestions: each one alone is enough, and they are the largest that are."""
    plan = replace(memory.plan(str(llada_8b), "cpu", "bfloat16", "int4"), device=torch.device("cuda"))
    settings = LLaDASettings(gen_length=2048, cache="prefix")
    free = plan.need(settings, 8).total - GIB
    [batch, length] = memory.ways_to_fit(plan, settings, 8, free)
    fewer, shorter = int(batch.split()[1]), int(length.split()[1])
    assert batch.startswith("--batch_size ") and length.startswith("-l ") and shorter % 32 == 0
    assert plan.need(settings, fewer).total <= free < plan.need(settings, fewer + 1).total
    lengths = (plan.need(settings, 8, gen_length=length).total for length in (shorter, shorter + 32))
    assert next(lengths) <= free < next(lengths)


@pytest.mark.parametrize("more", [
    {"temperature": 0.5}, {"rule": RULES["klass"]()}, {"rule": RULES["credit"]()}, {"soft_suffix": SoftSuffix()},
    {"cache": "dual"}, {"gen_length": 512}, {"block_length": 64},
], ids=str)
def test_settings_that_take_memory(llada_8b, more):
    """Guards against settings that the estimate overlooks."""
    plan = memory.plan(str(llada_8b), "cpu", "bfloat16")
    assert plan.need(LLaDASettings(**more), 4).total > plan.need(LLaDASettings(), 4).total + 2**24


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["-t", "arithmetic-50", "--batch_size", "4"]])
def test_large_models_are_announced(llada_8b, monkeypatch, capsys, command):
    """Guards the one line before a large model is loaded; it does not refuse, for it is an estimate."""
    def stop(*arguments, **options):
        raise ValueError("now it would be loaded")

    monkeypatch.setattr(run, "load", stop)
    monkeypatch.setattr(memory, "available_memory", lambda: 20 * GIB)
    assert run.main([*command, "-m", str(llada_8b), "--device", "cpu"]) == 2
    note, last = capsys.readouterr().err.strip().split("\n")
    assert note.startswith("run.py: note: ") and "20.0 GB are free: will not fit, try --quantize int8" in note
    assert f"batch size {4 if '4' in command else 1}," in note and last == "run.py: now it would be loaded"


def test_small_models_are_not(capsys):
    assert run.main(["generate", "-m", "tiny", "--device", "cpu", "-l", "32", "-th", "0.5", "--prompt", "x"]) == 0
    assert "needs about" not in capsys.readouterr().err


def test_the_harness_counts_processes_with_quantized_weights(llada_8b, monkeypatch, capsys):
    """Guards several processes on one machine, each with a model of its own: int4 makes room for more."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(run.processes, "available_memory", lambda: 14 * GIB)
    monkeypatch.setattr(run.processes, "cores", lambda: 8)
    monkeypatch.setattr(run.processes, "launch", lambda *arguments: sys.exit(0))
    command = ["-t", "arithmetic-50", "-m", str(llada_8b), "--device", "cpu", "--num_processes", "2"]
    assert run.main(command) == 2 and "at most 1 here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main([*command, "--quantize", "int4"])


# --- run.py models ----------------------------------------------------------------------------------------------------


def test_models_lists_every_name(monkeypatch, capsys):
    """Guards the list: nothing is asked of the hub for the names, and every row is complete."""
    monkeypatch.setattr(run.hub, "ask", None)
    monkeypatch.setattr(loading, "_hub_answers", None)
    monkeypatch.setattr(memory, "available_memory", lambda: 24 * GIB)
    assert run.main(["models", "--device", "cpu", "--dtype", "bfloat16", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(loading.NAMES)
    assert rows["instruct"] | {"needed": 0} == {
        "name": "instruct", "family": "llada", "checkpoint": "GSAI-ML/LLaDA-8B-Instruct", "parameters": 8_015_581_184,
        "weights": 16_031_162_368, "needed": 0, "cached": False, "fits": "fits", "ways": [],
    }
    assert rows["tiny"]["cached"] and rows["tiny"]["checkpoint"] == "checkpoints/llada-tiny"
    assert rows["dream-base"]["parameters"] == 7_615_616_512


def test_models_is_a_table(llada_8b, monkeypatch, capsys):
    """Guards the table, with a folder of one's own, and what would make it fit."""
    monkeypatch.setattr(memory, "available_memory", lambda: 12 * GIB)
    assert run.main(["models", "tiny", str(llada_8b), "--device", "cpu", "-l", "512"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "name" and lines[2].split()[-1] == "fits"
    assert "will not fit, try --quantize int4" in lines[3] and " 8.02B " in lines[3] and " yes " in lines[3]
    assert lines[4].startswith("Estimated for cpu (12.0 GB free), float32, answers of 512 tokens")


@pytest.mark.parametrize("words, message", [
    (["nosuch"], "model is 'nosuch'; it must be"), (["--batch_size", "0"], "batch_size is 0"),
    (["-l", "33"], "block_length is 32; it must divide gen_length"), (["--device", "tpu9"], "device is 'tpu9'"),
])
def test_models_refuses(capsys, words, message):
    assert run.main(["models", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_cached_model_is_known(tmp_path, monkeypatch, capsys):
    """Guards "here": all files of the index must be in the cache, not some."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--GSAI-ML--LLaDA-1.5"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_text("")

    def is_here():
        assert run.main(["models", "1.5", "--device", "cpu", "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]["cached"]

    assert not is_here()
    (snapshot / "model-2.safetensors").write_text("")
    assert is_here()
