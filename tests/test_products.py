"""Weight products by oneDNN beside torch's own, which they must equal but for rounding (dpad/engine/products.py).

    bash tests/run.sh tests/test_products.py
"""

from __future__ import annotations

import platform
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN, prompts_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dpad.engine import products
from dpad.engine.decoding import decode
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel
from dream import DreamModel
from dream.generate import DreamRule, DreamSettings
from llada import LLaDAModelLM
from llada.generate import LLaDARule, LLaDASettings
from sampler import GaussianSampler

FAMILIES = {
    "llada-mha": (LLaDAModelLM, LLaDARule, LLaDASettings),
    "dream-gqa": (DreamModel, DreamRule, DreamSettings),
}


@pytest.fixture(autouse=True)
def forced():
    """oneDNN for every product, of whatever size, also where it is not faster."""
    if not products.gain() and not (sys.platform == "linux" and platform.machine() == "x86_64"):
        pytest.skip("torch has oneDNN's operator on x86 alone")
    assert products.gain() > 0, "the operator is gone from this version of torch, or has changed"
    with products.use("on"):
        yield


@pytest.fixture
def calls(monkeypatch):
    """The rows of every product that oneDNN is asked for."""
    rows = []
    call = products._call_onednn
    monkeypatch.setattr(products, "_call_onednn", lambda x, *rest: rows.append(x.numel() // x.shape[-1])
                        or call(x, *rest))
    return rows


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@given(rows=st.integers(0, 300), batch=st.integers(1, 3), size=st.integers(1, 70), out=st.integers(1, 70),
       has_bias=st.booleans(), is_strided=st.booleans())
def test_products_are_those_of_linear(rows, batch, size, out, has_bias, is_strided):
    """Whatever the shape, also of rows that are rounded up, of a slice of a larger tensor, and with a bias."""
    x, weight, bias = tensors((batch, rows, size), (out, size), (out,))
    if is_strided:
        x = torch.cat((x, x), dim=-1)[..., size // 2 : size // 2 + size]
    bias = bias if has_bias else None
    result = products.multiply(x, weight, bias)
    assert result.shape == (batch, rows, out)
    torch.testing.assert_close(result, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 16, 33, 200])
@pytest.mark.parametrize("trained", ["all", "input", "weight"])
def test_gradients_are_those_of_linear(rows, trained):
    results = []
    for function in (F.linear, products.multiply):
        x, weight, bias, target = tensors((2, rows, 24), (40, 24), (40,), (2, rows, 40))
        x.requires_grad_(trained != "weight")
        weight.requires_grad_(trained != "input")
        bias.requires_grad_(trained == "all")
        y = function(x, weight, bias)
        (y * target).sum().backward()
        results.append((y.detach(), x.grad, weight.grad, bias.grad))
    for plain, fast in zip(*results, strict=True):
        assert (plain is None) == (fast is None)
        if plain is not None:
            torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [5, 16])
def test_trained_products_may_be_changed_in_place(rows):
    """As what F.linear gives: hooks and adapters write into it."""
    x, weight = tensors((rows, 24), (40, 24))
    weight.requires_grad_()
    y = products.multiply(x, weight).add_(1)
    y[..., 3] = 0
    y.sum().backward()
    assert weight.grad[3].abs().sum() == 0 and weight.grad[2].abs().sum() > 0


def test_other_derivatives():
    """Second derivatives, those of torch.func, and those in forward mode."""
    x, weight, direction = tensors((20, 6), (8, 6), (20, 6))
    results = []
    for function in (F.linear, products.multiply):
        w = weight.clone().requires_grad_()
        (first,) = torch.autograd.grad((function(x.requires_grad_(), w) ** 3).sum(), w, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), w)
        gradient = torch.func.grad(lambda w, f=function: (f(x.detach(), w) ** 2).sum())(weight)
        tangent = torch.func.jvp(lambda x, f=function: f(x, weight), (x.detach(),), (direction,))[1]
        results.append((first.detach(), second, gradient, tangent))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-2)


@given(st.integers(1, 10**6))
def test_rows_are_rounded_up_to_few_numbers(rows):
    """Guards memory, of which every different number takes some: at most four up to each power of two, and little is
    computed in vain."""
    rounded = products.round_up(rows)
    assert rows <= rounded <= max(16, rows + 15, rows * 1.25) and products.round_up(rounded) == rounded
    power = 2 ** (rows - 1).bit_length()
    assert len({products.round_up(n) for n in range(power // 2 + 1, power + 1, max(1, power // 64))}) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_shapes_reach_onednn(calls, dtype):
    """A thousand different numbers of rows are products of twenty shapes."""
    if dtype == torch.bfloat16 and not products._has_bfloat16():
        pytest.skip("here torch does not multiply by oneDNN in bfloat16")
    weight = tensors((8, 4), dtype=dtype)[0]
    for rows in range(1, 1000):
        x = torch.ones(rows, 4, dtype=dtype)
        torch.testing.assert_close(products.multiply(x, weight), F.linear(x, weight))
    assert len(calls) == 999 and len(set(calls)) == 20


class Wrapped(torch.Tensor):
    """A weight that is no plain tensor, as quantized ones are."""


@pytest.mark.parametrize("case", ["half", "wrapped", "other device", "sparse", "autocast", "off", "small", "disabled"])
def test_what_torch_multiplies_itself(calls, case):
    """Guards the way out: types, devices and wrapped weights that the operator does not know, and small products."""
    x, weight = tensors((40, 24), (32, 24))
    if case == "half":
        x, weight = x.half(), weight.half()
    if case == "wrapped":
        weight = weight.as_subclass(Wrapped)
    if case == "other device":
        x, weight = x.to("meta"), weight.to("meta")
    if case == "sparse":
        weight = weight.to_sparse_csr()
    mode = {"off": "off", "small": "auto"}.get(case, "on")
    flags = torch.backends.mkldnn.flags(enabled=case != "disabled")
    with products.use(mode), flags, torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        result = products.multiply(x, weight)
        assert result.dtype == F.linear(x, weight).dtype and result.shape == (40, 32)
    assert not calls


@pytest.mark.parametrize("gain, rows, is_taken", [(1.6, 96, True), (1.4, 96, False), (1.6, 4, False)])
def test_the_rule(calls, monkeypatch, gain, rows, is_taken):
    """Guards `auto`: where oneDNN is fast enough, for products that are large enough."""
    x, weight = tensors((rows, 256), (256, 256))
    monkeypatch.setattr(products, "gain", lambda: gain)
    with products.use("auto"):
        products.multiply(x, weight)
        assert bool(calls) == is_taken
        assert products.library() == ("oneDNN" if gain > 1.5 else "torch's own")


def test_a_wrong_width_is_torchs_to_name():
    x, weight = tensors((40, 24), (32, 25))
    with pytest.raises(RuntimeError, match="cannot be multiplied|size mismatch"):
        products.multiply(x, weight)


def test_the_measurement_is_of_float32_on_the_cpu():
    """Whatever the process is about when it first asks."""
    products.gain.cache_clear()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert products.gain() > 0.3
    finally:
        torch.set_default_dtype(torch.float32)
        products.gain.cache_clear()


@pytest.mark.slow
def test_a_compiled_model_has_no_breaks():
    """Guards torch.compile: the measurement is not for it."""
    products.gain.cache_clear()
    layer = products.Linear(24, 32)
    x = tensors((40, 24))[0]
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_where_onednn_fails_torch_multiplies(monkeypatch):
    """A torch whose operator is gone, takes other arguments or gives something else is used as it is."""
    def gone(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    x, weight = tensors((40, 24), (32, 24))
    for call in (gone, lambda x, weight, bias=None: F.linear(x, weight, bias) + 1):
        products.gain.cache_clear()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(products, "_call_onednn", call)
                assert products.library() == "torch's own"
                assert torch.equal(products.multiply(x, weight), F.linear(x, weight))
        finally:
            products.gain.cache_clear()


def load(name: str) -> MaskedDiffusionModel:
    return FAMILIES[name][0].from_pretrained(GOLDEN / name).eval()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_the_same(calls, name, cache):
    """The faster products beside the plain ones: every token, of rows alone and in a batch."""
    model = load(name)
    _, rule, settings = FAMILIES[name]
    chosen = settings(gen_length=64, block_length=16, steps=16, cache=cache, suffix_sampler=GaussianSampler(48, 3, 1.6))
    answers = []
    for mode in ("on", "off"):
        with products.use(mode):
            for lengths in ([21], [21, 9]):
                prompt = nn.utils.rnn.pad_sequence(prompts_of(lengths), batch_first=True, padding_value=5,
                                                   padding_side="left")
                mask = torch.arange(prompt.shape[1]) >= prompt.shape[1] - torch.tensor(lengths)[:, None]
                answers.append(decode(model, rule(chosen, TokenIds.of(model)), prompt, mask.long()).sequences)
    assert calls
    alone, batch, plain_alone, plain_batch = answers
    assert torch.equal(alone, plain_alone) and torch.equal(batch, plain_batch)
    assert torch.equal(alone[0, 21:], batch[0, 21:])


def test_every_layer_of_the_models_multiplies_so():
    """A linear layer that is none of these would be slow without a word."""
    for name in FAMILIES:
        linears = [module for module in load(name).modules() if isinstance(module, nn.Linear)]
        assert linears and all(type(module) is products.Linear for module in linears)
