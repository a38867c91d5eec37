r"""Weight products on a CPU: in float32 by oneDNN, where it is faster than the library that torch multiplies with.

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"

torch comes with two libraries that multiply matrices, and on x86 takes MKL for float32 and oneDNN for bfloat16. On the
processor that was measured, an AMD EPYC with AVX-512, oneDNN is twice as fast in float32 as well (docs/speed.md). Which
of the two is faster is measured once a process, with a margin that a busy machine does not cover. Both add the same
products, and round differently at most; weights are used as they are, without a copy. Imported, never run; tests
compare them:

    with products.use("on"):       # or "off", or "auto", the default
        generate(...)

oneDNN is reached through an operator that torch's compiler uses and does not document. Where a version of torch has no
such operator, or it gives something else, torch's own library multiplies. For every shape of a product oneDNN writes a
program, which takes time and memory of its own: so the numbers of rows are rounded up to few different ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from dpad.engine.switch import Switch

LEAST = 2**20  # multiplications of a product, below which calling oneDNN costs more than it saves
ROWS, WIDTH = 96, 512  # of the products that are measured: a fraction of a millisecond
REPEATS = 9
GAIN = 1.5  # how many times as fast oneDNN must be; on the one processor that was measured it is about twice
_switch = Switch("products")
use = _switch.use


class Linear(nn.Linear):
    """nn.Linear by `multiply`."""

    def forward(self, input: Tensor) -> Tensor:
        return multiply(input, self.weight, self.bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times the transpose of weight [out, in], plus bias [out]: F.linear, by the faster library."""
    if torch.compiler.is_compiling() or not _is_for_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias is not None and bias.requires_grad):
        if x.dtype != torch.float32:
            return F.linear(x, weight, bias)
        product = _Product.apply(x, weight, bias)
    elif round_up(rows) == rows:
        return _call_onednn(x, weight, bias)
    else:
        product = _call_onednn(_padded(x), weight, bias)
    return product[:rows].view(*x.shape[:-1], weight.shape[0])


def library() -> str:
    """The library that multiplies large matrices of this process in float32: "oneDNN", or "torch's own"."""
    return "oneDNN" if _is_on() else "torch's own"


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is to multiply, at a rounded number of rows. The measurement is the last thing that is asked."""
    if x.dtype == torch.float32:
        if _switch.mode == "off" or (x.numel() * weight.shape[0] < LEAST and _switch.mode != "on"):
            return False
    elif x.dtype != torch.bfloat16 or _switch.mode == "off":
        return False
    return (
        x.is_cpu and x.numel() > 0 and weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)
        and type(x) is Tensor and type(weight) in (nn.Parameter, Tensor)  # no quantized, sharded or wrapped ones
        and weight.layout == x.layout == torch.strided and weight.shape[-1] == x.shape[-1]
        and not torch.is_autocast_enabled("cpu") and bool(torch.backends.mkldnn.enabled)
        and forward_ad._current_level < 0  # the operator has no derivatives in forward mode
        and (_is_on() if x.dtype == torch.float32 else _has_bfloat16())
    )


def _is_on() -> bool:
    return _switch.mode != "off" and (gain() >= GAIN or (_switch.mode == "on" and gain() > 0))


def _call_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype == torch.bfloat16:  # for which torch itself takes oneDNN
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def round_up(rows: int) -> int:
    """The rows to multiply for so many: a multiple of 16, above 64 one of four numbers up to the next power of two."""
    step = max(16, 2 ** max(rows - 1, 0).bit_length() // 8)
    return -(-rows // step) * step


def _padded(x: Tensor) -> Tensor:
    """x [..., in] as [round_up(rows), in], with zeros below."""
    rows = x.numel() // x.shape[-1]
    padded = x.new_empty(round_up(rows), x.shape[-1])
    padded[:rows] = x.reshape(rows, x.shape[-1])
    padded[rows:] = 0
    return padded


@cache
def gain() -> float:
    """How many times as fast as torch's own library oneDNN multiplies in float32 here; 0 where it cannot."""
    draw = torch.Generator().manual_seed(0)
    kind: dict[str, Any] = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x, weight, bias = (torch.randn(shape, **kind) for shape in ((ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH,)))
        try:
            if not torch.allclose(_call_onednn(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-3):
                return 0.0
        except (AttributeError, RuntimeError, TypeError):  # no such operator, or with other arguments
            return 0.0
        return times_as_fast(lambda: F.linear(x, weight, bias), lambda: _call_onednn(x, weight, bias))


def times_as_fast(plain: Callable[[], Any], other: Callable[[], Any]) -> float:
    """How many times as fast as a first call a second one is: the least of each in turns, as both are slowed alike."""
    least = [math.inf, math.inf]
    for _ in range(REPEATS):
        for place, call in enumerate((plain, other)):
            start = time.perf_counter()
            call()
            least[place] = min(least[place], time.perf_counter() - start)
    return least[0] / least[1]


@cache
def _has_bfloat16() -> bool:
    """Whether torch multiplies by oneDNN in bfloat16."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


class _Product(torch.autograd.Function):
    """oneDNN's product of x [..., in] at a rounded number of rows, [rounded, out], with its gradients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _call_onednn(_padded(x), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (dy,) = grads  # zeros below the rows of x
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = x.numel() // x.shape[-1]
        product = multiply if torch.is_grad_enabled() else _call_onednn  # for second derivatives, or without
        return (
            product(dy, weight.t())[:rows].view(x.shape) if for_x else None,
            product(dy.t(), _padded(x).t()) if for_weight else None,
            dy.sum(dim=0) if for_bias else None,
        )
