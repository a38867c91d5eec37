"""What the web UI draws: canvases, their legend and messages as HTML, and two charts as SVG.

The charts are the retention curve of a suffix sampler, and the positions computed over time. Everything that a visitor
or a model wrote is escaped here. Imported by page.py; demo/style.css has the looks.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import accumulate

from dpad.engine.settings import SAMPLER, DecodingSettings
from dpad.interact.canvas import (
    EARLY,
    LATE,
    Canvas,
    Cell,
    canvas_after,
    describe_trace,
    describe_traces,
    describe_uncomputed,
    needs_light_text,
    shade,
)
from dpad.interact.trace import Trace
from sampler import ScoredSampler

CELL_LABELS = {
    "block": "mask of the current block",
    "kept": "suffix: kept",
    "dropped": "suffix: dropped, not computed",
}
LEGEND = {
    "block": "mask of the block",
    "kept": "suffix kept",
    "dropped": "suffix dropped, not computed",
    "blank": "no text: after the answer's end",
}
NO_ATTENTION = "this answer was decoded without looking at attention: ask again"
FORMULAS = {  # of the retention probability, by dropout strategy; formatted with the sampler's parameters
    "null": "Vanilla: every suffix position is computed.",
    "gaussian": "DPad: p(i) = min(1, a/√(2π) · exp(−x²/2)), x from 0 to k = {k_sigma:g} over the window of {window}, "
                "a = {scale:g}.",
    "gaussian-even": "DPad without dice: where the sum of p(i) = min(1, a/√(2π) · exp(−x²/2)), x from 0 to "
                     "k = {k_sigma:g} over the window of {window}, a = {scale:g}, passes the next half-integer.",
    "uniform": "Uniform: {number} of the nearest {window}.",
    "window": "The nearest {window}.",
    "anchor": "The nearest {window}, beyond them each multiple of {stride} (0: none), and the last one unless it is "
              "off.",
    "attention": "The {top_k} that the block attends to most in its first forward, and the nearest {window}.",
    "spotlight": "All but the {removed} from {beyond} on that the block attends to most in its first forward.",
    "block": "No suffix position is computed.",
}


def render_message(text: str, kind: str = "alert") -> str:
    """A message to the visitor. kind: "alert" for what went wrong, "verdict" for the result of a comparison, "note" for
    anything else, "note waiting" for what is shown only if it lasts."""
    role = "alert" if kind == "alert" else "status"
    return f'<div class="dpad"><div class="{kind}" role="{role}">{html.escape(" ".join(text.split()))}</div></div>'


def duration_of(traces: Sequence[Trace]) -> float:
    """The seconds of the clock, and of the scale of colours, that these traces share: those of the slowest."""
    return max(trace.seconds for trace in traces)


# --- The canvas -------------------------------------------------------------------------------------------------------


def render_canvas(
    trace: Trace, forwards: int, half: bool = False, layer: int | None = None, duration: float | None = None,
    title: str = "",
) -> str:
    """The canvas of a trace after so many forwards, under its name, its numbers and the answer so far.

    Args:
        half: beside another canvas, with half the columns.
        layer: whose attention lies over it, see `canvas_after`.
        duration: seconds from the first colour to the last one; the trace's own where it is None.
        title: its name, where that says more than the trace's settings.
    """
    canvas = canvas_after(trace, forwards, layer)
    duration = trace.seconds if duration is None else duration
    weights = canvas.attention or [0.0] * len(canvas.cells)
    most = max(weights) or 1.0
    cells = "".join(
        _render_cell(place, cell, duration, _render_bar(weight, most) if canvas.attention else ("", ""))
        for place, (cell, weight) in enumerate(zip(canvas.cells, weights)) if cell.kind != "filled"
    )
    rest = describe_uncomputed(canvas)
    answer = canvas.draft if not canvas.done or canvas.draft else "(an empty answer)"
    return (
        f'<div class="dpad trace {"half" if half else "whole"}" data-forwards="{canvas.forwards}" '
        f'data-done="{int(canvas.done)}">'
        f"<h3>{html.escape(title or describe_trace(trace))}</h3>"
        f'<div class="numbers">{_render_numbers(canvas, most)}</div>'
        f'<div class="answer" tabindex="0" role="region" aria-label="the answer">{html.escape(answer)}</div>'
        f'<div class="cells" role="img" aria-label="canvas: {canvas.tokens} tokens decoded after {canvas.forwards} '
        f'forwards, {canvas.state}">{cells}</div>'
        + (f'<div class="rest">{rest}</div>' if rest else "")
        + (f'<div class="rest">{NO_ATTENTION}</div>' if layer is not None and not canvas.attention else "")
        + "</div>"
    )


def _render_numbers(canvas: Canvas, most: float) -> str:
    rate = canvas.tokens / canvas.seconds if canvas.seconds else 0.0
    numbers = {
        "": canvas.state,
        "elapsed": f"{canvas.seconds:.2f} s",
        "forwards": canvas.forwards,
        "tokens/s": f"{rate:.1f}",
        "positions computed": f"{100 * canvas.share:.0f}%",
    }
    if canvas.suffix and not canvas.done:
        numbers["suffix kept"] = f"{canvas.kept_suffix} of {canvas.suffix}"
    if canvas.attention:
        numbers["attention to prompt"] = f"{100 * (1 - sum(canvas.attention)):.0f}%"
        numbers["tallest bar"] = f"{100 * most:.2g}%"
    return "".join(f"<span>{name} <b>{value}</b></span>" for name, value in numbers.items())


def _render_bar(weight: float, most: float) -> tuple[str, str]:
    """The bar of a cell's attention, which is a part of its style, and its number, a part of its title.

    The height goes with the square root: most cells get a hundredth of what the first ones get.
    """
    return f"--bar:{(weight / most) ** 0.5:.2f};", f"; attention {100 * weight:.3g}%"


def _render_cell(place: int, cell: Cell, duration: float, bar: tuple[str, str]) -> str:
    style, number = bar
    if cell.forward is None:
        style = f' style="{style}"' if style else ""
        return f'<i class="{cell.kind}"{style} title="{place}: {CELL_LABELS[cell.kind]}{number}"></i>'

    colour = shade(cell.seconds, duration)
    red, green, blue = colour
    kind = "decided late" if needs_light_text(colour) else "decided"
    label = html.escape(f"{cell.text!r}: forward {cell.forward + 1}, {cell.seconds:.2f} s, confidence "
                        f"{cell.confidence:.3f}")
    text = html.escape(cell.glyph)
    style += f"background:rgb({red},{green},{blue})"
    return f'<i class="{kind}" style="{style}" title="{place}: {label}{number}">{text}</i>'


def render_legend(duration: float | None = None, attention: bool = False) -> str:
    """What every colour means.

    Args:
        duration: seconds from the first colour of decoded tokens to the last one; None before there are any.
        attention: whether bars may lie over the cells.
    """
    early, late = ("early", "late") if duration is None else ("0 s", f"{duration:.2f} s")
    ends = ", ".join(f"rgb{colour}" for colour in (EARLY, LATE))
    entries = [f'decoded at {early} <i style="background:linear-gradient(90deg, {ends})" class="scale"></i>{late}']
    entries += [f'<i class="{kind}"></i>{text}' for kind, text in LEGEND.items()]
    if attention:
        entries.append('<i class="bar"></i>attention that the block pays')
    return f'<div class="dpad legend">{"".join(f"<span>{entry}</span>" for entry in entries)}</div>'


def render_idle(trace: Trace, model: str) -> str:
    """The canvas before the first question, which says what the parts are.

    trace: of settings, without a forward that decided anything.
    """
    canvas = canvas_after(trace, 0)
    block = len(canvas.cells) - canvas.suffix
    dropped = canvas.suffix - canvas.kept_suffix
    cells = [_render_cell(place, cell, 0.0, ("", "")) for place, cell in enumerate(canvas.cells)]
    suffix = f"<b>The suffix</b>: {canvas.suffix} positions that come later. "
    if dropped and canvas.kept_suffix:
        suffix += f"The {canvas.kept_suffix} blue ones are kept as scratch space; the {dropped} dashed ones are dropped"
    elif dropped:
        suffix += "All are dropped"
    else:
        suffix += "All are computed in every forward, and what comes out is thrown away"
    return (
        '<div class="dpad trace whole idle">'
        f"<h3>{html.escape(describe_trace(trace))}: the canvas of {len(canvas.cells)} masks before the first "
        f"forward</h3>"
        f'<p class="part"><b>The block</b>: {block} masks that {html.escape(model)} decodes now, the surest first.</p>'
        f'<div class="cells" role="img" aria-label="the masks of the block">{"".join(cells[:block])}</div>'
        + (f'<p class="part">{suffix}{", before attention." if dropped else "."}</p>'
           f'<div class="cells" role="img" aria-label="the suffix, {canvas.kept_suffix} of {canvas.suffix} kept">'
           f'{"".join(cells[block:])}</div>' if canvas.suffix else "")
        + "</div>"
    )


# --- Charts -----------------------------------------------------------------------------------------------------------

Points = Sequence[tuple[float, float]]


def render_chart(
    lines: Iterable[tuple[str, Points]], x_name: str, y_name: str, x_ticks: Sequence[str], y_ticks: Sequence[str],
    label: str,
) -> str:
    """A line chart that keeps its text legible at any width: the lines are SVG, all words are HTML around it.

    Args:
        lines: the CSS class of each and its points, x and y as shares of the axes.
        x_ticks, y_ticks: what stands at even distances along the axes, from 0 on.
        label: the chart in words, for those who do not see it.
    """
    drawn = "".join(
        f'<polyline class="{kind}" points="{" ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in points)}"/>'
        for kind, points in lines
    )
    ticks = ["".join(f"<span>{tick}</span>" for tick in ticks) for ticks in (x_ticks, reversed(y_ticks))]
    return (
        f'<div class="chart" role="img" aria-label="{html.escape(label)}"><span class="y-name">{y_name}</span>'
        f'<span class="y">{ticks[1]}</span>'
        f'<div class="plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none">{drawn}</svg></div>'
        f'<span class="x">{ticks[0]}</span><span class="x-name">{x_name}</span></div>'
    )


def render_curve(settings: DecodingSettings) -> str:
    """The probability that a suffix position is kept against its distance from the block, and the sampler's formula."""
    length = settings.gen_length
    sampler = settings.suffix_sampler
    assert sampler is not None
    probabilities = sampler.retention(length).tolist()
    mean = sum(probabilities)
    kept = "seen in that forward" if isinstance(sampler, ScoredSampler) else "kept"
    formula = FORMULAS.get(SAMPLER.name_of(sampler), "").format(**settings.as_choices())
    chart = render_chart(
        [("one", [(distance / length, probability) for distance, probability in enumerate(probabilities)])],
        "distance from the block (tokens)", "probability to be kept",
        [f"{share * length:.0f}" for share in (0, 0.25, 0.5, 0.75, 1)], ["0", "1"],
        f"retention curve: {mean:.0f} of {length} positions kept on average",
    )
    return (f'<div class="dpad">{chart}<div class="formula">{html.escape(formula)} On average {mean:.0f} of {length} '
            f"are {kept}.</div></div>")


def render_work(traces: Sequence[Trace], counts: Sequence[int], duration: float, headline: str) -> str:
    """The positions that two answers have computed over time, under a headline.

    Args:
        traces: of the two sides, and counts: how many forwards of each there have been.
        duration: seconds of the axis.
    """
    sums = [list(accumulate(forward["computed"] for forward in trace.forwards)) for trace in traces]
    top = max([1, *(side[-1] for side in sums if side)])
    lines, words = [], []
    for kind, trace, count, side, name in zip(("one", "two"), traces, counts, sums, describe_traces(traces)):
        seconds = [forward["seconds"] for forward in trace.forwards[:count]]
        points = [(0.0, 0.0), *((now / (duration or 1.0), work / top) for now, work in zip(seconds, side))]
        lines.append((kind, points))
        words.append(f"{name}: {side[count - 1] if count else 0:,} in {seconds[-1] if seconds else 0:.2f} s")
    keys = "".join(f'<span><i class="{kind}"></i>{html.escape(text)}</span>' for (kind, _), text in zip(lines, words))
    chart = render_chart(lines, "seconds", "positions computed", ["0", f"{duration / 2:.2f}", f"{duration:.2f}"],
                         ["0", f"{top:,}"], "; ".join(words))
    verdict = render_message(headline, "verdict")
    return f'<div class="dpad work">{verdict}{chart}<div class="legend">{keys}</div></div>'
