"""Draw traces as a GIF.

    python run.py trace vanilla.jsonl dpad.jsonl --gif both.gif        # one clock, one above the other
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpad.interact import canvas
from dpad.interact.trace import Trace

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

    seen, length = canvas.view(trace, forwards), trace.head["gen_length"]
    columns, (width, height) = (COLUMNS, CELL) if length <= LONG else (2 * COLUMNS, SMALL_CELL)
    rows = -(-length // columns)
    picture = Image.new("RGB", (2 * MARGIN + columns * width, HEAD + rows * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 10), canvas.words(trace), fill=INK, font=_font(18))
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
