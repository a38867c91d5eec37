"""LoRA adapters: what peft and gradient checkpointing need of the models, and adapters loaded, merged and refused.

    bash tests/run.sh tests/test_adapters.py
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN, ROOT, prompts_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import run
from benchmarks import measurement
from demo import app, demo
from dpad.engine import adapters, loading
from dpad.engine.checkpoint import read_headers
from dpad.engine.pretrained import PretrainedDiffusionModel
from dpad.engine.products import Linear
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.evaluation import runs
from dpad.evaluation.lm_eval_cli import CommandLineLM
from dpad.results import tables
from dpad.training.adapters import add_lora, merge_adapter, save_adapter, write_base
from dream import DreamConfig, DreamModel
from llada.settings import LLaDASettings

FAMILIES = ("llada", "dream")
PROMPT = "Dan is 33. Zoe is 5 years older. How old is Zoe?"
RECORDED = {"llada": GOLDEN / "llada-mha", "dream": GOLDEN / "dream-gqa"}
SHORT = {"gen_length": 32, "block_length": 16, "threshold": 0.02}


def tied(model: MaskedDiffusionModel) -> MaskedDiffusionModel:
    """A model of the same shape and other weights whose head is its embedding."""
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return type(model)(config)


@pytest.fixture(params=[(family, is_tied) for family in FAMILIES for is_tied in (False, True)],
                ids=lambda value: value[0] + "-tied" * value[1])
def model(request, random_llada, random_dream) -> MaskedDiffusionModel:
    """A copy of its own for each test: peft changes the model that it is given."""
    family, is_tied = request.param
    recorded = {"llada": random_llada, "dream": random_dream}[family]
    return tied(recorded) if is_tied else copy.deepcopy(recorded)


# --- What training needs of the models --------------------------------------------------------------------------------


def test_the_head_is_known_and_can_be_replaced(model):
    """Guards peft and transformers, which ask for the head in order to leave it alone, to resize or to tie it."""
    ids = prompts_of([7])[0][None]
    head = model.get_output_embeddings()
    torch.testing.assert_close(model(ids).logits, model.hidden_states(ids, torch.arange(7)[None]) @ head.weight.T)
    assert (head is model.get_input_embeddings()) == model.config.tie_word_embeddings

    other = copy.deepcopy(head)
    nn.init.zeros_(other.weight)
    model.set_output_embeddings(other)
    assert model.get_output_embeddings() is other and not model(ids).logits.any()


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("targets, count", [("all-linear", 7), (["q_proj", "v_proj"], 2)])
def test_peft_adapts_the_layers_and_leaves_the_head_alone(model, task_type, targets, count):
    """Guards `target_modules="all-linear"`: every projection of every layer, and nothing outside of them."""
    ids = prompts_of([7])[0][None]
    expected = model(ids).logits
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type=task_type))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    prefix = next(name for name, module in model.named_modules() if module is model.layers)
    assert len(adapted) == count * model.layer_count and all(name.startswith(prefix + ".") for name in adapted)
    assert torch.equal(peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected)


def gradients(model: nn.Module, ids: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(ids).logits.logsumexp(dim=-1).sum()
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()
                         if weight.grad is not None}


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing")  # their names until transformers 6
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_changes_no_gradient(model, reentrant, lora):
    """Guards gradient checkpointing: each layer is computed again for the backward pass, with the same loss and
    gradients; also where the embedding is frozen, which reentrant checkpointing would take for no gradients at all."""
    trained = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)) if lora \
        else model
    calls = []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append("layer"))
    inner = next(module for name, module in model.layers[0].named_modules() if name.endswith("q_proj"))
    inner.register_forward_pre_hook(lambda *_: calls.append("inner"))
    ids = torch.stack(prompts_of([9, 9]))
    trained.train()
    loss, expected = gradients(trained, ids)
    assert calls.count("inner") == 1

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls.clear()
    again, actual = gradients(trained, ids)
    assert calls.count("inner") == 2 and calls.count("layer") == 1
    assert again == loss and actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())

    calls.clear()
    trained.eval()  # decoding: nothing is kept, nothing is computed twice
    gradients(trained, ids)
    model.gradient_checkpointing_disable()
    trained.train()
    gradients(trained, ids)
    assert calls.count("inner") == 2


# --- Adapters that peft writes ----------------------------------------------------------------------------------------


def spread(adapted: PeftModel, seed: int = 0) -> PeftModel:
    """The same model with random numbers in everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return adapted.eval()


def assert_close(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to rounding: (W + B A) x and W x + B (A x) are sums in another order."""
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def adapt(model: MaskedDiffusionModel, **fields: Any) -> PeftModel:
    """A copy of a model with an adapter of random weights, made by peft as strangers make it."""
    fields = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | fields
    return spread(get_peft_model(copy.deepcopy(model), LoraConfig(**fields)))


def merged_from(folder: Path, base: Path, family: str) -> MaskedDiffusionModel:
    """A model with an adapter merged in, without what `load` adds."""
    adapter = adapters.read_adapter(str(folder))
    model_class = loading.FAMILIES[family].model
    adapters.check_adapter(adapter, str(base), base, model_class)
    model = model_class.from_pretrained(base).eval()
    adapters.merge_into(model, adapter, torch.float32)
    return model


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def small_dream(tmp_path_factory) -> Path:
    """A Dream of random weights, with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "random-dream"
    source = ROOT / "checkpoints" / "dream-tiny"
    config = json.loads((source / "config.json").read_text())
    torch.manual_seed(0)
    DreamModel(DreamConfig(**config | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "initializer_range": 0.3,
    })).save_pretrained(folder)
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    return folder


@pytest.fixture(params=FAMILIES)
def base(request, checkpoint_folder, small_dream) -> Path:
    """The folder of a small checkpoint of either family."""
    return {"llada": checkpoint_folder, "dream": small_dream}[request.param]


@pytest.fixture
def folder(checkpoint_folder, tmp_path) -> Path:
    """An adapter of the small LLaDA."""
    adapt(loading.load(str(checkpoint_folder), device="cpu").model).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


VARIANTS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 2]},
    "expression": {"target_modules": r".*\.(q|v)_proj"},
    "patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "dora": {"use_dora": True},
    "biases": {"bias": "all"},
    "whole norms and embedding": {"modules_to_save": ["ln_f", "norm", "wte", "embed_tokens"]},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_merged_is_applied(family, variant, is_tied, random_llada, random_dream, tmp_path):
    """Guards what peft's own forward gives with an adapter: its weights in the model's give the same logits."""
    base = RECORDED[family]
    model = {"llada": random_llada, "dream": random_dream}[family]
    if is_tied:
        model = tied(model)
        base = tmp_path / "base"
        model.save_pretrained(base)
        model = type(model).from_pretrained(base)
    adapted = adapt(model, **VARIANTS[variant])
    adapted.save_pretrained(tmp_path / "adapter")
    merged = merged_from(tmp_path / "adapter", base, family)
    ids = torch.stack(prompts_of([11, 11]))
    with torch.no_grad():
        expected = adapted(ids).logits
        assert_close(merged(ids).logits, expected)
        with pytest.raises(AssertionError):
            assert_close(model(ids).logits, expected)
    # Nothing of peft is left to take time: the modules are those of a model without an adapter.
    assert [type(module) for module in merged.modules()] == [type(module) for module in model.modules()]
    assert all(weight.requires_grad for weight in merged.parameters()) and not merged.training


@pytest.mark.parametrize("family, names", [("llada", ["ff_out"]), ("dream", ["lm_head"]), ("llada", ["wte"]),
                                           ("dream", ["embed_tokens"])])
def test_an_adapted_head_or_embedding(family, names, random_llada, random_dream, tmp_path):
    """Guards the head and the embedding where the two are apart; tied, peft would adapt one of the two uses alone."""
    model = {"llada": random_llada, "dream": random_dream}[family]
    adapted = adapt(model, target_modules=names)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = prompts_of([11])[0][None]
    with torch.no_grad():
        assert_close(merged_from(tmp_path / "adapter", RECORDED[family], family)(ids).logits, adapted(ids).logits)
    if names[0] in ("wte", "embed_tokens"):
        tied(model).save_pretrained(tmp_path / "tied")
        edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=None)
        with pytest.raises(ValueError, match="does not fit .*: it adapts the embedding, which is the head too"):
            merged_from(tmp_path / "adapter", tmp_path / "tied", family)


@hypothesis_settings(max_examples=15, deadline=None)
@given(family=st.sampled_from(FAMILIES), rank=st.integers(1, 9), alpha=st.floats(0.1, 20),
       targets=st.sets(st.integers(0, 6), min_size=1), seed=st.integers(0, 99))
def test_law_merged_is_applied(family, rank, alpha, targets, seed, tmp_path_factory):
    """Guards the law for adapters that training here makes, of any rank, scale and choice of projections."""
    folder = tmp_path_factory.mktemp("adapter")
    model = loading.FAMILIES[family].model.from_pretrained(RECORDED[family])
    loaded = loading.LoadedModel("recorded", str(RECORDED[family]), loading.FAMILIES[family], model, None, False)
    names = adapters.projections(model)
    adapted = spread(add_lora(model, rank, alpha, targets=[names[index] for index in targets]), seed)
    save_adapter(adapted, folder, loaded)
    merged = merged_from(folder, RECORDED[family], family)
    ids = prompts_of([9], seed)[0][None]
    with torch.no_grad():
        assert_close(merged(ids).logits, adapted(ids).logits)


def test_the_same_tokens(base, tmp_path):
    """Guards answers: those of the merged model are those of peft's, from `load` to the last token."""
    plain = loading.load(str(base), device="cpu")
    adapted = adapt(plain.model)
    adapted.save_pretrained(tmp_path / "mine")
    merged = loading.load(str(base), device="cpu", adapter=str(tmp_path / "mine"))
    assert merged.adapter and merged.name == f"{base}+mine.{merged.adapter.sha256[:8]}"
    prompt = plain.encode(PROMPT)
    answer = merged.generate(**prompt, **SHORT).sequences
    assert not torch.equal(answer, plain.generate(**prompt, **SHORT).sequences)
    object.__setattr__(plain, "model", adapted.base_model.model)
    assert torch.equal(answer, plain.generate(**prompt, **SHORT).sequences)


def test_sums_are_rounded_once(folder, checkpoint_folder):
    """Guards bfloat16: base and adapter are added in float32, and their sum is what is rounded."""
    exact, rounded = (loading.load(str(checkpoint_folder), device="cpu", dtype=dtype, adapter=str(folder)).model
                      for dtype in ("float32", "bfloat16"))
    for weight, expected in zip(rounded.parameters(), exact.parameters()):
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, expected.bfloat16())


# --- Adapters that training here makes --------------------------------------------------------------------------------


def test_an_adapter_of_ours(base, tmp_path):
    """Guards a saved adapter: equal ones give equal files, peft reads it too, and it knows its base in any place."""
    loaded = loading.load(str(base), device="cpu")
    adapted = spread(add_lora(loaded.model, rank=3))
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 6, 0.0)
    for name in ("first", "second", "second"):
        save_adapter(adapted, tmp_path / name, loaded)
    files = sorted(os.listdir(tmp_path / "first"))
    assert files == ["adapter_config.json", "adapter_model.safetensors", "base.json"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        theirs = PeftModel.from_pretrained(loading.load(str(base), device="cpu").model, tmp_path / "first")
        assert_close(theirs(ids).logits, expected)
    shutil.copytree(base, tmp_path / "copy")
    merged = loading.load(str(tmp_path / "copy"), device="cpu", adapter=str(tmp_path / "first"))
    with torch.no_grad():
        assert_close(merged.model(ids).logits, expected)


def test_the_head_of_llada_is_no_projection(random_llada):
    """Guards LLaDA's head, which is called ff_out as a projection of its layers is."""
    model = copy.deepcopy(random_llada)
    add_lora(model, 2, targets=["ff_out"])
    assert sum(hasattr(module, "lora_A") for module in model.modules()) == model.layer_count
    assert type(model.get_output_embeddings()) is Linear


@pytest.mark.parametrize("arguments, words", [
    ({"rank": 0}, "rank is 0; it must be an integer"),
    ({"rank": 2.5}, "rank is 2.5; it must be an integer"),
    ({"rank": 2, "alpha": 0}, "alpha is 0; it must be a finite number above 0"),
    ({"rank": 2, "alpha": float("nan")}, "alpha is nan; it must be"),
    ({"rank": 2, "dropout": 1.0}, "dropout is 1.0; it must be below 1"),
    ({"rank": 2, "dropout": -0.1}, "dropout is -0.1; it must be"),
    ({"rank": 2, "targets": "q_proj"}, "targets is 'q_proj'; it must be 'all-linear', or a list"),
    ({"rank": 2, "targets": []}, r"targets is \[\]; it must be"),
    ({"rank": 2, "targets": ["q_prj"]}, "targets is 'q_prj'; .*did you mean 'q_proj'"),
])
def test_settings_that_cannot_be_used(random_llada, arguments, words):
    with pytest.raises(ValueError, match=words):
        add_lora(random_llada, **arguments)


def test_a_base_is_known_by_its_weights(checkpoint_folder, tmp_path):
    """Guards the fingerprint: the same for other files of the same weights, another one for other weights."""
    model = loading.load(str(checkpoint_folder), device="cpu").model
    expected = adapters.base_fingerprint(checkpoint_folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert adapters.base_fingerprint(tmp_path / "sharded") == expected
    with torch.no_grad():
        for weight in (model.final_norm.weight, model.layers[1].q_proj.weight):
            before = weight.clone()
            weight += 0.01
            model.save_pretrained(tmp_path / "other")
            assert adapters.base_fingerprint(tmp_path / "other") != expected
            weight.copy_(before)
    model.save_pretrained(tmp_path / "other")
    assert adapters.base_fingerprint(tmp_path / "other") == expected
    write_base(tmp_path, loading.load("tiny", device="cpu"))
    assert json.loads((tmp_path / "base.json").read_text())["base"] == "checkpoints/llada-tiny"


# --- Merged checkpoints -----------------------------------------------------------------------------------------------


def test_a_merged_checkpoint(base, tmp_path):
    """Guards the way to a checkpoint of its own: the hub's files, and the same answers without the adapter."""
    plain = loading.load(str(base), device="cpu")
    adapt(plain.model).save_pretrained(tmp_path / "adapter")
    merged = loading.load(str(base), device="cpu", adapter=str(tmp_path / "adapter"))
    (tmp_path / "out").mkdir()  # an empty folder may be filled
    merge_adapter(merged, tmp_path / "out")
    again = loading.load(str(tmp_path / "out"), device="cpu")
    assert again.adapter is None and again.chat_template == merged.chat_template
    assert torch.equal(again.encode(PROMPT)["input_ids"], merged.encode(PROMPT)["input_ids"])
    for mine, theirs in zip(again.model.parameters(), merged.model.parameters()):
        assert torch.equal(mine, theirs)
    prompt = merged.encode(PROMPT)
    assert torch.equal(again.generate(**prompt, **SHORT).sequences, merged.generate(**prompt, **SHORT).sequences)
    assert set(os.listdir(tmp_path / "out")) == {*os.listdir(base), "base.json"}
    assert json.loads((tmp_path / "out" / "base.json").read_text())["adapter"]["sha256"] == merged.adapter.sha256

    with pytest.raises(ValueError, match="output is .*, a folder that holds .*; it must be a new folder or an empty"):
        merge_adapter(merged, tmp_path / "out")
    with pytest.raises(ValueError, match="was loaded without an adapter"):
        merge_adapter(plain, tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        merge_adapter(merged, tmp_path / "file")


def test_the_command_that_merges(folder, checkpoint_folder, tmp_path, capsys, monkeypatch):
    """Guards `run.py train --merge`: its checkpoint answers as model and adapter do, and no folder is overwritten."""
    monkeypatch.chdir(tmp_path)
    model = ["-m", str(checkpoint_folder), "--adapter", str(folder), "--device", "cpu"]
    answers = []
    for flags in (["train", "--merge", *model, "--output", "out"], ["generate", *model], ["generate", "-m", "out"]):
        ask = ["-l", "32", "-b", "16", "-th", "0.02", "--json", "--prompt", PROMPT]
        assert run.main(flags if flags[0] == "train" else [*flags, *ask]) == 0
        answers.append(capsys.readouterr().out)
    assert json.loads(answers[1])["answer"] == json.loads(answers[2])["answer"]
    with monkeypatch.context() as patch:
        patch.setattr(PretrainedDiffusionModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
        assert run.main(["train", "--merge", *model, "--output", "out"]) == 2
    assert "run.py: output is 'out', a folder that holds 'base.json'; it must be a new" in capsys.readouterr().err


def test_a_merged_checkpoint_has_the_type_of_its_base(checkpoint_folder, tmp_path):
    """Guards the size of merged checkpoints, on a CPU too, where models are loaded as float32."""
    base = tmp_path / "base"
    shutil.copytree(checkpoint_folder, base)
    loading.load(str(base), device="cpu", dtype="bfloat16").model.save_pretrained(base)
    adapt(loading.load(str(base), device="cpu").model).save_pretrained(tmp_path / "adapter")
    for name, dtype, stored in (("out", None, "BF16"), ("exact", torch.float32, "F32")):
        merged = loading.load(str(base), device="cpu", adapter=str(tmp_path / "adapter"))
        assert merged.model.dtype == torch.float32
        merge_adapter(merged, tmp_path / name, dtype)
        assert {weight.dtype for weight in read_headers(tmp_path / name).values()} == {stored}
    rounded = loading.load(str(base), device="cpu", dtype="bfloat16", adapter=str(tmp_path / "adapter"))
    again = loading.load(str(tmp_path / "out"), device="cpu", dtype="bfloat16")
    assert all(torch.equal(*pair) for pair in zip(rounded.model.parameters(), again.model.parameters()))


def test_prompts_are_built_as_in_training(checkpoint_folder, folder, tmp_path):
    """Guards names: "base" and "1.5" in a folder's name stand for prompts without the chat template, unless base.json
    of the checkpoint, or of the adapter, knows better; what is made from a folder inherits what that one has."""
    base = tmp_path / "llada-base"
    shutil.copytree(checkpoint_folder, base)
    loaded = loading.load(str(base), device="cpu", adapter=str(folder))
    assert not loaded.chat_template
    merge_adapter(loaded, tmp_path / "merged")
    merged = loading.load(str(tmp_path / "merged"), device="cpu")
    assert not merged.chat_template
    adapted = add_lora(merged.model, 2)
    with pytest.raises(ValueError, match="the model has an adapter already"):
        add_lora(merged.model, 2)
    save_adapter(adapted, tmp_path / "inherited", merged)
    assert not loading.load(str(tmp_path / "merged"), device="cpu", adapter=tmp_path / "inherited").chat_template
    save_adapter(adapted, tmp_path / "with", merged, chat_template=True)
    assert loading.load(str(tmp_path / "merged"), device="cpu", adapter=tmp_path / "with").chat_template
    edit(tmp_path / "merged" / "base.json", chat_template="yes")
    with pytest.raises(ValueError, match="has a base.json whose chat_template is 'yes'; it must be true, false"):
        loading.load(str(tmp_path / "merged"), device="cpu")


def test_an_interrupted_merge_leaves_nothing(folder, checkpoint_folder, tmp_path, monkeypatch):
    """Guards against a checkpoint that looks complete and is not."""
    merged = loading.load(str(checkpoint_folder), device="cpu", adapter=str(folder))
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    before = set(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(merged, tmp_path / "out")
    assert set(os.listdir(tmp_path)) == before


# --- Where a model is named -------------------------------------------------------------------------------------------


def test_records_name_the_adapter(folder, checkpoint_folder, tmp_path):
    """Guards the identity of a run: another adapter is another run and another row, the same one goes on."""
    shutil.copytree(folder, tmp_path / "moved" / "adapter")
    other = tmp_path / "other" / "adapter"
    shutil.copytree(folder, other)
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, other / "adapter_model.safetensors")
    notes: list[str] = []

    def evaluate(adapter: Path | None) -> dict:
        loaded = loading.load(str(checkpoint_folder), device="cpu", adapter=adapter and str(adapter))
        record = runs.evaluate(loaded, "arithmetic-50", LLaDASettings(**SHORT), limit=2, output=tmp_path / "results",
                               progress=False, note=notes.append)
        assert record is not None
        return record

    none, first, again, second = (evaluate(entry) for entry in (None, folder, tmp_path / "moved" / "adapter", other))
    sha256 = adapters.read_adapter(str(folder)).sha256
    assert "adapter" not in none
    assert first["adapter"] == {"name": str(folder), "sha256": sha256}
    assert first["model"] == f"{checkpoint_folder}+adapter.{sha256[:8]}"
    assert again["folder"] == first["folder"] and again["reused"] == 2
    assert len({none["folder"], first["folder"], second["folder"]}) == 3 and not second["reused"]
    assert Path(first["name"]).name.startswith("arithmetic-50-random-llada+adapter.")
    shown = tables.render([none, first, second])
    assert all(f"adapter.{record['adapter']['sha256'][:8]}" in shown for record in (first, second))
    assert not notes  # their folders have different names


def test_commands_take_an_adapter(folder, checkpoint_folder, capsys, monkeypatch, tmp_path):
    """Guards `--adapter` wherever a model is named: it is loaded, and a wrong one ends the command in one line."""
    monkeypatch.chdir(tmp_path)
    model = ["-m", str(checkpoint_folder), "--device", "cpu"]
    short = ["-l", "32", "-b", "16", "-th", "0.02"]
    answers = []
    for flags in ([], ["--adapter", str(folder)]):
        assert run.main(["generate", *model, *short, "--json", "--prompt", PROMPT, *flags]) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] != answers[1]
    commands = [["generate", "--prompt", PROMPT, *short], ["chat", *short], ["-t", "arithmetic-50", "--limit", "1"],
                ["bench", "--only", "Vanilla", "-l", "32"]]
    for command in commands:
        assert run.main([*command, *model, "--adapter", str(checkpoint_folder)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "is a whole checkpoint, not an adapter: load it as the model, -m " in line

    label = adapters.read_adapter(str(folder)).label
    subject = measurement.make_subject(str(checkpoint_folder), "cpu", None, str(folder))
    assert subject.name == f"{checkpoint_folder}+{label}"
    with pytest.raises(ValueError, match="adapter is .*, but small has random weights"):
        measurement.make_subject("small", "cpu", None, str(folder))
    assert CommandLineLM(checkpoint=str(checkpoint_folder), adapter=str(folder), **SHORT).loaded.adapter is not None


def test_the_demo_and_the_page_take_an_adapter(folder, checkpoint_folder, capsys, monkeypatch, tmp_path):
    served: list[str] = []
    monkeypatch.setattr(app, "serve", lambda loaded, port: served.append(loaded.name))
    monkeypatch.setattr(app, "find_spec", lambda name: True)
    assert app.main(["-m", str(checkpoint_folder), "--adapter", str(folder), "--device", "cpu", "--port", "0"]) == 2
    monkeypatch.setattr(app, "check_port", lambda port: None)
    assert app.main(["-m", str(checkpoint_folder), "--adapter", str(folder), "--device", "cpu"]) == 0
    label = adapters.read_adapter(str(folder)).label
    assert served == [f"{checkpoint_folder}+{label}"]

    flags = ["-m", str(checkpoint_folder), "-l", "32", "--limit", "1", "--output", str(tmp_path / "demo")]
    assert demo.main([*flags, "--adapter", str(folder)]) == 0
    assert (tmp_path / "demo" / f"arithmetic-50-random-llada+{label}-32-first-1" / "records.json").exists()
    capsys.readouterr()
    assert demo.main([*flags, "--adapter", "nowhere/at/all"]) == 1
    assert "adapter is 'nowhere/at/all'; it must be an existing folder or a hub id" in capsys.readouterr().err


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch) -> str:
    """The hub's cache with an adapter in it, whose hub id is returned; the hub does not answer."""
    repository = tmp_path / "hub" / "models--owner--adapter"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(loading, "_hub_answers", lambda *_: False)
    return "owner/adapter"


def test_an_adapter_on_the_hub(hub_cache, folder, checkpoint_folder):
    """Guards hub ids: the same adapter as in a folder, and a sentence for one that is not to be had."""
    loaded = loading.load(str(checkpoint_folder), device="cpu", adapter=hub_cache)
    assert loaded.adapter.name == hub_cache and loaded.adapter.sha256 == adapters.read_adapter(str(folder)).sha256
    with pytest.raises(ValueError, match="adapter 'owner/nothing' could not be downloaded"):
        loading.load(str(checkpoint_folder), device="cpu", adapter="owner/nothing")


# --- Bad input --------------------------------------------------------------------------------------------------------


def refusal(folder: Path | str, model: Path | str) -> str:
    """The one sentence with which an adapter is refused, before the model's weights are read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainedDiffusionModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
        with pytest.raises(ValueError) as caught:
            loading.load(str(model), device="cpu", adapter=str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


FIRST = "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight"


@pytest.mark.parametrize("change, words", [
    (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    (lambda f: shutil.rmtree(f) or f.mkdir(), "has no adapter_config.json: the folder is empty"),
    (lambda f: (f / "adapter_model.safetensors").unlink(), "is incomplete: it has no adapter_model.safetensors"),
    (lambda f: os.rename(f / "adapter_model.safetensors", f / "adapter_model.bin"),
     "it has no adapter_model.safetensors, but adapter_model.bin, a format that is not loaded here"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "has an adapter_config.json that cannot be read: it is"),
    (lambda f: (f / "adapter_config.json").write_text("[" * 99 + "]" * 99), "nested deeper than"),
    (lambda f: (f / "adapter_config.json").write_text("[]"), "it holds no JSON object"),
    (lambda f: (f / "adapter_config.json").write_bytes(b"\xff"), "has an adapter_config.json that cannot be read"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"damaged"), "could not be loaded: adapter_model"),
    (lambda f: os.truncate(f / "adapter_model.safetensors", 5000), "could not be loaded: adapter_model"),
    (lambda f: change_weights(f, lambda w: w.update({FIRST: torch.ones(4, 64)})),
     f"{FIRST} has the shape [4, 64] and would need [4, 32]"),
    (lambda f: change_weights(f, lambda w: w.pop(FIRST)), f"it lacks weights: {FIRST}"),
    (lambda f: change_weights(f, lambda w: w.update(stranger=torch.ones(1))), "it has foreign weights: stranger"),
    (lambda f: change_weights(f, lambda w: w.update({FIRST: torch.ones(4, 32, dtype=torch.int8)})),
     f"has weights that are not floating-point numbers: {FIRST} (I8)"),
    (lambda f: (f / "base.json").write_text('{"base": "x", "sha256": "' + "0" * 64 + '"}'),
     "was trained from other weights than those of"),
    (lambda f: (f / "base.json").write_text('{"sha256": 3}'), "has a base.json without the base's sha256"),
    (lambda f: (f / "base.json").write_text("nothing"), "has a base.json that cannot be read"),
])
def test_folders_that_are_refused(folder, checkpoint_folder, change, words):
    """Guards against everything that is no adapter, is damaged, or does not fit."""
    change(folder)
    assert words in refusal(folder, checkpoint_folder)


@pytest.mark.parametrize("fields, words", [
    ({"peft_type": "IA3"}, "has peft_type 'IA3'; only 'LORA'"),
    ({"peft_type": None}, "has peft_type None; only 'LORA'"),
    ({"target_modules": ["q_proj", "gate_proj"]}, "it adapts gate_proj, which the model lacks; its layers have attn"),
    ({"target_modules": ["wte.q_proj"]}, "it adapts wte.q_proj, which the model lacks"),
    ({"target_modules": r".*\.nothing"}, "not found in the base model"),
    ({"target_modules": ["blocks"]}, "does not fit"),
    ({"target_modules": None}, "names no target_modules"),
    ({"target_modules": 3}, "field target_modules is 3; it must be names of modules"),
    ({"target_modules": [1]}, "field target_modules is [1]; it must be names of modules"),
    ({"target_modules": ["q_proj"] * 5000}, "it must be names of modules, 4096 of them at most"),
    ({"rank_pattern": {f"m{index}": 1 for index in range(5000)}}, "it must be an object of at most 4096 entries"),
    ({"target_modules": "(a*)*"}, "field target_modules has '(a*)*', an expression that is not searched for"),
    ({"target_modules": "a*" * 20}, "an expression that is not searched for: it must have at most four repetitions"),
    ({"target_modules": "("}, "an expression that is not searched for: missing )"),
    ({"rank_pattern": {"(a+)+": 3}}, "field rank_pattern has '(a+)+', an expression"),
    ({"rank_pattern": {"q_proj": 10**9}}, "field r is 1000000000; it must be an integer from 1 to"),
    ({"rank_pattern": 3}, "field rank_pattern is 3; it must be an object"),
    ({"layers_pattern": ["(b+)+"]}, "field layers_pattern has '(b+)+'"),
    ({"layers_to_transform": ["all"]}, "field layers_to_transform is 'all'; it must be an integer"),
    ({"r": 8}, "has the shape [4, 32] and would need [8, 32]"),
    ({"r": -1}, "field r is -1; it must be an integer"),
    ({"r": "4"}, "field r is '4'; it must be an integer"),
    ({"lora_alpha": "16"}, "field lora_alpha is '16'; it must be a finite number"),
    ({"use_dora": "yes"}, "field use_dora is 'yes'; it must be true or false"),
    ({"use_dora": True}, "it lacks weights"),
    ({"bias": "some"}, "field bias is 'some'; it must be none, all or lora_only"),
    ({"modules_to_save": ["ln_f"]}, "it lacks weights: base_model.model.model.transformer.ln_f.weight"),
    ({"init_lora_weights": "pissa"}, "field init_lora_weights is 'pissa', which changes the base's weights"),
    ({"megatron_config": {"a": 1}}, "field 'megatron_config' is {'a': 1}, which is not implemented here"),
    ({"megatron_core": "os"}, "field 'megatron_core' is 'os', which is not implemented here"),
    ({"layer_replication": [[0, 2]]}, "field 'layer_replication' is [[0, 2]], which is not implemented here"),
    ({"trainable_token_indices": [1]}, "field 'trainable_token_indices' is [1], which is not implemented here"),
    ({"from_the_future": True}, "field 'from_the_future' is True, which is not implemented here"),
])
def test_configurations_that_are_refused(folder, checkpoint_folder, fields, words):
    """Guards against adapters that would be applied wrongly, and against what a configuration could make of peft."""
    edit(folder / "adapter_config.json", **fields)
    assert words in refusal(folder, checkpoint_folder)


def test_fields_of_other_versions_that_say_nothing(folder, checkpoint_folder):
    """Guards adapters written by other versions of peft: unknown fields that are empty, known ones that are missing."""
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text())
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
    path.write_text(json.dumps({name: fields[name] for name in kept} | {"from_the_future": None, "another": False}))
    assert loading.load(str(checkpoint_folder), device="cpu", adapter=str(folder)).adapter


@pytest.mark.parametrize("dtype, value, words", [
    (None, float("nan"), f"has weights that are not finite numbers: {FIRST}"),
    (None, float("inf"), f"has weights that are not finite numbers: {FIRST}"),
    ("float16", 1e20, "added to the model gives numbers beyond float16"),
])
def test_numbers_that_are_none(folder, checkpoint_folder, dtype, value, words):
    """Guards against a model that answers with NaN."""
    change_weights(folder, lambda weights: weights[FIRST].fill_(value))
    with pytest.raises(ValueError, match=words):
        loading.load(str(checkpoint_folder), device="cpu", dtype=dtype, adapter=str(folder))


def test_an_adapter_of_another_base(folder, checkpoint_folder, small_dream, tmp_path, monkeypatch):
    """Guards an adapter against a base of the same shape, of another name on the hub, and of the other family."""
    model = loading.load(str(checkpoint_folder), device="cpu").model
    with torch.no_grad():
        model.layers[0].q_proj.weight += 1
    shutil.copytree(checkpoint_folder, tmp_path / "trained")
    model.save_pretrained(tmp_path / "trained")
    assert "was trained from other weights than those of" in refusal(folder, tmp_path / "trained")

    assert "was trained from other weights than those of" in refusal(folder, small_dream)

    # The base is in the hub's cache: a folder of other weights is another one.
    snapshot = tmp_path / "hub" / "models--owner--base" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(checkpoint_folder, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    edit(folder / "adapter_config.json", base_model_name_or_path="owner/base")
    assert "of 'owner/base' was trained from other weights than" in refusal(folder, tmp_path / "trained")
    assert loading.load(str(checkpoint_folder), device="cpu", adapter=str(folder)).adapter

    edit(folder / "adapter_config.json", base_model_name_or_path="GSAI-ML/LLaDA-8B-Instruct")
    assert loading.load(str(tmp_path / "trained"), device="cpu", adapter=str(folder)).adapter  # it may be a copy
    adapter = adapters.read_adapter(str(folder))
    words = "of 'GSAI-ML/LLaDA-8B-Instruct' was not trained from 'GSAI-ML/LLaDA-1.5'"
    with pytest.raises(ValueError, match=words):
        adapters.check_base(adapter, "GSAI-ML/LLaDA-1.5", checkpoint_folder)
    adapters.check_base(adapter, "gsai-ml/llada-8b-instruct", checkpoint_folder)
    words = refusal(folder, small_dream)
    assert "of 'GSAI-ML/LLaDA-8B-Instruct' does not fit" in words and "ff_proj, which the model lacks" in words


@pytest.mark.parametrize("name, words", [
    ("", "adapter is ''; it must be an existing folder or a hub id"),
    ("nothing", "adapter is 'nothing'; it must be an existing folder or a hub id"),
    ("a/b/c", "adapter is 'a/b/c'; it must be an existing folder or a hub id"),
    ("adaptor", "did you mean adapter?"),
    ("adapter/adapter_config.json", "which is a file; give the folder that holds adapter_config.json and"),
    (".", "has no adapter_config.json; did you mean adapter?"),
])
def test_names_that_are_no_adapter(folder, checkpoint_folder, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(name, checkpoint_folder)


def test_without_peft(folder, checkpoint_folder, random_llada, monkeypatch):
    """Guards an installation without the package: it is named, and nothing else needs it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "an adapter needs the package peft" in refusal(folder, checkpoint_folder)
    with pytest.raises(ValueError, match="run `pip install peft`"):
        add_lora(random_llada, 2)
    assert loading.load(str(checkpoint_folder), device="cpu").adapter is None
