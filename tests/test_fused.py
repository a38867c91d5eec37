"""Compiled steps of a layer beside the plain ones, which they must equal (dpad/engine/fused.py).

    bash tests/run.sh tests/test_fused.py
"""

from __future__ import annotations

import pytest
import torch
from accelerate import dispatch_model
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


def as_tuple(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


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
    with torch.inference_mode():
        for name, arguments in [
            ("normalise", (norm, x)), ("add_and_normalise", (norm, x, addition)),
            ("rotate", (queries, keys, cos, sin)), ("gate", (x, addition)),
        ]:
            expected, computed = (getattr(steps, name)(*arguments) for steps in (fused.PLAIN, compiled))
            torch.testing.assert_close(computed, expected, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=1e-6)
            if dtype == torch.bfloat16:
                same = torch.cat([(a == b).flatten() for a, b in zip(as_tuple(computed), as_tuple(expected))])
                assert same.float().mean() > 0.99, name  # with other roundings it is three quarters


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
        assert fused.steps_of(model, 10**9) is fused.PLAIN
        with fused.use("on"):
            dispatched = dispatch_model(load("llada-mha"), {"model": "cpu"}, force_hooks=True)
            assert dispatched.is_dispatched and fused.steps_of(dispatched) is fused.PLAIN
    with fused.use("on"):
        assert fused.steps_of(model) is fused.PLAIN  # gradients are on


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_long_runs_change_to_compiled_steps(monkeypatch, cache):
    """Guards the change: it comes with a call of its own, after enough forwards, and the recordings are made anew."""
    model = load("llada-mha")
    other = fused.Steps()
    monkeypatch.setattr("dpad.engine.cuda_graphs.steps_of",
                        lambda model, recorded: other if recorded >= 20 else fused.PLAIN)
    with cuda_graphs.use("on"):
        first = tokens(model, "llada-mha", cache)
        [graphed] = cuda_graphs._caches[model].values()
        assert graphed.layer_steps is fused.PLAIN and graphed.recorded < 20
        shapes = dict(graphed.steps)
        assert tokens(model, "llada-mha", cache) == first and graphed.layer_steps is fused.PLAIN
        assert tokens(model, "llada-mha", cache) == first and graphed.layer_steps is other
        assert all(step is not shapes.get(shape) for shape, step in graphed.steps.items())
