"""Charts of records, as .png or .svg: latency and accuracy, roofline, cost by length, and two of the paper's figures.

    python run.py table benchmarks/demo-cpu.json --plot bars.png
    python run.py table benchmarks/cpu-small.json --plot roofline.png
    python run.py table results/heatmap/1.5 --figure heatmap --plot heatmap.svg
    python run.py table results/*/ --figure length --plot length.png              # speedup against answer length

Colours say what a configuration is: vanilla decoding grey, without DPad orange, with DPad blue. In evaluations the
settings decide, not the name; the rows of a benchmark have the names of configurations.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine.configurations import CONFIGURATIONS, VANILLA, Configuration, classify
from dpad.results.benchmarks import batch_sizes, block_ms
from dpad.results.evaluations import Row, describe_table, evaluation_rows, group_by_table, metric_labels
from dpad.results.files import write_whole
from dpad.results.formatting import count_samples, seconds, times
from dpad.results.paper import GRID
from dpad.results.records import hardware_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("bars", "heatmap", "length")
LOG_SPREAD = 8  # a latency axis is logarithmic from this ratio of slowest to fastest on

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey by lightness.
GREY = "#8c8c8c"
DARK = "#404040"
ORANGE = "#E69F00"
BLUE = "#0072B2"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, "#CC79A7", "#56B4E9")
MEANINGS = {
    GREY: VANILLA.name,
    ORANGE: "without DPad",
    BLUE: "with DPad",
    DARK: "roofline: the matrix products alone",
}

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 11,
}
LEGEND_ABOVE: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderaxespad": 0.2, "handlelength": 1.4,
}


def draw(records: Sequence[dict], path: str | Path, figure: str = "bars") -> list[Path]:
    """Draw a figure of these records and return the files written.

    Args:
        path: ends in .png or .svg. Where the records make several pictures, each gets a name of its own from it.
        figure: one of FIGURES. "bars" draws what suits each kind of record: bars for every table of evaluations, the
            roofline chart of a benchmark, the cost of a block by answer length.

    Raises:
        ValueError: the records do not make this figure, or the path ends in something else.
        OSError: the file cannot be written.
    """
    path = Path(path)
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if figure != "bars":
        if not evaluations:
            raise ValueError(f"the figure {figure} is drawn from records of evaluations; there are none")
        {"heatmap": heatmap, "length": length_chart}[figure](evaluations, path)
        return [path]

    pictures: list[tuple[str, Callable[[Path], None]]] = []
    for group in group_by_table(evaluations):
        name = f"{Path(group[0]['task']).stem}-{group[0]['settings'].get('gen_length')}"
        pictures.append((name, partial(bar_chart, group)))
    for record in records:
        if record["kind"] in ("benchmark", "growth"):
            chart = roofline_chart if record["kind"] == "benchmark" else growth_chart
            pictures.append((record["kind"], partial(chart, record)))

    if not pictures:
        raise ValueError(f"there is no chart of records of the kind {records[0]['kind']!r}")
    if len(pictures) == 1:
        pictures[0][1](path)
        return [path]

    paths = []
    uses = Counter(name for name, _ in pictures)
    for number, (name, draw_picture) in enumerate(pictures, start=1):
        unique = name if uses[name] == 1 else f"{name}-{number}"
        paths.append(path.with_stem(f"{path.stem}-{unique}"))
        draw_picture(paths[-1])
    return paths


@contextmanager
def picture(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the common style to draw on, written at the end, whole or not at all.

    Args:
        path: ends in .png or .svg.
        width, height: in inches.

    Raises:
        ValueError: the path ends in something else.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path} cannot be drawn: the name must end in .png or .svg")

    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        yield figure

        with write_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:])


def colour_of(configuration: Configuration) -> str:
    if configuration.is_baseline:
        return GREY
    return BLUE if configuration.dpad else ORANGE


# --- Latency and accuracy of evaluations ------------------------------------------------------------------------------


def bar_chart(records: Sequence[dict], path: str | Path) -> None:
    """Draw latency (bars, with speedups) and accuracy (points, with standard errors) of one table of evaluations.

    Both panels share the configurations, top to bottom in the records' order. The latency axis is logarithmic when the
    slowest configuration takes more than LOG_SPREAD times as long as the fastest one.

    Raises:
        ValueError: see `evaluation_rows` and `picture`.
    """
    rows = evaluation_rows(records)
    labels = metric_labels(rows)

    with picture(path, 10, 1.7 + 0.48 * len(rows)) as figure:
        if labels:
            left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
            _draw_metrics(right, rows, labels)
        else:
            left = figure.subplots()
        _draw_latencies(left, rows)

        first = records[0]
        figure.suptitle(f"{first['model']} on {first['task']}, {count_samples(first['samples'])}, "
                        f"G = {first['settings'].get('gen_length')}, {hardware_line(first)}")


def _draw_latencies(axes: Axes, rows: Sequence[Row]) -> None:
    latencies = [row.record["latency_s"] for row in rows]
    colours = [colour_of(row.configuration) for row in rows]
    axes.barh(range(len(rows)), latencies, height=0.66, color=colours)

    for place, row in enumerate(rows):
        speedup = "" if row.speedup is None or row.configuration.is_baseline else f"  ({times(row.speedup)})"
        _annotate_bar(axes, latencies[place], place, f"{seconds(latencies[place])} s{speedup}")

    _scale_latencies(axes, latencies, "seconds per sample")
    _name_bars(axes, [row.record["name"] for row in rows])
    _explain_colours(axes, colours)


def _draw_metrics(axes: Axes, rows: Sequence[Row], labels: Sequence[str]) -> None:
    styles = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (ORANGE, "D"))
    step = 0.26 if len(labels) < 4 else 0.8 / len(labels)
    lowest = 100.0
    for index, label in enumerate(labels):
        colour, marker = styles[index % len(styles)]
        shift = (index - (len(labels) - 1) / 2) * step
        values, places, errors = [], [], []
        for place, row in enumerate(rows):
            metric = row.metrics.get(label)
            if metric is not None and metric.value is not None:
                values.append(metric.value)
                places.append(place + shift)
                errors.append(metric.error or 0.0)
        if values:
            lowest = min(lowest, *(value - error for value, error in zip(values, errors)))
            axes.errorbar(values, places, xerr=errors, fmt=marker, color=colour, label=label, markersize=6.5,
                          capsize=2.5, elinewidth=1.2)

    axes.set_xlim(max(-3, 20 * ((lowest - 10) // 20)), 103)
    axes.set_xlabel("accuracy (%, ± standard error)")
    axes.legend(**LEGEND_ABOVE)
    axes.tick_params(axis="y", length=0)


def _scale_latencies(axes: Axes, lengths: Sequence[float], unit: str) -> None:
    """Scale the axis of bars of these lengths, logarithmic if they spread widely, with room for numbers beside them."""
    low = min(lengths)
    high = max(lengths)
    logarithmic = low > 0 and high / low > LOG_SPREAD
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 2, high * (high / low) ** 0.4 * 1.5)
        axes.xaxis.set_major_formatter("{x:g}")  # 0.1 instead of a power of ten
    else:
        axes.set_xlim(0, high * 1.5)
    axes.set_xlabel(f"latency{', logarithmic' if logarithmic else ''} ({unit})")


def _annotate_bar(axes: Axes, length: float, place: int, text: str) -> None:
    """Write beside a bar, on white so that no grid line runs through the numbers."""
    axes.annotate(text, (length, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)


def _explain_colours(axes: Axes, colours: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=meaning) for colour, meaning in MEANINGS.items() if colour in colours]
    axes.legend(handles=patches, **LEGEND_ABOVE)


# --- Benchmarks -------------------------------------------------------------------------------------------------------


def roofline_chart(record: dict, path: str | Path) -> None:
    """Draw a benchmark: the latency of each row as a bar, with its speedup, and the roofline inside each bar."""
    rows = record["rows"]
    sizes = batch_sizes(record)
    latencies = [statistics.median(row["latency_s"]) for row in rows]
    rooflines = [statistics.median(row["floor_s"]) for row in rows]
    colours = [colour_of(CONFIGURATIONS.get(row["name"]) or classify(row)) for row in rows]

    with picture(path, 10, 1.7 + 0.45 * len(rows)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(rows)), latencies, height=0.66, color=colours)
        axes.barh(range(len(rows)), rooflines, height=0.22, color=DARK)
        for place, (row, latency) in enumerate(zip(rows, latencies)):
            _annotate_bar(axes, latency, place,
                          f"{seconds(latency)} s  ({times(row['speedup'])}; {row['ratio']:.2f} × roofline)")

        _scale_latencies(axes, [*rooflines, *latencies],
                         "seconds per batch; speedup per answer" if len(sizes) > 1 else "seconds")
        _name_bars(axes, [
            row["name"] + (f", batch {row['batch_size']}" if len(sizes) > 1 else "") for row in rows
        ])
        _explain_colours(axes, [*colours, DARK])
        figure.suptitle(f"{record['model']}, G = {record['settings']['gen_length']}, "
                        f"batch size {', '.join(map(str, sizes))}, {hardware_line(record)}")


def growth_chart(record: dict, path: str | Path) -> None:
    """Draw what a block costs against the length of the answer, a line for each configuration."""
    costs: dict[str, dict[int, float]] = {}
    for row in record["rows"]:
        costs.setdefault(row["name"], {})[row["gen_length"]] = block_ms(row)

    with picture(path, 7, 4) as figure:
        axes = figure.subplots()
        for name, by_length in costs.items():
            colour = colour_of(CONFIGURATIONS.get(name, VANILLA))
            axes.plot(*zip(*sorted(by_length.items())), marker="o", linewidth=2, color=colour, label=name)
        _scale_lengths(axes, {length for by_length in costs.values() for length in by_length})
        axes.set_ylim(0)
        axes.set_ylabel("milliseconds per block")
        axes.legend()
        work = record["settings"]
        figure.suptitle(f"{record['model']}, prompt {work['prompt_length']}, first {work['blocks']} blocks, "
                        f"{hardware_line(record)}")


def _scale_lengths(axes: Axes, lengths: set[int]) -> None:
    """A logarithmic axis of answer lengths, with a tick for each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
    axes.minorticks_off()
    axes.set_xlabel("answer length G (tokens)")


# --- The paper's other figures ----------------------------------------------------------------------------------------


def length_chart(records: Sequence[dict], path: str | Path) -> None:
    """Speedup over vanilla decoding at the same answer length, a line for each configuration.

    Raises:
        ValueError: no record has vanilla decoding to compare with.
    """
    speedups: dict[str, dict[int, list[float]]] = {}
    for row in evaluation_rows(records):
        if row.speedup is not None and not row.configuration.is_baseline:
            by_length = speedups.setdefault(row.record["name"], {})
            by_length.setdefault(row.record["settings"]["gen_length"], []).append(row.speedup)
    if not speedups:
        raise ValueError(f"no record has one of {VANILLA.name} of the same task, model and length beside it")

    lines = [
        (name, sorted((length, statistics.fmean(values)) for length, values in by_length.items()))
        for name, by_length in speedups.items()
    ]
    lines.sort(key=lambda line: -line[1][-1][1])  # the legend beside the chart has the order of the lines' right ends

    with picture(path, 9.5, 4.2) as figure:
        axes = figure.subplots()
        for number, (name, points) in enumerate(lines):
            axes.plot(*zip(*points), marker="osD^vPX*"[number % 8], linewidth=1.8,
                      color=PALETTE[number % len(PALETTE)], label=f"{name}  ({times(points[-1][1])})")
        _scale_lengths(axes, {length for by_length in speedups.values() for length in by_length})
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}×")
        axes.axhline(1, color=GREY, linewidth=1)
        axes.set_ylabel(f"speedup over {VANILLA.name}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(f"{records[0]['model']}, {records[0]['task']}, {hardware_line(records[0])}")


def heatmap(records: Sequence[dict], path: str | Path) -> None:
    """Accuracy by window (across) and kept suffix tokens (upwards), a panel for each sampler, one scale of colour.

    Raises:
        ValueError: the records have no metric, or none was made with a sampler that has a number of kept tokens.
    """
    rows = evaluation_rows(records)
    labels = metric_labels(rows)
    if not labels:
        raise ValueError("the records have no metric to draw")
    panels = _heatmap_panels(rows, labels[0])
    if not panels:
        raise ValueError("a heatmap needs records with the sampler gaussian or uniform")

    windows = sorted({window for panel in panels.values() for window, _ in panel})
    sizes = sorted({size for panel in panels.values() for _, size in panel})
    values = [value for panel in panels.values() for value in panel.values()]

    with picture(path, 1.6 + len(panels) * (1.2 + 0.62 * len(windows)), 1.9 + 0.46 * len(sizes)) as figure:
        panel_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, name in zip(panel_axes, sorted(panels, reverse=True)):
            grid = [[panels[name].get((window, size), math.nan) for window in windows] for size in sizes]
            image = axes.imshow(grid, origin="lower", cmap="cividis", vmin=min(values), vmax=max(values), aspect="auto")
            _write_values(axes, grid, (min(values) + max(values)) / 2)
            axes.grid(False)
            axes.set_xticks(range(len(windows)), [str(window) for window in windows])
            axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
            axes.set_title(name)
            axes.set_xlabel("window")
        panel_axes[0].set_ylabel("kept suffix tokens")
        figure.colorbar(image, ax=panel_axes, label=f"{labels[0]} (%)")
        figure.suptitle(describe_table(records), fontsize=11)


def _heatmap_panels(rows: Sequence[Row], label: str) -> dict[str, dict[tuple[int, int], float]]:
    """For each sampler the metric by window and kept tokens, these as the nearest of the paper's grid."""
    panels: dict[str, dict[tuple[int, int], float]] = {}
    for row in rows:
        sampler = row.record["settings"].get("suffix_sampler")
        metric = row.metrics.get(label)
        if sampler and sampler["name"] in ("gaussian", "uniform") and metric and metric.value is not None:
            mean = kept_tokens(sampler)
            size = min(GRID, key=lambda entry: abs(entry - mean))
            panels.setdefault(sampler["name"], {})[sampler["window"], size] = metric.value
    return panels


def kept_tokens(sampler: dict[str, Any]) -> float:
    """How many suffix tokens a record's sampler keeps on average where the suffix is longer than its window."""
    from sampler import SAMPLERS

    parameters = {name: value for name, value in sampler.items() if name != "name"}
    return SAMPLERS[sampler["name"]](**parameters).retention(sampler["window"] + 1).sum().item()


def _write_values(axes: Axes, grid: Sequence[Sequence[float]], middle: float) -> None:
    """The number of each cell, white on the dark colours."""
    for up, line in enumerate(grid):
        for across, value in enumerate(line):
            if not math.isnan(value):
                axes.text(across, up, f"{value:.1f}", ha="center", va="center", fontsize=9,
                          color="white" if value <= middle else "black")
