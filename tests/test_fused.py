"""Fewer kernels, the same results: compiled steps and joined projections beside the plain ones (dpad/engine/fused.py).

    bash tests/run.sh tests/test_fused.py
"""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import GOLDEN, prompts_of
from torch import nn

from dpad.engine import cuda_graphs, fused
from dpad.engine.decoding import decode
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel, RMSNorm, rope_tables
from dream import DreamModel
from dream.generate import DreamRule, DreamSettings
from llada import LLaDAModelLM
from llada.generate import LLaDARule, LLaDASettings
from sampler import GaussianSampler

FAMILIES = {
    "llada-mha": (LLaDAModelLM, LLaDARule, LLaDASettings),
    "dream-gqa": (DreamModel, DreamRule, DreamSettings),
}


def load(name: str) -> MaskedDiffusionModel:
    return FAMILIES[name][0].from_pretrained(GOLDEN / name).eval()


def tokens(model: MaskedDiffusionModel, name: str, cache: str) -> list[int]:
    _, rule, settings = FAMILIES[name]
    chosen = settings(gen_length=64, block_length=16, steps=16, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6))
    prompt = prompts_of([21])[0][None]
    return decode(model, rule(chosen, TokenIds.of(model)), prompt).sequences[0].tolist()


@pytest.fixture(scope="module")
def compiled() -> fused.Steps:
    steps = fused._compiled_steps(torch.device("cpu"))
    if steps is None:
        pytest.skip("torch cannot compile on this machine")
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, slots", [(1, 40), (3, 32)])
def test_compiled_steps_compute_the_same(compiled, dtype, rows, slots):
    """Guards what each step computes and where it rounds: in bfloat16 a step that rounds elsewhere differs more."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    norm = RMSNorm(64, 1e-5).to(dtype)
    nn.init.normal_(norm.weight)
    x, addition = random(rows, slots, 64), random(rows, slots, 64)
    queries, keys = random(rows, slots, 4, 16).transpose(1, 2), random(rows, slots, 2, 16).transpose(1, 2)
    cos, sin = rope_tables(torch.arange(slots).expand(rows, slots) * 7, 16, 1e4)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-6}
    with torch.inference_mode():
        for name, arguments in [
            ("normalise", (norm, x)), ("add_and_normalise", (norm, x, addition)),
            ("rotate", (queries, keys, cos, sin)), ("gate", (x, addition)),
        ]:
            expected = getattr(fused.PLAIN, name)(*arguments)
            torch.testing.assert_close(getattr(compiled, name)(*arguments), expected, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("slots", [384, 1280])
def test_attention_in_chunks_is_attention(compiled, groups, slots):
    """Guards the merge: chunks with few keys and with none at all, and heads that share keys."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 2 * groups, 5, 16, generator=generator)
    keys, values = torch.randn(2, 1, 2, slots + 512, 16, generator=generator)[..., :slots, :]
    never = torch.finfo(torch.float32).min / 2
    for visible in (slots, slots - 100, slots - 300, 1):
        key_mask = torch.zeros(1, 1, 1, slots)
        key_mask[..., visible:] = never
        expected = fused.PLAIN.attend(queries, keys, values, key_mask)
        torch.testing.assert_close(compiled.attend(queries, keys, values, key_mask), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_steps_decode_the_same(compiled, name):
    """Guards the whole: every token as the plain steps decode it."""
    model = load(name)
    with fused.use("off"):
        expected = tokens(model, name, "prefix")
    with fused.use("on"), cuda_graphs.use("on"):
        assert tokens(model, name, "prefix") == expected


def test_steps_are_plain_where_compiling_does_not_pay():
    """Guards the defaults: on a CPU, in training, and where weights are elsewhere, nothing is compiled."""
    model = load("llada-mha")
    with torch.inference_mode():
        assert fused.steps_of(model) is fused.PLAIN
        with fused.use("on"):
            model.hf_device_map = {"a": 0, "b": "disk"}
            assert fused.steps_of(model) is fused.PLAIN
            del model.hf_device_map
    with fused.use("on"):
        assert fused.steps_of(model) is fused.PLAIN  # gradients are on


@pytest.mark.parametrize("name", FAMILIES)
def test_joined_projections_compute_the_same(name):
    """Guards the joint product, and that there is no second copy of the weights."""
    model = load(name)
    ids = prompts_of([33])[0][None]
    with torch.inference_mode():
        expected = model(ids).logits
        model.join_projections()
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    layer = model.layers[0]
    module = next(module for module in layer.modules() if hasattr(module, "shared_input"))
    names = module.shared_input[0]
    storages = {getattr(module, each).weight.untyped_storage().data_ptr() for each in names}
    assert storages == {module.joined_layers[names].weight.untyped_storage().data_ptr()}
    assert tokens(model, name, "dual") == tokens(load(name), name, "dual")


def test_joined_projections_notice_other_weights(tmp_path):
    """Guards against stale products: replaced, wrapped, moved, copied and trained weights all count."""
    model = load("llada-mha")
    ids = prompts_of([9])[0][None]
    model.join_projections()
    layer = model.layers[0]

    def differs_from(before: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            now = model(ids).logits
        assert not torch.equal(now, before)
        fresh = LLaDAModelLM(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh(ids).logits, now, atol=1e-5, rtol=1e-5)
        return now

    with torch.inference_mode():
        logits = model(ids).logits
    with torch.no_grad():
        layer.q_proj.weight.mul_(2)  # in place, as an optimizer does it
    logits = differs_from(logits)
    layer.k_proj.weight = nn.Parameter(layer.k_proj.weight.detach() * 2)
    logits = differs_from(logits)

    twin = copy.deepcopy(model)
    with torch.inference_mode():
        assert torch.equal(twin(ids).logits, logits)
    twin.to(torch.float64)
    assert twin.layers[1].joined_layers[twin.layers[1].shared_input[0]].weight.dtype == torch.float64
    with torch.inference_mode():
        torch.testing.assert_close(twin(ids).logits.float(), logits, atol=1e-4, rtol=1e-4)

    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        again = LLaDAModelLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(ids).logits, logits, atol=1e-5, rtol=1e-5)


def test_gradients_reach_joined_projections():
    """Guards training: with gradients every projection computes for itself."""
    model = load("dream-gqa")
    model.join_projections()
    model(prompts_of([9])[0][None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
