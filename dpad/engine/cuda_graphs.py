"""Forwards as CUDA graphs: recorded once per shape, then launched as a whole.

A forward of few slots consists of hundreds of small kernels. At batch 1 a GPU finishes each before the processor has
launched the next, so on CUDA such forwards are replayed from a recording. In a recording every shape and address is
fixed: queries, keys and rows are padded up to a bucket, and what varies (which slots are written, which may be attended
to) is in tensors. A shape runs as it is the first time, and is recorded the second time. That holds for the cached
steps of a block, and for forwards over every slot where these are at most MAX_SLOTS; larger ones keep the GPU busy by
themselves. Imported by decoding.py, never run. By default it is on for CUDA and off elsewhere:

    with cuda_graphs.use("off"):   # or "on" everywhere: on the CPU the padded steps then run without a recording,
        generate(...)              # which is how tests compare them with the plain ones
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dpad.engine.fused import PLAIN, Steps, steps_of
from dpad.engine.switch import Switch
from dpad.engine.transformer import MaskedDiffusionModel, SlotCache, SpreadCache, Watch

QUERY_BUCKET = 16
SLOT_BUCKET = 64  # of the queries, where a forward computes every slot
KEY_BUCKET = 128
MAX_SLOTS = 1024  # of a recorded forward over every slot, all rows together
CAPACITY_BUCKET = 512  # of the buffers: coarse, because larger ones start anew with recording
MAX_GRAPHS = 64  # of one model; the least recently used one makes room
_switch = Switch("graphs")
use = _switch.use  # for the calls inside: auto, on or off
_recording = threading.Lock()  # a process may record one graph at a time


@contextmanager
def slot_cache(
    model: MaskedDiffusionModel, rows: int, capacity: int, stores: bool = True
) -> Iterator[SlotCache | None]:
    """A cache of `capacity` slots in `rows` rows, for one generate call: with graphs where they are on.

    A model has one cache of each kind, whose buffers are kept from call to call; a second call at the same time (in
    another thread) gets one of its own. So does a model that accelerate moves about, which no recording could follow.
    stores: whether keys and values are kept for later steps; a call that needs none gets a cache only for its graphs,
    and None where they are off.
    """
    if model.is_dispatched:
        yield SpreadCache(model, rows, capacity) if stores else None
        return
    graphed = is_on(model.device)
    if not stores and not graphed:
        yield None
        return
    kind = (GraphedCache if stores else GraphedForwards) if graphed else ReusedCache
    cache = _caches.setdefault(model, {}).setdefault(kind, kind())
    if not cache.lock.acquire(blocking=False):
        yield SlotCache(model, rows, capacity) if stores else None
        return
    try:
        cache.fit(model, rows, capacity)
        yield cache
    finally:
        cache.lock.release()


def forget() -> None:
    """Free the buffers and graphs of all models; calls that are running keep theirs until they end."""
    _caches.clear()


@dataclass
class Step:
    """A step of fixed shape: inputs that are filled before a run, an output that is valid until the next run.

    inputs: token ids, int64 [R, Q], or embeddings, [R, Q, E]. positions: int64 [R, Q]. places: int64 [Q], the slots
    that the queries are. key_mask: bool [R, S], the slots that may be attended to. hidden: [R, Q, E]. filled: the
    cache's `version`, and the first query's slot, that all of them but `inputs` belong to.
    """

    inputs: Tensor
    positions: Tensor
    places: Tensor
    key_mask: Tensor
    hidden: Tensor | None = None
    replay: Callable[[], None] | None = None
    runs: int = 0
    filled: tuple[int, int] | None = None


class ReusedCache(SlotCache):
    """A cache that calls use one after the other; its buffers are allocated anew when a call does not fit into them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.buffer = _no_buffer()

    def fit(self, model: MaskedDiffusionModel, rows: int, capacity: int) -> None:
        """Make room for a call."""
        if (self.buffer.dtype, self.buffer.device) == (model.dtype, model.device) and self._holds(rows, capacity):
            return
        self._free()
        self.buffer = self.allocate(model, rows, capacity)

    def _free(self) -> None:
        """Let go of the buffer before a new one is allocated."""
        self.stored = {}
        self.buffer = _no_buffer()

    def _holds(self, rows: int, capacity: int) -> bool:
        return rows <= self.buffer.shape[2] and capacity <= self.buffer.shape[4]


class GraphedCache(ReusedCache):
    """A cache whose steps run over fixed shapes, on CUDA as replayed graphs.

    The last slot of the buffers takes the keys and values of queries that only pad a bucket.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: tuple | None = None  # the dtype and addresses that the recordings were made with
        self.steps: OrderedDict[tuple[int, int, int, bool], Step] = OrderedDict()
        self.version = 0
        self.window: tuple[int, int] | None = None  # rows and slots of the step that is running, both bucketed
        self.pool: Any = None  # of the recordings' memory
        self.recorded = 0  # forwards that were such steps
        self.layer_steps: Steps = PLAIN  # of the recordings

    def fit(self, model: MaskedDiffusionModel, rows: int, capacity: int) -> None:
        """Make room for a call; graphs and buffers are kept if it fits and the weights are where they were."""
        rows, capacity = bucketed(rows, capacity)
        weights = self._identity(model)
        if weights == self.weights and self._holds(rows, capacity):
            return
        if weights == self.weights:
            # Keep room for earlier calls too, so that calls of two shapes do not rebuild the buffers in turn; but many
            # short rows and a few long ones must not become many long ones.
            old_rows = self.buffer.shape[2]
            old_capacity = self.buffer.shape[4]
            slots = max(old_rows * old_capacity, rows * capacity)
            if max(rows, old_rows) * max(capacity, old_capacity) <= 2 * slots:
                rows = max(rows, old_rows)
                capacity = max(capacity, old_capacity)
        self.steps.clear()
        self.weights = None
        self.pool = None
        self._free()
        self.buffer = self.allocate(model, rows, capacity).zero_()  # slots behind the mask must not hold NaN
        self.weights = weights  # set last: if memory runs out above, the buffers count as missing

    def _identity(self, model: MaskedDiffusionModel) -> tuple:
        """What recordings depend on: the steps of the layers, chosen here, the kind of attention, whether the model is
        in training mode, the type and addresses of the weights, and which adapters count how much."""
        self.layer_steps = steps_of(model, self.recorded)
        return (model.dtype, id(self.layer_steps), model.config._attn_implementation, model.training,
                *(weight.data_ptr() for weight in model.parameters()), *_adapters(model))

    def begin(self, rows: Sequence[int], length: int, is_stale: bool = True, is_lasting: bool = False) -> None:
        super().begin(rows, length, is_stale, is_lasting)
        self._clear_rest()

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self.version += 1

    def keep_slots(self, slots: Tensor) -> None:
        super().keep_slots(slots)
        self._clear_rest()

    def _clear_rest(self) -> None:
        """Make the slots behind the last harmless, up to the end of the bucket that a step reads.

        They are masked by adding -inf, which a NaN would survive.
        """
        self.version += 1
        self.buffer[:, :, : self.rows, :, self.length : round_up(self.length, KEY_BUCKET)] = 0

    def write(self, layer: int, start: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.window is None:
            return super().write(layer, start, keys, values)
        assert isinstance(start, Tensor)
        rows, length = self.window
        stored = self.buffer[layer, :, :rows]
        stored[0].index_copy_(2, start, keys)
        stored[1].index_copy_(2, start, values)
        return stored[0, :, :, :length], stored[1, :, :, :length]

    def forward(self, model: MaskedDiffusionModel, inputs: Tensor, positions: Tensor, key_mask: Tensor | None,
                start: int, watch: Watch | None = None) -> Tensor:
        rows, count = positions.shape
        if watch is not None or (start == 0 and power_of_two(rows) * round_up(count, SLOT_BUCKET) > MAX_SLOTS):
            return self._forward_as_it_is(model, inputs, positions, key_mask, start, watch)
        step = self._step(inputs, start)
        if step.filled != (self.version, start):
            self._fill(step, positions, key_mask, start)
        step.inputs[:rows, :count] = inputs
        if step.replay is not None:
            step.replay()
        elif step.runs and inputs.is_cuda:
            self._record(model, step)
        else:
            self._run(model, step)
        step.runs += 1
        self.recorded += 1
        assert step.hidden is not None
        return step.hidden[:rows, :count]

    def _forward_as_it_is(self, model: MaskedDiffusionModel, inputs: Tensor, positions: Tensor,
                          key_mask: Tensor | None, start: int, watch: Watch | None) -> Tensor:
        return super().forward(model, inputs, positions, key_mask, start, watch)

    def _shape(self, rows: int, count: int, start: int) -> tuple[int, int, int]:
        """Rows, queries and slots of the step that takes `count` queries from slot `start` on in each of the rows."""
        queries = round_up(count, QUERY_BUCKET if start else SLOT_BUCKET)
        slots = min(round_up(self.length, KEY_BUCKET), self.buffer.shape[4])
        return min(power_of_two(rows), self.buffer.shape[2]), queries, slots

    def _step(self, inputs: Tensor, start: int) -> Step:
        """The step whose shape is large enough for inputs [R, Q] or [R, Q, E]; a new one where there is none yet."""
        rows, queries, slots = self._shape(inputs.shape[0], inputs.shape[1], start)
        shape = rows, queries, slots, inputs.is_floating_point()
        step = self.steps.get(shape)
        if step is None:
            if len(self.steps) == MAX_GRAPHS:
                self.steps.popitem(last=False)
                if not any(step.replay for step in self.steps.values()):
                    self.pool = None  # no recording is left that uses it
            device = inputs.device
            with torch.inference_mode(False):  # later calls may not be in that mode
                step = self.steps[shape] = Step(
                    inputs=torch.zeros(rows, queries, *inputs.shape[2:], dtype=inputs.dtype, device=device),
                    positions=torch.zeros(rows, queries, dtype=torch.long, device=device),
                    places=torch.zeros(queries, dtype=torch.long, device=device),
                    key_mask=torch.zeros(rows, slots, dtype=torch.bool, device=device),
                )
        self.steps.move_to_end(shape)
        return step

    def _fill(self, step: Step, positions: Tensor, key_mask: Tensor | None, start: int) -> None:
        """Set everything that stays for the rest of a block, or until rows leave."""
        rows, count = positions.shape
        step.positions[:rows, :count] = positions
        step.places.fill_(self._spare_slot)
        step.places[:count] = torch.arange(start, start + count, device=step.places.device)
        step.key_mask.zero_()
        step.key_mask[:rows, : self.length] = True if key_mask is None else key_mask
        step.key_mask[rows:, 0] = True  # a row of padding attends to something, which avoids NaN
        step.filled = self.version, start

    @property
    def _spare_slot(self) -> int:
        """Where queries that only pad a bucket are written."""
        return self.buffer.shape[4] - 1

    def _run(self, model: MaskedDiffusionModel, step: Step) -> None:
        self.window = step.key_mask.shape[0], step.key_mask.shape[1]
        try:
            step.hidden = model.hidden_states(step.inputs, step.positions, step.key_mask, self, step.places,
                                              steps=self.layer_steps)
        finally:
            self.window = None

    def _record(self, model: MaskedDiffusionModel, step: Step) -> None:
        graph = torch.cuda.CUDAGraph()
        device = step.inputs.device
        # thread_local: what other threads do on the GPU meanwhile does not spoil this recording.
        with _recording, torch.cuda.device(device), torch.cuda.graph(
                graph, pool=self.pool, stream=_stream(device), capture_error_mode="thread_local"):
            self._run(model, step)
        self.pool = graph.pool()
        step.replay = graph.replay
        step.replay()  # recording computed nothing


class GraphedForwards(GraphedCache):
    """The same for a call without a cache: every forward computes every slot, and nothing is stored."""

    def fit(self, model: MaskedDiffusionModel, rows: int, capacity: int) -> None:
        """Keep the graphs if the weights are where they were."""
        weights = self._identity(model)
        if weights != self.weights:
            self.steps.clear()
            self.pool = None
            self.weights = weights

    def keep(self, rows: Sequence[int]) -> None:
        self.rows = len(rows)
        self.version += 1

    def keep_slots(self, slots: Tensor) -> None:
        self.length = len(slots)
        self.version += 1

    def _clear_rest(self) -> None:
        self.version += 1

    def _forward_as_it_is(self, model: MaskedDiffusionModel, inputs: Tensor, positions: Tensor,
                          key_mask: Tensor | None, start: int, watch: Watch | None) -> Tensor:
        return model.hidden_states(inputs, positions, key_mask, None, 0, watch)

    def _shape(self, rows: int, count: int, start: int) -> tuple[int, int, int]:
        slots = round_up(count, SLOT_BUCKET)
        return power_of_two(rows), slots, slots

    @property
    def _spare_slot(self) -> int:
        return 0  # nothing is written

    def _run(self, model: MaskedDiffusionModel, step: Step) -> None:
        step.hidden = model.hidden_states(step.inputs, step.positions, step.key_mask, steps=self.layer_steps)


def _no_buffer() -> Tensor:
    """A buffer of no rows and no capacity."""
    return torch.empty((0,) * 6)


# By model and kind; no cache refers to its model.
_caches: WeakKeyDictionary[MaskedDiffusionModel, dict[type, ReusedCache]] = WeakKeyDictionary()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where all graphs of a device are recorded: libraries keep memory of their own for every stream."""
    return torch.cuda.Stream(device)


def _adapters(model: MaskedDiffusionModel) -> Iterator[tuple]:
    """What peft's layers in a model compute beside its weights, which changes without another address."""
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")
    if peft is None:  # then there are none
        return
    for module in model.modules():
        if isinstance(module, peft.BaseTunerLayer):
            scaling = getattr(module, "scaling", {})
            yield module.disable_adapters, *module.active_adapters, *module.merged_adapters, *scaling.items()


def buffer_size(device: torch.device, rows: int, capacity: int) -> tuple[int, int]:
    """The rows and slots that the buffers of a call get, in a process that has made no other."""
    return bucketed(rows, capacity) if is_on(device) else (rows, capacity)


def bucketed(rows: int, capacity: int) -> tuple[int, int]:
    """The rows and slots of buffers for recordings, with a slot more for queries that only pad a bucket."""
    return power_of_two(rows), round_up(capacity + 1, CAPACITY_BUCKET)


def is_on(device: torch.device) -> bool:
    """Whether calls with a model on this device run the padded steps that a GPU records."""
    return _switch.mode == "on" or (_switch.mode == "auto" and device.type == "cuda")


def round_up(value: int, bucket: int) -> int:
    """The smallest multiple of `bucket` that is at least `value`."""
    return -(-value // bucket) * bucket


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
