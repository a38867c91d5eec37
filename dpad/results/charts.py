"""Charts of records."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from dpad.results.tables import (
    BASELINE,
    METRIC_LABELS,
    batch_sizes,
    block_ms,
    counted,
    hardware_line,
    metric_labels,
    rows,
    scale,
    seconds,
    times,
)

LOG_SPREAD = 8  # the latency axis is logarithmic from this ratio of slowest to fastest on

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey by lightness.
GREY, ORANGE, BLUE, GREEN, VERMILLION = "#8c8c8c", "#E69F00", "#0072B2", "#009E73", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9")


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
