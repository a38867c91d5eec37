"""Tables and plots of records, of evaluations and of `run.py bench`: every number comes from a record, none is typed.

    python -m dpad.results.report results/demo/tiny-arithmetic-50/records.json                # the table, for the terminal
    python -m dpad.results.report records.json --format markdown                              # or markdown, csv
    python -m dpad.results.report records.json --plot chart.png                               # the bar chart
    python -m dpad.results.report README.md                                                   # renew the tables in a document
    python -m dpad.results.report --check README.md                                           # fail when a table is out of date

A document marks a table by the records it shows, with paths relative to the document:

    <!-- table: demo/records.json -->
    ...whatever stands here is replaced...
    <!-- /table -->

With `demo/records.json beside llada-1.5` the authors' numbers for that model stand beside them (paper.py).

A records file holds one record or a list of records; a folder stands for all records in its *.json files.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpad.results import records as record_files

BASELINE = "Vanilla"
# Kinds of records, and what one must have. "benchmark" and "growth" are bench.py's: many rows each.
KINDS = {
    "evaluation": ("name", "task", "model", "settings", "metrics", "latency_s", "samples"),
    "benchmark": ("model", "settings", "rows"),
    "growth": ("model", "settings", "rows"),
    "paper": ("source", "hardware", "problems", "scripts", "models"),  # benchmarks/paper.json
}
METRIC_LABELS = {"flexible-extract": "flexible", "strict-match": "strict"}  # these come first, in this order
MARK = re.compile(r"(<!-- table: *(?P<paths>[^>]*?)(?: beside (?P<paper>[\w.-]+))? *-->)"
                  r"(?P<body>.*?)(?P<end><!-- /table -->|\Z)", re.DOTALL)
LOG_SPREAD = 8  # the latency axis is logarithmic from this ratio of slowest to fastest on

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey by lightness.
GREY, ORANGE, BLUE, GREEN, VERMILLION = "#8c8c8c", "#E69F00", "#0072B2", "#009E73", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9")


# --- Records ------------------------------------------------------------------------------------------------------


def load(paths: Sequence[str | Path], folder: str | Path = ".") -> list[dict]:
    """The records in files and folders, in the order given (within a folder: by file name); all of one kind.

    Args:
        paths: files that hold a record or a list of records, or folders of such files.
        folder: where relative paths count from.

    Raises:
        ValueError: a path is missing, is not JSON, or holds something else than records of one of KINDS.
    """
    found = []
    for path in (Path(folder) / path for path in paths):
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no .json file")
        for file in files:
            content = record_files.read_json(file)
            for record in content if isinstance(content, list) else [content]:
                if not isinstance(record, dict) or record.get("kind") not in KINDS:
                    raise ValueError(f"{file} holds something that is not a record of a run")
                missing = [key for key in KINDS[record["kind"]] if key not in record]
                if missing:
                    raise ValueError(f"{file} holds a record without {', '.join(missing)}")
                found.append(record)
    if len({record["kind"] for record in found}) > 1:
        raise ValueError(f"{', '.join(map(str, paths))}: records of different kinds do not make one table")
    return found


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


# --- Tables -------------------------------------------------------------------------------------------------------


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


# --- Plots --------------------------------------------------------------------------------------------------------


def draw(records: Sequence[dict], path: str | Path) -> None:
    """Draw the picture of the records' kind into a PNG: bars of configurations, or the cost of a block by length.

    Raises:
        ValueError: see `rows`. OSError: the file cannot be written.
    """
    {"evaluation": bar_chart, "benchmark": floor_chart, "growth": growth_chart}[records[0]["kind"]](records, path)


def floor_chart(records: Sequence[dict], path: str | Path) -> None:
    """Draw a benchmark's first record: latency by row (bars, with speedups), and its floor inside each bar."""
    from matplotlib.patches import Patch

    record = records[0]
    shown = record["rows"]
    places = range(len(shown))
    latencies = [statistics.median(row["latency_s"]) for row in shown]
    floors = [statistics.median(row["floor_s"]) for row in shown]
    figure = new_figure((10, 1.7 + 0.45 * len(shown)))
    axes = figure.subplots()
    axes.barh(places, latencies, height=0.66, color=[BLUE if row["dpad"] else ORANGE for row in shown])
    axes.barh(places, floors, height=0.26, color=GREY)
    for place, row, latency in zip(places, shown, latencies):
        axes.annotate(f"{seconds(latency)} s  ({row['speedup']:.2f}×; {row['ratio']:.2f} of the floor)",
                      (latency, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    if max(latencies) / min(latencies) > LOG_SPREAD:
        axes.set_xscale("log")
        axes.set_xlim(min(floors) / 2, max(latencies) * (max(latencies) / min(floors)) ** 0.45)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, max(latencies) * 1.5)
    sizes = batch_sizes(record)
    axes.set_yticks(places, [row["name"] + (f", batch {row['batch_size']}" if len(sizes) > 1 else "")
                             for row in shown], fontsize=11)
    axes.set_ylim(len(shown) - 0.45, -0.55)
    axes.set_xlabel("latency (seconds a batch; speedup an answer)" if len(sizes) > 1 else "latency (seconds a batch)",
                    fontsize=11)
    axes.legend([Patch(color=colour) for colour in (ORANGE, BLUE, GREY)],
                ["without DPad", "with DPad", "floor: its matrix products alone"],
                loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=10)
    work = record["settings"]
    figure.suptitle(f"{record['model']}, G = {work['gen_length']}, batch size {', '.join(map(str, sizes))}, "
                    f"{hardware_line(record)}", fontsize=12)
    save_figure(figure, path)


def growth_chart(records: Sequence[dict], path: str | Path) -> None:
    """Draw what a block costs against the length of the answer, a line for each setting, of the first record."""
    record = records[0]
    costs: dict[str, list[tuple[int, float]]] = {}
    for row in record["rows"]:
        costs.setdefault(row["name"], []).append((row["gen_length"], block_ms(row)))
    figure = new_figure((7, 4))
    axes = figure.subplots()
    for name, points in costs.items():
        lengths, values = zip(*sorted(points))
        axes.plot(lengths, values, marker="o", color=BLUE if "DPad" in name else GREY, label=name, linewidth=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_xlabel("answer length G (tokens)", fontsize=11)
    axes.set_ylabel("milliseconds a block", fontsize=11)
    axes.legend(frameon=False, fontsize=10)
    work = record["settings"]
    figure.suptitle(f"{record['model']}, prompt {work['prompt_length']}, first {work['blocks']} blocks, "
                    f"{hardware_line(record)}", fontsize=12)
    save_figure(figure, path)


def new_figure(size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no window system, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | Path, grid: bool = True) -> None:
    """Give every panel the same quiet frame, and write the .png or .svg whole or not at all.

    Raises:
        ValueError: the file's name ends in something else.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path} cannot be drawn: the name must end in .png or .svg")
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if grid:
            axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", labelsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(temporary, format=path.suffix[1:])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def bar_chart(records: Sequence[dict], path: str | Path) -> None:
    """Draw latency (bars, with speedups) and accuracy (points, with standard errors) and save a PNG.

    Both panels share the configurations, top to bottom in the records' order. The latency axis is logarithmic when the
    slowest configuration takes more than LOG_SPREAD times the fastest one's time.

    Raises:
        ValueError: see `rows`. OSError: the file cannot be written.
    """
    from matplotlib.patches import Patch

    shown = rows(records)
    labels = metric_labels(shown)
    places = list(range(len(shown)))
    latencies = [row["latency_s"] for row in shown]
    logarithmic = min(latencies) > 0 and max(latencies) / min(latencies) > LOG_SPREAD

    figure = new_figure((10, 1.7 + 0.48 * len(shown)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2)) if labels else (figure.subplots(), None)

    legend_style = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "frameon": False, "fontsize": 10,
                    "borderaxespad": 0.2, "handlelength": 1.4}
    colours = [GREY if row["name"] == BASELINE else BLUE if "DPad" in row["name"] else ORANGE for row in shown]
    left.barh(places, latencies, height=0.66, color=colours)
    for place, row in zip(places, shown):
        gain = "" if row["speedup"] is None or row["name"] == BASELINE else f"  ({times(row['speedup'])})"
        left.annotate(f"{seconds(row['latency_s'])} s{gain}", (row["latency_s"], place), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=10,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # no grid lines through the numbers
    if logarithmic:
        low, high = min(latencies), max(latencies)
        left.set_xscale("log")
        left.set_xlim(low / 2, high * (high / low) ** 0.4 * 1.5)  # room for the labels
        left.xaxis.set_major_formatter("{x:g}")  # 0.1 instead of a power of ten
    else:
        left.set_xlim(0, max(latencies) * 1.38)
    left.set_xlabel("latency (seconds per sample" + (", logarithmic)" if logarithmic else ")"), fontsize=11)
    left.set_yticks(places, [row["name"] for row in shown], fontsize=11)
    left.set_ylim(len(shown) - 0.45, -0.55)
    kinds = [(GREY, BASELINE), (ORANGE, "without DPad"), (BLUE, "with DPad")]
    left.legend([Patch(color=colour) for colour, _ in kinds if colour in colours],
                [kind for colour, kind in kinds if colour in colours], **legend_style)

    if right is not None:
        styles = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (ORANGE, "D"))
        lowest = 100.0
        step = 0.26 if len(labels) < 4 else 0.8 / len(labels)
        for index, label in enumerate(labels):
            colour, marker = styles[index % len(styles)]
            shift = (index - (len(labels) - 1) / 2) * step
            points = [(row["metrics"][label], place + shift, _error(record, label))
                      for row, record, place in zip(shown, records, places) if row["metrics"].get(label) is not None]
            if points:
                values, heights, errors = zip(*points)
                lowest = min(lowest, *(value - error for value, _, error in points))
                right.errorbar(values, heights, xerr=errors, fmt=marker, color=colour, label=label, markersize=6.5,
                               capsize=2.5, elinewidth=1.2)
        right.set_xlim(max(-3, 20 * ((lowest - 10) // 20)), 103)
        right.set_xlabel("accuracy (%, ± standard error)", fontsize=11)
        right.legend(**legend_style)
        right.tick_params(axis="y", length=0)

    first = records[0]
    figure.suptitle(f"{first['model']} on {first['task']}, {counted(first['samples'])}, "
                    f"G = {first['settings'].get('gen_length')}, {hardware_line(first)}", fontsize=12)
    save_figure(figure, path)


def _error(record: dict, label: str) -> float:
    """A metric's standard error in percent, 0 where the record has none."""
    for key, entry in record["metrics"].items():
        if METRIC_LABELS.get(key, key) == label:
            error = entry.get("stderr")
            return scale(entry) * error if isinstance(error, (int, float)) else 0.0
    return 0.0


# --- Documents ----------------------------------------------------------------------------------------------------


def render_document(text: str, folder: str | Path) -> tuple[str, list[str]]:
    """Renew the marked tables of a markdown text.

    Args:
        folder: where the marks' paths count from.

    Returns:
        The new text, and the marks' paths whose table changed (empty when the text was up to date).

    Raises:
        ValueError: a mark names no records, its records cannot be read, or it lacks its `<!-- /table -->`.
    """
    changed = []

    def renew(found: re.Match) -> str:
        paths = found["paths"].split()
        if not paths:
            raise ValueError("a table mark names no records")
        if not found["end"] or "<!-- table:" in found["body"]:
            raise ValueError(f"the table mark of {found['paths']} has no <!-- /table -->")
        found_records = load(paths, folder)
        if found["paper"]:
            from dpad.results import paper  # which imports this module

            body = f"\n{paper.render(found_records, found['paper'], 'markdown')}\n\n{caption(found_records)}\n"
        else:
            body = f"\n{markdown_table(found_records)}\n"
        if body != found["body"]:
            changed.append(found["paths"])
        return f"{found[1]}{body}{found['end']}"

    return MARK.sub(renew, text), changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="records (files or folders), or markdown documents")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a document is out of date")
    parser.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    parser.add_argument("--plot", metavar="PNG", help="draw the chart into this file instead of printing a table")
    options = parser.parse_args(arguments)
    try:
        documents = [path for path in options.paths if path.endswith(".md")]
        if documents and len(documents) < len(options.paths):
            raise ValueError("give either documents (.md) or records, not both")
        if documents:
            return max([_renew_document(Path(path), options.check) for path in documents])
        if options.check:
            raise ValueError("--check takes documents (.md)")
        found = load(options.paths)
        if options.plot:
            draw(found, options.plot)
            print(f"wrote {options.plot}")
        elif options.format == "terminal":
            print(f"{terminal_table(found)}\n\n{caption(found)}")
        else:
            print((markdown_table(found) if options.format == "markdown" else csv_table(found)).rstrip("\n"))
        return 0
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1


def _renew_document(path: Path, check: bool) -> int:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    renewed, changed = render_document(text, path.parent)
    if not MARK.search(text):
        print(f"{path} has no table marks", file=sys.stderr)
        return 1
    if not changed:
        print(f"{path}: every table equals its records")
        return 0
    if check:
        print(f"{path}: out of date: {', '.join(changed)}; run: python -m dpad.results.report {path}", file=sys.stderr)
        return 1
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(renewed, encoding="utf-8", newline="")
    os.replace(temporary, path)
    print(f"{path}: renewed {', '.join(changed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
