"""Checkpoints: the hub's layout read and written, sharded or not; broken ones refused; names that people type.

    bash tests/run.sh tests/test_loading.py
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, ROOT
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import run
from dpad.engine import loading, precision
from dpad.engine.completion import complete
from dpad.engine.fused import rotate
from dpad.engine.transformer import RMSNorm, rope_tables
from llada import LLaDAConfig, LLaDAModelLM
from llada.network import LLaDANetwork


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the recorded model's folder that a test may break."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "llada-mha" / name, folder / name)
    return folder


def test_saved_shards_hold_the_same_names_and_weights(random_llada, tmp_path):
    """Guards save_pretrained: what is written has the hub's weight names, in shards with an index, and reads back."""
    random_llada.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and (tmp_path / "model.safetensors.index.json").exists()
    written = {name: weight for shard in shards for name, weight in load_file(shard).items()}
    original = load_file(GOLDEN / "llada-mha" / "model.safetensors")
    assert written.keys() == original.keys()
    again = LLaDAModelLM.from_pretrained(tmp_path)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, original[name])


def test_a_missing_shard_is_refused(random_llada, tmp_path):
    """Guards a download that broke off."""
    random_llada.save_pretrained(tmp_path, max_shard_size="200KB")
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        LLaDAModelLM.from_pretrained(tmp_path)


def test_auto_classes_find_the_model(checkpoint):
    """Guards the registration, without remote code although config.json names some."""
    assert isinstance(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False), LLaDAConfig)
    for auto_class in (AutoModel, AutoModelForCausalLM):
        assert isinstance(auto_class.from_pretrained(checkpoint, trust_remote_code=False), LLaDAModelLM)


def test_adapters_of_causal_models_find_their_base(random_llada, capfd):
    """Guards peft's CAUSAL_LM adapters, which look for this method; transformers says nothing about it."""
    ids = torch.arange(4)[None]
    assert random_llada.prepare_inputs_for_generation(ids, attention_mask=None) == {"input_ids": ids}
    assert LLaDAModelLM.can_generate() and not capfd.readouterr().err


def test_hub_fields_survive_a_round_trip(checkpoint, tmp_path):
    """Guards config.json: every field of the hub's file is read and written with its value."""
    recorded = json.loads((checkpoint / "config.json").read_text())
    LLaDAConfig.from_pretrained(checkpoint).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    renamed = {"torch_dtype": "dtype"}
    for name, value in recorded.items():
        if name not in ("transformers_version", "use_cache"):  # transformers 5 keeps the second out of config.json
            assert written[renamed.get(name, name)] == value, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_on_request(checkpoint, dtype):
    """Guards the weights' dtype, and that a forward pass runs in it."""
    model = LLaDAModelLM.from_pretrained(checkpoint, dtype=dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    with torch.no_grad():
        assert model(torch.arange(9)[None]).logits.dtype == dtype


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("change, words", [
    (lambda w: w.pop("model.transformer.ff_out.weight"), "missing: model.transformer.ff_out.weight"),
    (lambda w: w.update(stranger=torch.zeros(2)), "foreign: stranger"),
    (lambda w: w.update({"model.transformer.ln_f.weight": torch.zeros(32)}), "another shape.*ln_f"),
])
def test_wrong_weights_are_refused(checkpoint, change, words):
    """Guards against a model that answers with random layers."""
    change_weights(checkpoint, change)
    with pytest.raises(ValueError, match=words):
        LLaDAModelLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("field, value", [
    ("alibi", True), ("block_type", "sequential"), ("n_heads", 5), ("n_kv_heads", 3), ("embedding_size", 100),
    ("d_model", 0), ("activation_type", "gelu"), ("rope_theta", None), ("rms_norm_eps", "small"), ("clip_qkv", 8),
    ("mlp_hidden_size", -5), ("multi_query_attention", True),
])
def test_a_configuration_that_is_not_implemented_is_refused(checkpoint, field, value):
    """Guards against computing something else than the checkpoint means."""
    config = json.loads((checkpoint / "config.json").read_text()) | {field: value}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config field {field} is"):
        LLaDAModelLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("options", [
    {"n_kv_heads": 2}, {"weight_tying": True}, {"include_bias": True}, {"include_qkv_bias": True},
    {"scale_logits": True}, {"input_emb_norm": True}, {"mlp_hidden_size": None}, {"embedding_size": 128},
], ids=str)
def test_every_variant_of_the_configuration_saves_and_loads(options, tmp_path):
    """Guards the fields that the 8B checkpoints leave at their defaults."""
    torch.manual_seed(0)
    config = LLaDAConfig(**({"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 48, "vocab_size": 100,
                             "mask_token_id": 99, "eos_token_id": 98} | options))
    model = LLaDAModelLM(config).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(ids).logits
    assert expected.shape == (1, 12, config.embedding_size)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(LLaDAModelLM.from_pretrained(tmp_path)(ids).logits, expected)


def test_folders_that_are_no_checkpoint(tmp_path):
    """Guards the sentence that someone reads who mistyped a path."""
    with pytest.raises(ValueError, match="neither an existing folder nor a hub id"):
        LLaDAModelLM.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no config.json"):
        LLaDAModelLM.from_pretrained(tmp_path)


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [
    ("huge", "model is 'huge'.*tiny, instruct, 1.5, base"), ("./nowhere", "model is './nowhere'"),
])
def test_unknown_names(name, words):
    with pytest.raises(ValueError, match=words):
        loading.load(name)


@pytest.mark.parametrize("options, words", [
    ({"device": "toaster"}, "device is 'toaster'"), ({"dtype": "float8"}, "dtype is 'float8'.*float32"),
])
def test_bad_device_and_dtype(options, words):
    with pytest.raises(ValueError, match=words):
        loading.load("tiny", **options)


def test_folder_of_another_family(checkpoint):
    (checkpoint / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type 'gpt2'; the families here are"):
        loading.load(str(checkpoint))
    with pytest.raises(ValueError, match="is a 'gpt2' model; this class loads 'llada'"):
        LLaDAModelLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_a_configuration_without_model_type_is_refused(checkpoint, text):
    """Guards against defaults: an empty config.json would mean an 8B model."""
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ValueError, match="names no model_type or cannot be read"):
        LLaDAModelLM.from_pretrained(checkpoint)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_weights_are_refused(checkpoint, content):
    """Guards a download that was cut: one sentence that names the checkpoint."""
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000] if content is None else content)
    with pytest.raises(ValueError, match="could not be loaded"):
        LLaDAModelLM.from_pretrained(checkpoint)


@torch.no_grad()
def test_bfloat16_keeps_positions_and_norms_in_float32(checkpoint):
    """Guards the real models' dtype: RoPE and RMSNorm computed in bfloat16 are wrong by far more, at late positions."""
    x = torch.randn(1, 4, 50, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    rope = rope_tables(torch.arange(4000, 4050)[None], 64, 500_000.0)
    assert torch.equal(rotate(x, *rope), rotate(x.float(), *rope).bfloat16())
    norm = RMSNorm(64, 1e-5)
    norm.weight.copy_(torch.rand(64, generator=torch.Generator().manual_seed(1)))
    exact = (norm(x.float()) / norm.weight).bfloat16() * norm.weight.bfloat16()
    assert torch.equal(norm.bfloat16()(x), exact)


def test_the_embedded_checkpoint_is_small():
    """Guards the clone's size: 16 MB for the whole folder."""
    folder = ROOT / "checkpoints" / "llada-tiny"
    tracked = [path for path in folder.iterdir() if path.name != "train-state.pt"]
    assert sum(path.stat().st_size for path in tracked) <= 16e6


def test_folder_without_tokenizer(checkpoint):
    with pytest.raises(ValueError, match="no tokenizer"):
        loading.load(str(checkpoint))


def test_hub_out_of_reach(monkeypatch):
    """Guards the one sentence, and that it comes at once: no retries for half a minute."""
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ValueError, match="no such folder, .* not in the local cache, and the hub is out of reach"):
        loading.load("nobody/such-a-model-does-not-exist")


def test_the_published_conventions_for_chat_templates():
    """Guards the defaults behind the published numbers: LLaDA-1.5 and base models get the raw prompt."""
    raw = {name for family in loading.FAMILIES.values() for name, checkpoint in family.names.items()
           if loading.measured_raw(checkpoint, family)}
    assert raw == {"1.5", "base", "dream-base", "dream-coder-base", "diffucoder-base", "illada-base"}


@pytest.mark.parametrize("name, chat", [("llada-base", False), ("my-LLaDA-1.5-copy", False), ("my-instruct", True)])
def test_loading_follows_the_convention(checkpoint_folder, tmp_path, name, chat):
    """Guards that `load` applies it to a folder, by the folder's name."""
    shutil.copytree(checkpoint_folder, tmp_path / name)
    assert loading.load(str(tmp_path / name)).chat_template is chat


def test_batches_are_padded_on_the_left():
    """Guards `encode`: unequal prompts, the mask, and the chat template's form."""
    loaded = loading.load("tiny")
    text = loaded.chat("How many?")
    assert text.startswith("<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>")
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    batch = loaded.encode(["How many?", "Mia has 3 apples. How many?"])
    alone = loaded.encode(["How many?"])
    assert batch.attention_mask[0].tolist() == sorted(batch.attention_mask[0].tolist())
    assert batch.input_ids[0][batch.attention_mask[0].bool()].tolist() == alone.input_ids[0].tolist()
    assert loaded.tokenizer.decode(alone.input_ids[0]) == text


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu")


def test_a_text_is_one_prompt(loaded):
    """Guards against one prompt for each of its letters, in every method that takes several."""
    assert torch.equal(loaded.encode("abc").input_ids, loaded.encode(["abc"]).input_ids)
    assert torch.equal(loaded.encode_text("abc").input_ids, loaded.encode_text(["abc"]).input_ids)
    settings = loaded.family.settings(gen_length=32, block_length=32, threshold=0.02)
    one, several = complete(loaded, "abc", settings, until="xyz"), complete(loaded, ("abc",), settings, until=["xyz"])
    assert len(one) == 1 and one[0].raw == several[0].raw and one[0].text == several[0].text
    assert loaded.encode(text for text in ("abc", "d e")).input_ids.shape[0] == 2


@pytest.mark.parametrize("prompts, words", [
    ([], "is empty; it must have at least one text"), ((), "is empty"), ({}, "is empty"),
    (None, "is None; it must be text or a list of texts"), (5, "is 5; it must be"), (b"abc", "is b'abc'; it must be"),
    (["a", None], r"\[1\] is None; it must be text"), ([["a"]], r"\[0\] is \['a'\]; it must be text"),
    ("\ud800", "is not UTF-8 text"), (["a", "b\udcff"], r"\[1\] is not UTF-8 text"),
], ids=ascii)
def test_prompts_that_are_no_texts(loaded, prompts, words):
    settings = loaded.family.settings(gen_length=32, block_length=32)
    for use in (loaded.encode, loaded.encode_text, lambda texts: complete(loaded, texts, settings)):
        with pytest.raises(ValueError, match=words):
            use(prompts)


@pytest.mark.parametrize("prompt", [["abc"], None, 5, b"abc", "\udc80"], ids=ascii)
def test_a_prompt_that_is_no_text(loaded, prompt):
    for use in (loaded.chat, loaded.raw):
        with pytest.raises(ValueError, match="prompt is (not UTF-8 text|.*; it must be)"):
            use(prompt)


@pytest.mark.parametrize("turns", [[], "hello", None, 5, ["hello"], [{"role": "user"}], [{"role": 1, "content": "a"}],
                                   [{"role": "user", "content": ["a"]}]], ids=str)
def test_turns_that_are_none(loaded, turns):
    with pytest.raises(ValueError, match="must be"):
        loaded.chat_turns(turns)


@pytest.mark.parametrize("ids", ["abc", ["abc"], [1, 2], None, {"input_ids": 1}], ids=str)
def test_generate_wants_token_ids(loaded, ids):
    with pytest.raises(ValueError, match="input_ids is a .*; it must be a tensor of token ids"):
        loaded.generate(ids, gen_length=32)


PEAK = """
import sys, threading, time
import torch
import run
from dpad.engine import loading, precision
from dpad.engine.completion import complete

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) * 1024

def watch():
    while not done:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

loading.load(sys.argv[1], device="cpu", dtype="bfloat16")  # imports and buffers that any first load makes
before, peak, done = anonymous(), [0], False
thread = threading.Thread(target=watch)
thread.start()
model = loading.load(sys.argv[2], device="cpu", dtype="bfloat16").model
done = True
thread.join()
weights = sum(p.numel() * p.element_size() for p in model.parameters())
assert weights > 150e6, weights
print((peak[0] - before) / weights)
"""


@pytest.mark.slow
def test_loading_holds_one_copy_of_the_weights(checkpoint_folder, tmp_path):
    """Guards memory: while a checkpoint in shards is read, there is never a second copy of the weights beside it."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder)
    config = LLaDAConfig(d_model=1024, n_layers=8, n_heads=8, mlp_hidden_size=2048, vocab_size=len(tokenizer),
                         embedding_size=1024, mask_token_id=2, eos_token_id=1)
    LLaDAModelLM._from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="50MB")
    tokenizer.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(checkpoint_folder), str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 1.3


@pytest.mark.parametrize("family", loading.FAMILIES.values(), ids=lambda family: family.name)
def test_a_familys_model_decodes_as_the_family_does(family):
    """Guards `model.generate`, whose settings and rule the model's class names, beside those of `load`."""
    assert family.model.settings_class is family.settings and family.model.rule_class is family.rule


# --- Without what transformers adds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "dream-tiny"])
def test_a_bare_model_computes_the_same(name, dtype):
    """Guards `bare`: the same weights, bit for bit, and the same answer; and it says what it cannot do."""
    whole = loading.load(name, device="cpu", dtype=dtype)
    bare = loading.load(name, device="cpu", dtype=dtype, bare=True)
    assert not isinstance(bare.model, PreTrainedModel)
    assert bare.model.dtype == whole.model.dtype and bare.model.device == whole.model.device
    weights = bare.model.state_dict()
    assert weights.keys() == whole.model.state_dict().keys()
    assert all(torch.equal(weights[key], weight) for key, weight in whole.model.state_dict().items())
    settings = whole.family.settings(gen_length=64, threshold=0.9, cache="prefix")
    answers = [model.generate(**model.encode("How many?"), settings=settings).sequences for model in (whole, bare)]
    assert torch.equal(*answers)
    with pytest.raises(ValueError, match="bare is True, so that .* was loaded without"):
        bare.pretrained  # noqa: B018
    assert whole.pretrained is whole.model


def test_a_bare_model_of_several_files(random_llada, tmp_path):
    """Guards shards, and a head that is the embedding: the loader of its own reads what save_pretrained wrote."""
    random_llada.save_pretrained(tmp_path, max_shard_size="200KB")
    network = LLaDANetwork.load(tmp_path, torch.float32, torch.device("cpu"))
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in random_llada.state_dict().items())
    tied = LLaDAModelLM(LLaDAConfig(**random_llada.config.to_dict() | {"weight_tying": True}))
    tied.save_pretrained(tmp_path / "tied")
    network = LLaDANetwork.load(tmp_path / "tied", torch.float32, torch.device("cpu"))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        expected = tied(ids).logits
        assert torch.equal(network.head(network.hidden_states(ids, ids)), expected)


@pytest.mark.parametrize("content", [b"", b"garbage", None, "missing", "foreign", "shape", "type"])
def test_a_bare_model_of_damaged_weights(checkpoint, content):
    """Guards that the loader of its own refuses what the other does, in the same words."""
    path = checkpoint / "model.safetensors"
    if isinstance(content, str):
        weights = load_file(path)
        first = sorted(weights)[0]
        taken = weights.pop(first)
        changed = {"missing": {}, "foreign": {first: taken, "other": taken.clone()},
                   "shape": {first: taken[1:].contiguous()}, "type": {first: taken.to(torch.int32)}}[content]
        save_file(weights | changed, path)
    else:
        path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    said = []
    for load in (LLaDAModelLM.from_pretrained,
                 lambda folder: LLaDANetwork.load(folder, torch.float32, torch.device("cpu"))):
        with pytest.raises(ValueError, match="checkpoint") as caught:
            load(checkpoint)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_stay_in_their_file():
    """Guards the memory of large models on a CPU: weights in the type that they are stored in are not copied."""
    model = loading.load("tiny", device="cpu", dtype="bfloat16", bare=True).model
    spans = [[int(end, 16) for end in line.split()[0].split("-")]
             for line in Path("/proc/self/maps").read_text().splitlines() if "llada-tiny/model.safetensors" in line]
    assert all(any(begin <= weight.data_ptr() < end for begin, end in spans) for weight in model.parameters())


def test_a_first_token_waits_for_no_models_of_transformers():
    """Guards the start of `run.py generate`: neither transformers' models nor torch's compiler are imported for it."""
    code = ("import runpy, sys; sys.argv = ['run.py', 'generate', '-m', 'tiny', '-l', '32', '--prompt', 'How many?']\n"
            "try: runpy.run_path('run.py', run_name='__main__')\n"
            "except SystemExit as end: assert not end.code\n"
            "print(*sorted({'transformers.modeling_utils', 'torch._dynamo', 'scipy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# --- --dtype auto -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain, expected", [(2.2, torch.bfloat16), (1.1, torch.float32), (0.2, torch.float32)])
def test_auto_takes_the_faster_type(monkeypatch, gain, expected):
    """Guards `--dtype auto`: what is measured decides, and a small gain does not; the default stays float32."""
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)
    assert loading.placement("cpu", "auto") == (torch.device("cpu"), expected)
    assert loading.placement("cpu", None) == (torch.device("cpu"), torch.float32)
    assert loading.placement("cpu", "auto", "int4") == loading.placement("cpu", None, "int4")


def test_the_measured_look():
    """Guards that something is measured, once, in a moment."""
    precision.bfloat16_gain.cache_clear()
    assert 0 < precision.bfloat16_gain() == precision.bfloat16_gain()


def test_auto_says_what_it_took(capsys):
    """Guards that nobody has to guess which numbers an answer comes from; training takes no such choice."""
    assert run.main(["generate", "-m", "tiny", "-l", "32", "--dtype", "auto", "--device", "cpu", "--prompt", "Hi"]) == 0
    assert re.search(r"note: dtype is (bfloat16|float32): in bfloat16 this processor multiplies matrices [\d.]+ times",
                     capsys.readouterr().err)
    assert run.main(["train", "-m", "tiny", "--data", "arithmetic", "--dtype", "auto", "--output", "out"]) == 2
    assert "dtype is 'auto'; it must be one of float32, bfloat16" in capsys.readouterr().err


def test_auto_is_settled_once(monkeypatch, capsys):
    """Guards runs of several processes and records: they get the type, and no process measures for itself."""
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: 2.0)
    for words in (["--dtype", "auto"], ["--dtype=auto"]):
        argv = ["generate", *words, "--device", "cpu", "--prompt", "auto"]
        args = run.parser_of("generate").parse_args(argv[1:])
        settled = run.settle_dtype(args, argv)
        assert args.dtype == "bfloat16" and "bfloat16" in " ".join(settled) and settled[-1] == "auto"
        assert run.parser_of("generate").parse_args(settled[1:]).dtype == "bfloat16"
    assert capsys.readouterr().err.count("note: dtype is bfloat16") == 2
    args = run.parser_of("generate").parse_args(["--dtype", "auto", "--quantize", "int4", "--device", "cpu"])
    run.settle_dtype(args, [])
    assert args.dtype == "bfloat16" and not capsys.readouterr().err  # nothing was measured for it
    monkeypatch.setattr(run.processes, "current", lambda: run.processes.Processes(0, 2, 0))
    with pytest.raises(ValueError, match="^dtype is 'auto', which every process would measure for itself"):
        run.settle_dtype(args, [])


def test_a_device_with_a_number():
    """Guards `--device cpu:0`, a name that torch knows and safetensors does not."""
    assert loading.load("tiny", device="cpu:0", bare=True).model.device.type == "cpu"
