"""The canvas of a trace: what every cell of the answer holds after so many forwards, and the trace's settings in words.

The web UI (markup.py) and the GIF (gif.py) draw what this module describes. Imported, never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dpad.interact.trace import Trace
from dpad.results.records import hardware_line

# Early and late tokens have hues that every kind of colour vision tells apart, by lightness as well.
EARLY = (0xFD, 0xE7, 0x9A)
LATE = (0x2A, 0x78, 0x8E)
MAX_DARK = 0.179  # luminance up to which white text stands out more than black (both by 4.58 : 1 here)

MASK = "░"  # in the text of an answer that is being decoded
SAMPLER_WORDS = {
    "gaussian": "DPad", "gaussian-even": "DPad without dice", "uniform": "uniform dropout", "window": "sliding window",
    "anchor": "anchors", "attention": "suffix by attention", "spotlight": "spotlight", "block": "no suffix",
}


@dataclass(frozen=True)
class Cell:
    """One place of the answer.

    kind: "decided"; "block", a mask of the block being decoded; "kept", a mask of the suffix that is computed;
    "dropped", one that is not; or "filled", EOS that took no forward. confidence and forward (the one that decided the
    token, counted from 0) belong to decided cells alone, as does seconds, when that was. is_after_end: the token ends
    the answer or stands behind the one that does, and so is not part of it.
    """

    kind: str
    text: str = ""
    confidence: float | None = None
    forward: int | None = None
    is_after_end: bool = False
    seconds: float = 0.0

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
    answer. draft: the answer's text so far, with ░ for the masks of the block. untouched: filled cells that no forward
    computed, not even as a part of the suffix. attention: what the block pays to each cell, where it was asked for and
    the trace has it.
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
    draft: str
    untouched: int
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
                cells[place] = Cell("decided", text, confidence, number, seconds=forward["seconds"])
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
        draft=trace.tail["answer"] if done else "".join(
            cell.text if cell.kind == "decided" else MASK for cell in cells[:end] if cell.kind in ("decided", "block")),
        untouched=sum(cell.kind == "filled" for cell in cells) - len(_suffix_seen(trace, cells)) if done else 0,
        attention=None if layer is None else _attention(trace, forwards, layer),
    )


def _kept_suffix(trace: Trace, forwards: int) -> set[int]:
    """The suffix places that the block at this moment may see; before the first forward those of the first block."""
    kept: list[int] = []
    for forward in trace.forwards[: max(1, forwards)]:
        kept = forward.get("kept", kept)
    return set(kept)


def _suffix_seen(trace: Trace, cells: list[Cell]) -> set[int]:
    """The filled places that some block saw as a part of its suffix."""
    seen = {place for forward in trace.forwards for place in forward.get("kept", ())}
    return {place for place, cell in enumerate(cells) if cell.kind == "filled" and place in seen}


def _attention(trace: Trace, forwards: int, layer: int) -> list[float] | None:
    """What the block at this moment pays to each cell in its first forward; a layer beyond the last stands for that."""
    layers: list[list[float]] = []
    for forward in trace.forwards[: max(1, forwards)]:
        layers = forward.get("attention", layers)
    if not layers:
        return None
    return layers[min(layer, len(layers)) - 1] if layer else [sum(column) / len(layers) for column in zip(*layers)]


def shade(seconds: float, duration: float) -> tuple[int, int, int]:
    """The colour, red, green and blue, of a token decided after `seconds` of `duration`: from EARLY to LATE."""
    part = min(1.0, seconds / duration) if duration else 0.0
    red, green, blue = (round(early + (late - early) * part) for early, late in zip(EARLY, LATE))
    return red, green, blue


def needs_light_text(colour: tuple[int, int, int]) -> bool:
    """Whether white text stands out more than black, by WCAG's relative luminance."""
    parts = [value / 255 for value in colour]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < MAX_DARK


# --- In words ---------------------------------------------------------------------------------------------------------


def describe_uncomputed(canvas: Canvas) -> str:
    """What became of the places that no forward decided, in a few words; nothing where there are none."""
    filled = sum(cell.kind == "filled" for cell in canvas.cells)
    scratch = filled - canvas.untouched
    parts = [f"{canvas.untouched} positions never computed"] if canvas.untouched else []
    if scratch:
        parts.append(f"{scratch} {'' if parts else 'positions '}computed as suffix only")
    return ", ".join(parts)


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
    if settings.get("refresh"):
        parts.append(f"refresh {settings['refresh']}")
    if settings.get("early_termination"):
        parts.append("early termination")
    return ", ".join(parts)


def describe_trace(trace: Trace) -> str:
    """A trace's settings in a few words."""
    return describe_settings(trace.head.get("settings", {}))


def describe_traces(traces: Sequence[Trace]) -> list[str]:
    """The names of traces beside each other. Where two would have the same words, what differs between them is added.
    """
    words = [describe_trace(trace) for trace in traces]
    settings = [trace.head.get("settings", {}) for trace in traces]
    names = []
    for own, word in zip(settings, words):
        twins = [other for other, theirs in zip(settings, words) if theirs == word]
        keys = [key for key in own if any(other.get(key) != own[key] for other in twins)]
        names.append(", ".join([word, *(f"{key} {_in_words(own[key])}" for key in keys)]))
    return names


def _in_words(value: Any) -> str:
    """A setting's value of a trace: of a sampler or a rule its parameters."""
    if isinstance(value, Mapping):
        return " ".join(f"{key} {entry}" for key, entry in value.items() if key != "name")
    return "off" if value is None else str(value)


def summarize(trace: Trace) -> str:
    """A complete trace as text: its settings, what it cost and where, and the answer."""
    end = canvas_after(trace, len(trace.forwards))
    return (f"{describe_trace(trace)}: {end.forwards} forwards, {end.tokens} tokens, {end.seconds:.2f} s, "
            f"{100 * end.share:.0f}% of the positions computed; {hardware_line(trace.head)}\n{trace.tail['answer']}")
