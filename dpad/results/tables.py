"""Tables of records: rows and cells of every kind of record, as text for the terminal, Markdown or CSV.

    python run.py table benchmarks/demo-cpu.json                              # also: --format markdown, --format csv
    python run.py table results/main_1.5/1.5 --paper llada-1.5                # beside what the authors report

Every number comes from a record. Evaluations are shown one table for each task, model and answer length, rows in the
paper's order; all other records of one kind share a table.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpad.engine.configurations import LONG_SEQUENCES, VANILLA, Configuration, classify
from dpad.results import paper
from dpad.results.records import hardware_line

METRIC_LABELS = {"flexible-extract": "flexible", "strict-match": "strict"}  # these come first, in this order
Z95 = 1.959964  # of the normal distribution, two-sided


class Table(NamedTuple):
    """Headings and cells as text. The first column is aligned to the left, all others to the right."""

    headings: list[str]
    cells: list[list[str]]


# --- What the command line and the documents show ---------------------------------------------------------------------


def render(records: Sequence[dict], model: str | None = None, form: str = "terminal") -> str:
    """All tables of these records: evaluations by task, model and answer length, other kinds one table each.

    Args:
        model: the key of a model in benchmarks/paper.json, whose reported numbers stand beside evaluations.
        form: "terminal", "markdown" or "csv" (a single table of all evaluations, plain numbers in full precision).

    Raises:
        ValueError: see `paper.reported` and `evaluation_rows`; or there are no records.
    """
    if not records:
        raise ValueError("there are no records to show")

    reported = paper.reported(model) if model else {}
    parts = []
    for kind in dict.fromkeys(record["kind"] for record in records):
        group = [record for record in records if record["kind"] == kind]
        if form == "csv":
            parts.append(csv_table(group, reported).rstrip("\n"))
        elif kind == "evaluation":
            parts += [_titled_table(table, reported, form) for table in group_evaluations(group)]
            parts.append(_interval_note(model))
        else:
            parts.append(f"{FORMATS[form](table_of(group))}\n\n{caption(group)}")
    return "\n\n".join(parts)


def _titled_table(records: Sequence[dict], reported: Mapping[tuple, dict], form: str) -> str:
    table = evaluation_table(records, reported, intervals=True)
    if form == "markdown":
        return f"**{title(records)}**\n\n{as_markdown(table)}"
    return f"{title(records)}\n{as_columns(table)}"


def _interval_note(model: str | None) -> str:
    note = f"[ ]: 95 % interval (Wilson).{' paper: as reported by the authors for ' if model else ''}"
    if model:
        source = paper.read()
        note += f"{source['models'][model]['title']} on an {source['hardware']} ({source['source']})."
    return note


def terminal_table(records: Sequence[dict], names: Sequence[str] = ()) -> str:
    """One table with aligned columns; at most 100 characters wide with the names and metrics of the demo.

    Args:
        names: names of rows still to come, so that the columns stay where they are while a table grows.
    """
    return as_columns(table_of(records), names)


def markdown_table(records: Sequence[dict]) -> str:
    """One table as Markdown, with the caption under it."""
    return f"{as_markdown(table_of(records))}\n\n{caption(records)}"


def csv_table(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> str:
    """One table as comma-separated values with a heading line.

    Of evaluations: plain numbers in full precision, empty where unknown, the authors' in columns that begin with
    paper_. Of other kinds: the cells of the table as they are.
    """
    _check_kind(records)
    if records[0]["kind"] == "evaluation":
        lines = _evaluation_values(evaluation_rows(records, reported or {}))
    else:
        table = table_of(records)
        lines = [table.headings, *table.cells]

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def table_of(records: Sequence[dict]) -> Table:
    """One table of records of one kind.

    Raises:
        ValueError: there are no records, or they are of different kinds; see `evaluation_rows`.
    """
    _check_kind(records)
    return KINDS[records[0]["kind"]].table(records)


def caption(records: Sequence[dict]) -> str:
    """What the numbers of one table were measured with: model, task, samples, G, hardware, dtype, commit.

    Raises:
        ValueError: there are no records, or they are of different kinds.
    """
    _check_kind(records)
    return KINDS[records[0]["kind"]].caption(records)


def _check_kind(records: Sequence[dict]) -> None:
    if not records:
        raise ValueError("there are no records to show")
    kinds = dict.fromkeys(record["kind"] for record in records)
    if len(kinds) > 1:
        raise ValueError(f"records of different kinds ({', '.join(kinds)}) do not make one table")


# --- Evaluations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation, in percent where it is a share of the samples.

    Attributes:
        value: None where it could not be computed.
        error: the standard error, None where the record has none.
        interval: the 95 % interval, of shares only.
    """

    value: float | None
    error: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """What the tables and charts show of an evaluation.

    Attributes:
        latency_s: seconds per sample, mean.
        speedup: the latency of vanilla decoding over this one's; None where no vanilla record has the same task,
            model, answer length and hardware.
        tps: answer tokens per second.
        nfe: forwards per sample.
        reported: the authors' row of the same benchmark, answer length and name.
    """

    name: str
    task: str
    model: str
    gen_length: int | None
    hardware: str
    samples: int
    settings: dict
    latency_s: float
    speedup: float | None
    tps: float | None
    nfe: float | None
    metrics: dict[str, Metric]
    reported: dict | None

    @property
    def configuration(self) -> Configuration:
        return classify(self.settings)


def evaluation_rows(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> list[Row]:
    """A row for each record, in their order.

    Args:
        reported: the authors' rows, see `paper.reported`.

    Raises:
        ValueError: there are no records, or two of them could be the baseline of a speedup.
    """
    if not records:
        raise ValueError("there are no records to show")

    comparable: dict[tuple, list[dict]] = {}
    for record in records:
        comparable.setdefault(_comparison_key(record), []).append(record)
    baselines = {key: _baseline_latency(group) for key, group in comparable.items()}

    rows = []
    for record in records:
        task, model, gen_length, hardware = key = _comparison_key(record)
        latency = record["latency_s"]
        baseline = baselines[key]
        rows.append(Row(
            name=record["name"],
            task=task,
            model=model,
            gen_length=gen_length,
            hardware=hardware,
            samples=record["samples"],
            settings=record["settings"],
            latency_s=latency,
            speedup=baseline / latency if baseline and latency else None,
            tps=record.get("tps"),
            nfe=record.get("nfe"),
            metrics={
                METRIC_LABELS.get(name, name): _metric(entry, record["samples"])
                for name, entry in record["metrics"].items()
            },
            reported=(reported or {}).get((paper.STAND_INS.get(task, task), gen_length, record["name"])),
        ))
    return rows


def _comparison_key(record: dict) -> tuple:
    """What must agree before two latencies may be compared."""
    return record["task"], record["model"], record["settings"].get("gen_length"), hardware_line(record)


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
    value = entry.get("value")
    error = entry.get("stderr")
    factor = scale(entry)
    return Metric(
        value=None if value is None else factor * value,
        error=factor * error if isinstance(error, (int, float)) else None,
        interval=share_interval(value, samples) if value is not None and factor == 100 else None,
    )


def scale(metric: dict) -> int:
    """What a metric's value and error are shown times: 100 for a share; 1 for anything else, such as BLEU."""
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


def group_evaluations(records: Sequence[dict]) -> list[list[dict]]:
    """Records that belong into one table: of one task, model and answer length; rows of the paper in its order, then
    all others."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["task"], record["model"], record["settings"].get("gen_length")), []).append(record)

    order = {name: place for place, name in enumerate(LONG_SEQUENCES)}
    return [sorted(group, key=lambda record: order.get(record["name"], len(order))) for group in groups.values()]


def title(records: Sequence[dict]) -> str:
    """The line above a table of evaluations of one task, model and answer length."""
    first = records[0]
    counts = sorted({record["samples"] for record in records})
    samples = count_samples(counts[0] if len(counts) == 1 else f"{counts[0]}–{counts[-1]}")
    return (f"{first['task']}, {first['settings'].get('num_fewshot') or 0}-shot, {first['model']}, "
            f"G = {first['settings'].get('gen_length')}, {samples}, {hardware_line(first)}")


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
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda row: row.model,
        "task": lambda row: row.task,
        "G": lambda row: str(row.gen_length),
        "hardware": lambda row: row.hardware,
    }
    varying = {name: text for name, text in columns.items() if len({text(row) for row in rows}) > 1}
    compared = any(row.reported for row in rows)
    their_labels = [label for label in labels if any(label in row.reported["metrics"] for row in rows if row.reported)]

    headings = ["configuration", *varying, "latency (s)", "speedup", "TPS", "NFE", *_percent(labels)]
    if compared:
        headings += ["paper: latency (s)", "speedup", *_percent(their_labels)]

    cells = []
    for row in rows:
        line = [row.name, *(text(row) for text in varying.values())]
        line += [seconds(row.latency_s), times(row.speedup), number(row.tps), number(row.nfe)]
        line += [_metric_text(row.metrics.get(label), intervals) for label in labels]
        if compared:
            theirs = row.reported or {"latency_s": None, "speedup": None, "metrics": {}}
            line += [number(theirs["latency_s"], 2), times(theirs["speedup"])]
            line += [number(theirs["metrics"].get(label), 2) for label in their_labels]
        cells.append(line)
    return Table(headings, cells)


def _percent(labels: Sequence[str]) -> list[str]:
    return [f"{label} (%)" for label in labels]


def _metric_text(metric: Metric | None, intervals: bool) -> str:
    if metric is None:
        return number(None)
    if metric.interval is None or not intervals:
        return number(metric.value)
    low, high = metric.interval
    return f"{number(metric.value)} [{low:.1f}, {high:.1f}]"


def _evaluation_values(rows: Sequence[Row]) -> list[list]:
    """Heading and values of evaluations for CSV."""
    labels = metric_labels(rows)
    lines: list[list] = [[
        "name", "model", "task", "G", "hardware", "samples", "latency_s", "speedup", "tps", "nfe",
        *(column for label in labels for column in (label, f"{label}_low", f"{label}_high")),
        "paper_latency_s", "paper_speedup", *(f"paper_{label}" for label in labels),
    ]]
    for row in rows:
        line = [row.name, row.model, row.task, row.gen_length, row.hardware, row.samples, row.latency_s, row.speedup,
                row.tps, row.nfe]
        for label in labels:
            metric = row.metrics.get(label) or Metric(None, None, None)
            line += [metric.value, *(metric.interval or (None, None))]
        theirs = row.reported or {"metrics": {}}
        line += [theirs.get("latency_s"), theirs.get("speedup"), *(theirs["metrics"].get(label) for label in labels)]
        lines.append(line)
    return lines


def _evaluation_caption(records: Sequence[dict]) -> str:
    settings = [record["settings"] for record in records]
    return (
        f"Model {_join(r['model'] for r in records)}, task {_join(r['task'] for r in records)} "
        f"({_join(entry.get('num_fewshot') or 0 for entry in settings)}-shot), "
        f"{_join(r['samples'] for r in records)} samples, G = {_join(s.get('gen_length') for s in settings)}, "
        f"batch size {_join(s.get('batch_size') for s in settings)}, "
        f"{_join(hardware_line(r) for r in records)}, {_join(s.get('dtype') for s in settings)}, "
        f"commit {_join(_commit(r) for r in records)}."
    )


def _join(values: Any) -> str:
    """The different values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "unknown"


def _commit(record: dict) -> str | None:
    return record.get("environment", {}).get("commit")


def summary(record: dict) -> str:
    """The record of one evaluation in the few lines that a person wants to read first."""
    lines = [(name, _metric_summary(entry)) for name, entry in record["metrics"].items()]
    lines += [
        ("latency", f"{record['latency_s']:.3f} s a sample (median {record['latency_median_s']:.3f} s)"),
        ("throughput", f"{record['tps']:.1f} answer tokens/s"),
        ("NFE", f"{record['nfe']:.1f} forwards a sample"),
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
    unit = "%" if scale(entry) == 100 else ""
    values = [entry["value"]] if entry["stderr"] is None else [entry["value"], entry["stderr"]]
    return " ± ".join(f"{scale(entry) * value:.1f}{unit}" for value in values)


# --- Benchmarks -------------------------------------------------------------------------------------------------------


def benchmark_table(records: Sequence[dict]) -> Table:
    """For each row: time, its spread over the repeats, work, time of a forward of each kind, and the roofline."""
    rows = [(record, row) for record in records for row in record["rows"]]
    columns: dict[str, Callable[[dict], str]] = {
        "latency (s)": lambda row: seconds(statistics.median(row["latency_s"])),
        "spread": lambda row: f"±{100 * _spread(row['latency_s']):.0f}%",
        "speedup": lambda row: f"{row['speedup']:.2f}×",
        "forwards": lambda row: str(row["forwards"]),
        "slots": lambda row: str(row["tokens_processed"]),
        "kept suffix": lambda row: number(row["kept_suffix"], 0),
        "full (ms)": lambda row: number(row["full_ms"], 2),
        "cached (ms)": lambda row: number(row["cached_ms"], 2),
        "roofline (s)": lambda row: seconds(statistics.median(row["floor_s"])),
        "× roofline": lambda row: f"{row['ratio']:.2f}",
    }
    if any(row.get("read_s") for _, row in rows):
        columns["read (s)"] = lambda row: number(row["read_s"], 3)
    columns["memory (GB)"] = lambda row: number(row.get("peak_memory") and row["peak_memory"] / 2**30, 2)

    settings: dict[str, Callable[[dict, dict], object]] = {
        "model": lambda record, row: record["model"],
        "G": lambda record, row: record["settings"]["gen_length"],
        "batch": lambda record, row: row.get("batch_size", record["settings"]["batch_size"]),
    }
    varying = {name: value for name, value in settings.items() if len({value(*pair) for pair in rows}) > 1}
    return Table(
        ["configuration", *varying, *columns],
        [
            [row["name"], *(str(value(record, row)) for value in varying.values()),
             *(text(row) for text in columns.values())]
            for record, row in rows
        ],
    )


def _spread(values: Sequence[float]) -> float:
    """Half of the range, relative to the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def growth_table(records: Sequence[dict]) -> Table:
    """A row for each answer length; for each configuration what a block costs, and that over the cost at the shortest
    answer."""
    several_models = len({record["model"] for record in records}) > 1
    costs: dict[str, dict[int, float]] = {}
    for record in records:
        for row in record["rows"]:
            name = f"{record['model']} {row['name']}" if several_models else row["name"]
            costs.setdefault(name, {})[row["gen_length"]] = block_ms(row)

    cells = []
    for length in sorted({length for by_length in costs.values() for length in by_length}):
        line = [str(length)]
        for by_length in costs.values():
            cost = by_length.get(length)
            line += [number(cost), times(None if cost is None else cost / by_length[min(by_length)])]
        cells.append(line)
    return Table(["G", *(heading for name in costs for heading in (f"{name} (ms a block)", f"{name} growth"))], cells)


def block_ms(row: dict) -> float:
    """Milliseconds of a block in a row of a growth record: the mean over its blocks of the median over the repeats."""
    return 1000 * statistics.fmean(statistics.median(repeats) for repeats in row["block_s"])


def batch_sizes(record: dict) -> list[int]:
    """The batch sizes of a benchmark's rows; a record of one size may name it in its settings alone."""
    return list(dict.fromkeys(row.get("batch_size", record["settings"]["batch_size"]) for row in record["rows"]))


def _benchmark_caption(records: Sequence[dict]) -> str:
    return "\n".join(_describe_benchmark(record) for record in records)


def _describe_benchmark(record: dict) -> str:
    work = record["settings"]
    sampler = work["sampler"]
    steps = f"threshold {work['threshold']}" if work["threshold"] else f"{work['steps_per_block']} steps"
    if record["kind"] == "growth":
        answer = _join(sorted({row["gen_length"] for row in record["rows"]}))
        end = ""
    else:
        answer = str(work["gen_length"])
        end = f" (early termination after {work['blocks']})" if work["blocks"] else ""
    return (
        f"Model {record['model']}, prompt {work['prompt_length']}, G = {answer}, blocks of {work['block_length']} in "
        f"{steps}{end}, batch size {_join(batch_sizes(record))}, DPad window {sampler['window']}, "
        f"k {sampler['k_sigma']:g}, scale {sampler['scale']:g}; median of {record['repeats']} runs; "
        f"{hardware_line(record)}, {work['dtype']}, commit {_commit(record) or 'unknown'}."
    )


def summary_of(record: dict) -> dict:
    """A benchmark or growth record in one line of JSON: for each row its time, and what that is relative to."""
    if record["kind"] == "growth":
        rows = [
            {"name": row["name"], "gen_length": row["gen_length"], "block_ms": round(block_ms(row), 3)}
            for row in record["rows"]
        ]
    else:
        rows = [
            {
                "name": row["name"],
                "batch_size": row.get("batch_size", record["settings"]["batch_size"]),
                "latency_s": round(statistics.median(row["latency_s"]), 5),
                "speedup": round(row["speedup"], 3),
                "floor_speedup": round(row["floor_speedup"], 3),
                "times_floor": round(row["ratio"], 3),
            }
            for row in record["rows"]
        ]
    return {"kind": record["kind"], "model": record["model"], "rows": rows}


# --- Agreement with the plain path, and the paper's scripts -----------------------------------------------------------


def agreement_table(records: Sequence[dict]) -> Table:
    """For each way of decoding, and each dtype with and without graphs, the share of answers and of tokens that are
    the plain path's."""
    rows = [row for record in records for row in record["rows"]]
    runs = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_agreement(value)))
    return Table(
        ["configuration", "model", *runs],
        [[_describe_decoding(row), row["model"], *(_agreement_text(row.get(run)) for run in runs)] for row in rows],
    )


def _is_agreement(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"answers", "tokens"}


def _agreement_text(shares: dict | None) -> str:
    return number(None) if shares is None else f"{100 * shares['answers']:.1f} / {100 * shares['tokens']:.1f}"


def _describe_decoding(row: dict) -> str:
    sampler = row.get("suffix_sampler")  # "None" in the records that hold it as text
    return classify(row | {"suffix_sampler": None if sampler == "None" else sampler}).name


def _agreement_caption(records: Sequence[dict]) -> str:
    return " ".join(
        f"Answers / tokens (%) that equal the plain path's: float32 runs those of float32 on the CPU without graphs, "
        f"bfloat16 with graphs those of bfloat16 without; {record['problems']} problems, {hardware_line(record)}, "
        f"commit {_commit(record) or 'unknown'}."
        for record in records
    )


def scripts_table(records: Sequence[dict]) -> Table:
    """For each script of the paper's settings the table or figure that it makes, and how long that took the authors."""
    cells = []
    for source in records:
        for script in source["scripts"]:
            rows = [
                row for row in source["models"][script["model"]]["rows"] if row["gen_length"] in script["gen_lengths"]
            ]
            hours = sum(row["latency_s"] * source["problems"][row["benchmark"]] for row in rows) / 3600
            cells.append([f"`bash {script['script']}`", script["shows"], f"{hours:.0f}" if rows else "not reported"])
    return Table(["command", "makes", "hours on an A100"], cells)


def _scripts_caption(records: Sequence[dict]) -> str:
    return (f"Hours: the latencies that the authors report for an {records[0]['hardware']} ({records[0]['source']}), "
            "times the benchmarks' numbers of problems; nothing that was measured here.")


class _Kind(NamedTuple):
    """How the records of one kind are shown."""

    table: Callable[[Sequence[dict]], Table]
    caption: Callable[[Sequence[dict]], str]


KINDS = {
    "evaluation": _Kind(evaluation_table, _evaluation_caption),
    "benchmark": _Kind(benchmark_table, _benchmark_caption),
    "growth": _Kind(growth_table, _benchmark_caption),
    "agreement": _Kind(agreement_table, _agreement_caption),
    "paper": _Kind(scripts_table, _scripts_caption),
}


# --- Text -------------------------------------------------------------------------------------------------------------


def as_columns(table: Table, names: Sequence[str] = ()) -> str:
    """Aligned columns under a rule; the first is as wide as the longest of `names`, too."""
    widths = [max(map(len, column)) for column in zip(table.headings, *table.cells)]
    widths = [max(widths[0], *map(len, names), 0), *(max(width, 7) for width in widths[1:])]

    def align(line: list[str]) -> str:
        return "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])

    heading = align(table.headings)
    return "\n".join([heading, "─" * len(heading), *map(align, table.cells)])


def as_markdown(table: Table) -> str:
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)], *table.cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


FORMATS: dict[str, Callable[[Table], str]] = {"terminal": as_columns, "markdown": as_markdown}


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    """A speedup: 1.50×, 137×."""
    return "–" if value is None else f"{value:.{2 if value < 100 else 0}f}×"


def seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def count_samples(samples: int | str) -> str:
    return f"{samples} sample{'s' * (samples != 1)}"
