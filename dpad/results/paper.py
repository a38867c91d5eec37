"""The paper's tables and figures, from records of evaluations: what was measured, beside what the authors tables.

    python run.py table results/main_1.5/1.5 --paper llada-1.5                    # a table for every benchmark
    python run.py table results/long_seq/1.5 --paper llada-1.5 --format markdown --plot bars.png
    python run.py table results/heatmap/1.5 --figure heatmap --plot heatmap.svg
    python run.py table results/*/ --figure length --plot length.png              # speedup against answer length

The authors' numbers are in benchmarks/paper.json (arXiv 2508.14148, an A100-PCIe-80GB). Imported by run.py, never run.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from dpad import ROOT
from dpad.results import charts, files, tables

REPORTED = ROOT / "benchmarks" / "paper.json"
# Our own problems that stand in for a benchmark where the hub is out of reach.
STAND_INS = {"arithmetic-50": "gsm8k", "arithmetic-500": "gsm8k", "gsm8k-split": "gsm8k", "math-local": "minerva_math",
             "humaneval-local": "humaneval", "mbpp-local": "mbpp"}
ORDER = ("Vanilla", "Vanilla+EarlyTermination", "+DPad", "+Parallel", "+Parallel+DPad", "+Parallel+PrefixCache",
         "+Parallel+PrefixCache+DPad")
FIGURES = ("bars", "heatmap", "length")
Z95 = 1.959964  # of the normal distribution, two-sided
GRID = (32, 64, 128, 192, 256, 320, 384, 448, 512)  # kept tokens in the paper's heatmap


def reported(key: str) -> dict[tuple, dict]:
    """The authors' rows of a model by (benchmark, answer length, configuration), each with its `speedup`.

    Raises:
        ValueError: there is no such model in the paper.
    """
    models = files.read_json(REPORTED)["models"]
    if key not in models:
        raise ValueError(f"model is {key!r}; the paper has {', '.join(models)}")
    rows = {(row["benchmark"], row["gen_length"], row["name"]): row for row in models[key]["rows"]}
    return {
        place: row | {"speedup": rows[*place[:2], tables.BASELINE]["latency_s"] / row["latency_s"]}
        for place, row in rows.items()
    }


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` samples (Wilson 1927): sensible for few samples and shares of 0 or 1."""
    square = Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = Z95 / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def groups(records: Sequence[dict]) -> list[list[dict]]:
    """Records that belong into one table: of one task, model and answer length, in the order given; those that the
    paper has in its order, before all others."""
    found: dict[tuple, list[dict]] = {}
    for record in records:
        found.setdefault((record["task"], record["model"], record["settings"]["gen_length"]), []).append(record)
    place = {name: number for number, name in enumerate(ORDER)}
    return [sorted(table, key=lambda record: place.get(record["name"], len(place))) for table in found.values()]


def rows(records: Sequence[dict], paper: dict[tuple, dict]) -> list[dict]:
    """What a table shows: tables.rows with intervals, and the authors' row of the same benchmark, length and name."""
    shown = []
    for row, record in zip(tables.rows(records), records):
        place = STAND_INS.get(row["task"], row["task"]), row["G"], row["name"]
        bounds = {label: interval(value / 100, record["samples"]) if label in row["shares"] else None
                  for label, value in row["metrics"].items()}
        shown.append(row | {"intervals": bounds, "samples": record["samples"], "paper": paper.get(place)})
    return shown


def title(records: Sequence[dict]) -> str:
    first = records[0]
    counts = sorted({record["samples"] for record in records})
    samples = tables.counted(counts[0] if len(counts) == 1 else f"{counts[0]}–{counts[-1]}")
    return (f"{first['task']}, {first['settings'].get('num_fewshot') or 0}-shot, {first['model']}, "
            f"G = {first['settings']['gen_length']}, {samples}, {tables.hardware_line(first)}")


def cells(shown: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Headings and text cells of one table."""
    labels = tables.metric_labels(shown)
    theirs = [label for label in labels if any(row["paper"] and label in row["paper"]["metrics"] for row in shown)]
    compared = any(row["paper"] for row in shown)
    headings = ["configuration", "latency (s)", "speedup", "TPS", "NFE", *(f"{label} (%)" for label in labels)]
    if compared:
        headings += ["paper: latency (s)", "speedup", *(f"{label} (%)" for label in theirs)]
    table = []
    for row in shown:
        line = [row["name"], tables.seconds(row["latency_s"]),
                tables.times(row["speedup"]), tables.number(row["tps"]), tables.number(row["nfe"])]
        for label in labels:
            value, bounds = row["metrics"].get(label), row["intervals"].get(label)
            spread = f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else ""
            line.append(tables.number(value) + spread)
        if compared:
            paper = row["paper"] or {"latency_s": None, "speedup": None, "metrics": {}}
            line += [tables.number(paper["latency_s"], 2), tables.times(paper["speedup"])]
            line += [tables.number(paper["metrics"].get(label), 2) for label in theirs]
        table.append(line)
    return headings, table


def render(records: Sequence[dict], key: str | None, form: str) -> str:
    """The tables of all records: "terminal", "markdown" or "csv" (one table, plain numbers).

    Raises:
        ValueError: see `reported` and tables.rows; or the records are not of evaluations.
    """
    if any(record["kind"] != "evaluation" for record in records):
        raise ValueError("table shows records of evaluations; `python -m dpad.results.report FILE` shows those of run.py bench")
    paper = reported(key) if key else {}
    shown = [(group, rows(group, paper)) for group in groups(records)]
    if form == "csv":
        return as_csv([row for _, table in shown for row in table])
    source = files.read_json(REPORTED)
    note = "[ ]: 95 % interval (Wilson)." + (
        f" paper: as reported by the authors for {source['models'][key]['title']} on an {source['hardware']} "
        f"({source['source']})." if key else "")
    parts = []
    for group, table in shown:
        headings, lines = cells(table)
        if form == "markdown":
            text = tables.as_markdown(headings, lines)
            parts.append(f"**{title(group)}**\n\n{text}")
        else:
            parts.append(f"{title(group)}\n{tables.as_columns(headings, lines)}")
    return "\n\n".join([*parts, note])


def as_csv(shown: Sequence[dict]) -> str:
    """Plain numbers in full precision, empty where unknown; the authors' in columns that begin with paper_."""
    labels = tables.metric_labels(shown)
    names = ["name", "model", "task", "G", "hardware", "samples", "latency_s", "speedup", "tps", "nfe"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *(column for label in labels for column in (label, f"{label}_low", f"{label}_high")),
                     "paper_latency_s", "paper_speedup", *(f"paper_{label}" for label in labels)])
    for row in shown:
        line = [row[name] for name in names]
        for label in labels:
            bounds = row["intervals"].get(label)
            line += [row["metrics"].get(label), *((100 * bound for bound in bounds) if bounds else (None, None))]
        paper = row["paper"] or {"metrics": {}}
        line += [paper.get("latency_s"), paper.get("speedup"), *(paper["metrics"].get(label) for label in labels)]
        writer.writerow(line)
    return text.getvalue().rstrip("\n")


# --- Figures ----------------------------------------------------------------------------------------------------------


def draw(records: Sequence[dict], figure: str, path: str | Path) -> list[Path]:
    """Draw one of FIGURES as .png or .svg; returns the files (bars: one for each table, named by task and length).

    Raises:
        ValueError: the records do not make this figure. OSError: the file cannot be written.
    """
    path = Path(path)
    if figure == "bars":
        grouped = groups(records)
        names = [path] if len(grouped) == 1 else [
            path.with_stem("-".join((path.stem, Path(table[0]["task"]).stem, str(table[0]["settings"]["gen_length"]))))
            for table in grouped
        ]
        for table, name in zip(grouped, names):
            charts.bar_chart(table, name)
        return names
    {"heatmap": heatmap, "length": length_chart}[figure](records, path)
    return [path]


def kept_tokens(sampler: dict) -> float:
    """How many suffix tokens a record's sampler keeps on average where the suffix is longer than its window."""
    from dpad.engine.completion import make_sampler

    made = make_sampler(sampler["name"], sampler["window"], sampler.get("k_sigma", 0), sampler.get("scale", 0),
                        sampler.get("number", 0), sampler["window"])
    return made.retention(sampler["window"] + 1).sum().item()


def heatmap(records: Sequence[dict], path: Path) -> None:
    """Accuracy by window (across) and kept tokens (upwards), a panel for each sampler, one scale of colour for all."""
    panels: dict[str, dict[tuple[int, int], float]] = {}
    labels = tables.metric_labels(tables.rows(records))
    if not labels:
        raise ValueError("the records have no metric to draw")
    for row, record in zip(tables.rows(records), records):
        sampler = record["settings"].get("suffix_sampler")
        if sampler and sampler["name"] in ("gaussian", "uniform") and row["metrics"].get(labels[0]) is not None:
            kept = min(GRID, key=lambda size: abs(size - kept_tokens(sampler)))
            panels.setdefault(sampler["name"], {})[sampler["window"], kept] = row["metrics"][labels[0]]
    if not panels:
        raise ValueError("a heatmap needs records with the sampler gaussian or uniform")
    windows = sorted({window for panel in panels.values() for window, _ in panel})
    sizes = sorted({kept for panel in panels.values() for _, kept in panel})
    values = [value for panel in panels.values() for value in panel.values()]
    figure = charts.new_figure((1.6 + len(panels) * (1.2 + 0.62 * len(windows)), 1.9 + 0.46 * len(sizes)))
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, name in zip(all_axes, sorted(panels, reverse=True)):
        grid = [[panels[name].get((window, kept), math.nan) for window in windows] for kept in sizes]
        image = axes.imshow(grid, origin="lower", cmap="cividis", vmin=min(values), vmax=max(values), aspect="auto")
        middle = (min(values) + max(values)) / 2
        for across, window in enumerate(windows):
            for up, kept in enumerate(sizes):
                value = panels[name].get((window, kept))
                if value is not None:
                    axes.text(across, up, f"{value:.1f}", ha="center", va="center", fontsize=9,
                              color="white" if value < middle or middle == min(values) else "black")
        axes.set_xticks(range(len(windows)), [str(window) for window in windows])
        axes.set_yticks(range(len(sizes)), [str(kept) for kept in sizes])
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("window", fontsize=11)
    all_axes[0].set_ylabel("kept suffix tokens", fontsize=11)
    figure.colorbar(image, ax=all_axes, label=f"{labels[0]} (%)")
    figure.suptitle(title(records), fontsize=11)
    charts.save_figure(figure, path, grid=False)


def length_chart(records: Sequence[dict], path: Path) -> None:
    """Speedup over Vanilla at the same answer length, a line for each configuration (the paper's length figure)."""
    lines: dict[str, dict[int, list[float]]] = {}
    for row in tables.rows(records):
        if row["speedup"] is not None and row["name"] != tables.BASELINE:
            lines.setdefault(row["name"], {}).setdefault(row["G"], []).append(row["speedup"])
    lengths = sorted({length for line in lines.values() for length in line})
    if not lengths:
        raise ValueError(f"no record has one named {tables.BASELINE} of the same task, model and length beside it")
    figure = charts.new_figure((7.5, 4.2))
    axes = figure.subplots()
    marks = "osD^vPX*"
    for number, (name, line) in enumerate(lines.items()):
        points = sorted((length, statistics.fmean(values)) for length, values in line.items())
        axes.plot(*zip(*points), marker=marks[number % len(marks)], linewidth=1.8, label=name,
                  color=charts.PALETTE[number % len(charts.PALETTE)])
        axes.annotate(tables.times(points[-1][1]), points[-1], xytext=(6, 0), textcoords="offset points", va="center",
                      fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.axhline(1, color=charts.GREY, linewidth=1)
    axes.set_xlabel("answer length G (tokens)", fontsize=11)
    axes.set_ylabel(f"speedup over {tables.BASELINE}", fontsize=11)
    axes.margins(x=0.12)  # room for the numbers
    axes.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    first = records[0]
    figure.suptitle(f"{first['model']}, {first['task']}, {tables.hardware_line(first)}", fontsize=11)
    charts.save_figure(figure, path)
