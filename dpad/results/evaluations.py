"""Evaluations beside each other: speedups, intervals, the order of rows, and their table.

    python run.py table benchmarks/demo-cpu.json
    python run.py table benchmarks/long-cpu.json --paper llada-1.5        # beside what the authors report
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpad.engine.configurations import LONG_SEQUENCES, VANILLA, Configuration, classify
from dpad.results.formatting import Table, count_samples, join_unique, number, seconds, times
from dpad.results.paper import STAND_INS
from dpad.results.records import commit_of, hardware_line

METRIC_LABELS = {"flexible-extract": "flexible", "strict-match": "strict"}  # these come first, in this order
Z95 = 1.959964  # of the normal distribution, two-sided


class Metric(NamedTuple):
    """A metric of an evaluation, in percent where it is a share of the samples; None where something is unknown."""

    value: float | None = None
    error: float | None = None  # the standard error
    interval: tuple[float, float] | None = None  # of 95 %, of shares only


class Row(NamedTuple):
    """An evaluation's record, and what tables and charts derive from it.

    speedup: the latency of vanilla decoding over this one's; None where no vanilla record has the same task, model,
    answer length and hardware. metrics: by label. reported: the authors' row of the same benchmark, length and name.
    """

    record: dict
    speedup: float | None
    metrics: dict[str, Metric]
    reported: dict | None

    @property
    def configuration(self) -> Configuration:
        return classify(self.record["settings"])


def evaluation_rows(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> list[Row]:
    """A row for each record, in their order.

    Args:
        reported: the authors' rows, see `paper.reported`.

    Raises:
        ValueError: there are no records, or two of them could be the baseline of a speedup.
    """
    if not records:
        raise ValueError("there are no records to show")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(_comparison_key(record), []).append(record)
    baselines = {key: _baseline_latency(group) for key, group in groups.items()}

    rows = []
    for record in records:
        baseline = baselines[_comparison_key(record)]
        speedup = baseline / record["latency_s"] if baseline and record["latency_s"] else None
        metrics = {
            METRIC_LABELS.get(name, name): _metric(entry, record["samples"])
            for name, entry in record["metrics"].items()
        }
        place = STAND_INS.get(record["task"], record["task"]), _gen_length(record), record["name"]
        rows.append(Row(record, speedup, metrics, (reported or {}).get(place)))
    return rows


def _gen_length(record: dict) -> int | None:
    return record["settings"].get("gen_length")


def _comparison_key(record: dict) -> tuple:
    """What must agree before two latencies may be compared."""
    return record["task"], record["model"], _gen_length(record), hardware_line(record)


def _baseline_latency(records: Sequence[dict]) -> float | None:
    """The latency of vanilla decoding among comparable records; of several such records that of the one so named."""
    vanilla = [record for record in records if classify(record["settings"]).is_baseline]
    if len(vanilla) > 1:
        vanilla = [record for record in vanilla if record["name"] == VANILLA.name]
    if len(vanilla) > 1:
        raise ValueError(f"two records named {VANILLA.name} have the same task, model, G and hardware: "
                         "the speedups would be ambiguous")
    return vanilla[0]["latency_s"] if vanilla else None


def _metric(entry: dict, samples: int) -> Metric:
    value, error = entry.get("value"), entry.get("stderr")
    if value is None:
        return Metric()
    factor = display_factor(entry)
    return Metric(
        factor * value,
        factor * error if isinstance(error, (int, float)) else None,
        share_interval(value, samples) if factor == 100 else None,
    )


def display_factor(metric: dict) -> int:
    """The factor of a metric's value and error in tables: 100 for a share; 1 for anything else, such as BLEU."""
    value = metric.get("value")
    return 100 if value is not None and 0 <= value <= 1 else 1


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval, in percent, of a share of `count` samples (Wilson 1927).

    Unlike the normal approximation it is sensible for few samples and for shares of 0 or 1.
    """
    square = Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = Z95 / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def group_by_table(records: Sequence[dict]) -> list[list[dict]]:
    """Records that belong into one table: of one task, model and answer length; rows of the paper in its order, then
    all others."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["task"], record["model"], _gen_length(record)), []).append(record)

    order = {name: place for place, name in enumerate(LONG_SEQUENCES)}
    return [sorted(group, key=lambda record: order.get(record["name"], len(order))) for group in groups.values()]


def describe_table(records: Sequence[dict]) -> str:
    """The line above a table of evaluations of one task, model and answer length."""
    first = records[0]
    counts = sorted({record["samples"] for record in records})
    samples = count_samples(counts[0] if len(counts) == 1 else f"{counts[0]}–{counts[-1]}")
    return (f"{first['task']}, {first['settings'].get('num_fewshot') or 0}-shot, {first['model']}, "
            f"G = {_gen_length(first)}, {samples}, {hardware_line(first)}")


def metric_labels(rows: Sequence[Row]) -> list[str]:
    labels = dict.fromkeys(label for row in rows for label in row.metrics)
    first = [label for label in METRIC_LABELS.values() if label in labels]
    return first + [label for label in labels if label not in first]


def evaluation_table(
    records: Sequence[dict], reported: Mapping[tuple, dict] | None = None, intervals: bool = False,
) -> Table:
    """A table of evaluations. What varies among model, task, G and hardware has a column after the name.

    Args:
        reported: the authors' rows; where one belongs to a record, their numbers get columns on the right.
        intervals: put the 95 % interval after each share.
    """
    rows = evaluation_rows(records, reported)
    labels = metric_labels(rows)
    their_labels = [label for label in labels if any(label in row.reported["metrics"] for row in rows if row.reported)]
    parameters = {
        "model": [row.record["model"] for row in rows],
        "task": [row.record["task"] for row in rows],
        "G": [str(_gen_length(row.record)) for row in rows],
        "hardware": [hardware_line(row.record) for row in rows],
    }
    varying = {name: values for name, values in parameters.items() if len(set(values)) > 1}

    headings = ["configuration", *varying, "latency (s)", "speedup", "TPS", "NFE", *_percent(labels)]
    compared = any(row.reported for row in rows)
    if compared:
        headings += ["paper: latency (s)", "speedup", *_percent(their_labels)]

    cells = []
    for index, row in enumerate(rows):
        record = row.record
        line = [record["name"], *(values[index] for values in varying.values())]
        line += [seconds(record["latency_s"]), times(row.speedup), number(record.get("tps")), number(record.get("nfe"))]
        line += [_metric_text(row.metrics.get(label, Metric()), intervals) for label in labels]
        if compared:
            theirs = row.reported or {"latency_s": None, "speedup": None, "metrics": {}}
            line += [number(theirs["latency_s"], 2), times(theirs["speedup"])]
            line += [number(theirs["metrics"].get(label), 2) for label in their_labels]
        cells.append(line)
    return Table(headings, cells)


def _percent(labels: Sequence[str]) -> list[str]:
    return [f"{label} (%)" for label in labels]


def _metric_text(metric: Metric, intervals: bool) -> str:
    if metric.interval is None or not intervals:
        return number(metric.value)
    return f"{number(metric.value)} [{metric.interval[0]:.1f}, {metric.interval[1]:.1f}]"


def evaluation_values(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> list[list]:
    """Headings and values for CSV."""
    rows = evaluation_rows(records, reported)
    labels = metric_labels(rows)
    lines = []
    for row in rows:
        record = row.record
        line = {
            "name": record["name"],
            "model": record["model"],
            "task": record["task"],
            "G": _gen_length(record),
            "hardware": hardware_line(record),
            "samples": record["samples"],
            "latency_s": record["latency_s"],
            "speedup": row.speedup,
            "tps": record.get("tps"),
            "nfe": record.get("nfe"),
        }
        for label in labels:
            metric = row.metrics.get(label, Metric())
            low, high = metric.interval or (None, None)
            line |= {label: metric.value, f"{label}_low": low, f"{label}_high": high}
        theirs = row.reported or {"metrics": {}}
        line |= {"paper_latency_s": theirs.get("latency_s"), "paper_speedup": theirs.get("speedup")}
        line |= {f"paper_{label}": theirs["metrics"].get(label) for label in labels}
        lines.append(line)
    return [list(lines[0]), *(list(line.values()) for line in lines)]


def evaluation_caption(records: Sequence[dict]) -> str:
    """What the rows were measured with: model, task, samples, G, batch size, hardware, dtype, commit."""
    settings = [record["settings"] for record in records]
    models = join_unique(record["model"] for record in records)
    tasks = join_unique(record["task"] for record in records)
    shots = join_unique(entry.get("num_fewshot") or 0 for entry in settings)
    samples = join_unique(record["samples"] for record in records)
    lengths = join_unique(entry.get("gen_length") for entry in settings)
    batch_sizes = join_unique(entry.get("batch_size") for entry in settings)
    hardware = join_unique(map(hardware_line, records))
    dtypes = join_unique(entry.get("dtype") for entry in settings)
    commits = join_unique(map(commit_of, records))
    return (f"Model {models}, task {tasks} ({shots}-shot), {samples} samples, G = {lengths}, batch size {batch_sizes}, "
            f"{hardware}, {dtypes}, commit {commits}.")


def summarize(record: dict) -> str:
    """The record of one evaluation in the few lines that a person wants to read first."""
    lines = [(name, _metric_summary(entry)) for name, entry in record["metrics"].items()]
    lines += [
        ("latency", f"{record['latency_s']:.3f} s per sample (median {record['latency_median_s']:.3f} s)"),
        ("throughput", f"{record['tps']:.1f} answer tokens/s"),
        ("NFE", f"{record['nfe']:.1f} forwards per sample"),
    ]
    for label, key in (("empty answers", "empty_answers"), ("prompts cut", "cut_prompts")):
        if record[key]:
            lines.append((label, f"{record[key]} of {record['samples']}"))

    reused = f", {record['reused']} of them answered earlier" if record["reused"] else ""
    width = max(len(label) for label, _ in lines)
    return "\n".join([
        f"{record['task']} · {record['model']} · {count_samples(record['samples'])}{reused}",
        *(f"  {label:<{width}}  {value}" for label, value in lines),
        f"written to {record['folder']}: record.json, samples.jsonl",
    ])


def _metric_summary(entry: dict) -> str:
    """A metric with its standard error: 50.0% ± 7.0%."""
    if entry["value"] is None:
        return number(None)
    unit = "%" if display_factor(entry) == 100 else ""
    values = [entry["value"]] if entry["stderr"] is None else [entry["value"], entry["stderr"]]
    return " ± ".join(f"{display_factor(entry) * value:.1f}{unit}" for value in values)
