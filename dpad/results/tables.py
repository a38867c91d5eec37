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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

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
        ValueError: there are no records; see `paper.reported` and `evaluation_rows`.
    """
    reported = paper.reported(model) if model else {}
    parts = []
    for kind in _kinds_of(records):
        group = [record for record in records if record["kind"] == kind]
        if form == "csv":
            parts.append(csv_table(group, reported).rstrip("\n"))
        elif kind == "evaluation":
            for table in group_evaluations(group):
                heading = f"**{title(table)}**\n" if form == "markdown" else title(table)
                parts.append(f"{heading}\n{FORMATS[form](*evaluation_table(table, reported, intervals=True))}")
            parts.append(_explain_columns(model))
        else:
            parts.append(f"{FORMATS[form](*table_of(group))}\n\n{caption(group)}")
    return "\n\n".join(parts)


def _explain_columns(model: str | None) -> str:
    text = "[ ]: 95 % interval (Wilson)."
    if model:
        source = paper.read()
        text += (f" paper: as reported by the authors for {source['models'][model]['title']} on an "
                 f"{source['hardware']} ({source['source']}).")
    return text


def terminal_table(records: Sequence[dict], names: Sequence[str] = ()) -> str:
    """One table with aligned columns; at most 100 characters wide with the names and metrics of the demo.

    Args:
        names: names of rows still to come, so that the columns stay where they are while a table grows.
    """
    return as_columns(*table_of(records), names)


def markdown_table(records: Sequence[dict]) -> str:
    """One table as Markdown, with the caption under it."""
    return f"{as_markdown(*table_of(records))}\n\n{caption(records)}"


def csv_table(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> str:
    """One table as comma-separated values with a heading line.

    Of evaluations: plain numbers in full precision, empty where unknown, the authors' in columns that begin with
    paper_. Of other kinds: the cells of the table as they are.
    """
    if _kind_of(records) == "evaluation":
        lines = _evaluation_values(evaluation_rows(records, reported))
    else:
        headings, cells = table_of(records)
        lines = [headings, *cells]

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def table_of(records: Sequence[dict]) -> Table:
    """One table of records of one kind.

    Raises:
        ValueError: there are no records, or they are of different kinds; see `evaluation_rows`.
    """
    return KINDS[_kind_of(records)].table(records)


def caption(records: Sequence[dict]) -> str:
    """What the numbers of one table were measured with: model, task, samples, G, hardware, dtype, commit."""
    return KINDS[_kind_of(records)].caption(records)


def _kinds_of(records: Sequence[dict]) -> list[str]:
    """The different kinds, in the records' order; ValueError where there are no records."""
    if not records:
        raise ValueError("there are no records to show")
    return list(dict.fromkeys(record["kind"] for record in records))


def _kind_of(records: Sequence[dict]) -> str:
    """The kind of all records; ValueError where they have several."""
    kinds = _kinds_of(records)
    if len(kinds) > 1:
        raise ValueError(f"records of different kinds ({', '.join(kinds)}) do not make one table")
    return kinds[0]


# --- Evaluations ------------------------------------------------------------------------------------------------------


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
    _kind_of(records)
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
        place = paper.STAND_INS.get(record["task"], record["task"]), _gen_length(record), record["name"]
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
    factor = scale(entry)
    return Metric(
        factor * value,
        factor * error if isinstance(error, (int, float)) else None,
        share_interval(value, samples) if factor == 100 else None,
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
        groups.setdefault((record["task"], record["model"], _gen_length(record)), []).append(record)

    order = {name: place for place, name in enumerate(LONG_SEQUENCES)}
    return [sorted(group, key=lambda record: order.get(record["name"], len(order))) for group in groups.values()]


def title(records: Sequence[dict]) -> str:
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


def _evaluation_values(rows: Sequence[Row]) -> list[list]:
    """Headings and values of evaluations for CSV."""
    labels = metric_labels(rows)
    lines: list[list] = [[
        "name", "model", "task", "G", "hardware", "samples", "latency_s", "speedup", "tps", "nfe",
        *(column for label in labels for column in (label, f"{label}_low", f"{label}_high")),
        "paper_latency_s", "paper_speedup", *(f"paper_{label}" for label in labels),
    ]]
    for row in rows:
        record = row.record
        line = [record["name"], record["model"], record["task"], _gen_length(record), hardware_line(record)]
        line += [record["samples"], record["latency_s"], row.speedup, record.get("tps"), record.get("nfe")]
        for label in labels:
            metric = row.metrics.get(label, Metric())
            line += [metric.value, *(metric.interval or (None, None))]
        theirs = row.reported or {"metrics": {}}
        line += [theirs.get("latency_s"), theirs.get("speedup"), *(theirs["metrics"].get(label) for label in labels)]
        lines.append(line)
    return lines


def _evaluation_caption(records: Sequence[dict]) -> str:
    def settings(name: str) -> str:
        return _join(record["settings"].get(name) for record in records)

    shots = _join(record["settings"].get("num_fewshot") or 0 for record in records)
    return (
        f"Model {_join(record['model'] for record in records)}, task {_join(record['task'] for record in records)} "
        f"({shots}-shot), {_join(record['samples'] for record in records)} samples, G = {settings('gen_length')}, "
        f"batch size {settings('batch_size')}, {_join(map(hardware_line, records))}, {settings('dtype')}, "
        f"commit {_join(map(_commit, records))}."
    )


def _join(values: Iterable[object]) -> str:
    """The different values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "unknown"


def _commit(record: dict) -> str:
    return record.get("environment", {}).get("commit") or "unknown"


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

    parameters = {
        "model": [record["model"] for record, _ in rows],
        "G": [str(record["settings"]["gen_length"]) for record, _ in rows],
        "batch": [str(row.get("batch_size", record["settings"]["batch_size"])) for record, row in rows],
    }
    varying = {name: values for name, values in parameters.items() if len(set(values)) > 1}
    cells = [
        [row["name"], *(values[index] for values in varying.values()), *(text(row) for text in columns.values())]
        for index, (_, row) in enumerate(rows)
    ]
    return Table(["configuration", *varying, *columns], cells)


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
        f"{hardware_line(record)}, {work['dtype']}, commit {_commit(record)}."
    )


def summary_of(record: dict) -> dict:
    """A benchmark or growth record in one line of JSON: for each row its time, and what that is relative to."""
    if record["kind"] == "growth":
        rows = [{"name": row["name"], "gen_length": row["gen_length"], "block_ms": round(block_ms(row), 3)}
                for row in record["rows"]]
    else:
        rows = [{"name": row["name"], "batch_size": row.get("batch_size", record["settings"]["batch_size"]),
                 "latency_s": round(statistics.median(row["latency_s"]), 5), "speedup": round(row["speedup"], 3),
                 "floor_speedup": round(row["floor_speedup"], 3), "times_floor": round(row["ratio"], 3)}
                for row in record["rows"]]
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
        f"commit {_commit(record)}."
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


def as_columns(headings: Sequence[str], cells: Sequence[Sequence[str]], names: Sequence[str] = ()) -> str:
    """Aligned columns under a rule; the first is at least as wide as the longest of `names`."""
    widths = [max(map(len, column)) for column in zip(headings, *cells)]
    widths = [max(widths[0], *map(len, names), 0), *(max(width, 7) for width in widths[1:])]

    def align(line: Sequence[str]) -> str:
        return "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])

    heading = align(headings)
    return "\n".join([heading, "─" * len(heading), *map(align, cells)])


def as_markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


FORMATS: dict[str, Callable[[list[str], list[list[str]]], str]] = {"terminal": as_columns, "markdown": as_markdown}


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    """A speedup: 1.50×, 137×."""
    return "–" if value is None else f"{value:.{2 if value < 100 else 0}f}×"


def seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def count_samples(samples: int | str) -> str:
    return f"{samples} sample{'s' * (samples != 1)}"
