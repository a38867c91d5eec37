"""Rooflines of decoding: the least time that its forwards could take on a device, by computation and by memory.

The *roofline* of a run is the time of its matrix products alone: the same forwards, but only their linear layers and
attention kernels, on the same device, by the same libraries and in the same process. On a GPU there is a second one:
the time to read the weights and the cached keys and values once in each forward, at the bandwidth that a large copy
reaches.

Imported by measurement.py. Records keep the names that these numbers were first given: `floor_s` and `read_s`.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.engine.completion import synchronize
from dpad.engine.products import multiply
from dpad.engine.transformer import MaskedDiffusionModel, SlotCache, Watch

MAX_TIMED = 64  # forwards of one kind; more of them are extrapolated from these
COPY_BYTES = 2**30  # size of the copy that measures a GPU's bandwidth


@dataclass(frozen=True)
class Forward:
    """What a forward computed: `slots` (rows times queries), `keys` attended to (rows times those of a row), `logits`
    asked of the head, `rows`."""

    slots: int
    keys: int
    logits: int
    rows: int = 1


class ObservedModel:
    """A model that also writes down the forwards that it makes, in `forwards`; everything else is the model's own.

    It stands in for the model in `decode`. Graphs must be off: they compute padding as well.
    """

    def __init__(self, model: MaskedDiffusionModel) -> None:
        self.model = model
        self.forwards: list[Forward] = []
        self._slots = self._keys = self._rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def hidden_states(self, ids: Tensor, positions: Tensor, key_mask: Tensor | None = None,
                      cache: SlotCache | None = None, start: int | Tensor = 0, watch: Watch | None = None) -> Tensor:
        rows, queries = ids.shape
        self._rows = rows
        self._slots = rows * queries
        self._keys = rows * (queries if cache is None else cache.length)
        return self.model.hidden_states(ids, positions, key_mask, cache, start, watch)

    def head(self, hidden: Tensor) -> Tensor:
        logits = hidden.numel() // hidden.shape[-1]
        self.forwards.append(Forward(self._slots, self._keys, logits, self._rows))
        return self.model.head(hidden)


class Products:
    """The matrix products of forwards, with weights and in attention, and nothing else."""

    def __init__(self, model: MaskedDiffusionModel) -> None:
        body = [m for layer in model.layers for m in layer.modules() if isinstance(m, nn.Linear)]
        body_ids = set(map(id, body))
        others = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in body_ids]
        embedding: Any = model.get_input_embeddings()
        self.body = [m.weight for m in body]
        self.head = [m.weight for m in others] or [embedding.weight]  # a tied head
        self.layers = model.layer_count
        self.heads = model.config.num_attention_heads
        self.kv_heads = model.kv_head_count
        self.head_size = model.head_size
        self.inputs: dict[tuple[int, ...], Tensor] = {}

    def bytes(self) -> int:
        """The size of all weights that a forward reads."""
        return sum(w.numel() * w.element_size() for w in (*self.body, *self.head))

    def seconds(self, forwards: Sequence[Forward]) -> float:
        """How long the products of all these forwards take, warm."""
        total = 0.0
        for forward, count in Counter(forwards).items():
            repeats = min(count, MAX_TIMED)
            self.compute([forward])
            total += timed(self.body[0].device, self.compute, [forward] * repeats) * count / repeats
        return total

    @torch.inference_mode()
    def compute(self, forwards: Sequence[Forward]) -> None:
        """Multiply random inputs by every weight once for each forward, and attend once for each layer."""
        for forward in forwards:
            for weight in self.body:
                multiply(self._input(forward.slots, weight.shape[1]), weight)
            if forward.logits:
                for weight in self.head:
                    multiply(self._input(forward.logits, weight.shape[1]), weight)
            # Heads that share keys are more queries of one, as in the model.
            queries = forward.slots // forward.rows * (self.heads // self.kv_heads)
            heads = forward.rows, self.kv_heads
            for _ in range(self.layers):
                keys = self._input(*heads, forward.keys // forward.rows, self.head_size)
                values = self._input(*heads, forward.keys // forward.rows, self.head_size, which=1)
                F.scaled_dot_product_attention(self._input(*heads, queries, self.head_size), keys, values)

    def _input(self, *shape: int, which: int = 0) -> Tensor:
        """Random numbers of this shape, the same at every call. which: of several inputs of a shape."""
        if (*shape, which) not in self.inputs:
            weight = self.body[0]
            self.inputs[*shape, which] = torch.randn(shape, dtype=weight.dtype, device=weight.device)
        return self.inputs[*shape, which]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written together, of a large copy on a GPU: the median of ten."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [timed(device, target.copy_, source) for _ in range(12)][2:]
    return 2 * COPY_BYTES / statistics.median(seconds)


def bytes_read(model: MaskedDiffusionModel, products: Products, forwards: Sequence[Forward]) -> int:
    """The bytes that the forwards read at least: all weights, and the keys and values that they did not compute."""
    cached_keys = sum(forward.keys - forward.slots for forward in forwards)
    key_and_value = 2 * model.layer_count * model.kv_head_count * model.head_size * products.body[0].element_size()
    return len(forwards) * products.bytes() + cached_keys * key_and_value


def timed(device: torch.device, call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call, with the device synchronised at both ends."""
    synchronize(device)
    start = time.perf_counter()
    call(*arguments)
    synchronize(device)
    return time.perf_counter() - start
