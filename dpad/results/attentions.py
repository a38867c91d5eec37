"""Records of attention: what a block pays to the text before it, to itself and to its suffix; spikes; the last place.

    python run.py table attention.json                           # run.py attention --record attention.json writes it
    python run.py table attention.json --plot attention.png

Imported by tables.py and charts.py. Places count from the block's first position; the distance of a suffix position
counts from the block's last one, so that the position right after the block is at 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from dpad.results.formatting import Table, join_unique, number, times
from dpad.results.records import commit_of, hardware_line, numbers_of

WHOLE = "whole"  # the view in which a block sees its whole suffix
SPIKE = 2.0  # a spike is at least so many times the median of its neighbourhood
NEIGHBOURHOOD = 32  # tokens on either side
APART = 16  # tokens from a spike to another one
MAX_SPIKES = 3


class Spike(NamedTuple):
    """A suffix position that gets more attention than those around it. distance: from the block's last position."""

    distance: int
    weight: float


def suffix_of(record: dict, view: dict, layer: dict) -> list[tuple[int, float]]:
    """Distance and mean weight of every suffix position that the view has, by distance."""
    first = view["first"] - record["settings"]["block_length"] + 1
    series = ((first + index, weight) for index, weight in enumerate(layer["mean"]))
    return [(distance, weight) for distance, weight in series if distance > 0 and weight is not None]


def spikes_of(record: dict, view: dict, layer: dict) -> list[Spike]:
    """The largest spikes of a layer's suffix, largest first: local maxima of at least SPIKE times the median of the
    positions that are seen within NEIGHBOURHOOD, and none within APART of a larger one."""
    suffix = suffix_of(record, view, layer)
    weights = [weight for _, weight in suffix]
    found = []
    for index in range(1, len(suffix)):
        distance, weight = suffix[index]
        if weight <= weights[index - 1] or weight < max(weights[index + 1 : index + 2], default=0):
            continue
        reach = min(NEIGHBOURHOOD, distance - 1)  # as far on either side, or else the slope behind the block counts
        around = [other for place, other in suffix if 0 < abs(place - distance) <= reach]
        if around and weight >= SPIKE * statistics.median(around):
            found.append(Spike(distance, weight))
    spikes: list[Spike] = []
    for spike in sorted(found, key=lambda spike: -spike.weight):
        if all(abs(spike.distance - larger.distance) > APART for larger in spikes):
            spikes.append(spike)
    return spikes[:MAX_SPIKES]


def rise_of(layers: Sequence[dict]) -> float | None:
    """Attention at the answer's last position over the median of the suffix before it; both are means over the layers.

    None where the last position is not seen.
    """
    pairs = [(layer.get("last"), layer.get("median")) for layer in layers]
    last, median = (sum(values) if None not in values else None for values in zip(*pairs))
    return last / median if last is not None and median else None


# --- In words ---------------------------------------------------------------------------------------------------------


def attention_table(records: Sequence[dict]) -> Table:
    """For the whole suffix and for what the sampler keeps: the mean over layers, then every layer."""
    names = _names_of(records)
    headings = [*["record"] * bool(names), "suffix", "layer", "before (%)", "block (%)", "suffix (%)", "kept suffix",
                "last ÷ median", "spikes at"]
    cells = [
        [*names[index : index + 1], *line] for index, record in enumerate(records) for line in _lines_of(record)
    ]
    return Table(headings, cells)


def short_table(record: dict) -> Table:
    """The same with the mean and the last layer alone."""
    headings, cells = attention_table([record])
    last = str(len(record["views"][0]["layers"]) - 1)
    return Table(headings, [line for line in cells if line[1] in ("mean", last)])


def _lines_of(record: dict) -> list[list[str]]:
    lines = []
    for view in record["views"]:
        layers = view["layers"]
        for name, group in [("mean", layers), *((str(index), [layer]) for index, layer in enumerate(layers))]:
            shares = [100 * statistics.fmean(layer[part] for layer in group) for part in ("before", "block", "behind")]
            spikes = "" if name == "mean" else ", ".join(str(spike.distance) for spike in
                                                         spikes_of(record, view, group[0]))
            lines.append([view["suffix"], name, *map(number, shares), number(view["kept_suffix"], 0),
                          times(rise_of(group)), spikes])
    return lines


def _names_of(records: Sequence[dict]) -> list[str]:
    """What tells several records apart, one name each; no names for a single record."""
    if len(records) < 2:
        return []
    return [f"{record['model']}, {_block_name(record)}, step {record['step']}" for record in records]


def _block_name(record: dict) -> str:
    return "all blocks" if record.get("block") is None else f"block {record['block']}"


def attention_caption(records: Sequence[dict]) -> str:
    """What the columns are, and with what they were measured."""
    return (
        "Attention of a block's positions to what stands before the block, to the block itself and to the suffix "
        "behind it, mean over heads and positions; \"mean\" over layers as well, which count from 0. Suffix: whole, or "
        "what the sampler of that name keeps (kept suffix: positions on average). Last ÷ median: attention at the "
        f"answer's last position over the median of the suffix before it. Spikes: the largest local maxima of at least "
        f"{SPIKE:g} times the median within {NEIGHBOURHOOD} tokens, by their distance from the block. "
        f"{join_unique(map(describe, records))}, {join_unique(map(hardware_line, records))}, "
        f"{join_unique(numbers_of(record['settings']) for record in records)}, commit "
        f"{join_unique(map(commit_of, records))}."
    )


def describe(record: dict) -> str:
    """What a record was measured on: model, prompts, answer length, block and step."""
    count = record["samples"]
    mean = f", mean of {count} blocks" if count > 1 else ""
    return (f"{record['model']}, {record.get('task') or 'one prompt'}, G = {record['settings']['gen_length']}, "
            f"{_block_name(record)}, step {record['step']}{mean}")


def summarize(record: dict) -> str:
    """What a record shows, a sentence for each view."""
    sentences = []
    for view in record["views"]:
        suffix = "its whole suffix" if view["suffix"] == WHOLE else (
            f"the {number(view['kept_suffix'], 0)} positions of it that {view['suffix']} keeps")
        layers = view["layers"]
        share = 100 * statistics.fmean(layer["behind"] for layer in layers)
        sentences.append(f"A block pays {share:.1f} % of its attention to {suffix}; {describe_rise(layers)}.")
    return "\n".join(sentences)


def describe_rise(layers: Sequence[dict]) -> str:
    """Whether attention rises again at the last position, over layers."""
    rises = [rise_of([layer]) for layer in layers]
    risen = [rise for rise in rises if rise is not None]
    if not risen:
        return "the last position is not among them"
    above = sum(rise > 1 for rise in risen)
    return (f"the last position gets {times(rise_of(layers))} the median of the suffix before it (more than the median "
            f"in {above} of {len(risen)} layers, {times(risen[-1])} in the last)")


def describe_last(layer: dict) -> str:
    """Whether attention rises again at the last position in one layer, for figures."""
    rise = rise_of([layer])
    if rise is None:
        return "last position: not kept"
    return f"last position: {times(rise)} the median of the suffix before it"


def name_view(view: dict) -> str:
    """A view's name, for figures."""
    kept = f"{view['kept_suffix']:.0f}"
    return f"whole suffix: {kept} positions" if view["suffix"] == WHOLE else f"{view['suffix']}: {kept} kept"


def range_of(view: dict, layer: dict) -> list[tuple[int, float, float, float]]:
    """Place, mean, least and most over heads, of every place that a view has."""
    series: list[Any] = list(zip(layer["mean"], layer["low"], layer["high"]))
    return [(view["first"] + index, *entry) for index, entry in enumerate(series) if None not in entry]
