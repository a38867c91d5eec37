"""The canvas of a trace: what stands in every cell after so many forwards, and the trace's settings in words."""

from __future__ import annotations

from dataclasses import dataclass

from dpad.interact.trace import Trace


@dataclass
class View:
    """The canvas after so many forwards.

    cells: for each place of the answer its kind ("decided", "block": a mask being decoded, "kept": a mask of the suffix
    that is computed, "dropped": one that is not, "filled": EOS without a forward, "later": not entered yet, no suffix
    chosen), text, confidence and the forward that decided it. kept, suffix: of the block's suffix, how many positions
    are computed, and how many there are. share: slots computed so far over those that vanilla decoding computes in as
    many forwards.
    """

    cells: list[tuple[str, str, float | None, int | None]]
    forwards: int
    block: int
    kept: int
    suffix: int
    seconds: float
    share: float
    tokens: int
    done: bool


def view(trace: Trace, forwards: int) -> View:
    """The canvas after the first `forwards` forwards of a trace, 0 to all of them."""
    length, size = trace.head["gen_length"], trace.head["block_length"]
    seen = trace.forwards[:forwards]
    done = forwards >= len(trace.forwards) and bool(trace.tail)
    block, kept = (seen[-1]["block"] if seen else 0), set()
    for entry in trace.forwards[: max(1, forwards)]:
        if "kept" in entry:
            kept = set(entry["kept"])
    end = (block + 1) * size
    cells: list[tuple[str, str, float | None, int | None]] = [
        ("filled", trace.head.get("eos", ""), None, None) if done
        else ("block" if place < end else "kept" if place in kept else "dropped", "", None, None)
        for place in range(length)
    ]
    for number, entry in enumerate(seen):
        for place, _token, text, confidence in entry["decided"]:
            if 0 <= place < length:
                cells[place] = ("decided", text, confidence, number)
    whole = trace.head.get("prompt_tokens", 0) + length  # not known before generation has begun
    tokens = sum(kind == "decided" and text != trace.head.get("eos") for kind, text, _, _ in cells)
    return View(
        cells, len(seen), block, len(kept), max(0, length - end), seen[-1]["seconds"] if seen else 0.0,
        sum(entry["computed"] for entry in seen) / (len(seen) * whole) if seen else 0.0, tokens, done,
    )


def words(trace: Trace) -> str:
    """A trace's settings in a few words, such as "DPad, threshold 0.9, prefix cache"."""
    settings = trace.head.get("settings", {})
    sampler = settings.get("suffix_sampler") or {}
    names = {"gaussian": "DPad", "uniform": "uniform dropout", "window": "sliding window"}
    parts = [names.get(sampler.get("name"), "Vanilla")]
    if settings.get("threshold"):
        parts.append(f"threshold {settings['threshold']:g}")
    if settings.get("cache", "none") != "none":
        parts.append(f"{settings['cache']} cache")
    if settings.get("early_termination"):
        parts.append("early termination")
    return ", ".join(parts)
