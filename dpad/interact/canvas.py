"""The canvas of a trace: what every cell of the answer holds after so many forwards, and the trace's settings in words.

The web UI (markup.py) and the GIF (gif.py) draw what this module describes. Imported, never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dpad.interact.trace import Trace
from dpad.results.records import hardware_line

# Early and late tokens have hues that every kind of colour vision tells apart, by lightness as well.
EARLY = (0xFD, 0xE7, 0x9A)
LATE = (0x2A, 0x78, 0x8E)
MAX_DARK = 430  # a colour whose red, green and blue add up to less needs light text

SAMPLER_WORDS = {
    "gaussian": "DPad", "gaussian-even": "DPad without dice", "uniform": "uniform dropout", "window": "sliding window",
    "anchor": "anchors", "attention": "suffix by attention", "spotlight": "spotlight", "block": "no suffix",
}


@dataclass(frozen=True)
class Cell:
    """One place of the answer.

    kind: "decided"; "block", a mask of the block being decoded; "kept", a mask of the suffix that is computed;
    "dropped", one that is not; or "filled", EOS that took no forward. confidence and forward (the one that decided the
    token, counted from 0) belong to decided cells alone. is_after_end: the token ends the answer or stands behind the
    one that does, and so is not part of it.
    """

    kind: str
    text: str = ""
    confidence: float | None = None
    forward: int | None = None
    is_after_end: bool = False

    @property
    def glyph(self) -> str:
        """The text on one line, with a sign for what cannot be seen; nothing after the answer's end."""
        if self.is_after_end:
            return ""
        return self.text.replace("\n", "⏎").strip() or "·"


@dataclass(frozen=True)
class Canvas:
    """The answer after so many forwards.

    suffix and kept_suffix: how many positions follow the block, and how many of them are computed. share: slots
    computed so far, as a share of those that vanilla decoding computes in as many forwards. tokens: decided ones of the
    answer. attention: what the block pays to each cell, where it was asked for and the trace has it.
    """

    cells: list[Cell]
    forwards: int
    block: int
    kept_suffix: int
    suffix: int
    seconds: float
    share: float
    tokens: int
    done: bool
    attention: list[float] | None = None

    @property
    def state(self) -> str:
        return "done" if self.done else f"block {self.block + 1}"


def canvas_after(trace: Trace, forwards: int, layer: int | None = None) -> Canvas:
    """The canvas after the first `forwards` forwards of a trace, from 0 to all of them.

    layer: whose attention it shows, counted from 1; 0 for the mean of all, None for none.
    """
    past = trace.forwards[:forwards]
    done = forwards >= len(trace.forwards) and bool(trace.tail)
    block = past[-1]["block"] if past else 0
    block_end = (block + 1) * trace.block_length
    kept = _kept_suffix(trace, forwards)

    cells = []
    for place in range(trace.gen_length):
        if done:
            cells.append(Cell("filled", is_after_end=True))
        elif place < block_end:
            cells.append(Cell("block"))
        else:
            cells.append(Cell("kept" if place in kept else "dropped"))
    for number, forward in enumerate(past):
        for place, _token, text, confidence in forward["decided"]:
            if 0 <= place < trace.gen_length:
                cells[place] = Cell("decided", text, confidence, number)
    end = next((place for place, cell in enumerate(cells) if cell.text in trace.ends), len(cells))
    cells[end:] = [replace(cell, is_after_end=True) for cell in cells[end:]]

    whole = trace.head.get("prompt_tokens", 0) + trace.gen_length  # prompt_tokens is missing before generation begins
    computed = sum(forward["computed"] for forward in past)
    return Canvas(
        cells=cells,
        forwards=len(past),
        block=block,
        kept_suffix=len(kept),
        suffix=max(0, trace.gen_length - block_end),
        seconds=past[-1]["seconds"] if past else 0.0,
        share=computed / (len(past) * whole) if past else 0.0,
        tokens=sum(cell.kind == "decided" and not cell.is_after_end for cell in cells),
        done=done,
        attention=None if layer is None else _attention(trace, forwards, layer),
    )


def _kept_suffix(trace: Trace, forwards: int) -> set[int]:
    """The suffix places that the block at this moment may see; before the first forward those of the first block."""
    kept: list[int] = []
    for forward in trace.forwards[: max(1, forwards)]:
        kept = forward.get("kept", kept)
    return set(kept)


def _attention(trace: Trace, forwards: int, layer: int) -> list[float] | None:
    """What the block at this moment pays to each cell in its first forward; a layer beyond the last stands for that."""
    layers: list[list[float]] = []
    for forward in trace.forwards[: max(1, forwards)]:
        layers = forward.get("attention", layers)
    if not layers:
        return None
    return layers[min(layer, len(layers)) - 1] if layer else [sum(column) / len(layers) for column in zip(*layers)]


def shade(forward: int, total: int) -> tuple[int, int, int]:
    """The colour, red, green and blue, of a token that forward `forward` of `total` decided: from EARLY to LATE."""
    part = forward / max(1, total - 1)
    red, green, blue = (round(early + (late - early) * part) for early, late in zip(EARLY, LATE))
    return red, green, blue


def needs_light_text(colour: tuple[int, int, int]) -> bool:
    return sum(colour) < MAX_DARK


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Settings, as records and traces hold them, in a few words: "DPad, threshold 0.9, prefix cache"."""
    sampler = (settings.get("suffix_sampler") or {}).get("name")
    parts = [SAMPLER_WORDS.get(sampler, sampler) if sampler else "Vanilla"]
    if settings.get("soft_suffix"):
        parts.append("soft suffix")
    if rule := (settings.get("rule") or {}).get("name"):
        parts.append(f"rule {rule}")
    if settings.get("threshold"):
        parts.append(f"threshold {settings['threshold']:g}")
    if settings.get("factor"):
        parts.append(f"factor {settings['factor']:g}")
    if settings.get("alg"):
        parts.append(f"alg {settings['alg']}")
    if settings.get("cache", "none") != "none":
        parts.append(f"{settings['cache']} cache")
    if settings.get("early_termination"):
        parts.append("early termination")
    return ", ".join(parts)


def describe_trace(trace: Trace) -> str:
    """A trace's settings in a few words."""
    return describe_settings(trace.head.get("settings", {}))


def summarize(trace: Trace) -> str:
    """A complete trace as text: its settings, what it cost and where, and the answer."""
    end = canvas_after(trace, len(trace.forwards))
    return (f"{describe_trace(trace)}: {end.forwards} forwards, {end.tokens} tokens, {end.seconds:.2f} s, "
            f"{100 * end.share:.0f}% of the positions computed; {hardware_line(trace.head)}\n{trace.tail['answer']}")
