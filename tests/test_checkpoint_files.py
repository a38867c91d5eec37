"""Checkpoints that are none, or that lie: each is one sentence, and takes no more memory than its files.

    bash tests/run.sh tests/test_checkpoint_files.py
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file

from dpad.engine import loading
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
    """Guards the way out: a PEFT adapter is not a model, and merging makes one of it."""
    keep_only(folder, "tokenizer.json")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct"}')
    words = refusal(folder)
    assert "is a PEFT adapter of 'GSAI-ML/LLaDA-8B-Instruct', not a model: merge it first" in words
    assert "merge_and_unload().save_pretrained(" in words
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


def test_names_that_are_almost_right():
    assert "did you mean tiny?" in refusal("tny")
    assert "did you mean dream-instruct" in refusal("dream-instuct")
    assert "model is ''" in refusal("")


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
    """Guards accelerate's offloading: layers may lie on disk, the embedding, whose device decoding takes, may not."""
    folder = ROOT / "checkpoints" / source
    model = model_class.from_pretrained(folder)
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    layer = names[3]
    for on_disk in (layer, embedding):
        device_map = {name: "disk" if name == on_disk else "cpu" for name in names}
        if on_disk == embedding:
            with pytest.raises(ValueError, match="device_map puts the embedding of .* on disk"):
                model_class.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
        else:
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
