"""A user of transformers has nothing to learn: generate, its keywords and streamers, offloading, peft, pipelines.

    bash tests/run.sh tests/test_transformers.py
"""

from __future__ import annotations

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from threading import Thread

import peft
import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from helpers import ROOT, left_padded, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from dpad.engine.attention import MeanAttention
from dpad.engine.loading import load
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import SpreadCache
from dream import DreamConfig, DreamModel
from llada import LLaDAConfig, LLaDAModelLM
from sampler import GaussianSampler, WindowSampler

EOS, MASK = 498, 499
QUESTION = "Tom has 3 bags with 4 apples in each bag. How many apples does Tom have?"
OTHER = "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?"
SETTINGS = [
    {"gen_length": 32, "steps": 16},
    {"gen_length": 64, "block_length": 16, "steps": 16, "cache": "dual"},
    {"gen_length": 64, "threshold": 0.5, "cache": "prefix", "early_termination": True,
     "suffix_sampler": GaussianSampler(48, 3, 1.6), "seed": 5},
]


def small_model(family: str, tied: bool) -> LLaDAModelLM | DreamModel:
    """Two layers of random weights, with more rows than tokens in LLaDA."""
    torch.manual_seed(0)
    if family == "llada":
        return LLaDAModelLM(LLaDAConfig(
            d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, mlp_hidden_size=48, vocab_size=500, embedding_size=512,
            max_sequence_length=256, mask_token_id=MASK, eos_token_id=EOS, weight_tying=tied, init_std=0.3)).eval()
    return DreamModel(DreamConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=512, max_position_embeddings=256, mask_token_id=MASK, eos_token_id=EOS, bos_token_id=EOS,
        pad_token_id=EOS, tie_word_embeddings=tied, initializer_range=0.3)).eval()


@pytest.fixture(params=["llada", "dream"])
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return small_model(family, tied=False)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def either(request, family):
    return small_model(family, request.param)


@pytest.fixture(scope="module")
def tiny():
    """The embedded models, by family, as a user loads them."""
    return {name: load(model) for name, model in (("llada", "tiny"), ("dream", "dream-tiny"))}


IDS = torch.stack(prompts_of([9, 9]))


# --- The same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_generate_decides_what_decoding_decides(tiny, family, options):
    """Guards the one promise of model.generate: the tokens, and with the dictionary all else, of `loaded.generate`."""
    loaded = tiny[family]
    batch = loaded.encode([QUESTION, OTHER])
    expected = loaded.generate(**batch, **options)
    assert torch.equal(loaded.model.generate(batch.input_ids, attention_mask=batch.attention_mask, **options),
                       expected.sequences)
    output = loaded.model.generate(**batch, **options, return_dict_in_generate=True)
    assert type(output) is type(expected) and output.kept_suffix == expected.kept_suffix
    for name in ("sequences", "forwards", "decided_at", "kept", "blocks"):
        assert torch.equal(output[name], expected[name])


def test_a_sampler_by_name_is_the_object(model):
    """Guards the two ways to say a suffix sampler, and a rule."""
    named = model.generate(IDS, gen_length=64, dropout_strategy="gaussian", window=48, k_sigma=3, scale=1.6)
    assert torch.equal(named, model.generate(IDS, gen_length=64, suffix_sampler=GaussianSampler(48, 3, 1.6)))
    with pytest.raises(ValueError, match="dropout_strategy is 'window' while suffix_sampler is given"):
        model.generate(IDS, gen_length=64, dropout_strategy="window", suffix_sampler=WindowSampler(20))
    with pytest.raises(ValueError, match="^k_sigma: not beside an object that brings its own"):
        model.generate(IDS, gen_length=64, k_sigma=3, suffix_sampler=WindowSampler(20))
    with pytest.raises(ValueError, match="^block_length is 33; it must divide gen_length"):
        model.generate(IDS, gen_length=64, block_length=33)


@settings(max_examples=30)
@given(wanted=st.integers(1, 70), block=st.sampled_from([8, 32]))
def test_any_number_of_new_tokens(wanted, block):
    """Guards max_new_tokens: whole blocks are decoded, and the first tokens of these are returned."""
    model = small_model("llada", tied=False)
    whole = -(-wanted // block) * block
    options = {"block_length": block, "threshold": 0.0, "steps": whole // block}
    expected = model.generate(IDS, gen_length=whole, **options)
    output = model.generate(IDS, max_new_tokens=wanted, **options, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected[:, : 9 + wanted]) and output.decided_at.shape == (2, wanted)
    assert torch.equal(model.generate(IDS, max_length=9 + wanted, **options), output.sequences)


# --- transformers' keywords -------------------------------------------------------------------------------------------


def test_translated_keywords(model):
    """Guards the keywords of transformers that mean a setting of ours."""
    same = [({"use_cache": True}, {"cache": "prefix"}), ({"use_cache": False}, {"cache": "none"}),
            ({"do_sample": True}, {"temperature": 1.0}), ({"do_sample": True, "temperature": 2}, {"temperature": 2}),
            ({"do_sample": False, "temperature": 1.0}, {}), ({"temperature": None, "top_k": None}, {}),
            ({"num_beams": 1, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "logits_processor": []}, {}),
            ({"token_type_ids": torch.zeros_like(IDS), "pad_token_id": None, "streamer": None}, {})]
    for theirs, ours in same:
        assert torch.equal(model.generate(IDS, gen_length=32, **theirs), model.generate(IDS, gen_length=32, **ours))


def test_dream_draws_from_the_likeliest(family, model):
    """Guards top_p and top_k: Dream has them, LLaDA refuses them."""
    for choice in ({"top_k": 3}, {"top_p": 0.5}):
        if family == "dream":
            model.generate(IDS, max_new_tokens=32, do_sample=True, **choice)
        else:
            with pytest.raises(ValueError, match=f"{next(iter(choice))} is .* LLaDA draws from all tokens"):
                model.generate(IDS, max_new_tokens=32, do_sample=True, **choice)


@pytest.mark.parametrize("keywords", [
    {"num_beams": 4}, {"logits_processor": [print]}, {"stopping_criteria": [print]}, {"num_return_sequences": 2},
    {"assistant_model": "other"}, {"prompt_lookup_num_tokens": 3}, {"repetition_penalty": 1.1}, {"min_new_tokens": 5},
    {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[3]]}, {"max_time": 3.0}, {"guidance_scale": 2.0},
    {"past_key_values": ((1,),)}, {"cache_implementation": "static"}, {"output_scores": True}, {"min_p": 0.1},
    {"inputs_embeds": torch.zeros(1, 2, 3)}, {"forced_eos_token_id": 3}, {"early_stopping": True},
], ids=lambda keywords: next(iter(keywords)))
def test_what_has_no_meaning_is_refused_by_name(model, keywords):
    """Guards against a keyword that is ignored in silence, wherever it was said."""
    [name] = keywords
    with pytest.raises(ValueError, match=f"^{name} is .*, which is not possible: .*; leave it out$"):
        model.generate(IDS, max_new_tokens=32, **keywords)
    if hasattr(GenerationConfig(), name) and name != "num_return_sequences":
        with pytest.raises(ValueError, match=f"^{name} is .* in generation_config, which is not possible"):
            model.generate(IDS, GenerationConfig(max_new_tokens=32, **keywords))


@pytest.mark.parametrize("keywords, message", [
    ({"treshold": 0.9}, "treshold is 0.9, but generate has no such argument; did you mean 'threshold'"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be an integer of at least 1"),
    ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be an integer"),
    ({"max_new_tokens": 230}, "max_new_tokens is 230, which takes whole blocks of 32, that is 256 tokens; the prompt "
                              "leaves room for 247"),
    ({"max_new_tokens": 32, "gen_length": 32}, "gen_length and max_new_tokens are both given"),
    ({"max_length": 9}, "max_length is 9, and counts the prompt, which has 9 tokens"),
    ({"do_sample": True, "temperature": 0.0}, "temperature is 0, .* do_sample=True it must be above 0"),
    ({"do_sample": False, "temperature": 0.7}, "temperature is 0.7, but do_sample=False takes the likeliest token"),
    ({"do_sample": "yes"}, "do_sample is 'yes'; it must be True or False"),
    ({"eos_token_id": 5000}, "eos_token_id is 5000; it must be an integer from 0 to 511"),
    ({"pad_token_id": [1, 2]}, r"pad_token_id is \[1, 2\]; it must be one token"),
    ({"stop_strings": "x"}, "stop_strings need the tokenizer"),
    ({"use_cache": True, "cache": "dual"}, "cache and use_cache are both given"),
    ({"generation_config": {"threshold": 0.9}}, "generation_config is a dict; it must be a GenerationConfig"),
    ({"token_type_ids": torch.ones_like(IDS)}, "token_type_ids holds other numbers than 0"),
    ({"input_ids": IDS}, "inputs and input_ids are both given"),
], ids=str)
def test_wrong_values_are_refused_by_name(model, keywords, message):
    with pytest.raises(ValueError, match=message):
        model.generate(IDS, **keywords)


def test_a_prompt_that_is_none(model):
    with pytest.raises(ValueError, match="input_ids is a list"):
        model.generate([[1, 2]], max_new_tokens=32)
    model.generation_config.bos_token_id = None
    with pytest.raises(ValueError, match="input_ids is missing, and there is no bos_token_id"):
        model.generate(max_new_tokens=32)
    expected = model.generate(torch.tensor([[7]]), max_new_tokens=32)
    assert torch.equal(model.generate(max_new_tokens=32, bos_token_id=7), expected)


def test_what_stands_behind_the_end_is_filled(tiny, family):
    """Guards pad_token_id: then `batch_decode` gives what `loaded.decode` gives, as users of transformers expect."""
    loaded = tiny[family]
    batch = loaded.encode([QUESTION, OTHER])
    prompt = batch.input_ids.shape[1]
    options = {"max_new_tokens": 100, "threshold": 0.3}
    tokens = loaded.model.generate(**batch, **options, pad_token_id=loaded.tokenizer.pad_token_id)
    raw = loaded.model.generate(**batch, **options)
    assert tokens.shape == raw.shape == (2, prompt + 100)
    assert loaded.tokenizer.batch_decode(tokens[:, prompt:], skip_special_tokens=True) == loaded.decode(raw[:, prompt:])


def test_other_ends(model):
    """Guards eos_token_id: one or several tokens end an answer, and the first one early termination."""
    raw = model.generate(IDS, gen_length=64, threshold=0.5)[:, 9:]
    end = int(raw[0, 5])
    place = raw[0].tolist().index(end)
    filled = model.generate(IDS, gen_length=64, threshold=0.5, eos_token_id=[EOS, end], pad_token_id=3)[0, 9:]
    assert torch.equal(filled[: place + 1], raw[0, : place + 1]) and (filled[place + 1 :] == 3).all()
    output = model.generate(IDS, gen_length=64, threshold=0.5, eos_token_id=end, early_termination=True,
                            return_dict_in_generate=True)
    assert output.blocks[0] == 1 and (output.sequences[0, 9 + 32 :] == end).all()


def test_stop_strings_end_an_answer(tiny, family):
    """Guards stop_strings: the answer ends with the token that completes one."""
    loaded = tiny[family]
    batch = loaded.encode(QUESTION)
    tokens = loaded.model.generate(**batch, max_new_tokens=64, threshold=0.9, stop_strings=[" apples", "xyz"],
                                   tokenizer=loaded.tokenizer)
    [answer] = loaded.decode(tokens[:, batch.input_ids.shape[1] :])
    assert answer.endswith(" apples") and answer.count("apples") == 1


# --- GenerationConfig -------------------------------------------------------------------------------------------------


def test_settings_are_saved_with_the_checkpoint(model, tmp_path):
    """Guards generation_config.json: our settings survive saving and loading, and keywords take their place."""
    model.generation_config.threshold = 0.5
    model.generation_config.max_new_tokens = 40
    model.generation_config.suffix_sampler = GaussianSampler(32, 3, 1.6)
    expected = model.generate(IDS)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["dropout_strategy"] == "gaussian"
    assert GenerationConfig.from_pretrained(tmp_path).k_sigma == 3

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(IDS), expected) and expected.shape == (2, 49)
    plain = {"suffix_sampler": None, "threshold": None, "gen_length": 32}
    assert torch.equal(again.generate(IDS, **plain), small_model_like(again).generate(IDS, gen_length=32))
    assert torch.equal(again.generate(IDS, dropout_strategy="window", window=16),
                       again.generate(IDS, suffix_sampler=WindowSampler(16)))
    given = GenerationConfig(threshold=None, steps=2, max_length=73)
    assert torch.equal(again.generate(IDS, given, dropout_strategy="null"),
                       small_model_like(again).generate(IDS, gen_length=64, steps=2))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, generation_config=given)
    assert loaded.generation_config is given


def small_model_like(model):
    """A copy without settings of its own."""
    other = copy.deepcopy(model)
    other.generation_config = GenerationConfig()
    return other


def test_explicit_words_win(model):
    """Guards the order of the levels where several names say one thing."""
    greedy = model.generate(IDS, gen_length=32)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.8
    model.generation_config.repetition_penalty = 1.5
    drawn = model.generate(IDS, gen_length=32, repetition_penalty=1.0)
    assert not torch.equal(greedy, drawn)
    for keywords in ({"do_sample": False}, {"temperature": 0.0}):
        assert torch.equal(model.generate(IDS, gen_length=32, repetition_penalty=None, **keywords), greedy)
    with pytest.raises(ValueError, match="repetition_penalty is 1.5 in model.generation_config, which is not possible"):
        model.generate(IDS, gen_length=32)


@pytest.mark.parametrize("text, message", [
    ("[1]", "holds no JSON object"), ("{", "cannot be read"), ('{"validate": 1}', "is the name of a method"),
    ('{"max_new_tokens": "x"}', "cannot be used"), ('{"__class__": 1}', "is the name of a method"),
])
def test_a_broken_generation_config(model, tmp_path, text, message):
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_copy_of_the_configuration_says_nothing(model, tmp_path):
    """Guards the hub's checkpoints, whose generation_config.json was made from config.json."""
    model.save_pretrained(tmp_path)
    fields = {"_from_model_config": True, "pad_token_id": EOS, "use_cache": True, "transformers_version": "4.46.3"}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(IDS, gen_length=32), model.generate(IDS, gen_length=32))


# --- Streamers --------------------------------------------------------------------------------------------------------


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value)

    def end(self):
        self.got.append("end")


@pytest.mark.parametrize("keywords", [{"gen_length": 64}, {"max_new_tokens": 50}, {"max_new_tokens": 50,
                                                                                   "pad_token_id": 3}], ids=str)
def test_a_streamer_gets_the_prompt_then_what_is_returned(model, keywords):
    """Guards the contract of streamers: the prompt, finished blocks, the end; together they are the sequences."""
    recorder = Recorder()
    tokens = model.generate(IDS, threshold=0.5, **keywords, streamer=recorder)
    *values, last = recorder.got
    assert torch.equal(values[0], IDS) and last == "end" and len(values) == 3
    assert torch.equal(torch.cat(values, dim=1), tokens)


def test_transformers_streamers(tiny, family):
    """Guards TextStreamer and TextIteratorStreamer in a thread: the text of the answer, nothing behind its end."""
    loaded = tiny[family]
    batch = loaded.encode(QUESTION)
    options = {"max_new_tokens": 100, "threshold": 0.9, "pad_token_id": loaded.tokenizer.pad_token_id}
    [answer] = loaded.decode(loaded.model.generate(**batch, **options)[:, batch.input_ids.shape[1] :])

    printed = io.StringIO()
    with redirect_stdout(printed):
        streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)
        loaded.model.generate(**batch, **options, streamer=streamer)
    assert printed.getvalue() == answer + "\n"

    pieces = TextIteratorStreamer(loaded.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = Thread(target=loaded.model.generate, kwargs={**batch, **options, "streamer": pieces})
    thread.start()
    assert "".join(pieces) == answer
    thread.join()


# --- Resizing ---------------------------------------------------------------------------------------------------------


def test_new_tokens_are_usable_saved_and_loaded(either, tmp_path):
    """Guards resize_token_embeddings, of tied and untied heads: config, head, generate, the saved folder."""
    either.resize_token_embeddings(600)
    assert either.get_input_embeddings().weight.shape[0] == either.get_output_embeddings().weight.shape[0] == 600
    ids = torch.cat((IDS, torch.tensor([[599], [598]])), dim=1)
    assert either(ids).logits.shape[-1] == 600
    expected = either.generate(ids, max_new_tokens=32, threshold=0.5)
    either.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.vocabulary_size == again.config.vocab_size == 600
    assert torch.equal(again.generate(ids, max_new_tokens=32, threshold=0.5), expected)
    assert not list(tmp_path.glob("*.bin"))

    for option in ({"variant": "fp16"}, {"safe_serialization": False}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} is .*, since weights are loaded from"):
            either.save_pretrained(tmp_path / "other", **option)

    either.resize_token_embeddings(pad_to_multiple_of=64)
    assert either.vocabulary_size == 640
    either.resize_token_embeddings(500)
    assert either.generate(IDS, max_new_tokens=32).max() < 500
    with pytest.raises(ValueError, match="new_num_tokens is 499; it must be an integer of at least 500: mask_token_id"):
        either.resize_token_embeddings(499)


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_added_tokens_through_load(name, tmp_path):
    """Guards a user's extension of a tokenizer: the folder is accepted by `load`, and a new token by generate."""
    source = ROOT / "checkpoints" / name
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    model = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(max(tokenizer.get_vocab().values()) + 1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    batch = loaded.encode("<tool>" + QUESTION)
    assert loaded.model.vocabulary_size == len(tokenizer) > batch.input_ids.max() == len(tokenizer) - 2
    loaded.generate(**batch, gen_length=32, threshold=0.9)


# --- Several devices, and offloading ----------------------------------------------------------------------------------


def parts_of(model) -> list[str]:
    """What a device_map names: embedding, layers, norm and head."""
    return [name for name, module in model.named_modules()
            if module in (model.get_input_embeddings(), model.get_output_embeddings(), model.final_norm, *model.layers)]


@pytest.mark.parametrize("on_disk", ["embedding", "layers", "everything"])
def test_weights_on_the_disk(either, tmp_path, on_disk):
    """Guards accelerate's offloading: decoding is the same wherever the weights lie, and they can be saved again."""
    expected = either.generate(IDS, max_new_tokens=32, threshold=0.3, cache="prefix")
    either.save_pretrained(tmp_path / "model")
    names = parts_of(either)
    layers = [name for name in names if name[-1].isdigit()]
    chosen = {"embedding": names[:1], "layers": layers, "everything": names}[on_disk]
    device_map = {name: "disk" if name in chosen else "cpu" for name in names}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map=device_map,
                                                 offload_folder=tmp_path / "offload")
    assert model.is_dispatched and model.device == torch.device("cpu")
    assert torch.equal(model.generate(IDS, max_new_tokens=32, threshold=0.3, cache="prefix"), expected)
    for extra in ({"dropout_strategy": "attention", "window": 8, "top_k": 4}, {"dropout_strategy": "ssm",
                                                                               "soft_suffix": True}):
        options = {"max_new_tokens": 32, "block_length": 16, "threshold": 0.5, "cache": "dual", **extra}
        assert torch.equal(model.generate(IDS, **options), either.generate(IDS, **options))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.generate(IDS, max_new_tokens=32, threshold=0.3, cache="prefix"), expected)


def test_device_map_auto(either, tmp_path):
    """Guards `device_map="auto"` where memory is short: what does not fit goes to the disk, whole layers at a time."""
    expected = either.generate(IDS, max_new_tokens=32, threshold=0.3, cache="prefix")
    either.save_pretrained(tmp_path / "model")
    bytes_of = [sum(weight.nbytes for weight in part.parameters()) for part in (either, either.layers[1])]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": bytes_of[0] - bytes_of[1]},
        offload_folder=tmp_path / "offload")
    assert torch.equal(model.generate(IDS, max_new_tokens=32, threshold=0.3, cache="prefix"), expected)


def test_every_layer_on_a_device_of_its_own(family):
    """Guards several GPUs without any: torch's fake tensors know on which device they are, and refuse to mix two."""
    with FakeTensorMode():
        with pytest.raises(RuntimeError, match="two (different )?devices"):
            torch.zeros(1, device="lazy:0") + torch.zeros(1, device="lazy:1")
        model = small_model(family, tied=family == "dream")
        for number, name in enumerate(parts_of(model)):
            device = torch.device(f"lazy:{number}")
            part = model.get_submodule(name)
            for module in part.modules():
                for key, weight in module.named_parameters(recurse=False):
                    module._parameters[key] = torch.nn.Parameter(weight.detach().to(device))
            add_hook_to_module(part, AlignDevicesHook(execution_device=device))

        first = torch.device("lazy:0")
        assert model.is_dispatched and model.device == first
        ids = torch.zeros(2, 9, dtype=torch.long, device=first)
        assert model(ids, attention_mask=torch.ones_like(ids)).logits.device == first

        cache = SpreadCache(model, rows=2, capacity=16)
        assert [buffer.device.index for buffer in cache.buffers] == [1, 2]
        cache.begin(range(2), 9)
        watch = MeanAttention(slice(0, 4))
        hidden = cache.forward(model, ids, ids, ids == 0, 0, watch)
        assert hidden.device == model.head(hidden).device == first and watch.scores().shape == (2, 9)
        cache.keep([1])
        cache.keep_slots(torch.tensor([0, 1, 2, 5], device=first))
        assert cache.forward(model, ids[:1, :2], ids[:1, :2], None, 1).shape == (1, 2, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("main_device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_layers_on_a_gpu_and_the_cpu(name, main_device):
    """Guards both ways to share a model: the CPU keeps weights for the GPU, or computes its layers itself."""
    folder = ROOT / "checkpoints" / name
    batch = load(str(folder), device="cpu").encode([QUESTION, OTHER])
    options = {"max_new_tokens": 64, "threshold": 0.9, "cache": "prefix", "pad_token_id": 1}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = model.generate(**batch, **options)
    names = parts_of(model)
    dispatch_model(model, {part: 0 if part in names[1::2] else "cpu" for part in names}, main_device=main_device)
    assert model.device.type == main_device and model.is_dispatched
    shared = model.generate(**batch, **options)
    assert shared.device.type == main_device and (shared.cpu() == expected).float().mean() > 0.9
    model.generate(**batch, **options | {"dropout_strategy": "attention", "window": 8, "top_k": 8})
    model.generate(**batch, **options | {"dropout_strategy": "ssm", "window": 32, "soft_suffix": True})


# --- Training, peft, saving, pipelines --------------------------------------------------------------------------------


def test_gradient_checkpointing(model):
    """Guards that memory is saved and gradients are the same."""

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(IDS).logits.float().pow(2).mean().backward()
        return [weight.grad.clone() for weight in model.parameters()]

    plain = gradients()
    model.train().gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    for before, after in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(before, after)


def test_recomputed_layers_by_either_name(random_llada, monkeypatch):
    """Guards training under an older transformers, which has the method under its older name alone."""
    model = copy.deepcopy(random_llada)
    model.recompute_layers()
    assert all(layer.gradient_checkpointing for layer in model.layers)
    asked = []
    monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable")
    monkeypatch.setattr(PreTrainedModel, "gradient_checkpointing_enable", lambda self, **options: asked.append(options))
    model.recompute_layers()
    assert asked == [{"gradient_checkpointing_kwargs": {"use_reentrant": False}}]


def test_peft_of_a_causal_model(either, tmp_path):
    """Guards task_type="CAUSAL_LM": forward, generate through the wrapper, saving, loading, merging."""
    options = {"max_new_tokens": 64, "threshold": 0.5, "cache": "prefix"}
    before = either.generate(IDS, **options)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(either), config)
    expected = adapted.generate(input_ids=IDS, **options)
    assert torch.equal(adapted.generate(IDS, **options), expected) and not torch.equal(expected, before)
    adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.sum().backward()
    with adapted.disable_adapter():
        assert torch.equal(adapted.generate(input_ids=IDS, **options), before)

    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(either), tmp_path)
    assert torch.equal(again.generate(input_ids=IDS, **options), expected)
    merged = again.merge_and_unload()
    assert (merged.generate(input_ids=IDS, **options) != expected).float().mean() < 0.2  # sums in another order


def test_virtual_tokens_are_refused(model):
    """Guards prompt tuning, whose additions to a prompt decoding would leave out in silence."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=2, token_dim=32,
                                     num_attention_heads=2)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    with pytest.raises(ValueError, match="the peft adapter adds virtual tokens to a prompt"):
        adapted.generate(input_ids=IDS, max_new_tokens=32)
    with pytest.raises(ValueError, match="^inputs_embeds: not an argument of .*`hidden_states` takes embeddings"):
        model(inputs_embeds=torch.zeros(1, 2, 32))  # as peft calls it


def test_push_to_hub_uploads_the_folder(model, monkeypatch):
    """Guards push_to_hub: config, settings and weights in safetensors, nothing else; loadable as they are."""
    from huggingface_hub import HfApi, RepoUrl

    uploaded = {}

    def commit(self, repo_id, operations, **_):
        for operation in operations:
            content = operation.path_or_fileobj
            uploaded[operation.path_in_repo] = Path(content).read_bytes() if isinstance(content, str) else content

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody asks for a model card
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: RepoUrl("https://huggingface.co/me/model"))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    model.push_to_hub("me/model")
    assert {"config.json", "generation_config.json", "model.safetensors"} <= uploaded.keys()
    assert not [name for name in uploaded if name.endswith((".bin", ".pt", ".py"))]
    assert json.loads(uploaded["config.json"])["model_type"] == model.config.model_type


def test_text_generation_pipelines(tiny, family, capfd):
    """Guards pipeline("text-generation"): chats, plain prompts, batches; the texts of `loaded.decode`, no complaint."""
    loaded = tiny[family]
    generator = pipeline("text-generation", model=loaded.model, tokenizer=loaded.tokenizer)
    options = {"max_new_tokens": 64, "threshold": 0.9, "return_full_text": False}
    [expected] = loaded.decode(loaded.model.generate(**loaded.encode(QUESTION), max_new_tokens=64, threshold=0.9)
                               [:, loaded.encode(QUESTION).input_ids.shape[1] :])
    chats = [[{"role": "user", "content": text}] for text in (QUESTION, OTHER)]
    [[first], _] = generator(chats, batch_size=2, **options)
    assert first["generated_text"] == expected == generator(chats[0], **options)[0]["generated_text"]
    [plain] = generator(QUESTION, max_new_tokens=32, threshold=0.9)
    assert plain["generated_text"].startswith(QUESTION)
    with pytest.raises(ValueError, match="num_beams is 2, which is not possible"):
        generator(QUESTION, num_beams=2)
    assert type(loaded.model).__name__ in repr(generator)
    assert "not supported" not in capfd.readouterr().err


def test_forward_says_why_it_cannot(model):
    """Guards those who train or cache as with a causal model."""
    for name, reason in (("labels", "masks that are drawn"), ("use_cache", "a forward keeps nothing")):
        with pytest.raises(ValueError, match=f"^{name}: not an argument of .*; {name}: .*{reason}"):
            model(IDS, **{name: IDS if name == "labels" else True})
    with pytest.raises(ValueError, match="input_ids is missing"):
        model()
    assert model(IDS, token_type_ids=torch.zeros_like(IDS)).logits.shape[0] == 2


def test_left_padding(model):
    """Guards batches of unequal prompts: each row gets what it gets alone."""
    ids, mask = left_padded(prompts_of([4, 9]))
    together = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=40, threshold=0.5)
    alone = model.generate(input_ids=ids[:1, 5:], max_new_tokens=40, threshold=0.5)
    assert torch.equal(together[:1, 5:], alone)
    assert TokenIds.of(model).eos == EOS


def test_checkpointing_of_some_layers(random_llada):
    """Guards `every_n_layers`: transformers counts layers of its own class, and ours are not."""
    random_llada.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in random_llada.layers)
    random_llada.activation_checkpointing_enable(every_n_layers=2)
    assert [layer.gradient_checkpointing for layer in random_llada.layers] == [
        index % 2 == 0 for index in range(len(random_llada.layers))]
    random_llada.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in random_llada.layers)
