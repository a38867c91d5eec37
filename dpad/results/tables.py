"""Tables of records: every number comes from a record, none is typed."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

BASELINE = "Vanilla"
METRIC_LABELS = {"flexible-extract": "flexible", "strict-match": "strict"}  # these come first, in this order


def rows(records: Sequence[dict]) -> list[dict]:
    """What the tables show, a dict for each record, in their order.

    Keys: `name`; `task`, `model`, `G` and `hardware`; `latency_s` (seconds per sample, mean); `speedup` (the latency of
    the row named Vanilla over this row's, or None where no Vanilla row has the same task, model, G and hardware); `tps`
    (answer tokens per second); `nfe` (forwards per sample); `metrics`, a dict of percentages by label, and
    `shares`, the labels of those that are shares of the samples.

    Raises:
        ValueError: there are no records, or two Vanilla rows could be the baseline.
    """
    if not records:
        raise ValueError("there are no records to show")
    baselines: dict[tuple, float] = {}
    for record in records:
        if record["name"] == BASELINE:
            if _setting(record) in baselines:
                raise ValueError(f"two records named {BASELINE} have the same task, model, G and hardware: "
                                 "the speedups would be ambiguous")
            baselines[_setting(record)] = record["latency_s"]
    shown = []
    for record in records:
        baseline, latency = baselines.get(_setting(record)), record["latency_s"]
        task, model, length, hardware = _setting(record)
        shown.append({
            "name": record["name"], "task": task, "model": model, "G": length, "hardware": hardware,
            "latency_s": latency,
            "speedup": baseline / latency if baseline and latency else None,
            "tps": record.get("tps"), "nfe": record.get("nfe"),
            "metrics": {
                METRIC_LABELS.get(key, key): None if entry.get("value") is None else scale(entry) * entry["value"]
                for key, entry in record["metrics"].items()
            },
            "shares": {METRIC_LABELS.get(key, key) for key, entry in record["metrics"].items() if scale(entry) == 100},
        })
    return shown


def scale(metric: dict) -> int:
    """What a metric's value and error are shown times: 100 for a share; 1 for what is none, such as BLEU."""
    value = metric.get("value")
    return 100 if value is not None and 0 <= value <= 1 else 1


def _setting(record: dict) -> tuple:
    """What must agree before two latencies may be compared."""
    return record["task"], record["model"], record["settings"].get("gen_length"), hardware_line(record)


def hardware_line(record: dict) -> str:
    """The device that generated, in words: the GPU for a run on one, otherwise the processor with its cores."""
    hardware = record.get("environment", {}).get("hardware", {})
    gpus = hardware.get("gpus") or []
    if gpus and not str(record["settings"].get("device", "cuda")).startswith("cpu"):
        memory = gpus[0].get("memory_gb")
        return gpus[0]["name"] + (f" ({memory:.0f} GB)" if memory else "")
    if "processor" not in hardware:
        return "unknown hardware"
    processor = hardware["processor"].replace("(R)", "").replace("(TM)", "").strip()
    cores, threads = hardware.get("cores"), hardware.get("threads")
    line = processor + (f", {cores} core{'s' * (cores != 1)}" if cores else "")
    return line + (f", {threads} thread{'s' * (threads != 1)}" if threads and threads != cores else "")


def caption(records: Sequence[dict]) -> str:
    """One sentence with what the numbers were measured with: model, task, samples, G, hardware, dtype, commit."""

    def all_of(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "unknown"

    if records[0]["kind"] == "paper":
        return (f"Hours: the latencies that the authors report for an {records[0]['hardware']} "
                f"({records[0]['source']}), times the benchmarks' numbers of problems; nothing that was measured here.")
    if records[0]["kind"] != "evaluation":
        return " ".join(_benchmark_caption(record) for record in records)
    settings = [record["settings"] for record in records]
    shots = all_of([entry.get("num_fewshot") or 0 for entry in settings])
    return (
        f"Model {all_of([r['model'] for r in records])}, task {all_of([r['task'] for r in records])} ({shots}-shot), "
        f"{all_of([r['samples'] for r in records])} samples, G = {all_of([s.get('gen_length') for s in settings])}, "
        f"batch size {all_of([s.get('batch_size') for s in settings])}, "
        f"{all_of([hardware_line(r) for r in records])}, {all_of([s.get('dtype') for s in settings])}, "
        f"commit {all_of([r.get('environment', {}).get('commit') for r in records])}."
    )


def batch_sizes(record: dict) -> list[int]:
    """Of a benchmark's rows, in their order; a record of one size may name it in its settings alone."""
    return list(dict.fromkeys(row.get("batch_size", record["settings"]["batch_size"]) for row in record["rows"]))


def _benchmark_caption(record: dict) -> str:
    work = record["settings"]
    steps = f"threshold {work['threshold']}" if work["threshold"] else f"{work['steps_per_block']} steps"
    lengths = sorted({row["gen_length"] for row in record["rows"]}) if record["kind"] == "growth" else []
    answer = f"G = {', '.join(map(str, lengths)) or work['gen_length']}"
    sampler, commit = work["sampler"], record.get("environment", {}).get("commit", "unknown")
    ends = f" (early termination after {work['blocks']})" if work["blocks"] and not lengths else ""
    return (
        f"Model {record['model']}, prompt {work['prompt_length']}, {answer}, blocks of {work['block_length']} in "
        f"{steps}{ends}, batch size {', '.join(map(str, batch_sizes(record)))}, DPad window {sampler['window']}, "
        f"k {sampler['k_sigma']:g}, scale {sampler['scale']:g}; median of {record['repeats']} runs; "
        f"{hardware_line(record)}, {work['dtype']}, commit {commit}."
    )


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def counted(samples: int | str) -> str:
    return f"{samples} sample{'s' * (samples != 1)}"


def times(value: float | None) -> str:
    """A speedup: 1.50×, 137×."""
    return "–" if value is None else f"{value:.{2 if value < 100 else 0}f}×"


def seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def metric_labels(shown: Sequence[dict]) -> list[str]:
    found = dict.fromkeys(label for row in shown for label in row["metrics"])
    first = [label for label in METRIC_LABELS.values() if label in found]
    return first + [label for label in found if label not in first]


def _cells(records: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and text cells; the first column is the configuration, and settings that vary come right after it."""
    if records and records[0]["kind"] != "evaluation":
        return {"benchmark": _benchmark_cells, "growth": _growth_cells, "paper": _paper_cells}[records[0]["kind"]](
            records)
    shown = rows(records)
    varying = [key for key in ("model", "task", "G", "hardware") if len({row[key] for row in shown}) > 1]
    labels = metric_labels(shown)
    metrics = [f"{label} (%)" for label in labels]
    headings = ["configuration", *varying, "latency (s)", "speedup", "TPS", "NFE", *metrics]
    return headings, [
        [
            row["name"], *(str(row[key]) for key in varying), seconds(row["latency_s"]),
            times(row["speedup"]), number(row["tps"]), number(row["nfe"]),
            *(number(row["metrics"].get(label)) for label in labels),
        ]
        for row in shown
    ]


def _benchmark_cells(records: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """For each row: time, its spread over the repeats, work, time of a forward of each kind, and the floor."""
    headings = ["configuration", "latency (s)", "spread", "speedup", "forwards", "slots", "kept suffix", "full (ms)",
                "cached (ms)", "floor (s)", "× floor", "memory (GB)"]
    reads = any(row.get("read_s") for record in records for row in record["rows"])
    models = len({record["model"] for record in records}) > 1
    batches = len({row.get("batch_size") for record in records for row in record["rows"]}) > 1
    headings[1:1] = ["model"] * models + ["batch"] * batches
    if reads:
        headings[-1:-1] = ["read (s)"]
    cells = []
    for record in records:
        for row in record["rows"]:
            latency, memory = statistics.median(row["latency_s"]), row.get("peak_memory")
            spread = (max(row["latency_s"]) - min(row["latency_s"])) / 2 / latency
            cells.append([
                row["name"], *[record["model"]] * models, *[str(row.get("batch_size"))] * batches, seconds(latency),
                f"±{100 * spread:.0f}%",
                f"{row['speedup']:.2f}×", str(row["forwards"]), str(row["tokens_processed"]),
                number(row["kept_suffix"], 0), number(row["full_ms"], 2), number(row["cached_ms"], 2),
                seconds(statistics.median(row["floor_s"])), f"{row['ratio']:.2f}",
                *([number(row["read_s"], 3)] if reads else []), number(memory and memory / 2**30, 2),
            ])
    return headings, cells


def _paper_cells(records: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """For each script the table or figure that it makes, and how long that took the authors."""
    [paper], cells = records, []
    for script in paper["scripts"]:
        rows = [row for row in paper["models"][script["model"]]["rows"] if row["gen_length"] in script["gen_lengths"]]
        hours = sum(row["latency_s"] * paper["problems"][row["benchmark"]] for row in rows) / 3600
        cells.append([f"`bash {script['script']}`", script["shows"], f"{hours:.0f}" if rows else "not reported"])
    return ["command", "makes", "hours on an A100"], cells


def block_ms(row: dict) -> float:
    """Milliseconds of a block in a row of a growth record: the mean over its blocks of the median over the repeats."""
    return 1000 * statistics.fmean(statistics.median(seconds) for seconds in row["block_s"])


def _growth_cells(records: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """For each answer length a row, for each setting its cost of a block and that over the cost at the shortest."""
    rows_by_name: dict[str, dict[int, float]] = {}
    for row in (row for record in records for row in record["rows"]):
        rows_by_name.setdefault(row["name"], {})[row["gen_length"]] = block_ms(row)
    lengths = sorted({length for costs in rows_by_name.values() for length in costs})
    headings = ["G", *(text for name in rows_by_name for text in (f"{name} (ms a block)", "growth"))]
    return headings, [
        [str(length), *(text for costs in rows_by_name.values() for text in
                        (number(costs.get(length)), f"{costs[length] / costs[min(costs)]:.2f}×"))]
        for length in lengths
    ]


def summary_of(record: dict) -> dict:
    """A benchmark or growth record in one line of JSON: for each row its time, and what that is relative to."""
    if record["kind"] == "growth":
        found = [{"name": row["name"], "gen_length": row["gen_length"], "block_ms": round(block_ms(row), 3)}
                 for row in record["rows"]]
    else:
        found = [{"name": row["name"], "batch_size": row.get("batch_size", record["settings"]["batch_size"]),
                  "latency_s": round(statistics.median(row["latency_s"]), 5), "speedup": round(row["speedup"], 3),
                  "floor_speedup": round(row["floor_speedup"], 3), "times_floor": round(row["ratio"], 3)}
                 for row in record["rows"]]
    return {"kind": record["kind"], "model": record["model"], "rows": found}


def markdown_table(records: Sequence[dict]) -> str:
    """The table as markdown, with the caption under it."""
    return f"{as_markdown(*_cells(records))}\n\n{caption(records)}"


def as_markdown(headings: list[str], cells: list[list[str]]) -> str:
    """A markdown table, its first column to the left and the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def terminal_table(records: Sequence[dict], names: Sequence[str] = ()) -> str:
    """The table with aligned columns; at most 100 characters wide with the names and metrics of the demo.

    Args:
        names: names of rows still to come, so that the columns stay where they are while a table grows.
    """
    return as_columns(*_cells(records), names)


def as_columns(headings: list[str], cells: list[list[str]], names: Sequence[str] = ()) -> str:
    """Aligned columns under a rule."""
    widths = [max(map(len, column)) for column in zip(headings, *cells)]
    widths = [max(widths[0], *map(len, names), 0), *(max(width, 7) for width in widths[1:])]

    def line(cells: list[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    return "\n".join([line(headings), "─" * len(line(headings)), *map(line, cells)])


def csv_table(records: Sequence[dict]) -> str:
    """The rows as comma-separated values with a heading line: plain numbers in full precision, empty where unknown.

    Of benchmarks: the cells of the table as they are.
    """
    if records and records[0]["kind"] != "evaluation":
        text = io.StringIO()
        headings, cells = _cells(records)
        csv.writer(text, lineterminator="\n").writerows([headings, *cells])
        return text.getvalue()
    shown = rows(records)
    labels = metric_labels(shown)
    columns = ("name", "model", "task", "G", "hardware", "latency_s", "speedup", "tps", "nfe")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *labels])
    for row in shown:
        writer.writerow([*(row[column] for column in columns), *(row["metrics"].get(label) for label in labels)])
    return text.getvalue()
