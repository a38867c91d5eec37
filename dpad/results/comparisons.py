"""Comparisons of ways of decoding: what each of them cost and got right over all seeds, and their table.

    python run.py table results/compare-arithmetic-50-tiny-0123456789/comparison.json

`run.py compare` writes the records. A method that draws has a run for each seed, one that does not a single one; the
accuracy of several runs is of the same problems, which the interval takes into account.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpad.results.evaluations import METRIC_LABELS, Z95, Metric, display_factor, share_interval
from dpad.results.formatting import Table, count_samples, milliseconds, number, seconds, times
from dpad.results.records import commit_of, hardware_line, numbers_of

BASELINE = "vanilla"


class Spread(NamedTuple):
    """A number over the runs of a method: its median, and the smallest and largest; equal where there is one run."""

    middle: float
    low: float
    high: float


class Summary(NamedTuple):
    """What a method cost and got right. Means are over all samples of all runs.

    seeds: with how many seeds it ran. latency: seconds per sample of each run. speedup: the median latency of vanilla
    decoding over this one's. ms_per_token: of an answer: over all runs, and the range of single runs.
    metrics: by label, in percent where it is a share.
    """

    method: str
    seeds: int
    latency: Spread
    speedup: float | None
    nfe: float | None
    slots: float | None
    kept_suffix: float | None
    answer_length: float | None
    ms_per_token: Spread | None
    metrics: dict[str, Metric]


def summarize(record: Mapping[str, Any]) -> list[Summary]:
    """A summary of each row of a comparison."""
    baseline = next((row for row in record["rows"] if row["method"] == BASELINE), None)
    reference = _spread([run["latency_s"] for run in baseline["runs"]]) if baseline else None
    return [_summarize(row, reference) for row in record["rows"]]


def _summarize(row: Mapping[str, Any], reference: Spread | None) -> Summary:
    runs = row["runs"]
    first = [run for run in runs if not run.get("repeat")]  # the others are the same answers once more
    latency = _spread([run["latency_s"] for run in runs])
    return Summary(
        method=row["method"],
        seeds=len({run["seed"] for run in runs}),
        latency=latency,
        speedup=reference.middle / latency.middle if reference and latency.middle else None,
        nfe=_mean(first, "nfe"),
        slots=_mean(first, "slots"),
        kept_suffix=_mean(first, "kept_suffix"),
        answer_length=_mean(first, "answer_length"),
        ms_per_token=_ms_per_token(runs),
        metrics={METRIC_LABELS.get(name, name): _pool(first, name) for name in first[0]["metrics"]},
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.fmean(values) if values else None


def _ms_per_token(runs: Sequence[Mapping[str, Any]]) -> Spread | None:
    values = [run["ms_per_token"] for run in runs if run.get("ms_per_token") is not None]
    tokens = sum(run["answer_tokens"] for run in runs)
    if not values or not tokens:
        return None
    return Spread(1000 * sum(run["seconds"] for run in runs) / tokens, min(values), max(values))


# --- Accuracy over several seeds --------------------------------------------------------------------------------------


def _pool(runs: Sequence[Mapping[str, Any]], name: str) -> Metric:
    """A metric over the runs of all seeds."""
    rights = [(run.get("right") or {}).get(name) for run in runs]
    if all(rights) and len({len(right) for right in rights if right}) == 1:
        share, low, high = pooled_interval([right for right in rights if right])
        return Metric(100 * share, None, (low, high))
    entries = [entry for run in runs if (entry := run["metrics"].get(name) or {}).get("value") is not None]
    if not entries:
        return Metric()
    factor = max(map(display_factor, entries))
    errors = [entry["stderr"] for entry in entries if isinstance(entry.get("stderr"), (int, float))]
    # As if the runs of all seeds were one: their answers to a problem are not independent.
    value = factor * statistics.fmean(entry["value"] for entry in entries)
    return Metric(value, factor * max(errors) if errors else None)


def pooled_interval(rights: Sequence[str]) -> tuple[float, float, float]:
    """The share of right answers, and its 95 % interval in percent.

    Args:
        rights: for each seed a 0 or 1 for each problem, the same problems in the same order.

    The answers to one problem under several seeds are alike. So the interval is Wilson's for the number of independent
    answers that would vary as much: the variance of the problems' means over that of independent answers is the design
    effect (Kish 1965), which is at least 1 and at most the number of seeds. With one seed it is Wilson's own.
    """
    seeds, problems = len(rights), len(rights[0])
    means = [sum(right[place] == "1" for right in rights) / seeds for place in range(problems)]
    share = statistics.fmean(means)
    effect = float(seeds)  # as if further seeds told nothing, where there is no variance to go by
    independent = share * (1 - share) / seeds
    if problems > 1 and independent:
        effect = min(max(statistics.variance(means, share) / independent, 1.0), effect)
    return share, *share_interval(share, problems * seeds / effect)


# --- Table ------------------------------------------------------------------------------------------------------------


def metric_labels(record: Mapping[str, Any]) -> list[str]:
    """The labels of all metrics, the most lenient score of word problems first."""
    labels = dict.fromkeys(label for entry in summarize(record) for label in entry.metrics)
    first = [label for label in METRIC_LABELS.values() if label in labels]
    return first + [label for label in labels if label not in first]


def comparison_table(records: Sequence[dict]) -> Table:
    """A row for each method: seeds, latency, speedup over vanilla, forwards, slots, kept suffix, answer length,
    milliseconds per answer token, and accuracy with its interval."""
    labels = list(dict.fromkeys(label for record in records for label in metric_labels(record)))
    varying = {"task": [record["task"] for record in records], "model": [record["model"] for record in records]}
    varying = {name: values for name, values in varying.items() if len(set(values)) > 1}
    headings = ["method", *varying, "seeds", "latency (s)", "speedup", "NFE", "slots", "kept", "tokens", "ms/token",
                *(f"{label} (%)" for label in labels)]
    cells = []
    for place, record in enumerate(records):
        for entry in summarize(record):
            cells.append([
                entry.method, *(values[place] for values in varying.values()), str(entry.seeds),
                _range_text(entry.latency, seconds), times(entry.speedup), number(entry.nfe), number(entry.slots, 0),
                number(entry.kept_suffix), number(entry.answer_length),
                milliseconds(entry.ms_per_token.middle if entry.ms_per_token else None),
                *(_metric_text(entry.metrics.get(label, Metric())) for label in labels),
            ])
    return Table(headings, cells)


def _range_text(spread: Spread, text: Any) -> str:
    """0.63, or with several runs 0.63 [0.61, 0.70]."""
    if spread.low == spread.high:
        return text(spread.middle)
    return f"{text(spread.middle)} [{text(spread.low)}, {text(spread.high)}]"


def _metric_text(metric: Metric) -> str:
    if metric.interval is not None:
        return f"{number(metric.value)} [{metric.interval[0]:.1f}, {metric.interval[1]:.1f}]"
    return number(metric.value) + ("" if metric.error is None else f" ± {Z95 * metric.error:.1f}")


def comparison_values(records: Sequence[dict]) -> list[dict]:
    """Values for CSV, by their headings."""
    labels = list(dict.fromkeys(label for record in records for label in metric_labels(record)))
    lines = []
    for record in records:
        for row, entry in zip(record["rows"], summarize(record)):
            per_token = entry.ms_per_token or (None, None, None)
            line = {
                "method": entry.method, "flags": row.get("flags"), "model": record["model"], "task": record["task"],
                "samples": record["samples"], "seeds": entry.seeds, "latency_s": entry.latency.middle,
                "latency_s_low": entry.latency.low, "latency_s_high": entry.latency.high, "speedup": entry.speedup,
                "nfe": entry.nfe, "slots": entry.slots, "kept_suffix": entry.kept_suffix,
                "answer_length": entry.answer_length, "ms_per_token": per_token[0], "ms_per_token_low": per_token[1],
                "ms_per_token_high": per_token[2],
            }
            for label in labels:
                metric = entry.metrics.get(label, Metric())
                low, high = metric.interval or (None, None)
                line |= {label: metric.value, f"{label}_low": low, f"{label}_high": high}
            lines.append(line | {"hardware": hardware_line(record), "commit": commit_of(record)})
    return lines


def comparison_title(record: Mapping[str, Any]) -> str:
    """What all rows of a comparison have in common, in a line."""
    settings = record["settings"]
    return (f"{record['task']}, {settings.get('num_fewshot') or 0}-shot, {record['model']}, G = "
            f"{settings.get('gen_length')}, {count_samples(record['samples'])}, batch size "
            f"{settings.get('batch_size') or 1}, {hardware_line(dict(record))}")


def comparison_caption(records: Sequence[dict]) -> str:
    """With what the numbers were measured, what the columns are, and the flags of each method."""
    lines = [f"{_measured_with(record)}\n\n{_flags_text(record)}" for record in records]
    return "\n\n".join([*lines, _explanation(records)])


def _measured_with(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    seeds = record["seeds"]
    draws = any(row.get("draws") for row in record["rows"])
    ran = f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"
    if draws and len(seeds) > 1:
        ran += " for the methods that draw; the others draw nothing and ran once"
    if record.get("repeats", 1) > 1:
        ran += f"; all of it {record['repeats']} times"
    processes = record.get("processes") or 1
    where = "one process" if processes == 1 else f"{processes} processes"
    reused = sum(run.get("reused") or 0 for row in record["rows"] for run in row["runs"])
    later = f" {reused} of the answers were timed in an earlier, interrupted session." if reused else ""
    return (f"Model {record['model']}, task {record['task']} ({settings.get('num_fewshot') or 0}-shot), "
            f"{record['samples']} samples, G = {settings.get('gen_length')}, blocks of {settings.get('block_length')}, "
            f"batch size {settings.get('batch_size') or 1}, {ran}. All rows in {where}, one method after the other in "
            f"the order of the rows, seed by seed, each warmed up by an answer that does not count.{later} "
            f"{hardware_line(dict(record))}, {numbers_of(settings) or 'unknown dtype'}, commit "
            f"{commit_of(dict(record))}.")


def _flags_text(record: Mapping[str, Any]) -> str:
    """A line for each method: the flags with which run.py decodes in the same way, and whose method it is."""
    return "\n".join(
        f"- {row['method']}: `{row.get('flags') or 'no flags'}`" + (f" ({row['source']})" if row.get("source") else "")
        for row in record["rows"]
    )


def _explanation(records: Sequence[dict]) -> str:
    text = (
        "Latency: seconds per sample, over several runs the median [smallest, largest]. Speedup: over vanilla. Slots: "
        "positions that all forwards of an answer computed. Kept: suffix positions that a block saw, on average. "
        "Tokens: of an answer. ms/token: all seconds over all answer tokens; a method that says less is not faster for "
        "it. [ ] after an accuracy: 95 % interval (Wilson)"
    )
    if any(len({run["seed"] for run in row["runs"]}) > 1 for record in records for row in record["rows"]):
        text += (", of all seeds together; answers to one problem under several seeds are not independent, and count "
                 "for as many as vary as much (design effect)")
    return text + "."
