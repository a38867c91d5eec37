"""Will it fit? What a model and its decoding take of a device's memory, told before the weights are fetched or read.

    python run.py models                 # every name, its size, and whether it fits here

The estimate counts what is large: the weights, the keys and values, a layer's activations, and the logits of the masked
positions with what is computed of them in float64. Nothing but config.json is read. tests/test_memory.py compares it
with what a process takes. Imported, never run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine.checkpoint import make_config, quant_method, read_config
from dpad.engine.loading import FAMILIES, Family, family_of, find_config, placement, resolve
from dpad.engine.quantization import GROUP, PADDED, SCHEMES
from dpad.engine.selection import PIECE_ON_CPU, PIECE_ON_GPU

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from dpad.engine.checkpoint import Layout
    from dpad.engine.settings import DecodingSettings

PROMPT = 512  # tokens, where the prompts are not known yet
SLACK = 1.05  # what allocators waste
TIGHT = 0.85  # of the free memory
MEMORY, CONTROL_GROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


# --- What is needed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Bytes that decoding takes. weights; cache: keys and values; work: what a forward computes."""

    weights: int
    cache: int
    work: int

    @property
    def total(self) -> int:
        return int(SLACK * (self.weights + self.cache + self.work))


@dataclass(frozen=True)
class Plan:
    """What is about to be loaded, and where. quantize: one of quantization.SCHEMES, or None. merges: an adapter is
    merged into weights that are as large as in the checkpoint until then."""

    config: PretrainedConfig
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    quantize: str | None = None
    merges: bool = False
    stored: int | None = None  # bytes of weights that the checkpoint has quantized already

    def weights(self) -> int:
        """Bytes of the weights once they are loaded, or while an adapter is merged into them."""
        if self.stored is not None:
            return self.stored
        plain = weight_bytes(self.layout, self.dtype.itemsize)
        if self.quantize is None:
            return plain
        quantized = weight_bytes(self.layout, self.dtype.itemsize, self.quantize, self.device.type)
        return plain + quantized // max(1, self.layout.layers) if self.merges else quantized

    def need(self, settings: DecodingSettings, rows: int = 1, prompt: int = PROMPT, gen_length: int = 0) -> Need:
        """What it takes to decode `rows` prompts of so many tokens together.

        gen_length: of the answers; 0 takes that of the settings.
        """
        config = self.config
        item = self.dtype.itemsize
        slots = rows * (prompt + (gen_length or settings.gen_length))  # the first step of the last block computes all
        head_size = config.hidden_size // config.num_attention_heads
        kv_width = config.num_key_value_heads * head_size
        cache = 0
        if settings.cache != "none":
            from dpad.engine.cuda_graphs import buffer_size

            stored = math.prod(buffer_size(self.device, rows, slots // rows))
            cache = 2 * config.num_hidden_layers * stored * kv_width * item
        # In a layer: its input and its norm, queries, keys and values before and after RoPE, the result, and what RoPE
        # computes in float32; or, besides the first of these, the SwiGLU.
        attention = item * (6 * config.hidden_size + 4 * kv_width) + 4 * 4 * config.hidden_size
        swiglu = item * (4 * config.hidden_size + 2 * kv_width + 3 * config.intermediate_size)
        layer = slots * (max(attention, swiglu) + 4 * 4 * head_size)

        vocabulary = getattr(config, "embedding_size", config.vocab_size)
        block = settings.block_length * vocabulary
        masked = rows * block
        if getattr(settings, "temperature", 0):  # the block's noise; the logits, the noise and their sum in float64
            logits = 2 * item * masked + 8 * (block + 3 * masked)
        else:
            piece = PIECE_ON_GPU if self.device.type == "cuda" else PIECE_ON_CPU
            logits = item * masked + 8 * 3 * min(masked, piece)
        kept = 0 if settings.rule is None else settings.rule.bytes_per_logit * masked
        if settings.soft_suffix is not None:
            kept += slots * config.hidden_size * item
        return Need(self.weights(), cache, layer + logits + kept)  # allocators keep what is freed


def weight_bytes(layout: Layout, itemsize: int, quantize: str | None = None, device: str = "cpu") -> int:
    """Bytes of a model's weights in numbers of `itemsize` bytes, or with the layers' matrices quantized.

    device: the type of the device, since torchao pads int4 on a GPU.
    """
    outer = sum(map(math.prod, layout.outer.values())) * itemsize
    inner = sum(_bytes_of(shape, itemsize, quantize, device) for shape in layout.inner.values())
    return outer + layout.layers * inner


def _bytes_of(shape: tuple[int, ...], itemsize: int, quantize: str | None, device: str) -> int:
    if quantize is None or len(shape) < 2:
        return math.prod(shape) * itemsize
    rows, columns = shape
    if quantize == "int8":
        return rows * (columns + itemsize)  # a scale for each row
    if device == "cuda":
        columns = math.ceil(columns / PADDED) * PADDED
    return rows * columns // 2 + rows * (columns // GROUP) * 2 * itemsize  # a scale and a zero point for each group


def plan(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    quantize: str | None = None, merges: bool = False, revision: str | None = None,
) -> Plan:
    """What `loading.load` would load. Of a hub id, config.json is downloaded and nothing else.

    Raises:
        ValueError: as `loading.load` does for what can be known without the weights.
    """
    place, numbers = placement(device, dtype, quantize)
    family, folder = find_config(name, revision)
    fields = read_config(folder)
    config = make_config(folder, family.network.config_class, fields)
    stored = None
    if quant_method(fields) is not None:
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
        stored = stored or _size_on_the_hub(resolve(name), revision)
    return Plan(config, family.network.layout(folder, config), place, numbers, quantize, merges, stored)


def plan_of_name(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
) -> tuple[Family, Plan]:
    """The same, with the model's family; of a name that stands for a hub id nothing is asked of the hub.

    Its sizes are those known here: the defaults of the family's configuration, and the family's `facts`.
    """
    for family in FAMILIES.values():
        if name in family.names and not os.path.isdir(family.names[name]):
            config_class: Any = family.network.config_class
            config = config_class(**family.facts.get(name, {}))
            layout = family.network.layout(Path(family.names[name]), config)
            return family, Plan(config, layout, *placement(device, dtype, quantize), quantize)
    return family_of(name), plan(name, device, dtype, quantize)


def size_of(model: torch.nn.Module) -> int:
    """Bytes that a loaded model's weights take, inside of torchao's tensors as well."""
    sizes = []
    for weight in model.parameters():
        names = getattr(weight, "tensor_data_names", None)
        sizes += [part.nbytes for part in ([weight] if names is None else [getattr(weight, name) for name in names])]
    return sum(sizes)


def _size_on_the_hub(checkpoint: str, revision: str | None) -> int | None:
    """Bytes of the weights' files of a hub id; None where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(checkpoint, revision=revision, files_metadata=True, timeout=10).siblings or []
    except Exception:  # of any HTTP library that huggingface_hub may use: there is no answer
        return None
    return sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors")) or None


# --- What there is ----------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take of a device's memory; None where it does not say."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        return available_memory()
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def available_memory() -> int:
    """Bytes of main memory that new processes can take: what is free, within the limits of the control groups."""
    free = _free_memory()
    for folder in _control_groups():
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                maximum = int((folder / limit).read_text())  # "max" is no number, and no limit
                used = int((folder / usage).read_text())
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            reclaimable = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
            free = min(free, maximum - used + reclaimable)
    return max(0, free)


def _free_memory() -> int:
    """Bytes that the whole machine has free, or can free at once (Linux); elsewhere all that it has."""
    try:
        [line] = [line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups() -> Iterator[Path]:
    """The folders of the control groups (of both versions) that this process is in, and of those around them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            root = CONTROL_GROUPS / controllers
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


# --- Does it fit? -----------------------------------------------------------------------------------------------------


def verdict(need: int, free: int | None) -> str:
    """fits, tight, will not fit, or unknown."""
    if free is None:
        return "unknown"
    return "fits" if need <= TIGHT * free else "tight" if need <= free else "will not fit"


def describe(plan: Plan, name: str, settings: DecodingSettings, rows: int = 1, free: int | None = None) -> str:
    """One line: what a model needs, what its device has free, and whether it fits, or what would.

    free: bytes; None asks the device.
    """
    free = free_memory(plan.device) if free is None else free
    need = plan.need(settings, rows)
    numbers = str(plan.dtype).removeprefix("torch.") + (f" with {plan.quantize} weights" if plan.quantize else "")
    what = (f"{name} in {numbers} needs about {gigabytes(need.total)} GB of {plan.device}, {gigabytes(need.weights)} "
            f"of it for the weights (-l {settings.gen_length}, batch size {rows}, prompts of {PROMPT} tokens)")
    if free is None:
        return f"{what}; what is free there is not known"
    answer = verdict(need.total, free)
    if answer == "will not fit":
        ways = ways_to_fit(plan, settings, rows, free)
        answer += f", try {' or '.join(ways)}" if ways else ", and no flag here would make it fit"
    return f"{what}; {gigabytes(free)} GB are free: {answer}"


def ways_to_fit(plan: Plan, settings: DecodingSettings, rows: int, free: int) -> list[str]:
    """The changes of one flag each with which decoding would take no more than `free` bytes."""
    import torch

    def fits(changed: Plan, rows: int = rows, gen_length: int = 0) -> bool:
        return changed.need(settings, rows, gen_length=gen_length).total <= free

    ways = []
    if plan.stored is None and not plan.merges:
        for scheme in SCHEMES[SCHEMES.index(plan.quantize) + 1:] if plan.quantize else SCHEMES:
            dtype = torch.bfloat16 if scheme == "int4" else plan.dtype
            possible = scheme == "int8" or plan.device.type in ("cpu", "cuda")
            if possible and fits(replace(plan, quantize=scheme, dtype=dtype)):
                ways.append(f"--quantize {scheme}")
                break
    if plan.dtype == torch.float32 and fits(replace(plan, dtype=torch.bfloat16)):
        ways.append("--dtype bfloat16")
    if fewer := next((number for number in range(rows - 1, 0, -1) if fits(plan, number)), 0):
        ways.append(f"--batch_size {fewer}")
    lengths = range(settings.gen_length - settings.block_length, 0, -settings.block_length)
    if shorter := next((length for length in lengths if fits(plan, gen_length=length)), 0):
        ways.append(f"-l {shorter}")
    return ways


def gigabytes(size: int) -> str:
    """As cards are sold: 2^30 bytes."""
    return f"{size / 2**30:.1f}"
