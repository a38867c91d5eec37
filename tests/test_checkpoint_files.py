"""Checkpoints that are none, or that lie: each is one sentence, and takes no more memory than its files.

    bash tests/run.sh tests/test_checkpoint_files.py
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import torch
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dpad.engine import loading, template_trial
from dream import DreamModel
from llada import LLaDAModelLM


@pytest.fixture
def folder(checkpoint_folder, tmp_path):
    """A copy of a small LLaDA with its tokenizer, which a test may break."""
    return shutil.copytree(checkpoint_folder, tmp_path / "model")


@pytest.fixture
def dream_folder(tmp_path):
    """A copy of the embedded Dream, whose tokenizer has other files."""
    return shutil.copytree(ROOT / "checkpoints" / "dream-tiny", tmp_path / "model")


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def keep_only(folder, *names):
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder, **options):
    """The one sentence with which a checkpoint is refused."""
    with pytest.raises(ValueError) as error:
        loading.load(str(folder), device="cpu", **options)
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    return text


# --- What is given in place of a checkpoint ---------------------------------------------------------------------------


def test_a_file_in_place_of_its_folder(folder):
    assert "is a file; give the folder that holds it" in refusal(folder / "model.safetensors")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        LLaDAModelLM.from_pretrained(folder / "model.safetensors")


def test_a_folder_around_the_checkpoint(folder, tmp_path):
    """Guards the hint for an unpacked archive, and for a model's folder in the hub's cache."""
    assert f"has no config.json; did you mean {folder}?" in refusal(tmp_path)
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    shutil.move(folder, snapshot)
    assert f"did you mean {snapshot}?" in refusal(tmp_path / "hub" / "models--owner--name")
    assert f"did you mean {snapshot}?" in refusal(tmp_path / "hub")


@pytest.mark.parametrize("kept, words", [
    ((), "has no config.json: the folder is empty"),
    (("tokenizer.json", "tokenizer_config.json"), "has no config.json, but a tokenizer"),
    (("model.safetensors",), "has no config.json: it must be a folder written by save_pretrained"),
    (("config.json", "tokenizer.json"), "it has no weights in model.safetensors or model.safetensors.index.json"),
], ids=str)
def test_half_a_checkpoint(folder, kept, words):
    keep_only(folder, *kept)
    assert words in refusal(folder)


@pytest.mark.parametrize("file", ["model-Q4_K_M.gguf", "pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("with_config", [True, False])
def test_weights_in_another_format(folder, file, with_config):
    keep_only(folder, "config.json" if with_config else "")
    (folder / file).write_bytes(b"GGUF")
    assert f"{file!r}, a format that is not loaded here" in refusal(folder)


def test_an_adapter(folder):
    """Guards the way out: a PEFT adapter is not a model, and is given beside one."""
    keep_only(folder, "tokenizer.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct"}')
    words = refusal(folder)
    assert "is a PEFT adapter of 'GSAI-ML/LLaDA-8B-Instruct', not a model" in words
    assert f"-m MODEL --adapter {folder}" in words
    with pytest.raises(ValueError, match="is a PEFT adapter"):
        LLaDAModelLM.from_pretrained(folder)


@pytest.mark.parametrize("method, command", [
    ("torchao", "pip install torchao"), ("bitsandbytes", "pip install bitsandbytes"),
    ("gptq", "pip install gptqmodel optimum"), ("awq", "pip install gptqmodel"),
    ("compressed-tensors", "pip install compressed-tensors"), ("quanto", "pip install optimum-quanto"),
])
def test_quantized_weights_without_their_package(folder, monkeypatch, method, command):
    monkeypatch.setattr("dpad.engine.checkpoint.find_spec", lambda name: None)
    set_config(folder, quantization_config={"quant_method": method})
    words = refusal(folder)
    assert f"has quantized weights ({method}), which need the package" in words and f"run `{command}`" in words
    if method == "bitsandbytes":
        set_config(folder, quantization_config={"load_in_8bit": True})  # as older versions wrote it
        assert f"run `{command}`" in refusal(folder)


@pytest.mark.parametrize("entry", [{}, [1], "torchao", {"quant_method": 5}, {"quant_method": "sorcery"}], ids=str)
def test_quantization_that_nobody_knows(folder, entry):
    set_config(folder, quantization_config=entry)
    assert "has quantized weights" in refusal(folder)


def test_a_revision_of_a_folder(folder):
    """Guards against a revision that is ignored in silence."""
    assert "revision is 'v2', but" in refusal(folder, revision="v2")
    assert "revision is 'v2', but" in refusal("tiny", revision="v2")


def test_names_that_are_almost_right():
    assert "did you mean 'tiny'?" in refusal("tny")
    assert "did you mean 'dream-instruct'" in refusal("dream-instuct")
    assert "model is ''" in refusal("")


@pytest.mark.parametrize("name", ["a/b/c", "a//b", "../x", "a/..", "x/" + "y" * 300, "a b/c", "a\nb/c", "a/b\0", "-m/x",
                                  "\ud800/x", "~/x", "/x"], ids=ascii)
def test_names_that_nothing_can_have(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder ../x may be anywhere else
    assert "must be tiny, instruct, 1.5, base" in refusal(name)


def test_a_mistyped_folder(folder, monkeypatch):
    """Guards against asking the hub for it: a folder beside it has almost that name."""
    monkeypatch.chdir(folder.parent.parent)
    mistyped = f"{folder.parent.name}/modell"
    assert f"did you mean {folder.parent.name}/model?" in refusal(mistyped)
    with pytest.raises(ValueError, match="did you mean .*/model?"):
        LLaDAModelLM.from_pretrained(mistyped)


# --- The hub's cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch):
    """The hub's cache with one model in it, owner/name, as the hub's client lays it out; the hub does not answer."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    for place in (snapshot, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.move(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(loading, "_hub_answers", lambda *_: False)
    return snapshot


def test_a_model_in_the_hubs_cache(hub_cache):
    """Guards hub ids without network: config, weights and tokenizer come from the cache, whose files are links."""
    by_id = loading.load("owner/name", device="cpu")
    by_folder = loading.load(str(hub_cache), device="cpu")
    assert by_id.checkpoint == "owner/name" and by_folder.checkpoint == str(hub_cache)
    assert torch.equal(by_id.model.get_input_embeddings().weight, by_folder.model.get_input_embeddings().weight)
    assert by_id.model.config._commit_hash == hub_cache.name
    assert loading.family_of("owner/name").name == "llada"
    assert isinstance(LLaDAModelLM.from_pretrained("owner/name", local_files_only=True), LLaDAModelLM)


def test_an_unfinished_download(hub_cache):
    """Guards a cache in which only config.json has arrived, and one without the model."""
    (hub_cache / "model.safetensors").unlink()
    assert "it has no weights in model.safetensors" in refusal("owner/name")
    assert "owner/other is not in the local cache" in refusal("owner/other")
    with pytest.raises(ValueError, match="'owner/other' could not be downloaded"):
        LLaDAModelLM.from_pretrained("owner/other", local_files_only=True)


# --- The embedding and the head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, model_class, field, head", [
    ("llada-tiny", LLaDAModelLM, "weight_tying", "model.transformer.ff_out.weight"),
    ("dream-tiny", DreamModel, "tie_word_embeddings", "lm_head.weight"),
])
def test_tied_and_untied_heads(tmp_path, source, model_class, field, head):
    """Guards both forms of both models: right when file and config.json agree, else a sentence that names the field."""
    folder = shutil.copytree(ROOT / "checkpoints" / source, tmp_path / "model")
    set_config(folder, **{field: True})
    with pytest.raises(ValueError, match=f"foreign: {head}; config.json says that {field} is true"):
        model_class.from_pretrained(folder)

    change_weights(folder, lambda weights: {name: weight for name, weight in weights.items() if name != head})
    tied = model_class.from_pretrained(folder)
    ids = torch.arange(9)[None]
    embedding = tied.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(tied(ids).logits, tied.hidden_states(ids, ids) @ embedding.T)

    set_config(folder, **{field: False})
    with pytest.raises(ValueError, match=f"missing: {head}; config.json says that {field} is false"):
        model_class.from_pretrained(folder)


@pytest.mark.parametrize("source, model_class, embedding", [
    ("llada-tiny", LLaDAModelLM, "model.transformer.wte"), ("dream-tiny", DreamModel, "model.embed_tokens"),
])
def test_the_embedding_on_disk(tmp_path, source, model_class, embedding):
    """Guards accelerate's offloading: layers may lie on disk, and the embedding, whose device decoding takes."""
    folder = ROOT / "checkpoints" / source
    model = model_class.from_pretrained(folder)
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    layer = names[3]
    for on_disk in (layer, embedding):
        device_map = {name: "disk" if name == on_disk else "cpu" for name in names}
        offloaded = model_class.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
        ids = torch.arange(9)[None]
        assert torch.equal(offloaded(ids).logits, model(ids).logits)


# --- Special tokens and fields that contradict each other -------------------------------------------------------------


@pytest.mark.parametrize("field", ["mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "eot_id"])
@pytest.mark.parametrize("value", [-1, 5000, 2**70, "2", True, 1.0, [1]], ids=str)
def test_a_special_token_that_is_no_token(folder, field, value):
    set_config(folder, **{field: value})
    assert f"config field {field} is {value!r}; it must be an integer from 0 to " in refusal(folder)


@pytest.mark.parametrize("field", ["mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id"])
def test_a_special_token_beyond_dreams_vocabulary(dream_folder, field):
    set_config(dream_folder, **{field: 5000})
    assert f"config field {field} is 5000; it must be an integer from 0 to 1023" in refusal(dream_folder)


@pytest.mark.parametrize("field", ["mask_token_id", "eos_token_id"])
def test_a_special_token_that_is_missing(folder, field):
    set_config(folder, **{field: None})
    assert f"config field {field} is None" in refusal(folder)
    config = json.loads((folder / "config.json").read_text())
    del config[field]  # then the 8B models' would be taken, which this vocabulary has not
    (folder / "config.json").write_text(json.dumps(config))
    assert f"config field {field} is 126" in refusal(folder)


def test_a_special_token_of_the_embedding_alone(folder):
    """Guards ids that the embedding has, as it has spare rows, but the tokenizer has not."""
    set_config(folder, vocab_size=1024, mask_token_id=1020)
    assert "config field mask_token_id is 1020, which is not a token of its tokenizer" in refusal(folder)


def test_mask_and_eos_must_differ(folder):
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    set_config(folder, mask_token_id=eos)
    assert f"config field mask_token_id is {eos}; it must differ from eos_token_id" in refusal(folder)


def test_fields_that_contradict_each_other(folder):
    """Guards against transformers' names for the same fields, which would win in silence."""
    set_config(folder, hidden_size=4096)
    assert "config field hidden_size is not one of LLaDA's, which calls it d_model" in refusal(folder)


# --- The tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"a":', "[" * 100_000, "\0", "null", '{"model": {"type": "BPE"}}'],
                         ids=lambda text: text[:12])
def test_a_tokenizer_that_is_none(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert "tokenizer" in refusal(folder)


@pytest.mark.parametrize("file, text", [
    ("tokenizer_config.json", "[]"), ("tokenizer_config.json", '{"tokenizer_class": 5}'),
    ("tokenizer_config.json", "{}"), ("tokenizer_config.json", None), ("tokenizer.json", None),
    ("tokenizer.json", "truncated"),
])
def test_files_of_a_tokenizer(folder, file, text):
    if text == "truncated":
        text = (folder / file).read_text()[:3000]
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    assert "tokenizer" in refusal(folder)


@pytest.mark.parametrize("file, content", [
    ("vocab.json", b"{}"), ("vocab.json", None), ("merges.txt", None), ("merges.txt", b"a b c d\nx"),
    ("merges.txt", b"\xff\xfe"), ("vocab.json", b"[]"), ("vocab.json", b'{"a": "b"}'), ("vocab.json", b'{"a": -1}'),
])
def test_files_of_dreams_tokenizer(dream_folder, file, content):
    (dream_folder / file).unlink()
    if content is not None:
        (dream_folder / file).write_bytes(content)
    assert "tokenizer" in refusal(dream_folder)


def test_a_tokenizer_larger_than_the_model(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["abracadabra"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "token ids up to 5000; the model's embedding has 1024 rows" in refusal(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 70 + "]" * 70 + "}", "[]", "5", "null", '{"a": NaN}',
    '{"a": ' + "9" * 5000 + "}", '{"eos_token": "\\ud800"}', '{"a": "' + "x" * 2**24 + '"}',
], ids=lambda text: text[:12])
def test_json_of_a_tokenizer_that_cannot_be_used(folder, file, text):
    """Guards each kind of bad JSON: deep, of another type, numbers without end, half characters, huge."""
    (folder / file).write_text(text)
    assert "checkpoint" in refusal(folder)


@pytest.mark.parametrize("fields", [
    {"model_max_length": "x"}, {"padding_side": 5}, {"eos_token": 5}, {"pad_token": None}, {"chat_template": 5},
], ids=str)
def test_fields_of_a_tokenizer(folder, fields):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    try:
        loaded = loading.load(str(folder), device="cpu")
    except ValueError as error:
        assert "checkpoint" in str(error) and "\n" not in str(error)
    else:
        assert loaded.encode("How many?").input_ids.numel()


@pytest.mark.parametrize("template, words", [
    ("{% for %}", "Expected an expression"), ("{{ 'a' * 10**10 }}", "with products, powers or numbers above"),
    ("{{ messages[0]['content']|center(10000000000) }}", "or numbers above"), ("{{ 9 ** 9 ** 9 }}", "powers"),
    ("{{ nothing.at.all }}", "UndefinedError"), ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
    ("{{ raise_exception('no') }}", "TemplateError: no"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError"), ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"), ("{% import 'os' as os %}", "TypeError"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{% for i in range(999999) %}{% endfor %}", "above"), ("{% for i in range(9999) %}", "Unexpected end of template"),
    ("", "leaves out what the user says"), ("Answer:", "leaves out what the user says"),
    ("{#" + "x" * 2**18 + "#}", "larger than 0.25 MB"),
], ids=lambda value: value[:24])
def test_a_chat_template_that_cannot_be_used(folder, template, words):
    """Guards against a template that fails at the first question, or that tries to leave Jinja's sandbox."""
    (folder / "chat_template.jinja").write_text(template)
    assert words in refusal(folder)


@pytest.mark.parametrize("template, fault", [
    ("{{ messages[0].content }}", None), ({"default": "{{ messages[0].content }}"}, None),
    ("{{ 2 * 3 }}", "with products, powers or numbers"), ("{{ 2 ** 3 }}", "with products"), ("{{ 100001 }}", "above"),
    ("{{ " + "a" * 2**20 + " }}", "larger than"), ("{% for %}", "that cannot be used"), ("Hello", "leaves out what"),
    ({"default": "{{ messages[0].content }}", "tool": "{{ 'x' * 9 }}"}, "with products"),
], ids=lambda value: str(value)[:30])
def test_what_a_template_could_do(template, fault):
    """What the copy of the process finds, asked in this one: the verdict, for templates that load or do not."""
    text = template["default"] if isinstance(template, dict) else template
    tokenizer = SimpleNamespace(
        chat_template=template,
        apply_chat_template=lambda turns, **_: jinja2.Template(text).render(messages=turns),
    )
    found = template_trial._fault_of_template(tokenizer)
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}" * 2 + "x" + "{% endfor %}" * 2,
    "{{ 1|round('99999999'|int, 'ceil') }}",
], ids=["loop", "operation"])
def test_a_chat_template_without_end(folder, monkeypatch, template):
    """Guards against 10^10 turns of a loop, which the sandbox allows, and one power, in which no thread can be ended;
    no process is left."""
    monkeypatch.setattr(template_trial, "MAX_SECONDS", 0.3)
    (folder / "chat_template.jinja").write_text(template)
    assert "a chat template that takes more than 0.3 seconds" in refusal(folder)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("template", [
    "{% set all = namespace(a='x') %}{% for i in range(50) %}{% set all.a = all.a ~ all.a %}{% endfor %}",
    "{{ '%999999999d' % 1 }}", "{{ '{:999999999}'.format(1) }}", "{{ 'x'.ljust('999999999'|int) }}",
    "{% set a = 'x'.ljust(30000, 'x') %}{{ a.replace('x', a) }}",
])
def test_a_chat_template_that_grows(folder, monkeypatch, template):
    """Guards memory: doubling a text fifty times, or one operation, takes no time worth mentioning until it takes all
    memory. This process never has it."""
    monkeypatch.setattr(template_trial, "MAX_GROWTH", 2**25)
    (folder / "chat_template.jinja").write_text(template)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "seconds or 32 MB" in refusal(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**17  # KB


def test_a_long_chat_template_inside_of_a_file(folder):
    """Guards the bound of a template that stands in tokenizer_config.json, whose own bound is larger."""
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    template = "{{ messages[0].content }}" + "{% if a %}{% endif %}" * 20_000
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert "a chat template larger than 0.25 MB" in refusal(folder)


def test_a_tokenizer_that_grows(folder, monkeypatch):
    """Guards memory: replacements in a row make 16 GB of one letter, in a library whose failure ends a process."""
    monkeypatch.setattr(template_trial, "TOKENIZER_GROWTH", 2**28)
    longer = {"type": "Replace", "pattern": {"String": "o"}, "content": "o" * 2000}
    normalizer = {"type": "Sequence", "normalizers": [longer] * 3}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))
    assert "a tokenizer that takes more than 60 seconds or 256 MB" in refusal(folder)


@pytest.mark.parametrize("template", [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% generation %}{{ loop.index0 % 2 }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "{{ bos_token }}{%- for m in messages -%}{{ m['content'] | trim }}{%- endfor -%}",
])
def test_honest_chat_templates(folder, template):
    """Guards what templates on the hub use, transformers' own tag included."""
    (folder / "chat_template.jinja").write_text(template)
    assert "How many?" in loading.load(str(folder), device="cpu").chat("How many?")


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, words", [
    ("[" * 100_000, "nested deeper than 64"), ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested deeper than 64"),
    ('{"model_type": "llada", "n_layers": ' + "9" * 5000 + "}", "a number that is out of range"),
    ('{"model_type": "llada", "rope_theta": NaN}', "a number that is out of range"),
    ('{"model_type": "llada", "rope_theta": 1e400}', "a number that is out of range"),
    ("[]", "no JSON object, but a list"), ('"llada"', "no JSON object, but a str"),
    ('{"model_type": "llada", "a": "' + "x" * 2**24 + '"}', "larger than 16 MB"), ("", "cannot be read"),
    ('{"model_type": 5}', "model_type must be text"), ('{"model_type": ["llada"]}', "model_type must be text"),
    ('{"model_type": "\\ud800"}', "half of a surrogate pair"),
    ('{"model_type": "\\u001b[2J"}', r"model_type '\x1b[2J'"), ("\ufeff{}", "cannot be read"),
], ids=lambda text: text[:30])
def test_a_configuration_that_cannot_be_read(folder, text, words):
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert words in refusal(folder)


@pytest.mark.parametrize("field, value", [
    ("n_layers", 0), ("n_layers", -1), ("n_layers", True), ("n_layers", 2.0), ("n_layers", "2"), ("n_layers", None),
    ("d_model", 0), ("n_heads", 5), ("n_heads", -2), ("n_kv_heads", 3), ("n_kv_heads", 0),
    ("vocab_size", 0), ("vocab_size", "1010"), ("embedding_size", 3), ("mlp_hidden_size", True),
    ("max_sequence_length", 0), ("max_sequence_length", "1024"), ("rope_theta", 0), ("rope_theta", -1.0),
    ("rope_theta", "10000"), ("rms_norm_eps", 0), ("rms_norm_eps", [1]), ("include_bias", 1),
    ("include_bias", "false"), ("weight_tying", None), ("scale_logits", 0), ("init_std", "small"),
    ("num_labels", 10**9), ("num_labels", "x"), ("dtype", "int8"), ("dtype", "nonsense"), ("dtype", 5),
    ("attn_implementation", "owner/kernels"), ("transformers_weights", "../other.safetensors"),
    ("fusion_config", {"a": True}), ("per_layer_config", [1]), ("attribute_map", {"d_model": "n_heads"}),
    ("sub_configs", 5), ("to_dict", 5), ("__class__", 5), ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "yarn"}), ("rope_theta", 10**30), ("experts_implementation", "x"),
], ids=str)
def test_fields_of_another_kind(folder, field, value):
    """Guards every field that shapes the model, and those by which transformers would take other files or code."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps(config))
    assert f"config field {field!r} is" in refusal(folder).replace(f"field {field} is", f"field {field!r} is")


@pytest.mark.parametrize("field, value", [
    ("id2label", 5), ("use_return_dict", True), ("auto_map", 5), ("architectures", 5), ("_name_or_path", "\ud800"),
    ("auto_map", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": "evil.Tokenizer"}),
], ids=str)
def test_fields_that_mean_nothing_here(folder, field, value):
    """Guards that they are refused in a sentence or change nothing; code that they name is never run."""
    set_config(folder, **{field: value})
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    try:
        loaded = loading.load(str(folder), device="cpu")
    except ValueError as error:
        assert "checkpoint" in str(error) and "\n" not in str(error)
    else:
        assert type(loaded.model) is LLaDAModelLM


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
FOREIGN_FIELDS = [
    "architectures", "auto_map", "bos_token_id", "dtype", "torch_dtype", "id2label", "label2id", "num_labels",
    "use_cache", "return_dict", "output_attentions", "tie_word_embeddings", "name_or_path", "_commit_hash",
    "text_config", "vision_config", "head_dim", "layer_types", "per_layer_config", "quantization_config",
    "rope_parameters", "task_specific_params", "temperature", "_attn_implementation_internal", "pruned_heads",
    "experts_implementation", "tokenizer_class",
]


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_configuration_says(checkpoint_folder, data):
    """The law: a model that computes, or one sentence that names the checkpoint."""
    config = json.loads((checkpoint_folder / "config.json").read_text())
    names = st.sampled_from(sorted(config) + FOREIGN_FIELDS)
    changed = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as parent:
        folder = shutil.copytree(checkpoint_folder, Path(parent) / "model")
        (folder / "config.json").write_text(json.dumps(config | changed))
        try:
            loaded = loading.load(str(folder), device="cpu")
        except ValueError as error:
            assert "checkpoint" in str(error) and str(error).isprintable() and len(str(error)) < 700
        else:
            loaded.generate(**loaded.encode("How many?"), gen_length=32, threshold=0)


def test_special_files(folder):
    """Guards against waiting for ever: a pipe and a device are no config.json."""
    config = folder / "config.json"
    config.unlink()
    os.mkfifo(config)
    assert "has no config.json" in refusal(folder)
    config.unlink()
    config.symlink_to("/dev/zero")
    assert "has no config.json" in refusal(folder)


# --- Weights: the index and the headers -------------------------------------------------------------------------------


class Code:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def shard(folder):
    """The checkpoint's weights in three files, and their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number in (1, 2, 3):
        file = f"model-0000{number}-of-00003.safetensors"
        part = {name: weights[name] for name in names[number - 1 :: 3]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("file", [
    "x.bin", "../outside.safetensors", "/tmp/outside.safetensors", "sub/x.safetensors", "./x.safetensors",
    "..\\x.safetensors", "~/x.safetensors", "", "x.safetensors\0", "x\n.safetensors", "a" * 5000 + ".safetensors",
    "x.safetensors.bin", 5, None, ["x.safetensors"], True,
], ids=lambda file: ascii(file)[:30])
def test_an_index_that_leads_elsewhere(folder, tmp_path, monkeypatch, file):
    """Guards that weights come from .safetensors files in the folder: nothing outside is read, no pickle loaded."""
    monkeypatch.chdir(tmp_path)
    index = shard(folder)
    for place in (folder / "x.bin", folder / "x.safetensors.bin"):
        place.write_bytes(pickle.dumps(Code()))
    shutil.copy(folder / "model-00001-of-00003.safetensors", tmp_path / "outside.safetensors")
    write_index(folder, index | {"weight_map": index["weight_map"] | {min(index["weight_map"]): file}})
    assert "it must be the plain name of a .safetensors file in the folder" in refusal(folder)
    with pytest.raises(ValueError, match="must be the plain name"):
        LLaDAModelLM.from_pretrained(folder)
    assert not (tmp_path / "code-ran").exists()


@pytest.mark.parametrize("make", [pickle.dumps, lambda code: b"PK\x03\x04" + pickle.dumps(code)])
def test_a_pickle_that_is_called_safetensors(folder, tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").write_bytes(make(Code()))
    assert "could not be loaded: model.safetensors" in refusal(folder)
    assert not (tmp_path / "code-ran").exists()


def test_an_index_that_fits(folder):
    """Guards the other side: shards load, also through links as in the hub's cache."""
    expected = loading.load(str(folder), device="cpu").model.state_dict()
    shard(folder)
    (folder / "model-00001-of-00003.safetensors").rename(folder.parent / "blob")
    (folder / "model-00001-of-00003.safetensors").symlink_to("../blob")
    weights = loading.load(str(folder), device="cpu").model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("change, words", [
    (lambda index: {}, "without weight_map and metadata"), (lambda index: [index], "no JSON object"),
    (lambda index: index | {"weight_map": []}, "without"), (lambda index: index | {"weight_map": {}}, "without"),
    (lambda index: {"weight_map": index["weight_map"]}, "without"), (lambda index: index | {"metadata": 5}, "without"),
    (lambda index: (index["weight_map"].popitem(), index)[1], "does not fit model-00003-of-00003.safetensors"),
    (lambda index: (index["weight_map"].update(x="model-00001-of-00003.safetensors"), index)[1], "fit model-00001"),
    (lambda index: (index["weight_map"].update(x="y.safetensors"), index)[1], "y.safetensors is missing"),
])
def test_an_index_that_does_not_fit(folder, change, words):
    write_index(folder, change(shard(folder)))
    assert words in refusal(folder)


def test_a_tensor_in_two_files(folder):
    """Guards against one of two different weights winning in silence."""
    shard(folder)
    first, second = (folder / f"model-0000{number}-of-00003.safetensors" for number in (1, 2))
    weights = load_file(first)
    name = min(weights)
    save_file(load_file(second) | {name: weights[name] + 1}, second, metadata={"format": "pt"})
    assert f"does not fit {second.name}: {name}" in refusal(folder)


NORM = "model.transformer.ln_f.weight"


def rewrite_header(folder, change):
    """Change the header of the weights' file, and leave the numbers as they are."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    [size] = struct.unpack("<Q", content[:8])
    header = change(json.loads(content[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def set_tensor(**fields):
    def change(header):
        header[NORM] |= fields
        return header

    return change


@pytest.mark.parametrize("change", [
    set_tensor(data_offsets=[0, 128]), set_tensor(data_offsets=[-1, 127]), set_tensor(data_offsets=[2**40, 2**41]),
    set_tensor(data_offsets=[128, 0]), set_tensor(shape=[]), set_tensor(shape=[0]), set_tensor(shape=[-32]),
    set_tensor(shape=[2**62]), set_tensor(shape=[2**64]), set_tensor(shape=["32"]), set_tensor(shape=[True]),
    set_tensor(shape=[32.0]), set_tensor(shape=None), set_tensor(shape=[33]), set_tensor(dtype="F64"),
    set_tensor(dtype="nonsense"), set_tensor(dtype=None), lambda header: b"[]", lambda header: b"[" * 10**6,
    lambda header: b"\xff", lambda header: {},
])
def test_a_header_that_lies(folder, change):
    """Guards offsets, shapes and types: those that overlap, leave the file, are empty, or no numbers at all."""
    rewrite_header(folder, change)
    words = refusal(folder)
    assert "could not be loaded: model.safetensors" in words or "its weights have 0" in words


@pytest.mark.parametrize("change, words", [
    (set_tensor(shape=[4, 8]), f"of another shape than config.json says: {NORM}"),
    (set_tensor(shape=[1, 32]), f"of another shape than config.json says: {NORM}"),
    (set_tensor(dtype="I32"), rf"not floating-point numbers: {NORM} (I32)"),
    (lambda header: {name.replace("blocks.1.", "blocks.01."): entry for name, entry in header.items()}, "missing"),
    (lambda header: {name.replace("blocks.1.", "blocks.9."): entry for name, entry in header.items()}, "missing"),
    (lambda header: {name.replace("ln_f", "\x1b[2Jln_f"): entry for name, entry in header.items()}, "missing"),
])
def test_weights_that_do_not_fit(folder, change, words):
    rewrite_header(folder, change)
    assert words in refusal(folder) and "\x1b" not in refusal(folder)


@pytest.mark.parametrize("size", [2**63, 2**32, 20 * 2**20])
def test_the_length_of_a_header(folder, size):
    """Guards memory: no header is read that is longer than any real one."""
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    assert "its header is larger than 16 MB" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("quantized", [False, True])
def test_weights_that_are_no_floats(folder, dtype, quantized):
    """Guards against answers from numbers that transformers casts without a word, or that a package is said to read."""
    change_weights(folder, lambda weights: {name: weight.to(dtype) for name, weight in weights.items()})
    if quantized:
        set_config(folder, quantization_config={"quant_method": "fp8"})
    assert "has weights that are not floating-point numbers" in refusal(folder)


LIES = """
import resource, sys, time
from dpad.engine import loading, template_trial
loading.load(sys.argv[1], device="cpu")
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = memory(), time.monotonic()
for folder in sys.argv[2:]:
    try:
        loading.load(folder, device="cpu")
    except ValueError as error:
        print(error)
print((memory() - before) / 1024, time.monotonic() - start)
"""


@pytest.mark.slow
def test_a_configuration_that_lies_takes_no_memory(folder, tmp_path):
    """Guards memory and time: a small file whose config.json speaks of terabytes, or of a million layers."""
    lies = [{"d_model": 2**20}, {"mlp_hidden_size": 2**30}, {"embedding_size": 2**32}, {"n_layers": 10**6},
            {"n_layers": 2**62}, {"d_model": 2**62}, {"vocab_size": 2**40, "embedding_size": 2**40},
            {"d_model": 2**20, "quantization_config": {"quant_method": "fp8"}},
            {"n_layers": 10**6, "quantization_config": {"quant_method": "fp8"}}]
    folders = []
    for number, fields in enumerate(lies):
        folders.append(shutil.copytree(folder, tmp_path / str(number)))
        set_config(folders[-1], **fields)
    done = subprocess.run([sys.executable, "-c", LIES, str(folder), *map(str, folders)], cwd=ROOT, text=True,
                          capture_output=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})
    *refusals, last = done.stdout.splitlines()
    assert len(refusals) == len(lies), done.stdout + done.stderr
    megabytes, seconds = map(float, last.split())
    assert megabytes < 100 and seconds < 10
