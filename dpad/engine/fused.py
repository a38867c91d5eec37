"""Fewer and larger kernels: the small steps of a layer compiled, and projections of the same input as one product.

Between its weight products a layer normalises, rotates, adds and gates. Written out in torch that is about forty
kernels a layer, most of which only move a few kilobytes. Two things make them fewer, and change no result:

    steps_of(model)   the steps as torch.compile fuses them, one kernel each, for forwards that are recorded
                      (cuda_graphs.py): launching a compiled step takes longer than launching what it replaces.
                      Compiling takes seconds, so by default only large models on CUDA get them.
    join(model)       puts weights that multiply the same input next to each other in memory, so that one product
                      serves for all of them. The parameters become views of the joint weight: there is no second copy.

Imported by the models, never run. Tests compare both with the plain steps:

    with fused.use("on"), cuda_graphs.use("on"):       # or "off", or "auto", the default
        generate(...)

Shapes: R rows, Q slots computed, H heads, K key-value heads, D head size, E model width, F width inside SwiGLU.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.engine.checks import check_choice

MODES = ("auto", "on", "off")
LARGE = 5 * 10**8  # weights from which compiling pays
CHUNK = 128  # keys of which attention takes care at a time; twice that where there are more than LONG
LONG = 1024
TILES = 128  # pieces of work that keep a GPU busy; attention's own have TILE queries
TILE = 64
_mode = "auto"


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose one of MODES for the calls inside."""
    global _mode
    check_choice("fused", mode, MODES)
    before = _mode
    _mode = mode
    try:
        yield
    finally:
        _mode = before


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

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(D)) v: queries [R, H, Q, D], keys and values [R, K, S, D] -> [R, Q, H * D].

        key_mask: see `transformer.Attention`.
        """
        grouped = _group(queries, keys)
        mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=key_mask)
        return mixed.unflatten(2, (-1, queries.shape[2])).flatten(1, 2).transpose(1, 2).flatten(2)


class CompiledSteps(Steps):
    """The same steps, one kernel each."""

    def __init__(self) -> None:
        # emulate_precision_casts: round to the weights' type wherever the plain steps do.
        compiled = functools.partial(torch.compile, dynamic=True, options={"emulate_precision_casts": True})
        self._normalise = compiled(rms_norm)
        self._add_and_normalise = compiled(_add_and_normalise)
        self._rotate = compiled(_rotate_both)
        self._gate = compiled(_gate)
        self._merge = compiled(_merge)
        self.splits = True

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        return self._normalise(x, norm.weight, norm.eps)

    def add_and_normalise(self, norm: Any, x: Tensor, addition: Tensor) -> tuple[Tensor, Tensor]:
        return self._add_and_normalise(x, addition, norm.weight, norm.eps)

    def rotate(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotate(queries, keys, cos, sin)

    def gate(self, gates: Tensor, values: Tensor) -> Tensor:
        return self._gate(gates, values)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
        """The same; where few queries of one row would leave most of a GPU idle, in chunks of the keys side by side."""
        size = CHUNK if keys.shape[2] <= LONG else 2 * CHUNK
        chunks, rest = divmod(keys.shape[2], size)
        grouped = _group(queries, keys)
        heads, count = grouped.shape[1:3]
        is_small = len(queries) == 1 and heads * -(-count // TILE) < TILES
        if not self.splits or not is_small or rest or chunks < 2 or key_mask is None or key_mask.dtype == torch.bool:
            return super().attend(queries, keys, values, key_mask)
        keys, values = (x[0].unflatten(1, (chunks, size)).transpose(0, 1) for x in (keys, values))
        key_mask = key_mask.reshape(chunks, 1, 1, size).expand(-1, heads, count, -1)
        mixed, sums = _attend_with_sums(grouped.expand(chunks, -1, -1, -1), keys, values, key_mask)
        return self._merge(mixed, sums, count // queries.shape[2])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, accumulated in float32 whatever the input's dtype (Zhang & Sennrich 2019, eq. 4)."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to x [R, H, Q, D] in float32 and return x's dtype; dimension i is paired with i + D/2."""
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _add_and_normalise(x: Tensor, addition: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + addition
    return x, rms_norm(x, weight, eps)


def _rotate_both(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(queries, cos, sin), rotate(keys, cos, sin)


def _gate(gates: Tensor, values: Tensor) -> Tensor:
    return F.silu(gates) * values


PLAIN = Steps()


def _group(queries: Tensor, keys: Tensor) -> Tensor:
    """Queries [R, H, Q, D] as [R, K, H / K * Q, D], those of heads that share keys as more queries of one head.

    Every query attends to the same slots, so any kernel serves grouped-query attention, and none repeats keys.
    """
    return queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)


def _attend_with_sums(queries: Tensor, keys: Tensor, values: Tensor, key_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum that each softmax divided by: [R, K, n, D] and [R, K, n]."""
    if queries.is_cuda:
        mixed, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(queries, keys, values, key_mask, True)
    else:
        mixed, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values,
                                                                                 attn_mask=key_mask)
    return mixed, sums[..., : queries.shape[2]]  # the kernel pads the sums


def _merge(mixed: Tensor, sums: Tensor, groups: int) -> Tensor:
    """Attention to all keys, [1, Q, H * D], from that to chunks of them, [chunks, K, n, D] and [chunks, K, n].

    groups: of the n queries, how many heads they are of.
    """
    shares = sums.float().softmax(dim=0)[..., None]
    whole = (shares * mixed.float()).sum(dim=0).to(mixed.dtype)
    return whole.unflatten(1, (groups, -1)).permute(2, 0, 1, 3).flatten(1)[None]


def steps_of(model: nn.Module) -> Steps:
    """The steps of this model's recorded forwards."""
    if _mode == "off" or torch.is_grad_enabled() or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return PLAIN  # weights that are elsewhere come when their module is called
    parameter = next(model.parameters())
    if _mode == "auto" and not (parameter.is_cuda and _is_large(model)):
        return PLAIN
    return _compiled_steps(parameter.device) or PLAIN


def _is_large(model: Any) -> bool:
    embedding: Any = model.get_input_embeddings()
    return getattr(model, "layer_count", 0) * 12 * embedding.weight.shape[1] ** 2 >= LARGE


@functools.cache
def _compiled_steps(device: torch.device) -> CompiledSteps | None:
    """Compiled steps that were tried on the device; None where torch cannot compile for it."""
    steps = CompiledSteps()
    norm: Any = nn.RMSNorm(64, device=device)
    x = torch.ones(2, 3, 64, device=device)
    heads = torch.randn(1, 2, 3 * CHUNK, 16, device=device)
    angles = torch.ones(1, 1, 3 * CHUNK, 16, device=device)
    key_mask = torch.zeros(1, 1, 1, 3 * CHUNK, device=device)
    try:
        steps.normalise(norm, x)
        steps.add_and_normalise(norm, x, x)
        steps.rotate(heads, heads, angles, angles)
        steps.gate(x, x)
    except Exception as error:  # no compiler, no Triton, a version without: whatever torch raises then
        _report("compile", device, error)
        return None
    try:  # operators that torch does not document: their results are looked at
        query = heads[:, :, :4]
        difference = steps.attend(query, heads, heads, key_mask) - PLAIN.attend(query, heads, heads, key_mask)
        steps.splits = bool(difference.abs().max() < 1e-4)
    except Exception as error:
        _report("split attention", device, error)
        steps.splits = False
    return steps


def _report(what: str, device: torch.device, error: Exception) -> None:
    logging.getLogger(__name__).warning("torch cannot %s on %s here (%s); decoding goes on without it, more slowly",
                                        what, device, type(error).__name__)


# --- Projections of the same input ------------------------------------------------------------------------------------


class Joined:
    """The weights of several linear layers with the same input, [sum of outputs, inputs], and their biases or None."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight.data for layer in layers])
        self.bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
        for layer, weight in zip(layers, self.weight.split(self.sizes)):
            layer.weight.data = weight
        if self.bias is not None:
            for layer, bias in zip(layers, self.bias.split(self.sizes)):
                layer.bias.data = bias

    def holds(self, layers: list[nn.Module]) -> bool:
        """Whether the layers' weights are still those that were joined: none was replaced, moved or wrapped."""
        return _adjoin(self.weight, [layer.weight for layer in layers if type(layer) is nn.Linear], self.sizes) and (
            self.bias is None or _adjoin(self.bias, [layer.bias for layer in layers], self.sizes))


def _adjoin(whole: Tensor, parts: list[Any], sizes: list[int]) -> bool:
    address = whole.data_ptr()
    row = whole.stride(0) * whole.element_size()
    if len(parts) != len(sizes):
        return False
    for part, size in zip(parts, sizes):
        if part.data_ptr() != address or part.dtype != whole.dtype:
            return False
        address += size * row
    return True


def project(parent: nn.Module, names: tuple[str, ...], x: Tensor) -> list[Tensor]:
    """What the linear layers of these names in `parent` make of x [..., E], in one product where they are joined."""
    layers = [getattr(parent, name) for name in names]
    joined = parent.__dict__.get("joined_layers", {}).get(names)
    if joined is None or torch.is_grad_enabled() or not joined.holds(layers):
        return [layer(x) for layer in layers]
    return list(F.linear(x, joined.weight, joined.bias).split(joined.sizes, -1))


def join(model: nn.Module) -> None:
    """Join the projections that modules of the model name in `shared_input`, where they are plain linear layers."""
    for module in model.modules():
        for names in getattr(module, "shared_input", ()):
            layers = [getattr(module, name) for name in names]
            if any(type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor for layer in layers):
                continue
            module.__dict__.setdefault("joined_layers", {})[names] = Joined(layers)
            if layers[0].weight.is_cuda:
                torch.cuda.empty_cache()  # the weights before were allocations of other sizes, which nothing reuses


def weights_of(layer: nn.Module) -> list[Tensor]:
    """The weights that a forward of `layer` multiplies with, one for each product: [outputs, inputs] each."""
    weights = []
    for module in layer.modules():
        joined = module.__dict__.get("joined_layers", {})
        weights += [each.weight for each in joined.values()]
        together = {name for names in joined for name in names}
        weights += [each.weight for name, each in module.named_children()
                    if isinstance(each, nn.Linear) and name not in together]
    return weights


def separate(model: nn.Module) -> bool:
    """Forget what was joined; whether anything was. The parameters stay where they are."""
    return any([module.__dict__.pop("joined_layers", None) is not None for module in model.modules()])
