"""Evaluations beside each other: speedups, intervals, the order of rows, and their table.

    python run.py table benchmarks/demo-cpu.json
    python run.py table benchmarks/long-cpu.json --paper llada-1.5        # beside what papers report
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpad.engine.configurations import LONG_SEQUENCES, Configuration, classify
from dpad.results import paper
from dpad.results.formatting import Table, count_samples, join_unique, milliseconds, number, ratio, seconds, times
from dpad.results.paper import STAND_INS, Reported
from dpad.results.records import commit_of, hardware_line, numbers_of

METRIC_LABELS = {"flexible-extract": "flexible", "strict-match": "strict"}  # these come first, in this order
CONFIGURING = ("cache", "refresh", "threshold", "factor", "rule", "suffix_sampler", "soft_suffix",
               "early_termination", "steps", "limit")
MEASURED = "measured"  # whose a row is, beside those of papers
OTHER_CONVENTION = {"drop": "with text after EOS", "keep": "without text after EOS"}  # by the record's own
Z95 = 1.959964  # of the normal distribution, two-sided


class Metric(NamedTuple):
    """A metric of an evaluation, in percent where it is a share of the samples; None where something is unknown."""

    value: float | None = None
    error: float | None = None  # the standard error
    interval: tuple[float, float] | None = None  # of 95 %, of shares only


class Row(NamedTuple):
    """An evaluation's record, and what tables and charts derive from it: from its settings, whatever its name.

    detail: what tells it from other rows of the same configuration, "" where there is none: the name that its run was
    given, and settings. speedup: the latency of vanilla decoding over this one's; None where no vanilla record has the
    same `comparison_key`, or several could be meant. tps_ratio: the TPS over that of the same vanilla record. metrics:
    by label. other_metrics: those under the other convention for text after EOS (docs/evaluation.md).
    """

    record: dict
    configuration: Configuration
    detail: str
    speedup: float | None
    tps_ratio: float | None
    metrics: dict[str, Metric]
    other_metrics: dict[str, Metric]

    @property
    def label(self) -> str:
        """What charts call the row."""
        return self.configuration.name + (f" ({self.detail})" if self.detail else "")


def evaluation_rows(records: Sequence[dict]) -> list[Row]:
    """A row for each record, in their order.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("there are no records to show")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(comparison_key(record), []).append(record)

    rows = []
    for record, detail in zip(records, _details(records)):
        configuration = classify(record["settings"])
        baseline = _baseline(record, groups[comparison_key(record)])
        speedup = ratio(baseline.get("latency_s"), record["latency_s"])
        tps_ratio = ratio(record.get("tps"), baseline.get("tps"))
        metrics = _metrics(record["metrics"], record["samples"])
        other_metrics = _metrics((record.get("other_metrics") or {}).get("metrics") or {}, record["samples"])
        rows.append(Row(record, configuration, detail, speedup, tps_ratio, metrics, other_metrics))
    return rows


def _gen_length(record: dict) -> int | None:
    return record["settings"].get("gen_length")


def _shots(record: dict) -> int:
    return record["settings"].get("num_fewshot") or 0


def _batch_size(record: dict) -> int | str:
    return record["settings"].get("batch_size") or 1


def _dtype(record: dict) -> str:
    return numbers_of(record["settings"]) or "unknown dtype"


def _after_eos(record: dict) -> str:
    return record["settings"].get("after_eos") or "keep"  # as older records were scored


def answer_length(record: dict) -> float | None:
    """Answer tokens per sample; records from before it was written have it in their throughput and latency."""
    if record.get("answer_length") is None and record.get("tps") is not None:
        return record["tps"] * record["latency_s"]
    return record.get("answer_length")


def ms_per_token(record: dict) -> float | None:
    """Milliseconds per answer token."""
    return 1000 / record["tps"] if record.get("tps") else record.get("ms_per_token")


def _sampler_of(record: dict) -> str | None:
    return (record["settings"].get("suffix_sampler") or {}).get("name")


def comparison_key(record: dict) -> tuple:
    """What must agree before numbers of two records may stand in one table or chart, or be divided by each other."""
    limit = record["settings"].get("limit")
    if limit is not None and limit >= record["samples"]:
        limit = None  # 50 of 50 problems are all of them
    return (record["task"], _shots(record), record["model"], _gen_length(record), record["samples"], limit,
            hardware_line(record), _dtype(record), _batch_size(record), _after_eos(record))


def _baseline(record: dict, comparable: Sequence[dict]) -> dict:
    """The record of vanilla decoding among comparable ones; of several the one that agrees best in all the rest.

    Empty where there is none, or several are left that took different times.
    """
    candidates = [entry for entry in comparable
                  if classify(entry["settings"]).is_baseline and not entry["settings"].get("soft_suffix")]
    for aspect in (_other_settings, commit_of, lambda entry: entry["settings"].get("steps")):
        agreeing = [entry for entry in candidates if aspect(entry) == aspect(record)]
        candidates = agreeing or candidates
    return candidates[0] if len({entry["latency_s"] for entry in candidates}) == 1 else {}


def _other_settings(record: dict) -> dict:
    """The settings that do not say which configuration a record is."""
    return {name: value for name, value in record["settings"].items() if name not in CONFIGURING}


def _details(records: Sequence[dict]) -> list[str]:
    """For each record what tells it from others of its configuration: the name that it was given; where that is not
    enough, the settings that differ, and where they do not, commit and date."""
    rivals: dict[tuple, list[dict]] = {}
    keys = [(comparison_key(record), classify(record["settings"]).name, _given_name(record)) for record in records]
    for key, record in zip(keys, records):
        rivals.setdefault(key, []).append(record)

    details = []
    for key, record in zip(keys, records):
        parts = [key[-1]] if key[-1] else []
        sampler = _sampler_of(record) or "gaussian"
        if sampler != "gaussian":
            parts.append(f"sampler {sampler}")
        if record["settings"].get("rule"):
            parts.append(f"rule {record['settings']['rule']['name']}")
        if record["settings"].get("soft_suffix"):
            parts.append("soft suffix")
        if record["settings"].get("refresh"):
            parts.append(f"refresh {record['settings']['refresh']}")
        differing = _differing(record, rivals[key], _flat_settings) or _differing(record, rivals[key], _origin)
        details.append(", ".join(parts + [part for part in differing if part not in parts]))
    return details


def _differing(record: dict, rivals: Sequence[dict], aspect: Callable[[dict], dict]) -> list[str]:
    """The entries of an aspect of a record that not all of its rivals have, in words."""
    others = [aspect(rival) for rival in rivals]
    return [
        f"{name} {value}" for name, value in aspect(record).items() if any(other.get(name) != value for other in others)
    ]


def _origin(record: dict) -> dict[str, Any]:
    date = (record.get("environment") or {}).get("date")
    return {"commit": commit_of(record)} | ({"date": date} if date else {})


def _given_name(record: dict) -> str:
    """The name that a person gave to a run; "" where it says no more than the configuration, or is its folder's."""
    name = record["name"]
    folder = f"{Path(record['task']).stem}-{Path(record['model']).name}-"
    return "" if name == classify(record["settings"]).name or name.startswith(folder) else name


def _flat_settings(record: dict) -> dict[str, Any]:
    """The settings with the parameters of sampler and rule among them, these themselves by their names; a switch of
    theirs that is off is as good as none, which older records have."""
    settings = dict(record["settings"])
    for key, word in (("suffix_sampler", "sampler"), ("rule", "rule")):
        part = settings.pop(key, None) or {}
        settings |= {word if name == "name" else name: value for name, value in part.items() if value is not False}
    return settings


def _metrics(entries: dict[str, dict], samples: int) -> dict[str, Metric]:
    """A record's metrics by their labels."""
    return {METRIC_LABELS.get(name, name): _metric(entry, samples) for name, entry in entries.items()}


def _metric(entry: dict, samples: int) -> Metric:
    value, error = entry.get("value"), entry.get("stderr")
    if value is None:
        return Metric()
    factor = display_factor(entry)
    return Metric(
        factor * value,
        factor * error if isinstance(error, (int, float)) else None,
        share_interval(value, samples) if factor == 100 and samples else None,
    )


def display_factor(metric: dict) -> int:
    """The factor of a metric's value and error in tables: 100 for a share; 1 for anything else, such as BLEU."""
    value = metric.get("value")
    return 100 if value is not None and 0 <= value <= 1 else 1


def share_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval, in percent, of a share of `count` samples (Wilson 1927).

    Unlike the normal approximation it is sensible for few samples and for shares of 0 or 1.
    """
    square = Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = Z95 / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    # Rounding must not put the share itself outside.
    return 100 * max(0.0, min(share, middle - reach)), 100 * min(1.0, max(share, middle + reach))


def group_by_table(records: Sequence[dict]) -> list[list[dict]]:
    """Records that belong into one table, or chart: of one `comparison_key`. The paper's rows come first, in its order,
    then all others."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(comparison_key(record), []).append(record)

    order = {name: place for place, name in enumerate(LONG_SEQUENCES)}
    return [
        sorted(group, key=lambda record: order.get(classify(record["settings"]).name, len(order)))
        for group in groups.values()
    ]


def describe_tables(groups: Sequence[Sequence[dict]]) -> list[str]:
    """The lines above tables of evaluations: what all records of a group have in common.

    Batch size, dtype, text after EOS and the limit are named where two lines would be the same without them.
    """
    titles = [_describe_table(group[0]) for group in groups]
    if len(set(titles)) == len(titles):
        return titles
    return [
        f"{title}, {_dtype(group[0])}, batch size {_batch_size(group[0])}, text after EOS: {_after_eos(group[0])}"
        + (f", limit {group[0]['settings']['limit']}" if group[0]["settings"].get("limit") else "")
        for group, title in zip(groups, titles)
    ]


def _describe_table(record: dict) -> str:
    return (f"{record['task']}, {_shots(record)}-shot, {record['model']}, G = {_gen_length(record)}, "
            f"{count_samples(record['samples'])}, {hardware_line(record)}"
            + (", text after EOS kept" if record["settings"].get("after_eos") == "keep" else ""))


def metric_labels(rows: Sequence[Row]) -> list[str]:
    labels = dict.fromkeys(label for row in rows for label in row.metrics)
    first = [label for label in METRIC_LABELS.values() if label in labels]
    return first + [label for label in labels if label not in first]


def evaluation_table(
    records: Sequence[dict], reported: Sequence[Reported] = (), intervals: bool = False,
) -> Table:
    """A table of evaluations: the configuration, what tells rows of one configuration apart, and the numbers.

    Tokens: of an answer, on average. A method can be faster because it says less, which ms/token (per token of an
    answer) shows. What varies among model, task, few-shot examples, G, samples, hardware, batch size, dtype and the
    convention for text after EOS has a column. So has a score that would be another one under the other convention.

    Args:
        reported: what papers report, see `paper.reported`. Rows of the same benchmark and length stand between ours, by
            configuration; a column says whose each row is, and there are columns for the answers' length.
        intervals: put the 95 % interval after each share.
    """
    rows = evaluation_rows(records)
    theirs = beside(records, reported)
    labels = metric_labels(rows)
    labels += [label for label in paper.metric_labels(theirs) if label not in labels]
    parameters = {
        "model": [row.record["model"] for row in rows],
        "task": [row.record["task"] for row in rows],
        "shots": [str(_shots(row.record)) for row in rows],
        "G": [str(_gen_length(row.record)) for row in rows],
        "samples": [str(row.record["samples"]) for row in rows],
        "hardware": [hardware_line(row.record) for row in rows],
        "batch": [str(_batch_size(row.record)) for row in rows],
        "dtype": [_dtype(row.record) for row in rows],
        "after EOS": [_after_eos(row.record) for row in rows],
    }
    their_shots = {str(entry.row["shots"]) for entry in theirs}
    varying = {
        name: values for name, values in parameters.items()
        if len({*values, *(their_shots if name == "shots" else ())}) > 1
    }

    if any(row.detail for row in rows):
        varying = {"run": [row.detail for row in rows]} | varying

    other_labels = _other_labels(rows)
    costs = ["latency (s)", "speedup", "TPS", "ms/token", "tokens", "NFE"]
    headings = ["configuration", *varying, *costs, *_percent(labels), *_percent(other_labels)]
    if theirs:
        headings[1:1] = ["source", "table"]
        headings.insert(headings.index("TPS") + 1, "TPS ratio")

    lines = []
    for index, row in enumerate(rows):
        record = row.record
        line = {
            "configuration": row.configuration.name,
            "source": MEASURED,
            "latency (s)": seconds(record["latency_s"]),
            "speedup": times(row.speedup),
            "TPS": number(record.get("tps")),
            "TPS ratio": times(row.tps_ratio),
            "NFE": number(record.get("nfe")),
            "tokens": number(answer_length(record)),
            "ms/token": milliseconds(ms_per_token(record)),
        } | {name: values[index] for name, values in varying.items()}
        line |= {f"{label} (%)": _metric_text(metric, intervals) for label, metric in row.metrics.items()}
        line |= {
            f"{heading} (%)": _metric_text(row.other_metrics.get(label, Metric()), False)
            for heading, label in other_labels.items()
        }
        lines.append((paper.name_order(row.configuration.name), line))
    if theirs:
        lines += [(paper.name_order(entry.row["name"]), paper.columns(entry)) for entry in theirs]
        lines.sort(key=lambda entry: entry[0])  # ours first where the configuration is the same
    return Table(headings, [[line.get(heading, "–") for heading in headings] for _, line in lines])


def beside(records: Sequence[dict], reported: Sequence[Reported]) -> list[Reported]:
    """The reported rows of the records' benchmarks and answer lengths; not those of a method's parts and variants."""
    places = {(STAND_INS.get(record["task"], record["task"]), _gen_length(record)) for record in records}
    return [entry for entry in reported if entry.place in places and not entry.row.get("variant")]


def _other_labels(rows: Sequence[Row]) -> dict[str, str]:
    """The labels of scores that differ under the other convention for text after EOS, by what their columns say."""
    conventions = {_after_eos(row.record) for row in rows if row.other_metrics}
    if len(conventions) != 1:
        return {}  # the columns would mean different things in different rows
    convention = OTHER_CONVENTION[conventions.pop()]
    return {
        f"{label} {convention}": label for label in metric_labels(rows)
        if any(row.other_metrics.get(label, Metric()).value != row.metrics.get(label, Metric()).value
               for row in rows if row.other_metrics)
    }


def _percent(labels: Iterable[str]) -> list[str]:
    return [f"{label} (%)" for label in labels]


def _metric_text(metric: Metric, intervals: bool) -> str:
    if metric.interval is None or not intervals:
        return number(metric.value)
    return f"{number(metric.value)} [{metric.interval[0]:.1f}, {metric.interval[1]:.1f}]"


def evaluation_values(records: Sequence[dict], reported: Sequence[Reported] = ()) -> list[dict[str, Any]]:
    """The values of each row for CSV, by heading; what papers report beside these records follows."""
    rows = evaluation_rows(records)
    labels = metric_labels(rows)
    lines = []
    for row in rows:
        record = row.record
        line = {
            "configuration": row.configuration.name,
            "name": _given_name(record) or row.configuration.name,
            "source": MEASURED,
            "model": record["model"],
            "task": record["task"],
            "shots": _shots(record),
            "G": _gen_length(record),
            "hardware": hardware_line(record),
            "samples": record["samples"],
            "latency_s": record["latency_s"],
            "speedup": row.speedup,
            "tps": record.get("tps"),
            "tps_ratio": row.tps_ratio,
            "ms_per_token": ms_per_token(record),
            "answer_length": answer_length(record),
            "nfe": record.get("nfe"),
            "slots": record.get("slots"),
            "kept_suffix": record.get("kept_suffix"),
        }
        for label in labels:
            metric = row.metrics.get(label, Metric())
            low, high = metric.interval or (None, None)
            line |= {label: metric.value, f"{label}_low": low, f"{label}_high": high}
        line["after_eos"] = _after_eos(record)
        line |= {f"other_{label}": row.other_metrics.get(label, Metric()).value for label in labels}
        lines.append(line)
    return lines + [paper.values(entry) for entry in beside(records, reported)]


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
    dtypes = join_unique(map(numbers_of, settings))
    commits = join_unique(map(commit_of, records))
    return (f"Model {models}, task {tasks} ({shots}-shot), {samples} samples, G = {lengths}, batch size {batch_sizes}, "
            f"{hardware}, {dtypes}, commit {commits}.")


def summarize(record: dict) -> str:
    """The record of one evaluation in the few lines that a person wants to read first."""
    lines = [(name, _metric_summary(_metric(entry, record["samples"]))) for name, entry in record["metrics"].items()]
    others = (record.get("other_metrics") or {}).get("metrics") or {}
    if others and others != record["metrics"]:
        scores = [f"{label} {_metric_summary(metric)}" for label, metric in _metrics(others, record["samples"]).items()]
        lines.append((OTHER_CONVENTION[_after_eos(record)], ", ".join(scores)))
    lines += [
        ("latency", f"{record['latency_s']:.3f} s per sample (median {record['latency_median_s']:.3f} s)"),
        ("answers", f"{number(answer_length(record))} tokens per sample"),
        ("throughput", f"{record['tps']:.1f} answer tokens/s, {milliseconds(ms_per_token(record))} ms per token"),
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


def _metric_summary(metric: Metric) -> str:
    """A share with its 95 % interval, 50.0% [36.6, 63.4]; anything else with its standard error, 27.3 ± 0.5."""
    if metric.interval is not None:
        return f"{number(metric.value)}% [{metric.interval[0]:.1f}, {metric.interval[1]:.1f}]"
    return number(metric.value) + ("" if metric.error is None else f" ± {metric.error:.1f}")
