"""Charts of records, as .png or .svg: latency and accuracy, comparisons of methods, roofline, cost by length, the study
of training, what blocks attend to, and two of the paper's figures.

    python run.py table benchmarks/demo-cpu.json --plot bars.png
    python run.py table benchmarks/cpu-small.json --plot roofline.png
    python run.py table results/heatmap/1.5 --figure heatmap --plot heatmap.svg
    python run.py table results/*/ --figure length --plot length.png              # speedup against answer length
    python run.py table results/study/records --plot study.png                    # accuracy of ways of training
    python run.py table attention.json --plot attention.svg                       # what a block attends to

Colours say what a configuration is, the same in every figure: vanilla decoding grey, without DPad orange, with DPad
blue. Markers and lines tell its cache and parallel decoding. In evaluations the settings decide, not the name; the rows
of a benchmark have the names of configurations. What cannot be compared gets a picture of its own.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine.configurations import CONFIGURATIONS, VANILLA, Configuration, classify
from dpad.results import outputs
from dpad.results.attentions import describe, describe_last, name_view, range_of, spikes_of
from dpad.results.benchmarks import batch_sizes, block_ms, speedup_of
from dpad.results.comparisons import BASELINE, Summary, comparison_title, summarize
from dpad.results.comparisons import metric_labels as labels_of_comparison
from dpad.results.evaluations import (
    Row,
    comparison_key,
    describe_tables,
    evaluation_rows,
    group_by_table,
    metric_labels,
)
from dpad.results.files import write_whole
from dpad.results.formatting import count_samples, seconds, times
from dpad.results.paper import GRID
from dpad.results.records import hardware_line
from dpad.results.studies import ARMS, Place, Rows, conditions_of, interval, pool, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FILLS = ("full", "none", "left", "right", "bottom", "top")  # of markers
FIGURES = ("bars", "heatmap", "length")
GRID_REACH = 0.25  # kept tokens this near to an entry of the paper's grid, relative to it, stand for that entry
LOG_SPREAD = 8  # a latency axis is logarithmic from this ratio of slowest to fastest on

# Okabe and Ito's palette: told apart with every kind of colour vision, and in grey by lightness.
GREY = "#8c8c8c"
DARK = "#404040"
INK = "#000000"
ORANGE = "#E69F00"
BLUE = "#0072B2"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
METRIC_STYLES = ((INK, "o"), (GREEN, "s"), (VERMILLION, "^"), (PURPLE, "D"))  # not the colours of configurations
MEANINGS = {
    GREY: VANILLA.name,
    ORANGE: "without DPad",
    BLUE: "with DPad",
    DARK: "roofline: the matrix products alone",
}

METHOD_MEANINGS = {GREY: "vanilla decoding", ORANGE: "whole suffix", BLUE: "suffix tokens dropped"}

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
    "text.parse_math": False,  # a dollar in a model's name is a dollar
    "xtick.labelsize": 10,
    "ytick.labelsize": 11,
}
LEGEND_ABOVE: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderaxespad": 0.2, "handlelength": 1.4,
}


@dataclass(frozen=True)
class Picture:
    """A picture to be drawn: `draw(path)` draws it.

    name: what tells it from others, as part of a file's name. more: what tells it from others of the same name.
    """

    name: str
    draw: Callable[[Path], None]
    more: str = ""


def draw(records: Sequence[dict], path: str | Path, figure: str = "bars") -> list[Path]:
    """Draw a figure of these records and return the files written.

    Args:
        path: ends in .png or .svg. Where the records make several pictures, each gets a name of its own from it.
        figure: one of FIGURES. "bars" draws what suits each kind of record: bars for every table of evaluations, the
            roofline chart of a benchmark, the cost of a block by answer length, the accuracies of a study.

    Raises:
        ValueError: the records do not make this figure, or a file cannot be written there; see `outputs.check`.
        OSError: the file cannot be written.
    """
    pictures = plan(records, figure)
    paths = place(pictures, path)
    for entry, target in zip(pictures, paths):
        entry.draw(target)
    return paths


def plan(
    records: Sequence[dict], figure: str = "bars", note: Callable[[str], None] | None = None,
) -> list[Picture]:
    """The pictures that a figure of these records has; those that would compare nothing are left out.

    note: called with a sentence where some are left out.

    Raises:
        ValueError: there is no record of the kind that the figure needs, or no picture would compare anything.
    """
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if figure == "bars":
        studies = [record for record in records if record["kind"] == "study"]
        pictures = _plan_bars(evaluations) + _plan_benchmarks(records) + _plan_comparisons(records)
        left_out = len(group_by_table(evaluations)) + len(records) - len(evaluations) - len(studies) - len(pictures)
        pictures += _plan_studies(studies)
        if pictures and left_out and note:
            note(f"not drawn: {left_out} table{'s' * (left_out != 1)} with nothing to compare in a chart")
        if pictures:
            return pictures
        kinds = {record["kind"] for record in records}
        if not kinds & {"evaluation", "comparison", "benchmark", "growth", "study", "attention"}:
            raise ValueError(f"there is no chart of records of the kind {records[0]['kind']!r}")
        raise ValueError("a chart needs at least two rows to compare: two configurations of the same task, model, "
                         "length, samples and machine")
    if not evaluations:
        raise ValueError(f"the figure {figure} is drawn from records of evaluations; there are none")
    return {"heatmap": _plan_heatmaps, "length": _plan_lengths}[figure](evaluations)


def _plan_bars(records: Sequence[dict]) -> list[Picture]:
    groups = group_by_table(records)
    return [
        Picture(_name_of(group[0]), partial(bar_chart, group, title=title), _more_of(group[0]))
        for group, title in zip(groups, describe_tables(groups)) if len(group) > 1
    ]


def _plan_benchmarks(records: Sequence[dict]) -> list[Picture]:
    pictures = []
    for record in records:
        if record["kind"] == "benchmark" and len(record["rows"]) > 1:
            parts = ("benchmark", record["model"], record["settings"]["gen_length"])
            pictures.append(Picture(_slug(*parts), partial(roofline_chart, record)))
        elif record["kind"] == "growth" and len({row["gen_length"] for row in record["rows"]}) > 1:
            pictures.append(Picture(_slug("growth", record["model"]), partial(growth_chart, record)))
        elif record["kind"] == "attention":
            place = "all" if record.get("block") is None else record["block"]
            name = _slug("attention", record["model"], "block", place, "step", record["step"])
            pictures.append(Picture(name, partial(attention_chart, record)))
    return pictures


def _plan_comparisons(records: Sequence[dict]) -> list[Picture]:
    return [
        Picture(_slug("compare", _name_of(record)), partial(pareto_chart, record), f"{record['samples']}-samples")
        for record in records if record["kind"] == "comparison" and labels_of_comparison(record)
    ]


def _plan_studies(records: Sequence[dict]) -> list[Picture]:
    """A picture for all records of a study that were made under the same conditions."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(conditions_of(record), []).append(record)
    return [Picture(_slug("study", name), partial(study_chart, group)) for name, group in groups.items()]


def _name_of(record: dict) -> str:
    return _slug(Path(record["task"]).stem, Path(record["model"]).name, record["settings"].get("gen_length"))


def _more_of(record: dict) -> str:
    return f"{record['settings'].get('num_fewshot') or 0}-shot-{record['samples']}-samples"


def _slug(*parts: object) -> str:
    """The parts as a piece of a file's name."""
    return "-".join(re.sub(r"[^\w.+=]+", "-", str(part)) for part in parts if part not in (None, ""))


def place(pictures: Sequence[Picture], path: str | Path) -> list[Path]:
    """Where each picture goes: into `path` itself if it is the only one, otherwise beside it.

    Raises:
        ValueError: one of them cannot be written there; see `outputs.check`.
    """
    paths = _name_files(pictures, Path(path))
    for target in paths:
        outputs.check("--plot", target, outputs.PICTURE)
    return paths


def _name_files(pictures: Sequence[Picture], path: Path) -> list[Path]:
    if len(pictures) == 1:
        return [path]
    uses = Counter(entry.name for entry in pictures)
    names = [entry.name if uses[entry.name] == 1 else _slug(entry.name, entry.more) for entry in pictures]
    uses = Counter(names)
    names = [name if uses[name] == 1 else f"{name}-{number}" for number, name in enumerate(names, start=1)]
    return [path.with_stem(f"{path.stem}-{name}") for name in names]


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
    if path.suffix.lower() not in outputs.PICTURE.suffixes:
        raise ValueError(f"{path} cannot be drawn: the name must end in .png or .svg")

    matplotlib = quiet_matplotlib()
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a sign that the font does not have
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        yield figure

        with write_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower())


def quiet_matplotlib() -> Any:
    """Matplotlib, imported so that it does not report where it keeps its cache, as it does without a home folder."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    return matplotlib


def colour_of(configuration: Configuration) -> str:
    if configuration.is_baseline:
        return GREY
    return BLUE if configuration.dpad else ORANGE


def line_style(configuration: Configuration) -> dict[str, Any]:
    """How a configuration's line is drawn in every figure: its colour, marker and dashes."""
    caches = {"prefix": "--", "dual": "-."}
    if configuration.parallel:
        marker = {"prefix": "s", "dual": "P"}.get(configuration.cache, "^")
    else:
        marker = {"prefix": "D", "dual": "X"}.get(configuration.cache, "o")
    return {"color": colour_of(configuration), "marker": marker, "linestyle": caches.get(configuration.cache, "-")}


# --- Latency and accuracy of evaluations ------------------------------------------------------------------------------


def bar_chart(records: Sequence[dict], path: str | Path, title: str | None = None) -> None:
    """Draw latency (bars, with speedups) and accuracy (points, with 95 % intervals) of one table of evaluations.

    Both panels share the configurations, top to bottom in the records' order. The latency axis is logarithmic when the
    slowest configuration takes more than LOG_SPREAD times as long as the fastest one. title: by default what the
    records have in common.

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

        figure.suptitle(title or describe_tables([records])[0], wrap=True)


def _draw_latencies(axes: Axes, rows: Sequence[Row]) -> None:
    latencies = [row.record["latency_s"] for row in rows]
    colours = [colour_of(row.configuration) for row in rows]
    axes.barh(range(len(rows)), latencies, height=0.66, color=colours)

    for place, row in enumerate(rows):
        speedup = "" if row.speedup is None or row.configuration.is_baseline else f"  ({times(row.speedup)})"
        _annotate_bar(axes, latencies[place], place, f"{seconds(latencies[place])} s{speedup}")

    _scale_latencies(axes, latencies, "seconds per sample")
    _name_bars(axes, [row.label for row in rows])
    _explain_colours(axes, colours)


def _draw_metrics(axes: Axes, rows: Sequence[Row], labels: Sequence[str]) -> None:
    step = 0.26 if len(labels) < 4 else 0.8 / len(labels)
    lowest = 100.0
    for index, label in enumerate(labels):
        colour, marker = METRIC_STYLES[index % len(METRIC_STYLES)]
        shift = (index - (len(labels) - 1) / 2) * step
        values, places, below, above = [], [], [], []
        for place, row in enumerate(rows):
            metric = row.metrics.get(label)
            if metric is not None and metric.value is not None:
                values.append(metric.value)
                places.append(place + shift)
                low, high = metric.interval or (metric.value - (metric.error or 0), metric.value + (metric.error or 0))
                below.append(metric.value - low)
                above.append(high - metric.value)
        if values:
            lowest = min(lowest, *(value - reach for value, reach in zip(values, below)))
            axes.errorbar(values, places, xerr=(below, above), fmt=marker, color=colour, label=label, markersize=6.5,
                          capsize=2.5, elinewidth=1.2)

    axes.set_xlim(max(-3, 20 * ((lowest - 10) // 20)), 103)
    axes.set_xlabel("accuracy (%, 95 % interval)")
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
        _label_logarithms(axes.xaxis, "{x:g}")
    else:
        axes.set_xlim(0, high * 1.5 or 1)
    axes.set_xlabel(f"latency{', logarithmic' if logarithmic else ''} ({unit})")


def _label_logarithms(axis: Axis, form: str) -> None:
    """Write numbers beside a logarithmic axis, and not powers of ten; beside its small ticks within one decade only."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter(form)
    axis.set_minor_formatter(form if high < 10 * low else "")


def _annotate_bar(axes: Axes, length: float, place: int, text: str) -> None:
    """Write beside a bar, on white so that no grid line runs through the numbers."""
    axes.annotate(text, (length, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)


def _explain_colours(axes: Axes, colours: Sequence[str], meanings: Mapping[str, str] = MEANINGS) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=meaning) for colour, meaning in meanings.items() if colour in colours]
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
            speedup = speedup_of(record, row)
            _annotate_bar(axes, latency, place, f"{seconds(latency)} s  ({'' if speedup is None else times(speedup)}"
                                                f"{'' if speedup is None else '; '}{row['ratio']:.2f} × roofline)")

        _scale_latencies(axes, [*rooflines, *latencies],
                         "seconds per batch; speedup per answer" if len(sizes) > 1 else "seconds")
        _name_bars(axes, [
            row["name"] + (f", batch {row.get('batch_size') or sizes[0]}" if len(sizes) > 1 else "") for row in rows
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
            style = line_style(CONFIGURATIONS.get(name, VANILLA))
            axes.plot(*zip(*sorted(by_length.items())), linewidth=2, label=name, **style)
        _scale_lengths(axes, {length for by_length in costs.values() for length in by_length})
        axes.set_ylim(0)
        axes.set_ylabel("milliseconds per block")
        axes.legend()
        work = record["settings"]
        figure.suptitle(f"{record['model']}, prompt {work['prompt_length']}, "
                        f"first {work.get('blocks') or 'few'} blocks, {hardware_line(record)}")


def _scale_lengths(axes: Axes, lengths: set[int]) -> None:
    """A logarithmic axis of answer lengths, with a tick for each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(lengths), [str(length) for length in sorted(lengths)])
    axes.minorticks_off()
    axes.set_xlabel("answer length G (tokens)")


# --- Ways of decoding beside each other -------------------------------------------------------------------------------


def pareto_chart(record: dict, path: str | Path) -> None:
    """Draw a comparison: accuracy against milliseconds per answer token and against slots per answer, a point for each
    method, with the 95 % interval of its accuracy and the range of its runs.

    The line leads over the methods that no other one beats in both. Vanilla decoding is grey, other methods without
    suffix dropout orange, those with it blue.

    Raises:
        ValueError: the record has no metric; see `picture`.
    """
    labels = labels_of_comparison(record)
    if not labels:
        raise ValueError("a comparison without a metric has nothing to draw")
    label = labels[0]
    colours = {row["method"]: _colour_of_method(row) for row in record["rows"]}
    points = [entry for entry in summarize(record) if entry.metrics[label].value is not None]
    panels: tuple[tuple[str, Callable[[Summary], tuple[float, float, float] | None]], ...] = (
        ("milliseconds per answer token", lambda entry: entry.ms_per_token),
        ("slots computed per answer", lambda entry: None if entry.slots is None else (entry.slots,) * 3),
    )
    with picture(path, 12, 5.6) as figure:
        for axes, (title, cost_of) in zip(figure.subplots(1, 2, sharey=True), panels):
            drawn = [(entry, cost) for entry in points if (cost := cost_of(entry)) is not None and cost[0] > 0]
            _draw_points(axes, drawn, label, colours)
            axes.set_xlabel(title)
            axes.grid(visible=True, axis="y")
        figure.axes[0].set_ylabel(f"{label} (%, 95 % interval)")
        _explain_colours(figure.axes[0], list(colours.values()), METHOD_MEANINGS)
        figure.suptitle(comparison_title(record), wrap=True)
        figure.draw_without_rendering()  # the layout, which the labels need
        figure.set_layout_engine("none")
        for axes in figure.axes:
            _place_labels(axes)


def _draw_points(
    axes: Axes, points: Sequence[tuple[Summary, tuple[float, float, float]]], label: str, colours: Mapping[str, str],
) -> None:
    """The points of a panel, and the line over those that no other point beats; names are placed later."""
    for entry, (middle, low, high) in points:
        metric = entry.metrics[label]
        assert metric.value is not None
        below, above = metric.interval or (metric.value - (metric.error or 0), metric.value + (metric.error or 0))
        colour = colours[entry.method]
        axes.errorbar(
            middle, metric.value, xerr=[[max(0, middle - low)], [max(0, high - middle)]],
            yerr=[[metric.value - below], [above - metric.value]], fmt="o", color=colour, markersize=6.5,
            elinewidth=0.8, ecolor=(*_rgb(colour), 0.55), label=entry.method,
        )
    best: list[tuple[float, float]] = []
    for cost, value in sorted((cost[0], -(entry.metrics[label].value or 0)) for entry, cost in points):
        if not best or -value > best[-1][1]:
            best.append((cost, -value))
    axes.plot(*zip(*best), color=DARK, linewidth=1, linestyle=":", zorder=1)
    costs = [cost[0] for _, cost in points]
    if costs and max(costs) > LOG_SPREAD / 2 * min(costs):
        axes.set_xscale("log")
        _label_logarithms(axes.xaxis, "{x:g}")
    axes.margins(x=0.12, y=0.1)


def _colour_of_method(row: dict) -> str:
    if row["method"] in (BASELINE, f"{BASELINE}-stop"):
        return GREY
    return ORANGE if (row.get("settings") or {}).get("suffix_sampler") is None else BLUE


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _place_labels(axes: Axes) -> None:
    """Write every point's name beside it, where it covers no other point and no other name if there is such a place
    near by; a thin line leads to a name that stands farther away."""
    from matplotlib.transforms import Bbox

    def box_around(place: Sequence[float], width: float, height: float) -> Bbox:
        return Bbox.from_bounds(place[0] - width / 2, place[1] - height / 2, width, height)

    unit = axes.figure.dpi / 72  # pixels in a point
    room = axes.get_window_extent()
    points = [(tuple(axes.transData.transform(place)), name, colour) for name, colour, place in _named_points(axes)]
    taken = [box_around(place, 9 * unit, 9 * unit) for place, _, _ in points]
    for point, name, colour in sorted(points, key=lambda entry: (-entry[0][1], entry[0][0])):
        text = axes.text(0.5, 0.5, name, fontsize=8.5, color=colour, transform=axes.transAxes, ha="center", va="center",
                         zorder=5,
                         bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.75})
        size = text.get_window_extent()
        best = None
        for reach, step in itertools.product(range(9, 170, 5), range(16)):
            angle = math.tau * step / 16
            middle = (point[0] + math.cos(angle) * (reach * unit + size.width / 2),
                      point[1] + math.sin(angle) * (reach * unit + size.height / 2))
            box = box_around(middle, size.width, size.height)
            cost = sum(map(box.overlaps, taken)) + 9 * (not room.contains(box.x0, box.y0)
                                                        or not room.contains(box.x1, box.y1))
            if best is None or cost < best[0]:
                best = cost, reach, middle, box
            if not best[0]:
                break
        assert best is not None
        _, reach, middle, box = best
        taken.append(box)
        text.set_position(tuple(axes.transAxes.inverted().transform(middle)))
        if reach > 9:
            place = tuple(axes.transData.inverted().transform(point))
            line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 5, "shrinkB": 3}
            axes.annotate("", place, text.get_position(), xycoords="data", textcoords="axes fraction", zorder=6,
                          arrowprops=line)


def _named_points(axes: Axes) -> Iterator[tuple[str, str, tuple[float, float]]]:
    """The name, the colour and the place of every point of a panel."""
    for handle, name in zip(*axes.get_legend_handles_labels()):
        line = handle[0]  # type: ignore[index]
        yield name, line.get_color(), (line.get_xdata()[0], line.get_ydata()[0])


# --- The study of training with dropout -------------------------------------------------------------------------------

ARM_STYLES = {"base": (GREY, "o"), "full": (ORANGE, "s"), "dropout": (BLUE, "^"), "none": (GREEN, "D")}


def study_chart(records: Sequence[dict], path: str | Path) -> None:
    """Draw a study, a panel for each task: accuracy by way of decoding, a line for each arm.

    Large markers are all seeds together, with 95 % intervals; small ones each seed by itself.

    Raises:
        ValueError: see `studies.pool`.
    """
    tasks: dict[str, dict[Place, dict[str, Rows]]] = {}
    for place, by_arm in pool(records).items():
        tasks.setdefault(place.task, {})[place] = by_arm

    with picture(path, 1 + 3.1 * len(tasks), 4) as figure:
        for axes, (task, places) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items()):
            arms = list(dict.fromkeys(arm for by_arm in places.values() for arm in by_arm))
            for number, arm in enumerate(arms):
                _draw_arm(axes, arm, [by_arm.get(arm) for by_arm in places.values()], number - (len(arms) - 1) / 2)
            axes.set_title(task)
            axes.set_xticks(range(len(places)), [_describe_place(*entry) for entry in places.items()], fontsize=9)
            axes.grid(visible=False, axis="x")
            axes.grid(visible=True, axis="y")
        figure.axes[0].set_ylabel("right answers (%, 95 % interval)")
        figure.supxlabel("suffix that an answer's first block sees in decoding: tokens on average, and the sampler",
                         fontsize=11)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def _draw_arm(axes: Axes, arm: str, rows_by_place: Sequence[Rows | None], shift: float) -> None:
    """One line of a study's panel: the accuracy of an arm where it has rows, its interval, and that of each seed."""
    colour, marker = ARM_STYLES.get(arm, (PURPLE, "v"))
    points = [(place + 0.13 * shift, rows) for place, rows in enumerate(rows_by_place) if rows]
    values = [share(rows.values()) for _, rows in points]
    bounds = [interval(rows.values()) for _, rows in points]
    reach = ([value - low for value, (low, _) in zip(values, bounds)],
             [high - value for value, (_, high) in zip(values, bounds)])
    axes.errorbar([place for place, _ in points], values, yerr=reach, color=colour, marker=marker, markersize=6,
                  linewidth=1.2, capsize=2, label=ARMS.get(arm, arm))
    for place, rows in points:
        if len(rows) > 1:
            axes.plot([place] * len(rows), [share([row]) for row in rows.values()], ".", color=colour, markersize=4,
                      alpha=0.6)


def _describe_place(place: Place, by_arm: dict[str, Rows]) -> str:
    kept = next(row["expected_suffix"] for rows in by_arm.values() for row in rows.values())
    name = place.decoding.replace("-", "\n")
    return f"{kept:.0f}\n{name}"


# --- What a block attends to ------------------------------------------------------------------------------------------

REGIONS = {"before the block": GREY, "block": ORANGE, "suffix": BLUE}
LEAST_WEIGHT = 1e-6  # with which the axes of attention begin at the latest
MIN_RATIO = 100  # of the most to the least weight that they show


def attention_chart(record: dict, path: str | Path) -> None:
    """Draw what a block attends to, a row for each view of the suffix: on the left the last layer, mean over heads and
    the range from least to most, spikes marked by their distance from the block; on the right every layer."""
    from matplotlib.patches import Patch

    views = record["views"]
    highs = [high for view in views for _, _, _, high in range_of(view, view["layers"][-1])]
    means = [weight for view in views for layer in view["layers"] for weight in layer["mean"] if weight]
    most = max(means, default=1.0)
    least = max(min(means, default=LEAST_WEIGHT), LEAST_WEIGHT)

    with picture(path, 12, 1.2 + 2.9 * len(views)) as figure:
        grid = figure.subplots(len(views), 2, squeeze=False, sharey="col", width_ratios=(5, 4))
        for (left, right), view in zip(grid, views):
            _draw_last_layer(left, record, view)
            image = _draw_layers(right, record, view, least, max(most, MIN_RATIO * least))
            figure.colorbar(image, ax=right, label="attention (%)", pad=0.01, format=_percent)
            for axes in (left, right):
                _name_places(axes, record, view)
        most = max([most, *highs])
        left.set_yscale("log")
        left.set_ylim(min(least, most / MIN_RATIO) / 2, most * 3)
        left.yaxis.set_major_formatter(_percent)
        left.yaxis.set_minor_formatter("")
        band = Patch(color=DARK, alpha=0.25, linewidth=0, label="from the least to the most attentive head")
        figure.legend(handles=[*left.lines, band], loc="outside lower center", ncols=4)
        figure.suptitle(f"What a block attends to: {describe(record)}")


def _percent(share: float, _: object = None) -> str:
    return f"{100 * share:g}"


def _draw_last_layer(axes: Axes, record: dict, view: dict) -> None:
    """Attention against key position in the last layer; single positions are dots where others are missing."""
    length = record["settings"]["block_length"]
    layer = view["layers"][-1]
    points = range_of(view, layer)
    has_gaps = len(points) < len(layer["mean"])
    parts = zip(REGIONS.items(), (
        [point for point in points if point[0] < 0],
        [point for point in points if 0 <= point[0] < length],
        [point for point in points if point[0] >= length],
    ))
    for (region, colour), part in parts:
        places, mean, low, high = zip(*part) if part else ([], [], [], [])
        axes.fill_between(places, [max(weight, LEAST_WEIGHT) for weight in low], high, color=colour, alpha=0.25,
                          linewidth=0)
        axes.plot(places, mean, color=colour, linewidth=1.3, label=f"{region}, mean over heads",
                  marker="." if has_gaps and region == "suffix" else "", markersize=3)
    for spike in spikes_of(record, view, layer):
        axes.annotate(f"{spike.distance}", (spike.distance + length - 1, spike.weight), xytext=(0, 10),
                      textcoords="offset points", ha="center", fontsize=9, color=VERMILLION,
                      arrowprops={"arrowstyle": "-", "color": VERMILLION, "linewidth": 0.8})
    axes.annotate(describe_last(layer), (1, 1), xycoords="axes fraction", ha="right", va="top", fontsize=9)
    axes.grid(visible=True, axis="y")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("attention (%, logarithmic)")
    axes.set_title(f"layer {len(view['layers']) - 1} (the last), {name_view(view)}", loc="left")


def _draw_layers(axes: Axes, record: dict, view: dict, least: float, most: float) -> Any:
    """Attention of every layer against key position as an image; what no block saw stays white."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    first = view["first"]
    width = len(view["layers"][0]["mean"])
    grid = [[math.nan if weight is None else max(weight, least) for weight in (layer["mean"] + [None] * width)[:width]]
            for layer in view["layers"]]
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis_r", norm=LogNorm(least, most),
                        interpolation="nearest",
                        extent=(first - 0.5, first + width - 0.5, -0.5, len(grid) - 0.5))
    for edge in (-0.5, record["settings"]["block_length"] - 0.5):
        axes.axvline(edge, color=INK, linewidth=0.8, linestyle=":")
    axes.grid(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    axes.set_title(f"all layers, {name_view(view)}", loc="left")
    return image


def _name_places(axes: Axes, record: dict, view: dict) -> None:
    """Ticks at round distances from the block, on either side of it."""
    from matplotlib.ticker import MaxNLocator

    length = record["settings"]["block_length"]
    first = view["first"]
    behind = first + len(view["layers"][0]["mean"]) - length
    reach = max(-first, behind, 1)
    step = max(1, int(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True).tick_values(0, reach)[1]))
    distances = range(step, reach + 1, step)
    ticks = [(-distance, f"−{distance}") for distance in distances if -distance >= first]
    ticks += [((length - 1) / 2, "block")]
    ticks += [(length - 1 + distance, f"{distance}") for distance in distances if distance <= behind]
    axes.set_xticks(*zip(*ticks))
    axes.set_xlim(first - 0.5, behind + length - 0.5)
    axes.set_xlabel("key position: distance from the block (tokens)")


# --- The paper's other figures ----------------------------------------------------------------------------------------


def _plan_lengths(records: Sequence[dict]) -> list[Picture]:
    """A picture for each task, model, number of samples and machine with speedups at two lengths or more."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        everything_else = record | {"settings": record["settings"] | {"gen_length": None}}
        groups.setdefault(comparison_key(everything_else), []).append(record)
    plans = [(group, _speedups(group)) for group in groups.values()]
    if not any(lines for _, lines in plans):
        raise ValueError(f"no record has one of {VANILLA.name} of the same task, model, length, samples and machine "
                         "beside it")
    pictures = [
        Picture(_slug(Path(group[0]["task"]).stem, Path(group[0]["model"]).name), partial(length_chart, group),
                _more_of(group[0]))
        for group, lines in plans if len({length for points in lines.values() for length in points}) > 1
    ]
    if not pictures:
        raise ValueError("a chart of lengths needs speedups at two answer lengths at least")
    return pictures


def _speedups(records: Sequence[dict]) -> dict[tuple[Configuration, str], dict[int, list[float]]]:
    """By configuration and label, and by answer length, the speedups of records that have a baseline."""
    speedups: dict[tuple[Configuration, str], dict[int, list[float]]] = {}
    for row in evaluation_rows(records):
        length = row.record["settings"].get("gen_length")
        if row.speedup is not None and length is not None and not row.configuration.is_baseline:
            by_length = speedups.setdefault((row.configuration, row.label), {})
            by_length.setdefault(length, []).append(row.speedup)
    return speedups


def length_chart(records: Sequence[dict], path: str | Path) -> None:
    """Speedup over vanilla decoding at the same answer length, a line for each configuration.

    records: of one task, model, number of samples and machine.
    """
    speedups = _speedups(records)
    lines = [
        (configuration, label, sorted((length, statistics.fmean(values)) for length, values in by_length.items()))
        for (configuration, label), by_length in speedups.items()
    ]
    lines.sort(key=lambda line: -line[-1][-1][1])  # the legend beside the chart has the order of the lines' right ends

    with picture(path, 9.5, 4.2) as figure:
        axes = figure.subplots()
        drawn: Counter[Configuration] = Counter()
        for configuration, label, points in lines:
            fill = FILLS[drawn[configuration] % len(FILLS)]  # tells lines of one configuration apart
            drawn[configuration] += 1
            axes.plot(*zip(*points), linewidth=1.8, fillstyle=fill, label=f"{label}  ({times(points[-1][1])})",
                      **line_style(configuration))
        _scale_lengths(axes, {length for by_length in speedups.values() for length in by_length})
        axes.set_yscale("log")
        _label_logarithms(axes.yaxis, "{x:g}×")
        axes.axhline(1, color=GREY, linewidth=1)
        axes.set_ylabel(f"speedup over {VANILLA.name}")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        first = records[0]
        figure.suptitle(f"{first['task']}, {first['settings'].get('num_fewshot') or 0}-shot, {first['model']}, "
                        f"{count_samples(first['samples'])}, {hardware_line(first)}")


def _plan_heatmaps(records: Sequence[dict]) -> list[Picture]:
    """A picture for each table and configuration with two cells or more."""
    if not any(record["metrics"] for record in records):
        raise ValueError("the records have no metric to draw")
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        if (record["settings"].get("suffix_sampler") or {}).get("name") in ("gaussian", "uniform"):
            configuration = classify(record["settings"])
            groups.setdefault((configuration, comparison_key(record)), []).append(record)
    if not groups:
        raise ValueError("a heatmap needs records with the sampler gaussian or uniform")

    pictures = []
    titles = describe_tables(list(groups.values()))
    for ((configuration, _), group), title in zip(groups.items(), titles):
        label, panels = _heatmap_panels(group)
        if sum(map(len, panels.values())) > 1:
            name = f"{_name_of(group[0])}-{_slug(configuration.name)}"
            title = f"{configuration.name}: {title}"
            pictures.append(Picture(name, partial(heatmap, panels, label, title), _more_of(group[0])))
    if not pictures:
        raise ValueError("a heatmap needs at least two windows or numbers of kept tokens of one task, model, length, "
                         "configuration and number of samples")
    return pictures


Panels = dict[str, dict[tuple[int, int], float]]


def heatmap(panels: Panels, label: str, title: str, path: str | Path) -> None:
    """Accuracy by window (across) and kept suffix tokens (upwards), a panel for each sampler, one scale of colour.

    panels: for each sampler the metric `label`, in percent, by window and kept tokens.
    """
    windows = sorted({window for panel in panels.values() for window, _ in panel})
    sizes = sorted({size for panel in panels.values() for _, size in panel})
    values = [value for panel in panels.values() for value in panel.values()]
    high = max(values)
    low = min(values) if min(values) < high else high - 1  # a scale needs two ends

    width = max(1.6 + len(panels) * (1.2 + 0.62 * len(windows)), 0.085 * len(title))
    with picture(path, width, 1.9 + 0.46 * len(sizes)) as figure:
        panel_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, name in zip(panel_axes, sorted(panels, reverse=True)):
            grid = [[panels[name].get((window, size), math.nan) for window in windows] for size in sizes]
            image = axes.imshow(grid, origin="lower", cmap="cividis", vmin=low, vmax=high, aspect="auto")
            _write_values(axes, grid, (low + high) / 2)
            axes.grid(False)
            axes.set_xticks(range(len(windows)), [str(window) for window in windows])
            axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
            axes.set_title(name)
            axes.set_xlabel("window")
        panel_axes[0].set_ylabel("kept suffix tokens")
        figure.colorbar(image, ax=panel_axes, label=f"{label} (%)")
        figure.suptitle(title, fontsize=11, wrap=True)


def _heatmap_panels(records: Sequence[dict]) -> tuple[str, Panels]:
    """The first metric, and for each sampler its value by window and kept tokens, these as in the paper's grid where
    they are near it.

    Raises:
        ValueError: two records have the same cell, or a sampler cannot be used.
    """
    rows = evaluation_rows(records)
    label = next(iter(metric_labels(rows)), "")
    panels: Panels = {}
    names: dict[tuple, str] = {}
    for row in rows:
        sampler = row.record["settings"]["suffix_sampler"]
        metric = row.metrics.get(label)
        if metric is None or metric.value is None:
            continue
        mean = kept_tokens(sampler)
        nearest = min(GRID, key=lambda entry: abs(entry - mean))
        cell = sampler["window"], nearest if abs(nearest - mean) < GRID_REACH * nearest else round(mean)
        panel = panels.setdefault(sampler["name"], {})
        place = sampler["name"], *cell
        if place in names:
            raise ValueError(f"two records have the same cell of a heatmap: sampler {sampler['name']}, window "
                             f"{cell[0]}, about {cell[1]} kept tokens, in {names[place]} and {row.record['name']}; "
                             "name the records to draw instead of a folder that holds both")
        panel[cell] = metric.value
        names[place] = row.record["name"]
    return label, panels


def kept_tokens(sampler: dict[str, Any]) -> float:
    """How many suffix tokens a record's sampler keeps on average where the suffix is longer than its window."""
    from sampler import SAMPLERS

    parameters = {name: value for name, value in sampler.items() if name != "name"}
    try:
        return SAMPLERS[sampler["name"]](**parameters).retention(sampler["window"] + 1).sum().item()
    except (TypeError, KeyError) as error:
        raise ValueError(f"a record has a sampler that cannot be used: {sampler}") from error


def _write_values(axes: Axes, grid: Sequence[Sequence[float]], middle: float) -> None:
    """The number of each cell, white on the dark colours."""
    for up, line in enumerate(grid):
        for across, value in enumerate(line):
            if not math.isnan(value):
                axes.text(across, up, f"{value:.1f}", ha="center", va="center", fontsize=9,
                          color="white" if value <= middle else "black")
