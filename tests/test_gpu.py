"""How often decoding waits for the device: once at a cached step at most.

    bash tests/run.sh tests/test_gpu.py

A wait empties the queue of kernels, and at batch 1 a GPU is idle until the processor has filled it again. On a GPU
torch itself reports the waits; without one those tests are skipped, and the calls that would wait are counted instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import prompts_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpad.engine import cuda_graphs
from dpad.engine.decoding import decode
from dpad.engine.loading import load
from dpad.engine.settings import TokenIds
from dpad.engine.soft import SoftSuffix
from llada.generate import LLaDARule, LLaDASettings
from sampler import GaussianSampler

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PROMPTS = [f"Tom has {bags} bags with 4 apples each. How many apples does Tom have?" for bags in range(2, 6)]
OPTIONS = {"gen_length": 64, "block_length": 16, "suffix_sampler": GaussianSampler(48, 3, 1.6)}


class Waits:
    """How many waits each cached step took, given a function that tells how many there have been so far.

    Pass `on_forward` to decode, which calls it right before each forward. What happens between two forwards of one
    block belongs to the step of the first one; a block's last step is left out, because the block's end follows it.
    """

    def __init__(self, count: Callable[[], int]):
        self.count = count
        self.forwards: list[tuple[int, bool, int]] = []  # block, whether it is the block's first, waits before it

    def on_forward(self, block: int, first: bool) -> None:
        self.forwards.append((block, first, self.count()))

    def of_cached_steps(self) -> list[int]:
        steps = zip(self.forwards, self.forwards[1:])
        return [after - before for (block, first, before), (next_block, _, after) in steps
                if block == next_block and not first]


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@contextmanager
def reported_waits() -> Iterator[Callable[[], int]]:
    """A function that tells how many synchronising operations torch has reported inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["tiny", "dream-tiny"])
def test_a_cached_step_waits_at_most_once(name, cache, rows):
    """Guards the speed on a GPU: the step asks once which masks are left, and for nothing else."""
    loaded = load(name, device="cuda")
    batch = loaded.encode(PROMPTS[:rows])
    options = OPTIONS | {"cache": cache, "threshold": 1.0}  # which decodes about one token a step
    for _ in range(2):  # a shape runs as it is at first, and is recorded when it is met again
        loaded.generate(**batch, **options)
    torch.cuda.synchronize()
    with reported_waits() as count:
        waits = Waits(count)
        loaded.generate(**batch, **options, on_forward=waits.on_forward)
    assert count() > 0, "torch reported no wait at all"
    assert waits.of_cached_steps() and max(waits.of_cached_steps()) <= 1


@pytest.mark.gpu
@needs_gpu
def test_torch_reports_waits():
    """Guards the test above: reading a value from the device is reported, computing there is not."""
    values = torch.arange(8, device="cuda")
    torch.cuda.synchronize()
    with reported_waits() as count:
        total = (values * 2).sum()
        assert count() == 0
        total.item()
        assert count() == 1
        values.tolist()
        assert count() == 2


# --- On the CPU -------------------------------------------------------------------------------------------------------


class _Reads(TorchDispatchMode):
    """Counts operations that make the processor wait for a value, or for a shape, from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name == "index" else ()
        by_mask = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        self.count += by_mask or name in self.WAITING
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_reads() -> Iterator[Callable[[], int]]:
    """A function that tells how many reads there have been inside, `tolist`, `cpu` and `numpy` included."""
    with _Reads() as reads, pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            original = getattr(Tensor, name)

            def read(tensor: Tensor, *args, _original: Callable = original, **kwargs):
                reads.count += 1
                return _original(tensor, *args, **kwargs)

            patch.setattr(Tensor, name, read)
        yield lambda: reads.count


@pytest.mark.parametrize("graphs", ["off", "on"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("schedule, expected", [
    ({"threshold": 0.9}, 1), ({"factor": 0.5}, 1), ({"steps": 16}, 0), ({"steps": 16, "soft_suffix": SoftSuffix()}, 0)])
def test_a_cached_step_reads_at_most_once(random_llada, graphs, cache, schedule, expected):
    """Guards the same where no GPU is: one read at a step with a threshold, none under a fixed schedule."""
    rule = LLaDARule(LLaDASettings(**OPTIONS, cache=cache, **schedule), TokenIds.of(random_llada))
    with cuda_graphs.use(graphs), counted_reads() as count:
        waits = Waits(count)
        decode(random_llada, rule, prompts_of([21])[0][None], on_forward=waits.on_forward)
    assert len(waits.of_cached_steps()) >= 6
    assert max(waits.of_cached_steps()) == expected


def test_reads_are_counted():
    """Guards the test above: each way of reading is one read, and computing is none."""
    values = torch.arange(8)
    with counted_reads() as count:
        values = values * 2
        values[torch.tensor([1, 2])] = 3
        assert count() == 0
        for number, read in enumerate([values.tolist, values.cpu, values.sum().item, values.nonzero,
                                       lambda: values[values > 3], lambda: bool(values.any())], start=1):
            read()
            assert count() == number
