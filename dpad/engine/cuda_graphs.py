"""Cached steps as graphs: recorded once for a shape, launched as one from then on.

A step that recomputes only a block, or a block and its kept suffix, is a thousand small kernels. At batch 1 a GPU has
done each before the processor has launched the next, so on CUDA such steps are replayed from a recording, in which
every shape and address is fixed: queries, keys and rows are padded up to a bucket, and what varies (which slots are
written, which may be attended to) is in tensors. The first time that a shape is met it runs as it is, the second time
it is recorded. Imported by decoding.py, never run; on by itself on CUDA and nowhere else:

    with graphs.use("off"):        # or "on": everywhere; on the CPU the padded steps then run without a recording,
        generate(...)              # which is how tests compare them with the plain ones
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dpad.engine.transformer import MaskedDiffusionModel, SlotCache

MODES = ("auto", "on", "off")
QUERY_BUCKET, KEY_BUCKET = 16, 128
CAPACITY_BUCKET = 512  # of the buffers: coarse, because larger ones start anew with recording
MOST_GRAPHS = 64  # of one model; the one that was not used for longest makes room
_mode = "auto"
_recording = threading.Lock()  # a process may record one graph at a time


@contextmanager
def use(mode: str) -> Iterator[None]:
    """Choose one of MODES for the calls inside."""
    global _mode
    if mode not in MODES:
        raise ValueError(f"graphs is {mode!r}; it must be one of {', '.join(MODES)}")
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


@contextmanager
def slot_cache(model: MaskedDiffusionModel, rows: int, capacity: int) -> Iterator[SlotCache]:
    """A cache of `capacity` slots in `rows` rows, for one generate call: with graphs where they are on.

    A model has one cache of each kind, whose buffers stay from call to call; a second call at the same time (in another
    thread) gets one of its own.
    """
    graphed = _mode == "on" or (_mode == "auto" and model.device.type == "cuda")
    kind = GraphedCache if graphed else LentCache
    cache = _caches.setdefault(model, {}).setdefault(kind, kind())
    if not cache.lock.acquire(blocking=False):
        yield SlotCache(model, rows, capacity)
        return
    try:
        cache.fit(model, rows, capacity)
        yield cache
    finally:
        cache.lock.release()


def forget() -> None:
    """Give up the buffers and graphs of all models; those of calls that are running go when these end."""
    _caches.clear()


@dataclass
class Step:
    """A step of fixed shape: inputs that are filled before a run, an output that is valid until the next run.

    ids, positions: int64 [R, Q]. places: int64 [Q], the slots that the queries are. key_mask: bool [R, S], the slots
    that may be attended to. hidden: [R, Q, E]. filled: the cache's `version` that all inputs but ids belong to.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    key_mask: Tensor
    hidden: Tensor | None = None
    replay: Callable[[], None] | None = None
    runs: int = 0
    filled: int = -1


class LentCache(SlotCache):
    """A cache that one call after the other uses; its buffers are allocated anew for a call that they do not hold."""

    def __init__(self):
        self.lock = threading.Lock()
        self.buffer: Tensor | None = None
        self.rows = self.length = 0

    def fit(self, model: MaskedDiffusionModel, rows: int, capacity: int) -> None:
        """Make room for a call."""
        found = self.buffer
        if found is not None and (found.dtype, found.device) == (model.dtype, model.device):
            if rows <= found.shape[2] and capacity <= found.shape[4]:
                return
        self.buffer = found = None  # the old one goes before the new one comes
        self.buffer = self.allocate(model, rows, capacity)


class GraphedCache(LentCache):
    """A cache whose steps after the first of a block run over fixed shapes, on CUDA as replayed graphs.

    The last slot of the buffers is for what must be written somewhere: queries that only fill up a bucket.
    """

    def __init__(self):
        super().__init__()
        self.weights = None
        self.stream = None  # of recordings
        self.steps: OrderedDict[tuple[int, int, int], Step] = OrderedDict()
        self.version = 0
        self.window: tuple[int, int] | None = None  # rows and slots of the step that is running, both bucketed
        self.pool = None

    def fit(self, model: MaskedDiffusionModel, rows: int, capacity: int) -> None:
        """Make room for a call; graphs and buffers are kept if it fits and the weights are where they were."""
        rows, capacity = power_of_two(rows), up_to(capacity + 1, CAPACITY_BUCKET)
        weights = (model.dtype, *(weight.data_ptr() for weight in model.parameters()))
        if weights == self.weights and rows <= self.buffer.shape[2] and capacity <= self.buffer.shape[4]:
            return
        if weights == self.weights:
            # Room for the calls before as well, so that calls of two shapes do not start anew in turn; but many short
            # rows and a few long ones must not become many long ones.
            held = self.buffer.shape[2] * self.buffer.shape[4]
            both = max(rows, self.buffer.shape[2]), max(capacity, self.buffer.shape[4])
            if both[0] * both[1] <= 2 * max(held, rows * capacity):
                rows, capacity = both
        self.steps.clear()
        self.weights = self.pool = self.buffer = None  # the old buffers go before the new ones come
        self.buffer = self.allocate(model, rows, capacity).zero_()  # slots behind the mask must not hold NaN
        self.weights = weights  # not before: where memory runs out, there are no buffers

    def begin(self, rows: int, length: int) -> None:
        super().begin(rows, length)
        self.version += 1
        # A step reads up to its bucket's end. What lies there is masked, but by adding -inf: NaN would come through.
        self.buffer[:, :, :rows, :, length : up_to(length, KEY_BUCKET)] = 0

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self.version += 1

    def write(self, layer: int, start: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.window is None:
            return super().write(layer, start, keys, values)
        rows, length = self.window
        stored = self.buffer[layer, :, :rows]
        stored[0].index_copy_(2, start, keys)
        stored[1].index_copy_(2, start, values)
        return stored[0, :, :, :length], stored[1, :, :, :length]

    def forward(self, model: MaskedDiffusionModel, ids: Tensor, positions: Tensor, key_mask: Tensor | None,
                start: int) -> Tensor:
        if start == 0:  # a block's first step computes every slot: few large kernels, of a new shape in every block
            return super().forward(model, ids, positions, key_mask, start)
        rows, count = ids.shape
        step = self._step(rows, count)
        if step.filled != self.version:
            self._fill(step, positions, key_mask, start)
        step.ids[:rows, :count] = ids
        if step.replay is not None:
            step.replay()
        elif step.runs and ids.is_cuda:
            self._record(model, step)
        else:
            self._run(model, step)
        step.runs += 1
        return step.hidden[:rows, :count]

    def _step(self, rows: int, count: int) -> Step:
        """The step whose shape is large enough; a new one where there is none yet."""
        capacity = self.buffer.shape[4]
        rows, queries = min(power_of_two(rows), self.buffer.shape[2]), up_to(count, QUERY_BUCKET)
        slots = min(up_to(self.length, KEY_BUCKET), capacity)
        step = self.steps.get((rows, queries, slots))
        if step is None:
            if len(self.steps) == MOST_GRAPHS:
                self.steps.popitem(last=False)
                if not any(step.replay for step in self.steps.values()):
                    self.pool = None  # it went with the last recording
            device = self.buffer.device
            with torch.inference_mode(False):  # it stays for calls that are not in that mode
                step = self.steps[rows, queries, slots] = Step(
                    ids=torch.zeros(rows, queries, dtype=torch.long, device=device),
                    positions=torch.zeros(rows, queries, dtype=torch.long, device=device),
                    places=torch.zeros(queries, dtype=torch.long, device=device),
                    key_mask=torch.zeros(rows, slots, dtype=torch.bool, device=device),
                )
        self.steps.move_to_end((rows, queries, slots))
        return step

    def _fill(self, step: Step, positions: Tensor, key_mask: Tensor | None, start: int) -> None:
        """Set everything that stays for the rest of a block, or until rows leave."""
        rows, count = positions.shape
        step.positions[:rows, :count] = positions
        step.places.fill_(self.buffer.shape[4] - 1)
        step.places[:count] = torch.arange(start, start + count, device=step.places.device)
        step.key_mask.zero_()
        step.key_mask[:rows, : self.length] = True if key_mask is None else key_mask
        step.key_mask[rows:, 0] = True  # a row that only fills up the bucket attends to something: no NaN
        step.filled = self.version

    def _run(self, model: MaskedDiffusionModel, step: Step) -> None:
        self.window = step.key_mask.shape
        try:
            step.hidden = model.hidden_states(step.ids, step.positions, step.key_mask, self, step.places)
        finally:
            self.window = None

    def _record(self, model: MaskedDiffusionModel, step: Step) -> None:
        graph, device = torch.cuda.CUDAGraph(), step.ids.device
        if self.stream is None:
            self.stream = torch.cuda.Stream(device)
        # thread_local: what other threads do on the GPU meanwhile is not this recording's business.
        with _recording, torch.cuda.device(device), torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            self._run(model, step)
        self.pool, step.replay = graph.pool(), graph.replay
        step.replay()  # recording computed nothing


# By model and kind; no cache refers to its model.
_caches: WeakKeyDictionary[MaskedDiffusionModel, dict[type, LentCache]] = WeakKeyDictionary()


def up_to(value: int, bucket: int) -> int:
    """The smallest multiple of `bucket` that is at least `value`."""
    return -(-value // bucket) * bucket


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()
