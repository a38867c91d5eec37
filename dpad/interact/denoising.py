"""A denoising, forward by forward: recorded while it happens, kept as JSON lines, drawn as a GIF.

    python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --trace dpad.jsonl --prompt "Tom has 3 bags ..."
    python run.py trace dpad.jsonl --gif dpad.gif
    python run.py trace vanilla.jsonl dpad.jsonl --gif both.gif        # one clock, one above the other

The first line of a trace says what was asked, the last what came of it; each line between is one forward:

    block      the block being decoded, counted from 0
    seconds    since generation began
    computed   slots that the forward computed: prompt, answer so far, block, kept suffix (less with a cache)
    kept       in a block's first forward: the places of the answer after the block that it may see
    decided    [place in the answer, token id, text, confidence] of every token decoded; confidence is the model's
               probability, or what the unmasking rule goes by instead
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpad.results.files import read_lines
from dpad.results.records import environment

FIELDS = {"block", "seconds", "computed", "kept", "decided"}


@dataclass
class Trace:
    """head and tail: the first and the last line; forwards: those between."""

    head: dict[str, Any]
    forwards: list[dict[str, Any]] = field(default_factory=list)
    tail: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        lines = [self.head, *self.forwards, self.tail]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


class Tracer:
    """A streamer of one row that records every forward; another one may listen with it.

    head: what the trace's first line should say. loaded: a models.LoadedModel. listener: called with the trace after
    every forward. streamer: gets everything that a streamer gets.
    """

    def __init__(self, head: dict, loaded, listener=None, streamer=None):
        self.trace = Trace(head)
        self.loaded, self.listener, self.streamer = loaded, listener, streamer
        self.prompt, self.block = None, -1
        self.started = time.perf_counter()

    def put(self, value: Tensor) -> None:
        if self.prompt is None:
            if len(value) != 1:
                raise ValueError(f"a trace is of one prompt; there are {len(value)}")
            self.prompt, self.started = value.shape[1], time.perf_counter()
            self.trace.head["prompt_tokens"] = self.prompt
        if self.streamer:
            self.streamer.put(value)

    def put_draft(self, value: Tensor) -> None:
        if self.streamer:
            self.streamer.put_draft(value)

    def put_step(self, block: int, columns: Tensor, chosen: Tensor, candidates: Tensor, confidence: Tensor) -> None:
        length = self.trace.head["block_length"]
        end = self.prompt + (block + 1) * length
        entry = {"block": block, "seconds": round(time.perf_counter() - self.started, 4), "computed": len(columns)}
        if block > self.block:
            self.block = block
            entry["kept"] = (columns[columns >= end] - self.prompt).tolist()
        places = chosen[0].nonzero().flatten()
        entry["decided"] = [
            [block * length + place, token, self.text_of(token), round(sure, 4)] for place, token, sure in
            zip(places.tolist(), candidates[0, places].tolist(), confidence[0, places].tolist())
        ]
        self.trace.forwards.append(entry)
        if self.listener:
            self.listener(self.trace)

    def text_of(self, token: int) -> str:
        return self.loaded.tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def end(self) -> None:
        if self.streamer:
            self.streamer.end()

    def finish(self, answer) -> Trace:
        """The whole trace, with what a completion.Completion says at its end."""
        self.trace.tail = {"answer": answer.text, "forwards": answer.forwards, "tokens": answer.tokens,
                           "seconds": round(answer.seconds, 4), "tokens_processed": answer.tokens_processed}
        return self.trace


def head_of(loaded, prompt: str, options: dict) -> dict:
    """The first line of a trace: the question, the settings, and with what it was answered."""
    from dpad.engine.completion import describe_decoding

    settings = describe_decoding(loaded.generate, options) | {"device": str(loaded.model.device)}
    tokenizer, config = loaded.tokenizer, loaded.model.config
    return {"kind": "trace", "model": loaded.name, "prompt": prompt, "gen_length": settings["gen_length"],
            "block_length": settings["block_length"], "settings": settings,
            "eos": tokenizer.convert_ids_to_tokens(config.eos_token_id), "environment": environment()}


def read(path: str | Path) -> Trace:
    """A trace from its file.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names it and the line.
    """
    lines, entries = read_lines(path), []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        middle = 1 < number < len(lines)
        if not isinstance(entry, dict) or number == 1 and not _is_head(entry) or middle and not _is_forward(entry):
            raise ValueError(f"{path}, line {number}: not a line of a trace (run.py generate --trace writes one)")
        entries.append(entry)
    if len(entries) < 2 or not isinstance(entries[-1].get("answer"), str):
        raise ValueError(f"{path} is no whole trace: its last line is missing")
    return Trace(entries[0], entries[1:-1], entries[-1])


def _is_head(entry: dict) -> bool:
    lengths = [entry.get(name) for name in ("gen_length", "block_length", "prompt_tokens")]
    settings = entry.get("settings", {})
    return (
        entry.get("kind") == "trace" and all(isinstance(length, int) and 0 < length < 2**20 for length in lengths)
        and isinstance(settings, dict) and isinstance(settings.get("suffix_sampler") or {}, dict)
        and isinstance(settings.get("threshold") or 0, (int, float)) and isinstance(entry.get("environment", {}), dict)
    )


def _is_forward(entry: dict) -> bool:
    decided = entry.get("decided")
    return (
        entry.keys() <= FIELDS and isinstance(entry.get("block"), int) and isinstance(entry.get("computed"), int)
        and isinstance(entry.get("seconds"), (int, float)) and isinstance(decided, list)
        and all(isinstance(one, list) and len(one) == 4 and isinstance(one[0], int) and isinstance(one[2], str)
                and isinstance(one[3], (int, float)) for one in decided)
        and all(isinstance(place, int) for place in entry.get("kept", []))
    )


# --- What one sees ----------------------------------------------------------------------------------------------------


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


# --- The GIF ----------------------------------------------------------------------------------------------------------

COLUMNS = 16  # cells in a row of the picture; 32 without text where the answer is long
LONG = 512
CELL, SMALL_CELL = (64, 22), (30, 12)
MARGIN, HEAD = 16, 62
INK, PAPER, QUIET = "#1f2328", "#ffffff", "#8b949e"
# Early to late: two hues that every kind of colour vision tells apart, by lightness as well.
EARLY, LATE = (0xFD, 0xE7, 0x9A), (0x2A, 0x78, 0x8E)
FILL = {"block": "#ffffff", "kept": "#d7e3f4", "dropped": "#f3f4f6", "filled": "#eceff1"}
OUTLINE = {"block": "#D55E00", "kept": "#6f93c4", "dropped": "#e8eaed", "filled": "#dfe3e6", "decided": "#c9ced4"}


def shade(number: int, total: int) -> tuple[int, int, int]:
    """The colour of a token decided at forward `number` of `total`, from EARLY to LATE."""
    part = number / max(1, total - 1)
    return tuple(round(a + (b - a) * part) for a, b in zip(EARLY, LATE))


def draw_gif(traces: Sequence[Trace], path: str | Path, seconds: float = 8.0, frames: int = 90) -> None:
    """Draw traces under each other on one clock, `seconds` long, and hold the last picture for two seconds more.

    The clock is scaled: the slowest trace takes `seconds`; the others end as much earlier as they were faster.

    Raises:
        ValueError: nothing to draw, or numbers that make no film.
    """
    if not traces or not all(trace.forwards for trace in traces):
        raise ValueError("a GIF needs traces with a forward at least")
    if not 0 < seconds <= 60 or not 2 <= frames <= 1000:
        raise ValueError(f"a GIF lasts up to 60 seconds and has 2 to 1000 frames, not {seconds} and {frames}")
    whole = max(trace.forwards[-1]["seconds"] for trace in traces)
    pictures = []
    for number in range(frames):
        now = whole * ((number + 1) / frames)  # the last one is exactly the whole
        counts = [sum(entry["seconds"] <= now for entry in trace.forwards) for trace in traces]
        pictures.append(_stack([_picture(trace, count) for trace, count in zip(traces, counts)]))
    times = [round(1000 * seconds / frames)] * frames
    times[-1] += 2000
    # Of early and late pictures: at the end no mask is left to give its colour.
    palette = _stack([pictures[0], pictures[frames // 4], pictures[-1]]).quantize(colors=128)
    pictures = [picture.quantize(palette=palette, dither=0) for picture in pictures]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0,
                     optimize=True)


def _stack(pictures):
    from PIL import Image

    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _picture(trace: Trace, forwards: int):
    from PIL import Image, ImageDraw

    seen, length = view(trace, forwards), trace.head["gen_length"]
    columns, (width, height) = (COLUMNS, CELL) if length <= LONG else (2 * COLUMNS, SMALL_CELL)
    rows = -(-length // columns)
    picture = Image.new("RGB", (2 * MARGIN + columns * width, HEAD + rows * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 10), words(trace), fill=INK, font=_font(18))
    state = "done" if seen.done else f"block {seen.block + 1}"
    draw.text((MARGIN, 36), f"{seen.seconds:6.2f} s   {seen.forwards} forwards   {state}   suffix kept {seen.kept} of "
              f"{seen.suffix}   computed {100 * seen.share:.0f}% of the positions", fill=QUIET, font=_font(13))
    for place, (kind, text, _, number) in enumerate(seen.cells):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * width, HEAD + row * height
        fill = shade(number, len(trace.forwards)) if kind == "decided" else FILL[kind]
        draw.rectangle((left + 1, top + 1, left + width - 2, top + height - 2), fill=fill, outline=OUTLINE[kind])
        if kind == "decided" and height > 16:
            shown = "" if text == trace.head.get("eos") else text.replace("\n", "⏎").strip() or "·"
            dark = sum(fill) < 430
            draw.text((left + width / 2, top + height / 2), shown[:9], fill="#ffffff" if dark else INK, font=_font(11),
                      anchor="mm")
    return picture


def _font(size: int):
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
