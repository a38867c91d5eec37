"""Time decoding against the matrix products that it cannot do without: latency, forwards, memory, and that floor.

    python run.py bench                                            # `small` on the CPU: six settings
    python run.py bench -m 8b --prompt_length 200 -l 1024 --steps_per_block 10 --rows figure --blocks 5      # on a GPU
    python run.py bench --gen_lengths 256,512,1024,2048            # how the cost of a block grows with the answer
    python run.py bench -m tiny --batch_size 1,8                   # what batches gain
    python run.py bench --profile +DPad                            # where the time goes

Weights are random: time does not depend on them, and no checkpoint is needed. Everything is timed in one process, warm,
the device synchronised at both ends, all settings in turn and that several times over, so that a machine whose speed
wanders does so for all of them alike.

*The floor* of a run is the time of its weight products alone: the same forwards, each only as its linear layers, on the
same device and in the same process. Of very many forwards that are all alike a part is timed. On a GPU a second floor
is the time to read the weights and the cached keys and values once a forward, at the bandwidth that a large copy
reaches there.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm import tqdm

from dpad.engine import cuda_graphs, loading
from dpad.engine.decoding import DecodingOutput, DecodingSettings, UnmaskingRule, check_number, decode
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results.records import environment
from sampler import GaussianSampler, SuffixSampler

# Shapes with random weights: family and what differs from its configuration's defaults, which are the real models'.
SHAPES = {
    "8b": ("llada", {}),
    "7b": ("dream", {}),
    "small": ("llada", {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_hidden_size": 1536}),
}
FLOOR_FORWARDS = 64  # of one kind are timed for the floor, and stand for all
COPY_BYTES = 2**30  # of the copy that measures a GPU's bandwidth


@dataclass(frozen=True)
class Row:
    """One setting of the table. parallel: several tokens a forward, as --steps_per_block or --threshold say, else one.
    stops: the answer ends, and decoding with it, after --blocks blocks."""

    name: str
    dpad: bool = False
    cache: str = "none"
    parallel: bool = True
    stops: bool = False


ROWS = {
    # What suffix dropout and the caches do to the same forwards.
    "caches": (
        Row("Vanilla"), Row("+PrefixCache", cache="prefix"), Row("+DualCache", cache="dual"), Row("+DPad", dpad=True),
        Row("+PrefixCache+DPad", dpad=True, cache="prefix"), Row("+DualCache+DPad", dpad=True, cache="dual"),
    ),
    # The paper's figure for long sequences.
    "figure": (
        Row("Vanilla", parallel=False), Row("Vanilla+EarlyTermination", parallel=False, stops=True),
        Row("+DPad", dpad=True, parallel=False, stops=True), Row("+Parallel"),
        Row("+Parallel+DPad", dpad=True, stops=True), Row("+Parallel+PrefixCache", cache="prefix"),
        Row("+Parallel+PrefixCache+DPad", dpad=True, cache="prefix", stops=True),
    ),
}


def choose_rows(table: str, names: Sequence[str] | None) -> list[Row]:
    """The rows of a table of ROWS, or those of these names in this order.

    Raises:
        ValueError: the table has no row of such a name.
    """
    by_name = {row.name: row for row in ROWS[table]}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"row is {name!r}; the rows of {table} are {', '.join(by_name)}")
    return list(by_name.values()) if names is None else [by_name[name] for name in names]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every row decodes. blocks: after how many the answer ends, for rows that stop (None: none does)."""

    prompt_length: int = 128
    gen_length: int = 256
    block_length: int = 32
    steps_per_block: int = 4
    threshold: float | None = None
    batch_size: int = 1
    blocks: int | None = None
    sampler: SuffixSampler = GaussianSampler(256, 3, 1.6)
    seed: int = 1234

    def __post_init__(self):
        for name in ("prompt_length", "gen_length", "block_length", "steps_per_block", "batch_size", "blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.gen_length % self.block_length:
            raise ValueError(f"block_length is {self.block_length}; it must divide gen_length ({self.gen_length})")
        if self.steps_per_block > self.block_length:
            raise ValueError(f"steps_per_block is {self.steps_per_block}; it must be at most one a token "
                             f"({self.block_length})")
        if self.blocks is not None and self.blocks > self.gen_length // self.block_length:
            raise ValueError(f"blocks is {self.blocks}; an answer of {self.gen_length} tokens has only "
                             f"{self.gen_length // self.block_length}")
        if self.threshold is not None:
            check_number("threshold", self.threshold, 0, 1)
        self.sampler.check(self.gen_length)


# --- The model and one run --------------------------------------------------------------------------------------------


def make_model(name: str, device: str | None, dtype: str | None) -> tuple[MaskedDiffusionModel, loading.Family]:
    """A model to time: a shape of SHAPES with random weights, or any checkpoint that loading.load takes.

    Raises:
        ValueError: as `loading.load`.
    """
    if name not in SHAPES:
        try:
            loading.resolve(name)
        except ValueError as error:
            names = f"{', '.join(SHAPES)} (random weights), "
            raise ValueError(str(error).replace("it must be ", f"it must be {names}")) from None
        loaded = loading.load(name, device=device, dtype=dtype)
        return loaded.model, loading.FAMILIES[loaded.family]
    where, kind = loading.placement(device, dtype)
    key, shape = SHAPES[name]
    family = loading.FAMILIES[key]
    package = import_module(family.package)
    model_class = getattr(package, family.model_class)
    torch.manual_seed(0)
    with torch.device(where):
        return model_class._from_config(model_class.config_class(**shape), dtype=kind).eval(), family


class EndingRule(UnmaskingRule):
    """Another rule, with EOS for every token of the `last` block (from 0) and for none before: known answer lengths.

    clock: called at the start of every step that makes a forward, with whether it is the block's first.
    """

    def __init__(self, rule: UnmaskingRule, settings: DecodingSettings, last: int | None,
                 clock: Callable[[bool], None] | None):
        self.rule, self.last, self.block, self.eos_id = rule, last, -1, settings.eos_id
        self.clock, self.first = clock, True
        self.other_id = next(token for token in range(3) if token not in (settings.eos_id, settings.mask_id))

    def opens(self, step: int) -> bool:
        return self.rule.opens(step)

    def quota(self, step: int, left: int) -> int | None:
        if step == 0:
            self.block, self.first = self.block + 1, True
        quota = self.rule.quota(step, left)
        if self.clock is not None and quota != 0:
            self.clock(self.first)
            self.first = False
        return quota

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        tokens, confidence = self.rule.candidates(logits, columns, step, generator)
        if self.block == self.last:
            return torch.full_like(tokens, self.eos_id), confidence
        return tokens.masked_fill(tokens == self.eos_id, self.other_id), confidence

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator) -> Tensor:
        return self.rule.choose(confidence, quota, generator)


def run(model: MaskedDiffusionModel, family: loading.Family, row: Row, work: Workload, streamer=None,
        clock: Callable[[bool], None] | None = None) -> DecodingOutput:
    """Decode the workload once, as a row does. clock: see EndingRule."""
    per_block = work.steps_per_block if row.parallel and work.threshold is None else work.block_length
    settings = DecodingSettings.for_model(
        model, None, None, gen_length=work.gen_length, block_length=work.block_length, cache=row.cache,
        steps=work.gen_length // work.block_length * per_block, early_termination=row.stops, seed=work.seed,
        suffix_sampler=work.sampler if row.dpad else None,
    )
    rule = family.import_rule()(settings, threshold=work.threshold if row.parallel else None)
    rule = EndingRule(rule, settings, work.blocks - 1 if row.stops and work.blocks else None, clock)
    prompt = torch.randint(3, model.vocabulary_size - 3, (work.batch_size, work.prompt_length),
                           generator=torch.Generator().manual_seed(work.seed))
    return decode(model, rule, prompt.to(model.device), None, settings, streamer)


# --- The floor --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forward:
    """What a forward computed: `slots` (rows times queries), `keys` attended to, `logits` asked of the head."""

    slots: int
    keys: int
    logits: int


@contextmanager
def watched(model: MaskedDiffusionModel) -> Iterator[list[Forward]]:
    """Collect the forwards that the model makes, without padding: graphs are off."""
    forwards: list[Forward] = []
    hidden_states, head = model.hidden_states, model.head
    shape = {}

    def seen_hidden_states(ids, positions, key_mask=None, cache=None, start=0):
        shape.update(slots=ids.numel(), keys=len(ids) * (ids.shape[1] if cache is None else cache.length))
        return hidden_states(ids, positions, key_mask, cache, start)

    def seen_head(hidden):
        forwards.append(Forward(**shape, logits=hidden.numel() // hidden.shape[-1]))
        return head(hidden)

    model.hidden_states, model.head = seen_hidden_states, seen_head
    try:
        with cuda_graphs.use("off"):
            yield forwards
    finally:
        del model.hidden_states, model.head


class StepClock:
    """Times every step of a run, synchronised, with whether it is the first of its block."""

    def __init__(self, device: torch.device):
        self.device, self.marks = device, []

    def __call__(self, first: bool) -> None:
        synchronize(self.device)
        self.marks.append((time.perf_counter(), first))

    def median_ms(self, first: bool) -> float | None:
        """Of the steps that are the first of their block, or of the others; None where there are none.

        The last call must have been made at the end of the run.
        """
        steps = [after - before for (before, kind), (after, _) in zip(self.marks, self.marks[1:]) if kind == first]
        return 1000 * statistics.median(steps) if steps else None


class Products:
    """The weight products of forwards, and nothing else."""

    def __init__(self, model: MaskedDiffusionModel):
        body = [m for layer in model.layers for m in layer.modules() if isinstance(m, nn.Linear)]
        inside = set(map(id, body))
        outside = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in inside]
        self.body = [m.weight for m in body]
        self.head = [m.weight for m in outside] or [model.get_input_embeddings().weight]  # a tied head
        self.inputs: dict[tuple[int, int], Tensor] = {}

    def bytes(self) -> int:
        """Of all weights that a forward reads."""
        return sum(w.numel() * w.element_size() for w in (*self.body, *self.head))

    def seconds(self, forwards: Sequence[Forward]) -> float:
        """How long the products of all these forwards take, warm."""
        total = 0.0
        for forward, count in Counter(forwards).items():
            some = min(count, FLOOR_FORWARDS)
            self([forward])
            total += timed(self.body[0].device, self, [forward] * some) * count / some
        return total

    @torch.no_grad()
    def __call__(self, forwards: Sequence[Forward]) -> None:
        for forward in forwards:
            for weights, count in ((self.body, forward.slots), (self.head, forward.logits)):
                for weight in weights if count else ():
                    F.linear(self._input(count, weight), weight)

    def _input(self, count: int, weight: Tensor) -> Tensor:
        key = count, weight.shape[1]
        if key not in self.inputs:
            self.inputs[key] = torch.randn(key, dtype=weight.dtype, device=weight.device)
        return self.inputs[key]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written together, of a large copy on a GPU: the median of ten."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [timed(device, target.copy_, source) for _ in range(12)][2:]
    return 2 * COPY_BYTES / statistics.median(seconds)


def bytes_read(model: MaskedDiffusionModel, products: Products, forwards: Sequence[Forward]) -> int:
    """What the forwards must read at least: all weights, and the keys and values that they did not compute."""
    kept = sum(forward.keys - forward.slots for forward in forwards)
    pair = 2 * model.layer_count * model.kv_head_count * model.head_size * products.body[0].element_size()
    return len(forwards) * products.bytes() + kept * pair


# --- Timing -----------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, call: Callable, *arguments) -> float:
    """Seconds of a call, the device synchronised at both ends."""
    synchronize(device)
    start = time.perf_counter()
    call(*arguments)
    synchronize(device)
    return time.perf_counter() - start


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_memory(device: torch.device) -> int | None:
    """Bytes since `reset_peak_memory`: allocated on the GPU; on the CPU, of the whole process (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def measure(name: str, model: MaskedDiffusionModel, family: loading.Family, rows: Sequence[Row],
            works: Sequence[Workload], repeats: int, command: str) -> dict:
    """Time rows and their floors in turn, `repeats` times, after a run of each to warm up and to see its forwards.

    Args:
        works: what every row decodes; they differ in batch_size alone.

    Returns:
        A record of kind "benchmark". Each of its `rows` (every row with the first work, then with the next) has the
        row's settings and `batch_size`; `latency_s` and `floor_s`, one number a repeat, of the whole batch; `ratio`,
        the median of their quotients; `speedup` over the first row, for each answer of a batch; `same_tokens`, whether
        the batch's first answer is the one that the row gave with the first work; `replayed`, for rows with a cache,
        the share of tokens that are the same when cached steps run warm, on a GPU as graphs; `forwards`,
        `tokens_processed`, `kept_suffix` (mean a block); `full_ms` and `cached_ms`, the median step of each kind;
        `peak_memory` in bytes, of a run without graphs; `read_s`, the floor of memory, on a GPU.

    Raises:
        ValueError: repeats below 1; settings that cannot be used.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    device, products = model.device, Products(model)
    bandwidth = copy_bandwidth(device) if device.type == "cuda" else None
    cells = [(row, work) for work in works for row in rows]
    warm_ups = 2 if device.type == "cuda" else 1  # buffers are allocated; graphs recorded, then replayed
    bar = tqdm(total=sum(1 + repeats + warm_ups * (row.cache != "none") for row, _ in cells), unit="run", leave=False,
               disable=None)
    results, seen, firsts = [], [], []
    for number, (row, work) in enumerate(cells):
        bar.set_description(row.name)
        result, forwards, sequences = look(model, family, row, work)
        seen.append(forwards)
        firsts.append(sequences)
        results.append(result | {
            "same_tokens": bool((sequences[0] == firsts[number % len(rows)][0]).all()), "replayed": None,
            "read_s": bytes_read(model, products, forwards) / bandwidth if bandwidth else None,
            "latency_s": [], "floor_s": [],
        })
        bar.update()
    # The largest batch first: buffers that grow start anew with their graphs.
    for number in sorted(range(len(cells)), key=lambda number: -cells[number][1].batch_size):
        row, work = cells[number]
        for _ in range(warm_ups if row.cache != "none" else 0):
            bar.set_description(row.name)
            output, times = clocked(model, family, row, work)
            results[number] |= times | {
                "replayed": (output.sequences == firsts[number])[:, work.prompt_length :].float().mean().item()}
            bar.update()
    for _ in range(repeats):
        for (row, work), forwards, result in zip(cells, seen, results):
            bar.set_description(row.name)
            result["latency_s"].append(timed(device, run, model, family, row, work))
            result["floor_s"].append(products.seconds(forwards))
            bar.update()
    bar.close()
    for result in results:
        result["ratio"] = median_quotient(result["latency_s"], result["floor_s"])
        larger = result["batch_size"] / results[0]["batch_size"]
        result["speedup"] = larger * median_quotient(results[0]["latency_s"], result["latency_s"])
        result["floor_speedup"] = larger * median_quotient(results[0]["floor_s"], result["floor_s"])
    return describe("benchmark", name, model, works[0], command, bandwidth=bandwidth, repeats=repeats, rows=results)


def look(model: MaskedDiffusionModel, family: loading.Family, row: Row,
         work: Workload) -> tuple[dict, list[Forward], Tensor]:
    """Run a row once, without graphs: what it does and needs for a record, its forwards, and its tokens [R, P + G]."""
    cuda_graphs.forget()  # what other rows hold is not this one's memory
    reset_peak_memory(model.device)
    with watched(model) as forwards:
        output, times = clocked(model, family, row, work)
    return dataclasses.asdict(row) | times | {
        "batch_size": work.batch_size, "forwards": len(forwards), "tokens_processed": output.tokens_processed,
        "kept_suffix": statistics.fmean(map(len, output.kept_suffix)), "blocks": len(output.kept_suffix),
        "peak_memory": peak_memory(model.device),
    }, forwards, output.sequences


def growth(name: str, model: MaskedDiffusionModel, family: loading.Family, rows: Sequence[Row],
           works: Sequence[Workload], repeats: int, command: str) -> dict:
    """Time the first blocks of answers of growing length: what a block costs at the same place in each.

    Every work has the same `blocks`. Returns a record of kind "growth", whose `rows` have `name`, `gen_length` and
    `block_s`, for each block the seconds of every repeat.
    """
    device = model.device
    results = []
    bar = tqdm(total=len(rows) * len(works) * (repeats + 1), unit="run", leave=False, disable=None)
    cells = [(dataclasses.replace(row, stops=True), work) for row in rows for work in works]
    for row, work in cells:
        bar.set_description(f"{row.name}, G = {work.gen_length}")
        run(model, family, row, work)
        results.append({"name": row.name, "gen_length": work.gen_length, "block_s": [[] for _ in range(work.blocks)]})
        bar.update()
    for _ in range(repeats):
        for (row, work), result in zip(cells, results):
            bar.set_description(f"{row.name}, G = {work.gen_length}")
            clock = BlockClock(device)
            run(model, family, row, work, streamer=clock)
            for seconds, collected in zip(clock.blocks(), result["block_s"], strict=True):
                collected.append(seconds)
            bar.update()
    bar.close()
    return describe("growth", name, model, works[-1], command, repeats=repeats, rows=results)


class BlockClock:
    """A streamer that notes when the prompt and each finished block pass by; without drafts, which cost a wait each."""

    def __init__(self, device: torch.device):
        self.device, self.times = device, []

    def put(self, tokens: Tensor) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def blocks(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:])]


def clocked(model: MaskedDiffusionModel, family: loading.Family, row: Row,
            work: Workload) -> tuple[DecodingOutput, dict[str, float | None]]:
    """Run a row; also the median step that computes every slot and, with a cache, the median one that does not, in
    milliseconds."""
    clock = StepClock(model.device)
    output = run(model, family, row, work, clock=clock)
    clock(True)
    first, later = clock.median_ms(True), clock.median_ms(False)
    cached = row.cache != "none"
    return output, {"full_ms": first if cached else later, "cached_ms": later if cached else None}


def median_quotient(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below))


def describe(kind: str, name: str, model: MaskedDiffusionModel, work: Workload, command: str, **measured) -> dict:
    """A record: what was measured, and with what."""
    settings = dataclasses.asdict(work) | {
        "sampler": {"name": type(work.sampler).__name__} | dataclasses.asdict(work.sampler),
        "device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."),
    }
    return {"kind": kind, "model": name, "command": command, "settings": settings, **measured,
            "environment": environment()}


def profile(model: MaskedDiffusionModel, family: loading.Family, row: Row, work: Workload, lines: int = 12) -> str:
    """Where the time of one warm run goes: the operators with the most time of their own, as a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    run(model, family, row, work)
    with profiler(activities=activities) as observed:
        seconds = timed(model.device, run, model, family, row, work)
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(observed.key_averages(), key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) or 1
    rows = [f"{row.name}: {seconds:.3f} s with the profiler on; time of their own on the "
            f"{'GPU' if on_gpu else 'CPU'}:"]
    rows += [f"  {getattr(event, own) / total:6.1%}  {getattr(event, own) / 1000:9.1f} ms  {event.count:7d} ×  "
             f"{event.key}" for event in events[:lines]]
    return "\n".join(rows)
