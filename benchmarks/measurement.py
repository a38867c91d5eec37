"""Time decoding beside its roofline: latency, forwards, memory; how the cost of a block grows; where the time goes.

Everything is timed in one process, warm, with the device synchronised at both ends. All rows take turns, several times
over, so that a machine whose speed changes treats them alike. Weights may be random: time does not depend on them.

Imported by bench.py: python run.py bench --help
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.progress import Progress
from benchmarks.rooflines import Forward, ObservedModel, Products, bytes_read, copy_bandwidth, timed
from benchmarks.workload import Workload
from dpad.engine import cuda_graphs, loading
from dpad.engine.checks import check_integer
from dpad.engine.completion import synchronize
from dpad.engine.configurations import VANILLA, Configuration
from dpad.engine.decoding import DecodingOutput, decode
from dpad.engine.memory import free_memory
from dpad.engine.pretrained import PretrainedDiffusionModel
from dpad.engine.settings import DecodingSettings, TokenIds
from dpad.engine.unmasking import UnmaskingRule
from dpad.results.records import environment

# Shapes for random weights: the family, and what differs from its configuration's defaults, which are the real models'.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "8b": ("llada", {}),
    "7b": ("dream", {}),
    "small": ("llada", {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 1536}),
    "small-dream": ("dream", {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
                              "num_key_value_heads": 2, "intermediate_size": 1536}),
}


HEADROOM = 1.1  # of memory: more than the weights alone


@dataclass(frozen=True)
class Subject:
    """The model that is timed, and what records call it."""

    name: str
    model: PretrainedDiffusionModel
    family: loading.Family


def make_subject(name: str, device: str | None, dtype: str | None, adapter: str | None = None) -> Subject:
    """A model to time: a shape of SHAPES with random weights, or what `loading.load` takes.

    Raises:
        ValueError: see `loading.load`; or random weights do not fit the device's memory.
    """
    if name not in SHAPES:
        try:
            loading.resolve(name)
        except ValueError as error:
            names = f"{', '.join(SHAPES)} (random weights), "
            raise ValueError(str(error).replace("it must be ", f"it must be {names}")) from None
        loaded = loading.load(name, device=device, dtype=dtype, adapter=adapter)
        return Subject(loaded.name, loaded.pretrained, loaded.family)
    if adapter is not None:
        raise ValueError(f"adapter is {adapter!r}, but {name} has random weights; give the model that it is for")

    torch_device, torch_dtype = loading.placement(device, dtype)
    family_name, shape = SHAPES[name]
    family = loading.FAMILIES[family_name]
    model_class: Any = family.model
    config = model_class.config_class(**shape)
    with torch.device("meta"):  # takes no memory
        weights = [w.numel() for w in model_class._from_config(config, dtype=torch_dtype).parameters()]
    check_memory(name, sum(weights), torch_dtype, torch_device)
    torch.manual_seed(0)
    with torch.device(torch_device):
        model = model_class._from_config(config, dtype=torch_dtype).eval()
    return Subject(name, model, family)


def check_memory(name: str, weights: int, dtype: torch.dtype, device: torch.device) -> None:
    """Say how much memory so many weights take, where it is much. Raises ValueError where the device has too little."""
    needed = weights * dtype.itemsize
    free = free_memory(device)
    dtype_name = str(dtype).removeprefix("torch.")
    if free is not None and HEADROOM * needed > free:
        raise ValueError(f"model is {name!r}, whose {weights / 1e9:.1f} billion weights take {needed / 2**30:.1f} GB "
                         f"in {dtype_name}; {device} has {free / 2**30:.1f} GB free, so it must be a smaller model, "
                         "another device or a smaller --dtype")
    if needed > 2**30:
        print(f"{name}: making {weights / 1e9:.1f} billion random weights, {needed / 2**30:.1f} GB in {dtype_name} on "
              f"{device}", file=sys.stderr, flush=True)


# --- One run ----------------------------------------------------------------------------------------------------------


class EndingRule(UnmaskingRule):
    """Another rule whose answers have a known length: every token of the block `last` is EOS, and none before it.

    last: counted from 0; None for answers that never end.
    """

    def __init__(self, rule: UnmaskingRule, last: int | None) -> None:
        super().__init__(rule.settings, rule.tokens)
        self.rule = rule
        self.last = last
        self.block = 0
        self.other_id = next(token for token in range(3) if token not in (rule.tokens.eos, rule.tokens.mask))

    def begin_block(self, block: int, kept: Tensor | None = None) -> None:
        self.block = block
        self.rule.begin_block(block, kept)

    def opens(self, step: int) -> bool:
        return self.rule.opens(step)

    def quota(self, step: int, left: int) -> int | None:
        return self.rule.quota(step, left)

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        tokens, confidence = self.rule.candidates(logits, columns, step, generator)
        if self.block == self.last:
            return torch.full_like(tokens, self.tokens.eos), confidence
        return tokens.masked_fill(tokens == self.tokens.eos, self.other_id), confidence

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator,
               entropy: Tensor | None = None) -> Tensor:
        return self.rule.choose(confidence, quota, generator, entropy)


def run(subject: Subject, configuration: Configuration, work: Workload,
        on_forward: Callable[[int, bool], None] | None = None, model: Any = None) -> DecodingOutput:
    """Decode the workload once, in one configuration.

    on_forward: see `decode`. model: stands in for the subject's own, such as an ObservedModel.
    """
    settings = decoding_settings(subject.family, configuration, work)
    rule = subject.family.rule(settings, TokenIds.of(subject.model))
    ends = configuration.early_termination and work.blocks is not None
    rule = EndingRule(rule, work.blocks - 1 if ends else None)  # type: ignore[operator]
    return decode(model or subject.model, rule, prompt_of(subject, work), on_forward=on_forward)


def prompt_of(subject: Subject, work: Workload) -> Tensor:
    """The prompts of a workload, int64 [R, P]: random tokens of the subject's vocabulary, on its device."""
    generator = torch.Generator().manual_seed(work.seed)
    shape = (work.batch_size, work.prompt_length)
    prompt = torch.randint(3, subject.model.vocabulary_size - 3, shape, generator=generator)
    return prompt.to(subject.model.device)


def decoding_settings(family: loading.Family, configuration: Configuration, work: Workload) -> DecodingSettings:
    """How a configuration decodes a workload."""
    threshold = work.threshold if configuration.parallel else None
    blocks = work.gen_length // work.block_length
    steps_per_block = work.steps_per_block if configuration.parallel else work.block_length
    return family.settings(
        gen_length=work.gen_length,
        block_length=work.block_length,
        steps=None if threshold else blocks * steps_per_block,
        threshold=threshold,
        cache=configuration.cache,
        suffix_sampler=work.sampler if configuration.dpad else None,
        early_termination=configuration.early_termination,
        seed=work.seed,
    )


class Clock:
    """Times the forwards of a run, or its blocks: `decode` calls it as `on_forward`. It waits for the device each time.

    blocks_only: note the first forward of each block and nothing else, so that the others are not slowed down.
    """

    def __init__(self, device: torch.device, blocks_only: bool = False) -> None:
        self.device = device
        self.blocks_only = blocks_only
        self.marks: list[tuple[float, bool]] = []

    def __call__(self, block: int, first: bool) -> None:
        if first or not self.blocks_only:
            synchronize(self.device)
            self.marks.append((time.perf_counter(), first))

    def stop(self) -> None:
        """Call this at the end of the run, before `seconds`."""
        self(-1, True)

    def seconds(self, first: bool) -> list[float]:
        """The time from each mark to the next: of first forwards (or whole blocks), or of the other forwards."""
        pairs = itertools.pairwise(self.marks)
        return [after - before for (before, is_first), (after, _) in pairs if is_first == first]

    def median_ms(self, first: bool) -> float | None:
        """The median of `seconds` in milliseconds; None where there are none."""
        times = self.seconds(first)
        return 1000 * statistics.median(times) if times else None


def run_clocked(subject: Subject, configuration: Configuration, work: Workload,
                model: Any = None) -> tuple[DecodingOutput, dict[str, float | None]]:
    """Decode once; also return the median times of a forward in milliseconds.

    These are `full_ms`, of the forwards that compute every slot, and `cached_ms`, of the others (None without a cache).
    """
    clock = Clock(subject.model.device)
    output = run(subject, configuration, work, on_forward=clock, model=model)
    clock.stop()
    first = clock.median_ms(first=True)
    later = clock.median_ms(first=False)
    if configuration.cache == "none":  # the first forward of a block is like the others
        return output, {"full_ms": later, "cached_ms": None}
    return output, {"full_ms": first, "cached_ms": later}


# --- Peak memory ------------------------------------------------------------------------------------------------------


def reset_peak_memory(device: torch.device) -> None:
    """Start measuring anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # not Linux


def peak_memory(device: torch.device) -> int | None:
    """Bytes since `reset_peak_memory`: allocated on the GPU; on the CPU, of the whole process (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


# --- The benchmark ----------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """A configuration with a workload, and what was measured of it: `result` becomes a row of the record."""

    name: str
    configuration: Configuration
    work: Workload
    forwards: list[Forward] = field(default_factory=list)
    sequences: Tensor = field(default_factory=lambda: torch.empty(0))  # [R, P + G], of the first run
    result: dict[str, Any] = field(default_factory=dict)


def measure(subject: Subject, rows: Mapping[str, Configuration], workloads: Sequence[Workload], repeats: int,
            command: str) -> dict:
    """Time rows and their rooflines in turn, `repeats` times, after a first run of each that sees its forwards.

    Args:
        workloads: what every row decodes; they differ in batch_size alone.

    Returns:
        A record of kind "benchmark". Each of its `rows` (every row with the first work, then with the next) has the
        row's settings and `batch_size`; `latency_s` and `floor_s` (the roofline), one number a repeat, of the whole
        batch; `ratio`, the median of their quotients; `speedup` over vanilla decoding with the first work, for each
        answer of a batch (None where it is not among the rows); `same_tokens`, whether the batch's first answer is the
        one that the row gave with the first work; `replayed`, for rows with a cache and on a GPU, the share of tokens
        that are the same when steps run warm, on a GPU as graphs;
        `forwards`, `tokens_processed`, `kept_suffix` (mean a block); `full_ms` and `cached_ms`, see `run_clocked`;
        `peak_memory` in bytes, of a run without graphs; `read_s`, the roofline of memory, on a GPU.

    Raises:
        ValueError: repeats below 1; settings that cannot be used.
    """
    check_integer("repeats", repeats, 1)
    device = subject.model.device
    on_gpu = device.type == "cuda"
    products = Products(subject.model)
    bandwidth = copy_bandwidth(device) if on_gpu else None
    warm_ups = 2 if on_gpu else 1  # buffers are allocated; graphs are recorded, then replayed
    cells = [Cell(name, configuration, work) for work in workloads for name, configuration in rows.items()]
    warmed = [cell for cell in cells if on_gpu or cell.configuration.cache != "none"]
    with Progress(len(cells) * (1 + repeats) + len(warmed) * warm_ups, "run") as progress:
        for cell, reference in zip(cells, itertools.cycle(cells[: len(rows)])):
            progress.announce(f"{cell.name}, batch size {cell.work.batch_size}: first run")
            run_first(subject, cell)
            cell.result |= {
                "same_tokens": bool((cell.sequences[0] == reference.sequences[0]).all()),
                "replayed": None,
                "read_s": bytes_read(subject.model, products, cell.forwards) / bandwidth if bandwidth else None,
                "latency_s": [],
                "floor_s": [],
            }
            progress.advance()

        # The largest batch first: when buffers grow, their graphs are lost.
        for cell in sorted(warmed, key=lambda cell: -cell.work.batch_size):
            progress.announce(f"{cell.name}, batch size {cell.work.batch_size}: warm-up")
            for _ in range(warm_ups):
                output, times = run_clocked(subject, cell.configuration, cell.work)
                same = output.sequences == cell.sequences
                cell.result |= times | {"replayed": same[:, cell.work.prompt_length :].float().mean().item()}
                progress.advance()

        for repeat in range(1, repeats + 1):
            progress.announce(f"timing every row, {repeat} of {repeats}")
            for cell in cells:
                cell.result["latency_s"].append(timed(device, run, subject, cell.configuration, cell.work))
                cell.result["floor_s"].append(products.seconds(cell.forwards))
                progress.advance()

    results = [cell.result for cell in cells]
    baseline = next((result for result in results if result["name"] == VANILLA.name), None)
    for result in results:
        result["ratio"] = median_quotient(result["latency_s"], result["floor_s"])
        result["speedup"] = result["floor_speedup"] = None
        if baseline:
            larger = result["batch_size"] / baseline["batch_size"]
            result["speedup"] = larger * median_quotient(baseline["latency_s"], result["latency_s"])
            result["floor_speedup"] = larger * median_quotient(baseline["floor_s"], result["floor_s"])
    return describe("benchmark", subject, workloads[0], command, bandwidth=bandwidth, repeats=repeats, rows=results)


def run_first(subject: Subject, cell: Cell) -> None:
    """Run a cell once, without graphs: note its forwards and tokens, what it does, and how much memory it needs."""
    cuda_graphs.forget()  # the buffers of other rows do not count
    reset_peak_memory(subject.model.device)
    observed = ObservedModel(subject.model)
    with cuda_graphs.use("off"):
        output, times = run_clocked(subject, cell.configuration, cell.work, model=observed)

    configuration = cell.configuration
    cell.forwards = observed.forwards
    cell.sequences = output.sequences
    cell.result = {
        "name": cell.name,
        "dpad": configuration.dpad,
        "cache": configuration.cache,
        "parallel": configuration.parallel,
        "stops": configuration.early_termination,
        **times,
        "batch_size": cell.work.batch_size,
        "forwards": len(observed.forwards),
        "tokens_processed": output.tokens_processed,
        "kept_suffix": statistics.fmean(map(len, output.kept_suffix)),
        "blocks": len(output.kept_suffix),
        "peak_memory": peak_memory(subject.model.device),
    }


def median_quotient(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the repeats of one time over another."""
    return statistics.median(a / b for a, b in zip(above, below))


def growth(subject: Subject, rows: Mapping[str, Configuration], workloads: Sequence[Workload], repeats: int,
           command: str) -> dict:
    """Time the first blocks of answers of growing length: what the same block costs in a longer answer.

    Args:
        workloads: of any answer lengths, with the same `blocks`.

    Returns:
        A record of kind "growth", whose `rows` have `name`, `gen_length` and `block_s`: for each block the seconds of
        every repeat.

    Raises:
        ValueError: repeats below 1; settings that cannot be used.
    """
    check_integer("repeats", repeats, 1)
    cells = [Cell(name, dataclasses.replace(configuration, early_termination=True), work)
             for name, configuration in rows.items() for work in workloads]
    with Progress(len(cells) * (1 + repeats), "run") as progress:
        for repeat in range(1 + repeats):  # the first one warms up
            if repeat:
                progress.announce(f"timing every row, {repeat} of {repeats}")
            for cell in cells:
                if not repeat:
                    progress.announce(f"{cell.name}, G = {cell.work.gen_length}: first run")
                clock = Clock(subject.model.device, blocks_only=True)
                run(subject, cell.configuration, cell.work, on_forward=clock)
                clock.stop()
                if not repeat:
                    cell.result = {"name": cell.name, "gen_length": cell.work.gen_length,
                                   "block_s": [[] for _ in clock.seconds(first=True)]}
                else:
                    for block, seconds in zip(cell.result["block_s"], clock.seconds(first=True), strict=True):
                        block.append(seconds)
                progress.advance()
    return describe("growth", subject, workloads[-1], command, repeats=repeats, rows=[cell.result for cell in cells])


def describe(kind: str, subject: Subject, work: Workload, command: str, **measured: Any) -> dict:
    """A record: what was measured, and with what."""
    placement = {"device": str(subject.model.device), "dtype": str(subject.model.dtype).removeprefix("torch.")}
    return {
        "kind": kind,
        "model": subject.name,
        "command": command,
        "settings": work.to_json() | placement,
        **measured,
        "environment": environment(),
    }


def profile(subject: Subject, name: str, configuration: Configuration, work: Workload, max_lines: int = 12) -> str:
    """Where the time of one warm run goes: the operators that take the most time themselves, as a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    device = subject.model.device
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    run(subject, configuration, work)
    with profiler(activities=activities) as profiled:
        seconds = timed(device, run, subject, configuration, work)

    own_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, own_time))
    total = sum(getattr(event, own_time) for event in events) or 1
    lines = [f"{name}: {seconds:.3f} s with the profiler on. Time in each operator itself, on the "
             f"{'GPU' if on_gpu else 'CPU'}:"]
    for event in events[:max_lines]:
        own = getattr(event, own_time)
        lines.append(f"  {own / total:6.1%}  {own / 1000:9.1f} ms  {event.count:7d} ×  {event.key}")
    return "\n".join(lines)
