"""Quantized weights: what torchao makes of the layers, saved and loaded again, merged adapters, and clear refusals.

    bash tests/run.sh tests/test_quantization.py
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file

import run
from dpad.engine import cuda_graphs, loading, memory, quantization
from dpad.engine.memory import size_of
from dpad.evaluation import runs
from dpad.results.evaluations import evaluation_caption
from dpad.results.records import load, numbers_of
from llada import LLaDAModelLM

PROMPT = "Tom has 3 bags with 4 apples each. How many apples does Tom have?"
MODELS = ("tiny", "dream-tiny")


@pytest.fixture(scope="module")
def models():
    """Every embedded model, by its name and how it is quantized; loaded when first asked for."""
    known = {}

    def get(name, scheme=None):
        if (name, scheme) not in known:
            known[name, scheme] = loading.load(name, device="cpu", quantize=scheme)
        return known[name, scheme]

    return get


def answer(loaded, **settings):
    batch = loaded.encode(PROMPT)
    output = loaded.generate(**batch, **{"gen_length": 32, "threshold": 0.9} | settings)
    return output.sequences[0, batch.input_ids.shape[1]:]


def layer_types(model):
    modules = (module for module in model.layers.modules() if isinstance(module, torch.nn.Linear))
    return {type(module.weight.data).__name__ for module in modules}


@pytest.mark.parametrize("scheme, most", [("int8", 0.30), ("int4", 0.20)])
@pytest.mark.parametrize("name", MODELS)
def test_the_layers_are_quantized_and_nothing_else(models, name, scheme, most):
    """Guards the policy: every matrix of the layers is small, and head and embedding are those of the checkpoint."""
    plain, quantized = models(name).model, models(name, scheme).model
    assert layer_types(quantized) == {"Int8Tensor" if scheme == "int8" else "Int4OpaqueTensor"}
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(quantized, get)().weight.float(), getattr(plain, get)().weight)  # stored in bfloat16
    outside = plain.get_input_embeddings().weight.nbytes + plain.get_output_embeddings().weight.nbytes
    outside_too = outside * quantized.dtype.itemsize // plain.dtype.itemsize
    assert size_of(quantized) - outside_too < most * (size_of(plain) - outside)
    assert quantized.dtype == (torch.float32 if scheme == "int8" else torch.bfloat16)


@pytest.mark.parametrize("scheme", quantization.SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_quantized_models_answer(models, name, scheme):
    """Guards that the answers are words and not noise, with every cache; the task is easy for these models."""
    for cache in ("none", "prefix", "dual"):
        assert "12" in models(name, scheme).decode(answer(models(name, scheme), cache=cache)[None])[0]


def test_a_batch_gets_what_its_prompts_get_alone(models):
    """Guards the law of batches in float32, whose matrix products torchao's kernels take over."""
    loaded = models("tiny", "int8")
    prompts = [PROMPT, "Dan is 33. Zoe is 5 years older. How old is Zoe?"]
    batch = loaded.encode(prompts)
    together = loaded.generate(**batch, gen_length=32, threshold=0.9).sequences[:, batch.input_ids.shape[1]:]
    for row, prompt in enumerate(prompts):
        alone = loaded.encode(prompt)
        sequences = loaded.generate(**alone, gen_length=32, threshold=0.9).sequences
        assert torch.equal(sequences[0, alone.input_ids.shape[1]:], together[row])


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_again(models, name, tmp_path):
    """Guards save_pretrained: safetensors that `load` takes as they are, and that give the same logits."""
    loaded = models(name, "int8")
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = loading.load(str(tmp_path), device="cpu")
    assert again.quantize == "torchao" and layer_types(again.model) == {"Int8Tensor"}
    ids = loaded.encode(PROMPT).input_ids
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 0.4 * size_of(models(name).model)
    with pytest.raises(ValueError, match=r"^quantize is 'int4', but checkpoint .* has quantized weights already"):
        loading.load(str(tmp_path), device="cpu", quantize="int4")


def test_int4_of_a_cpu_is_not_saved(models, tmp_path):
    """Guards against files that another processor would read as noise."""
    with pytest.raises(ValueError, match="int4 on the CPU are laid out for this very processor"):
        models("tiny", "int4").model.save_pretrained(tmp_path)


def test_an_adapter_is_merged_first(models, tmp_path):
    """Guards the order: the sum is quantized, as if it had been saved and then quantized."""
    from peft import LoraConfig, get_peft_model

    model = LLaDAModelLM.from_pretrained(ROOT / "checkpoints" / "llada-tiny")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "ff_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(ROOT / "checkpoints" / "llada-tiny")
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    models("tiny").tokenizer.save_pretrained(tmp_path / "merged")

    merged = loading.load(str(tmp_path / "merged"), device="cpu", quantize="int8")
    loaded = loading.load("tiny", device="cpu", adapter=tmp_path / "adapter", quantize="int8")
    ids = loaded.encode(PROMPT).input_ids
    assert layer_types(loaded.model) == {"Int8Tensor"}
    assert torch.allclose(loaded.model(ids).logits, merged.model(ids).logits, atol=0.1)  # sums are rounded
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    again = loading.load(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", quantization.SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu(name, scheme, tmp_path):
    """Guards the kernels of a GPU, with CUDA graphs and without, and its int4, which is saved."""
    loaded = loading.load(name, device="cuda", quantize=scheme)
    tokens = answer(loaded, cache="prefix")
    assert "12" in loaded.decode(tokens[None])[0]
    with cuda_graphs.use("off"):
        assert torch.equal(answer(loaded, cache="prefix"), tokens)
    assert size_of(loaded.model) == memory.plan(name, "cuda", None, scheme).weights()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    ids = loaded.encode(PROMPT).input_ids
    assert torch.equal(loading.load(str(tmp_path), device="cuda").model(ids).logits, loaded.model(ids).logits)


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_unknown_schemes_are_named():
    with pytest.raises(ValueError, match="^quantize is 'int3'; it must be one of int8, int4"):
        loading.load("tiny", device="cpu", quantize="int3")


@pytest.mark.parametrize("scheme", quantization.SCHEMES)
def test_without_torchao(monkeypatch, capsys, scheme):
    """Guards the one line that says what to install; everything else works without the package."""
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    assert run.main(["generate", "-m", "tiny", "--device", "cpu", "--quantize", scheme, "--prompt", "x"]) == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1 and f"pip install {quantization.TORCHAO}" in words
    assert f"\n{quantization.TORCHAO}\n" in (ROOT / "dpad" / "engine" / "requirements.txt").read_text()


@pytest.mark.parametrize("device, dtype, capability, words", [
    ("cuda", torch.bfloat16, 7, "needs a GPU of compute capability 8.0"), ("cuda", torch.float32, 9, "bfloat16 alone"),
    ("mps", torch.bfloat16, 0, "no kernels on 'mps'"), ("xpu", torch.bfloat16, 0, "no kernels on 'xpu'"),
])
def test_devices_that_cannot_compute_with_int4(monkeypatch, device, dtype, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    with pytest.raises(ValueError, match=f"^quantize is 'int4', .*{re.escape(words)}"):
        quantization.make_config("int4", torch.device(device), dtype)


def test_rows_that_do_not_divide_into_groups(checkpoint_folder):
    """Guards against layers that torchao leaves as they are in silence: 48 is no multiple of 32."""
    with pytest.raises(ValueError, match="^quantize is 'int4', which shares a scale among 32 weights"):
        loading.load(str(checkpoint_folder), device="cpu", quantize="int4")
    assert loading.load(str(checkpoint_folder), device="cpu", quantize="int8").quantize == "int8"


def test_nothing_of_the_process_changes(models):
    """Guards other models of the process: torchao would like to set how float32 is multiplied."""
    before = torch.get_float32_matmul_precision()
    loading.load("tiny", device="cpu", quantize="int8")
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.slow
def test_torchao_is_quiet_and_late():
    """Guards every command's output, and that of --help its speed."""
    code = "import dpad, sys; assert 'torchao' not in sys.modules; import transformers.quantizers.auto"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- Quantized checkpoints that lie -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    models("tiny", "int8").model.save_pretrained(folder)
    models("tiny").tokenizer.save_pretrained(folder)
    return folder


def change(folder, function):
    from safetensors import safe_open

    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(function(load_file(path)), path, metadata=metadata)


LAYER = "model.transformer.blocks.0."
NORM = f"{LAYER}attn_norm.weight"
EMBEDDING = "model.transformer.wte.weight"
LIES = {  # what is added to the weights or left out of them, and what is said about it
    "a weight of no module": ({"model.transformer.extra.weight": torch.zeros(2)}, "foreign"),
    "a layer too many": ({"model.transformer.blocks.6.q_proj._weight_qdata": torch.zeros(2)}, "foreign"),
    "a matrix is missing": (f"{LAYER}q_proj.", "missing"),
    "a norm is missing": (NORM, "missing"),
    "a norm of another width": ({NORM: torch.ones(7)}, "of another shape"),
    "a head of another height": ({"model.transformer.ff_out.weight": torch.ones(5, 192)}, "of another shape"),
    "a norm of integers": ({NORM: torch.ones(192, dtype=torch.int8)}, "not floating-point numbers"),
    "an embedding of integers": ({EMBEDDING: torch.ones(1024, 192).char()}, "not floating-point numbers"),
}


@pytest.mark.parametrize("lie", LIES)
def test_quantized_weights_that_do_not_fit(saved, tmp_path, lie):
    """Guards names, shapes and types as far as a format of others lets one see them, before memory is taken."""
    folder = shutil.copytree(saved, tmp_path / "model")
    difference, words = LIES[lie]
    if isinstance(difference, dict):
        change(folder, lambda weights: weights | difference)
    else:
        change(folder, lambda weights: {name: w for name, w in weights.items() if not name.startswith(difference)})
    with pytest.raises(ValueError, match=f"^checkpoint .* weights that are {words}"):
        loading.load(str(folder), device="cpu")


@pytest.mark.parametrize("method, package", [
    ("bitsandbytes", "bitsandbytes"), ("compressed-tensors", "compressed-tensors"), ("gptq", "gptqmodel"),
])
def test_a_package_that_is_not_installed(checkpoint_folder, tmp_path, capsys, method, package):
    """Guards the command line's one line for checkpoints of others."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / "model")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}))
    assert run.main(["generate", "-m", str(folder), "--device", "cpu", "--prompt", "x"]) == 2
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert f"({method}), which need the package {package}: run `pip install {package}" in words


def test_quantized_weights_are_not_trained(saved, tmp_path, capsys):
    """Guards against an optimizer that fails in its first step: one line, before any."""
    command = ["train", "-m", str(saved), "--data", "arithmetic", "-d", "gaussian", "--steps", "1", "--device", "cpu",
               "--output", str(tmp_path / "out")]
    assert run.main(command) == 2
    assert "has quantized weights (torchao); train the model that it was made from" in capsys.readouterr().err


# --- Runs and records -------------------------------------------------------------------------------------------------


def test_runs_are_told_apart(models):
    """Guards against answers of one model in the run of another, and that records say what they measured."""
    identities = []
    for scheme in (None, *quantization.SCHEMES):
        loaded = models("tiny", scheme)
        settings = loaded.family.settings()
        description = runs.describe_settings(loaded, settings, batch_size=1, prompt_limit=None, mc_samples=1)
        assert description.get("quantize") == scheme
        identities.append(runs.run_folder("results", "", "arithmetic-50", loaded, description))
    assert len(set(identities)) == 3
    assert numbers_of({"dtype": "bfloat16", "quantize": "int8"}) == "bfloat16 with int8 weights"


def test_the_command_line_evaluates(tmp_path):
    """Guards the flag from the command line to the record and its table."""
    record = tmp_path / "record.json"
    command = ["-t", "arithmetic-50", "-m", "tiny", "--device", "cpu", "--quantize", "int8", "--limit", "2", "-l", "32",
               "-th", "0.9", "--output", str(tmp_path / "results"), "--record", str(record)]
    assert run.main(command) == 0
    assert json.loads(record.read_text())["settings"]["quantize"] == "int8"
    assert "float32 with int8 weights" in evaluation_caption(load([record]))


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    """Guards the program behind docs/models.md: its rows, its table, and that estimates say so."""
    from benchmarks import quantization as benchmark

    monkeypatch.setattr(sys, "argv", ["quantization.py", "--limit", "1", "--output", str(tmp_path / "record.json")])
    monkeypatch.setattr(benchmark, "GEN_LENGTH", 32)
    assert benchmark.main() == 0
    [record] = load([tmp_path / "record.json"])
    rows = {(row["model"], row["dtype"], row.get("quantize")): row for row in record["rows"]}
    first, second = [row for row in record["rows"] if row["model"] == "tiny"][:2]
    assert first["speedup"] == first["tokens"] == 1
    has_both = first["products"] == "oneDNN"
    assert second.get("products") == ("torch's own" if has_both else None) and (second["tokens"] == 1 or not has_both)
    assert all(len(row["seconds"]) == 1 and row["speedup"] > 0 for row in record["rows"] if not row["estimated"])
    assert rows["tiny", "float32", None]["answers"] == rows["dream-tiny", "float32", None]["tokens"] == 1
    sizes = [rows["tiny", dtype, scheme]["weights"] for dtype, scheme in
             (("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int4"))]
    assert sizes[0] == 2 * sizes[1] and sizes[3] < sizes[1]
    assert rows["instruct", "bfloat16", None]["estimated"]
    text = capsys.readouterr().out
    assert ("float32 (torch's own products)" in text) == has_both
    assert "bfloat16 with int4 weights" in text and "14.9 GB (estimated)" in text
