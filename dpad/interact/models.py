"""The models that have names: their sizes, whether they are on this machine, and whether they fit its device.

    python run.py models                            # needs no network
    python run.py models -l 1024 --batch_size 8 --quantize int8
    python run.py models path/to/checkpoint owner/name --json
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from dpad.engine import checkpoint, memory
from dpad.engine.checks import check_integer
from dpad.engine.loading import NAMES, placement, resolve
from dpad.engine.quantization import check_scheme
from dpad.results.formatting import as_columns


@dataclasses.dataclass(frozen=True)
class Row:
    """A model. checkpoint: folder or hub id. weights, needed: bytes, of the weights and of decoding with them. cached:
    whether the weights are on this machine. fits: see memory.verdict. ways: flags with which it would."""

    name: str
    family: str
    checkpoint: str
    parameters: int
    weights: int
    needed: int
    cached: bool
    fits: str
    ways: list[str]


def list_models(
    names: Sequence[str] = (), device: str | None = None, dtype: str | None = None, quantize: str | None = None,
    gen_length: int = 256, batch_size: int = 1,
) -> tuple[list[Row], str]:
    """A row for each model, and a sentence that says what it fits or not.

    Args:
        names: as `loading.load` takes them; by default NAMES, for which nothing is asked of the hub.
        device, dtype, quantize: as `loading.load` takes them. gen_length, batch_size: of the answers.

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    check_integer("batch_size", batch_size, 1)
    place, numbers = placement(device, dtype, quantize)
    if quantize is not None:
        check_scheme(quantize, place, numbers)
    free = memory.free_memory(place)
    rows = []
    for name in names or NAMES:
        family, plan = memory.plan_of_name(name, device, dtype, quantize)
        settings = family.settings(gen_length=gen_length, cache="prefix")
        need = plan.need(settings, batch_size)
        fits = memory.verdict(need.total, free)
        ways = memory.ways_to_fit(plan, settings, batch_size, free or 0) if fits == "will not fit" else []
        found = resolve(name)
        rows.append(Row(name, family.name, checkpoint.relative_to_root(found), plan.layout.count, need.weights,
                        need.total, os.path.isdir(found) or _is_cached(found), fits, ways))
    there = "unknown" if free is None else f"{memory.gigabytes(free)} GB"
    return rows, (f"Estimated for {place} ({there} free), {str(numbers).removeprefix('torch.')}"
                  f"{f' with {quantize} weights' if quantize else ''}, answers of {gen_length} tokens, prompts of "
                  f"{memory.PROMPT}, batch size {batch_size}, prefix cache.")


def _is_cached(hub_id: str) -> bool:
    """Whether all files of a hub id's weights are in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(hub_id, checkpoint.WEIGHTS), str):
        return True
    index = try_to_load_from_cache(hub_id, checkpoint.INDEX)
    if not isinstance(index, str):
        return False
    try:
        files = set(checkpoint.read_object(Path(index)).get("weight_map", {}).values())
    except (ValueError, AttributeError, TypeError):
        return False
    return bool(files) and all((Path(index).parent / str(file)).exists() for file in files)


def show(rows: Sequence[Row], sentence: str, as_json: bool = False) -> None:
    """Print the rows, as a table with the sentence under it or as a JSON list."""
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    cells = [
        [row.name, row.family, _count(row.parameters), f"{row.weights / 2**30:.2f}", f"{row.needed / 2**30:.2f}",
         "yes" if row.cached else "no", row.checkpoint,
         row.fits + (f", try {' or '.join(row.ways)}" if row.ways else "")]
        for row in rows
    ]
    print(as_columns(["name", "family", "weights", "GB", "needs (GB)", "here", "checkpoint", "does it fit?"], cells))
    print(sentence)


def _count(parameters: int) -> str:
    """8.02 billion as 8.02B."""
    power = min(3, int(math.log10(max(1, parameters))) // 3)
    return f"{parameters / 1000**power:.3g}{' KMB'[power].strip()}"
