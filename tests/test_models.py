"""Models by name: the config.json of those that people use, and of those that are refused, with the field and why.

    bash tests/run.sh tests/test_models.py

The facts are in data/configs.json. No weights are needed: sizes are counted without memory.
"""

from __future__ import annotations

import json

import pytest
import torch
from helpers import ROOT, left_padded, prompts_of
from transformers import AutoModelForCausalLM

from dpad.engine import checkpoint, loading
from dpad.engine.decoding import decode
from dpad.engine.settings import TokenIds
from dream import DreamConfig, ILLaDAConfig, ILLaDAModelLM
from llada import LLaDAConfig

CONFIGS = json.loads((ROOT / "tests" / "data" / "configs.json").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_of_the_hub(tmp_path, name):
    """Guards real files: accepted with exactly their number of parameters, or refused with the field and the reason."""
    entry = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(entry["fields"]))
    try:
        family = loading.family_of(str(tmp_path))
        fields = checkpoint.read_config(tmp_path)
        checkpoint.check_fields(tmp_path, family.model.config_class, fields)
        config = checkpoint.make_config(tmp_path, family.model.config_class, fields)
    except ValueError as error:
        assert entry["refused"] in str(error)
    else:
        assert family.model.layout(tmp_path, config).count == entry["parameters"]


def test_what_illada_is_made_of(tmp_path):
    """Guards the facts of iLLaDA-8B: its own mask, and no token of LLaDA's vocabulary in its place."""
    config = ILLaDAConfig(eos_token_id=2)
    assert (config.mask_token_id, config.num_key_value_heads, config.vocab_size) == (5, 8, 155136)
    assert config.tie_word_embeddings and config.max_position_embeddings == 8192
    with pytest.raises(ValueError, match="config field eos_token_id is None"):
        ILLaDAConfig()
    fields = CONFIGS["iLLaDA's sizes under LLaDA's names"]["fields"]
    assert LLaDAConfig(**{name: value for name, value in fields.items() if name != "model_type"}).eot_id is None
    assert LLaDAConfig().eot_id == 126348


@pytest.fixture(scope="module")
def small_illada():
    torch.manual_seed(0)
    return ILLaDAModelLM(ILLaDAConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=512, max_position_embeddings=256, eos_token_id=509, rope_theta=10000.0, initializer_range=0.3,
    )).eval()


def test_illada_saves_loads_and_decodes(small_illada, tmp_path):
    """Guards the family: Llama's names, no biases, a tied head, LLaDA's decoding, and transformers' Auto classes."""
    names = small_illada.state_dict().keys()
    assert "model.layers.0.self_attn.o_proj.weight" in names and not any("bias" in name for name in names)
    assert "lm_head.weight" not in names
    small_illada.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ILLaDAModelLM and json.loads((tmp_path / "config.json").read_text())["model_type"] == "illada"

    family = loading.family_of(str(tmp_path))
    ids, mask = left_padded(prompts_of([9, 5]))
    for cache in ("none", "prefix", "dual"):
        rule = family.rule(family.settings(gen_length=32, block_length=16, cache=cache), TokenIds.of(small_illada))
        assert type(rule).__name__ == "LLaDARule"
        outputs = [decode(model, rule, ids, mask).sequences for model in (small_illada, again)]
        assert torch.equal(*outputs) and not (outputs[0][:, 9:] == 5).any()


def test_illada_predicts_in_place(small_illada):
    """Guards the offset, in which iLLaDA is LLaDA's kin and not Dream's."""
    assert ILLaDAModelLM.prediction_offset == 0


PLAIN = [
    ("num_experts", 8, "mixtures of experts"), ("moe_intermediate_size", 64, "mixtures of experts"),
    ("num_local_experts", 2, "mixtures of experts"), ("n_routed_experts", 4, "mixtures of experts"),
    ("use_sliding_window", True, "sliding window"), ("use_qk_norm", True, "norms of queries and keys"),
    ("partial_rotary_factor", 0.5, "RoPE for a part of each head"), ("mlp_bias", True, "biases in the MLP"),
    ("use_mrope", True, "RoPE in several dimensions"), ("final_logit_softcapping", 30.0, "soft caps"),
    ("layer_types", ["full_attention", "sliding_attention"], "every layer attends to everything"),
    ("layer_types", 5, "every layer attends to everything"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "scaled RoPE is not implemented"),
    ("rope_scaling", {"type": "dynamic", "factor": 4.0}, "scaled RoPE is not implemented"),
    ("rope_scaling", 2.0, "scaled RoPE is not implemented"),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0}, "scaled RoPE is not implemented"),
    ("rope_parameters", {"rope_theta": 1.0, "partial_rotary_factor": 0.5}, "scaled RoPE is not implemented"),
    ("rope_parameters", {"rope_type": ["default"]}, "scaled RoPE is not implemented"),
]
LLADA = [
    ("activation_type", "gelu", "SwiGLU"), ("alibi", True, "ALiBi is not implemented"), ("rope", False, "RoPE's alone"),
    ("block_group_size", 4, "layers in groups"), ("block_type", "sequential", "LLaMA's layers"),
    ("layer_norm_type", "low_precision", "only RMSNorm"), ("attention_layer_norm", True, "norms of queries and keys"),
    ("bias_for_layer_norm", True, "norms with biases"), ("layer_norm_with_affine", False, "norms have weights"),
    ("clip_qkv", 8.0, "clipped queries"), ("rope_full_precision", False, "float32"),
]
DREAM = [("hidden_act", "gelu", "SwiGLU"), ("attention_bias", False, "have biases"), ("head_dim", 64, "head_dim is 64")]


@pytest.mark.parametrize("config_class, field, value, why", [
    *((config_class, *case) for config_class in (LLaDAConfig, DreamConfig) for case in PLAIN),
    *((LLaDAConfig, *case) for case in LLADA), *((DreamConfig, *case) for case in DREAM),
])
def test_what_is_not_implemented_says_why(config_class, field, value, why):
    """Guards against computing something else than the checkpoint means: the field, its value, and the reason."""
    with pytest.raises(ValueError, match=f"^config field {field} is ") as caught:
        config_class(**{field: value})
    assert why in str(caught.value) and "left out" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("config_class", [LLaDAConfig, DreamConfig])
@pytest.mark.parametrize("fields, theta", [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, 5000.0),
    ({"rope_theta": 5000.0, "rope_scaling": {"type": "default"}}, 5000.0),
    ({"rope_theta": 5000.0, "rope_parameters": None, "rope_scaling": None}, 5000.0),
])
def test_plain_rope_by_any_name(config_class, fields, theta):
    """Guards config.json as transformers 5 writes it, which has RoPE's base in rope_parameters."""
    assert config_class(**fields).rope_theta == theta


def test_values_that_mean_nothing_more():
    """Guards files that say in other words what is so anyway."""
    DreamConfig(attention_bias=True, head_dim=128, layer_types=["full_attention"] * 28, num_experts=0,
                sliding_window=4096)
    with pytest.raises(ValueError, match="no biases here"):
        ILLaDAConfig(eos_token_id=2, attention_bias=True)


@pytest.mark.parametrize("name", loading.NAMES)
def test_every_name_is_a_folder_here_or_a_hub_id(name):
    """Guards typing errors in the names, and that the published conventions follow them."""
    found = loading.resolve(name)
    family = loading.family_of(name)
    assert checkpoint.HUB_ID.fullmatch(found) or found.startswith(str(ROOT / "checkpoints"))
    assert loading.measured_raw(found, family) == ("base" in name or name == "1.5")
