"""What the web UI draws: a trace's canvas as HTML, and the retention curve of a suffix sampler as SVG.

Everything that a visitor or a model wrote is escaped here. Imported by page.py; demo/style.css has the looks.
"""

from __future__ import annotations

import html

from dpad.engine.settings import SAMPLER, DecodingSettings
from dpad.interact.canvas import Canvas, Cell, canvas_after, describe_trace, needs_light_text, shade
from dpad.interact.trace import Trace
from sampler import ScoredSampler

CELL_LABELS = {
    "block": "mask of the current block",
    "kept": "suffix: kept",
    "dropped": "suffix: dropped, not computed",
    "filled": "end of the answer, filled in without a forward",
}
LEGEND = {
    "early": "decoded, early to late",
    "block": "mask of the block",
    "kept": "suffix kept",
    "dropped": "suffix dropped",
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
    """A message to the visitor. kind: "alert" for what went wrong, "verdict" for the result of a comparison."""
    role = "alert" if kind == "alert" else "status"
    return f'<div class="dpad"><div class="{kind}" role="{role}">{html.escape(" ".join(text.split()))}</div></div>'


# --- The canvas -------------------------------------------------------------------------------------------------------


def render_canvas(trace: Trace, forwards: int, half: bool = False, layer: int | None = None) -> str:
    """The canvas of a trace after so many forwards, with its numbers and, at the end, the answer.

    half: beside another canvas, with half the columns. layer: whose attention lies over it, see `canvas_after`.
    """
    canvas = canvas_after(trace, forwards, layer)
    weights = canvas.attention or [0.0] * len(canvas.cells)
    most = max(weights) or 1.0
    cells = "".join(
        _render_cell(place, cell, trace, _render_bar(weight, most) if canvas.attention else ("", ""))
        for place, (cell, weight) in enumerate(zip(canvas.cells, weights))
    )
    legend = "".join(f'<span><i class="{kind}"></i>{text}</span>' for kind, text in LEGEND.items())
    if canvas.attention:
        legend += f'<span><i class="bar"></i>attention of the block (full height: {100 * most:.2g}%)</span>'
    elif layer is not None:
        legend += f"<span>{NO_ATTENTION}</span>"
    answer = ""
    if canvas.done:
        answer = f'<div class="answer">{html.escape(trace.tail["answer"] or "(an empty answer)")}</div>'

    return (
        f'<div class="dpad trace {"half" if half else "whole"}" data-forwards="{canvas.forwards}" '
        f'data-done="{int(canvas.done)}">'
        f"<h3>{html.escape(describe_trace(trace))}</h3>"
        f'<div class="numbers">{_render_numbers(canvas)}</div>'
        f'<div class="cells" role="img" aria-label="canvas: {canvas.tokens} tokens decoded after {canvas.forwards} '
        f'forwards, {canvas.state}">{cells}</div>'
        f'{answer}<div class="legend">{legend}</div></div>'
    )


def _render_numbers(canvas: Canvas) -> str:
    rate = canvas.tokens / canvas.seconds if canvas.seconds else 0.0
    numbers = {
        "forwards": canvas.forwards,
        "suffix kept": f"{canvas.kept_suffix} of {canvas.suffix}",
        "positions computed": f"{100 * canvas.share:.0f}%",
        "tokens/s": f"{rate:.1f}",
        "elapsed": f"{canvas.seconds:.2f} s",
        "": canvas.state,
    }
    if canvas.attention:
        numbers["attention to prompt"] = f"{100 * (1 - sum(canvas.attention)):.0f}%"
    return "".join(f"<span>{name} <b>{value}</b></span>" for name, value in numbers.items())


def _render_bar(weight: float, most: float) -> tuple[str, str]:
    """The bar of a cell's attention, which is a part of its style, and its number, a part of its title.

    The height goes with the square root: most cells get a hundredth of what the first ones get.
    """
    return f"--bar:{(weight / most) ** 0.5:.2f};", f"; attention {100 * weight:.3g}%"


def _render_cell(place: int, cell: Cell, trace: Trace, bar: tuple[str, str]) -> str:
    style, number = bar
    if cell.forward is None:
        style = f' style="{style}"' if style else ""
        return f'<i class="{cell.kind}"{style} title="{place}: {CELL_LABELS[cell.kind]}{number}"></i>'

    colour = shade(cell.forward, len(trace.forwards))
    red, green, blue = colour
    kind = "decided late" if needs_light_text(colour) else "decided"
    label = html.escape(f"{cell.text!r}: forward {cell.forward + 1}, confidence {cell.confidence:.3f}")
    text = html.escape(cell.glyph)
    style += f"background:rgb({red},{green},{blue})"
    return f'<i class="{kind}" style="{style}" title="{place}: {label}{number}">{text}</i>'


# --- The retention curve ----------------------------------------------------------------------------------------------

LEFT, RIGHT = 40, 480  # of the axes, in the SVG's units
TOP, BOTTOM = 30, 150


def render_curve(settings: DecodingSettings) -> str:
    """The probability that a suffix position is kept against its distance from the block, and the sampler's formula."""
    length = settings.gen_length
    sampler = settings.suffix_sampler
    assert sampler is not None
    probabilities = sampler.retention(length).tolist()
    mean = sum(probabilities)
    kept = "seen in that forward" if isinstance(sampler, ScoredSampler) else "kept"
    formula = FORMULAS.get(SAMPLER.name_of(sampler), "").format(**settings.as_choices())

    def x(distance: float) -> float:
        return LEFT + (RIGHT - LEFT) * distance / length

    points = " ".join(f"{x(distance):.1f},{BOTTOM - (BOTTOM - TOP) * probability:.1f}"
                      for distance, probability in enumerate(probabilities))
    ticks = "".join(f'<text x="{x(share * length):.0f}" y="168" text-anchor="middle">{share * length:.0f}</text>'
                    for share in (0, 0.25, 0.5, 0.75, 1))
    return (
        '<div class="dpad"><svg viewBox="0 0 500 190" role="img" fill="currentColor" font-size="12" '
        f'aria-label="retention curve: {mean:.0f} of {length} positions kept on average">'
        f'<path d="M{LEFT} {BOTTOM}H{RIGHT}M{LEFT} {TOP}H{RIGHT}" fill="none" stroke="currentColor" opacity=".35" '
        'stroke-dasharray="2 3"/>'
        '<text x="34" y="154" text-anchor="end">0</text><text x="34" y="34" text-anchor="end">1</text>'
        f'{ticks}<text x="260" y="186" text-anchor="middle">distance from the block (tokens)</text>'
        f'<polyline points="{points}" fill="none" stroke="#2a8aa3" stroke-width="2.5"/></svg>'
        f'<div class="legend">{html.escape(formula)} On average {mean:.0f} of {length} are {kept}.</div></div>'
    )
