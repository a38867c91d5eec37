"""The small steps of a layer, compiled: one kernel each instead of a dozen, in forwards that a GPU records.

Between its weight products a layer normalises, rotates, adds and gates. Written out in torch that is about forty
kernels a layer, most of which only move a few kilobytes. torch.compile makes one kernel of each step, and rounds where
the plain step does. Compiling takes seconds, and launching a compiled step is slow; so recordings alone have them
(cuda_graphs.py), those of large models on CUDA that have decoded for a while. Imported by the models, never run. Tests
compare them with the plain steps:

    with fused.use("on"), cuda_graphs.use("on"):       # or "off", or "auto", the default
        generate(...)

Shapes: R rows, Q slots computed, H heads, K key-value heads, D head size, E model width, F width inside SwiGLU.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.engine.switch import Switch

LARGE = 5 * 10**8  # weights from which compiling pays
PATIENCE = 4000  # recorded forwards with plain steps before that, so that short runs do without
_switch = Switch("fused")
use = _switch.use


# --- Steps ------------------------------------------------------------------------------------------------------------


class Steps:
    """What a layer does between its weight products. `norm` is a transformer.RMSNorm."""

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        """The norm of x [..., E]."""
        return norm(x)

    def add_and_normalise(self, norm: Any, x: Tensor, addition: Tensor) -> tuple[Tensor, Tensor]:
        """x + addition, and the norm of it: [..., E] each."""
        x = x + addition
        return x, norm(x)

    def rotate(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """RoPE: queries [R, H, Q, D] and keys [R, K, Q, D] turned by cos and sin, [R, 1, Q, D] in float32."""
        return rotate(queries, cos, sin), rotate(keys, cos, sin)

    def gate(self, gates: Tensor, values: Tensor) -> Tensor:
        """SwiGLU's product, silu(gates) * values: [..., F] each."""
        return F.silu(gates) * values


class CompiledSteps(Steps):
    """The same steps, one kernel each."""

    def __init__(self) -> None:
        # emulate_precision_casts: round to the weights' type wherever the plain steps do.
        compiled = functools.partial(torch.compile, dynamic=True, options={"emulate_precision_casts": True})
        self._normalise = compiled(rms_norm)
        self._add_and_normalise = compiled(_add_and_normalise)
        self._rotate = compiled(_rotate_both)
        self._gate = compiled(_gate)

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        return self._normalise(x, norm.weight, norm.eps)

    def add_and_normalise(self, norm: Any, x: Tensor, addition: Tensor) -> tuple[Tensor, Tensor]:
        return self._add_and_normalise(x, addition, norm.weight, norm.eps)

    def rotate(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate(queries, keys, cos, sin)

    def gate(self, gates: Tensor, values: Tensor) -> Tensor:
        return self._gate(gates, values)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, accumulated in float32 whatever the input's dtype (Zhang & Sennrich 2019, eq. 4)."""
    if x.dtype == weight.dtype == torch.float32:  # the same numbers in one step less
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [R, H, Q, D] in float32 and return x's dtype; dimension i is paired with i + D/2.

    cos, sin: [R, 1, Q, D] of `transformer.rope_tables`, where the first half of the sines has its sign changed.
    """
    x32 = x.float()
    return (x32 * cos).addcmul_(torch.cat(x32.chunk(2, dim=-1)[::-1], dim=-1), sin).to(x.dtype)


def _add_and_normalise(x: Tensor, addition: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + addition
    return x, rms_norm(x, weight, eps)


def _rotate_both(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(queries, cos, sin), rotate(keys, cos, sin)


def _gate(gates: Tensor, values: Tensor) -> Tensor:
    return F.silu(gates) * values


PLAIN = Steps()


def steps_of(model: Any, recorded: int = 0) -> Steps:
    """The steps of a model's recorded forwards, of which there have been `recorded` so far."""
    if _switch.mode == "off" or torch.is_grad_enabled() or model.is_dispatched:
        return PLAIN  # weights that are elsewhere come when their module is called
    parameter = next(model.parameters())
    if _switch.mode == "auto" and not (recorded >= PATIENCE and pays(model)):
        return PLAIN
    return _compiled_steps(parameter.device) or PLAIN


def pays(model: Any) -> bool:
    """Whether a model that decodes for long is worth compiling for: a large one on CUDA."""
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.is_cuda and getattr(model, "layer_count", 0) * 12 * embedding.weight.shape[1] ** 2 >= LARGE


def forget() -> None:
    """Start anew: torch compiles a function for a few kinds of inputs only, then runs it as it is."""
    _compiled_steps.cache_clear()
    torch._dynamo.reset()


@functools.cache
def _compiled_steps(device: torch.device) -> CompiledSteps | None:
    """Compiled steps that were tried on the device; None where torch cannot compile for it."""
    steps = CompiledSteps()
    norm: Any = nn.RMSNorm(64, device=device)
    x = torch.ones(2, 3, 64, device=device)
    heads = torch.ones(2, 4, 3, 16, device=device)
    angles = torch.ones(2, 1, 3, 16, device=device)
    try:
        steps.normalise(norm, x)
        steps.add_and_normalise(norm, x, x)
        steps.rotate(heads, heads, angles, angles)
        steps.gate(x, x)
    except Exception as error:  # no compiler, no Triton, a version without: whatever torch raises then
        logging.getLogger(__name__).warning(
            "torch.compile does not work on %s here (%s); decoding goes on without it, more slowly", device,
            type(error).__name__)
        return None
    return steps
