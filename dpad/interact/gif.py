"""Draw traces as a GIF.

    python run.py trace dpad.jsonl --gif dpad.gif
    python run.py trace vanilla.jsonl dpad.jsonl --gif both.gif        # one above the other, on one clock
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dpad.interact.canvas import (
    Cell,
    canvas_after,
    describe_traces,
    describe_uncomputed,
    needs_light_text,
    shade,
)
from dpad.interact.trace import Trace
from dpad.results.charts import quiet_matplotlib
from dpad.results.files import write_whole
from dpad.results.outputs import GIF

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

MAX_LENGTH = 8192  # tokens of all answers in one picture
MAX_LARGE = 512  # cells; a longer answer is drawn in small cells without text
COLUMNS = 16
CELL = (64, 20)
SMALL_COLUMNS = 32
SMALL_CELL = (32, 12)
MARGIN = 16
TOP = 36  # of the question
HEADER = 64  # of a canvas
LEGEND = 34
MAX_CHARACTERS = 9  # of a cell's text
MAX_QUESTION = 120  # characters of the question; what is longer is cut
RATE = 10  # frames a second
SHADES = 24  # from early to late, and GREYS from text to paper: fewer look coarse, more make the file longer
GREYS = 8

INK = "#000000"
LIGHT_INK = "#ffffff"
PAPER = "#ffffff"
QUIET = "#5b6068"
FILL = {"block": "#fff3ea", "kept": "#d7e3f4", "dropped": "#ffffff"}
OUTLINE = {"block": "#D55E00", "kept": "#6f93c4", "dropped": "#dfe3e6", "decided": "#c9ced4"}
WORDS = {"block": "mask of the block", "kept": "suffix computed", "dropped": "not computed"}

LAST_FRAME = 2000  # milliseconds for which the last frame stays in addition


def write_gif(traces: Sequence[Trace], path: str | Path, seconds: float = 8.0, frames: int | None = None) -> None:
    """Draw traces under each other on one clock, `seconds` long in so many frames (None: ten a second), and hold the
    last frame for two seconds more.

    The clock is scaled so that the slowest trace takes `seconds`; the others end earlier, in proportion to their speed.
    Colours follow that clock too: tokens that were decoded at the same time have the same colour in every trace.

    Raises:
        ValueError: see `check_gif`; or the path does not end in .gif.
    """
    from PIL import Image

    check_gif(traces, seconds, frames)
    frames = frames or max(2, round(RATE * seconds))
    if Path(path).suffix.lower() not in GIF.suffixes:
        raise ValueError(f"path is {str(path)!r}; the name must end in .gif")

    draw = _scene(traces, frames)

    palette = _palette()
    # One after the other, because all together they need much memory.
    pictures = (draw(number).quantize(palette=palette, dither=Image.Dither.NONE) for number in range(1, frames + 1))
    first = next(pictures)
    milliseconds = [round(1000 * seconds / frames)] * frames
    milliseconds[-1] += LAST_FRAME
    with write_whole(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=pictures, duration=milliseconds, loop=0,
                   optimize=True)


def check_gif(traces: Sequence[Trace], seconds: float = 8.0, frames: int | None = None) -> None:
    """Raise ValueError where there is nothing to draw, or more than MAX_LENGTH tokens, or a number is out of range."""
    if not traces or not all(trace.forwards for trace in traces):
        raise ValueError("a GIF needs traces of at least one forward each")
    length = sum(trace.gen_length for trace in traces)
    if length > MAX_LENGTH:
        raise ValueError(f"the answers have {length} tokens together; a GIF shows at most {MAX_LENGTH}")
    if not 0 < seconds <= 60:
        raise ValueError(f"seconds is {seconds}; a GIF lasts more than 0 and at most 60 seconds")
    if frames is not None and not 2 <= frames <= 1000:
        raise ValueError(f"frames is {frames}; a GIF has 2 to 1000 frames")


def _scene(traces: Sequence[Trace], frames: int) -> Callable[[int], Picture]:
    """What draws the picture of a frame, from 1 to `frames`: the question, the canvases and the legend."""
    duration = max(trace.seconds for trace in traces)
    most = max(sum(forward["computed"] for forward in trace.forwards) for trace in traces)
    names = describe_traces(traces)
    questions = {" ".join(trace.head.get("prompt", "").split()) for trace in traces}
    question = questions.pop() if len(questions) == 1 else ""
    legend = _draw_legend(duration)

    def draw(number: int) -> Picture:
        now = duration * (number / frames)  # the last one is exactly `duration`
        canvases = [_draw_canvas(trace, name, now, duration, most) for trace, name in zip(traces, names)]
        return _stack([*([_draw_question(question)] if question else []), *canvases, legend])

    return draw


def _palette() -> Picture:
    """The colours of all pictures. They are few and exact, so that areas stay flat: sharp, and short in a file."""
    from PIL import Image, ImageColor

    flat = [ImageColor.getrgb(name) for name in (PAPER, INK, QUIET, *FILL.values(), *OUTLINE.values())]
    scale = [shade(step, SHADES - 1) for step in range(SHADES)]
    greys = [(level, level, level) for level in range(0, 256, 256 // GREYS)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in (*flat, *scale, *greys) for value in colour])
    return palette


def _stack(pictures: Sequence[Picture]) -> Picture:
    """The pictures under each other."""
    width = max(picture.width for picture in pictures)
    whole, _ = _sheet(width, sum(picture.height for picture in pictures))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _sheet(width: int, height: int) -> tuple[Picture, ImageDraw]:
    """An empty picture, and what draws on it."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def _draw_question(question: str) -> Picture:
    picture, draw = _sheet(2 * MARGIN + COLUMNS * CELL[0], TOP)
    text = question if len(question) <= MAX_QUESTION else f"{question[: MAX_QUESTION - 2]} …"
    draw.text((MARGIN, TOP / 2 + 4), text, fill=QUIET, font=_font(14), anchor="lm")
    return picture


def _draw_canvas(trace: Trace, name: str, now: float, duration: float, most: int) -> Picture:
    """A trace's canvas after `now` seconds, under its name, its time, and a bar of the positions that it computed.

    duration: seconds of the colours' scale. most: the positions for which the bar has its full width.
    """
    forwards = trace.forwards_by(now)
    canvas = canvas_after(trace, forwards)
    large = trace.gen_length <= MAX_LARGE
    columns = COLUMNS if large else SMALL_COLUMNS
    width, height = CELL if large else SMALL_CELL
    rows = -(-trace.gen_length // columns)
    right = MARGIN + columns * width

    picture, draw = _sheet(right + MARGIN, HEADER + rows * height + MARGIN // 2)
    seconds = f"done in {trace.seconds:.2f} s" if canvas.done else f"{now:.2f} s"
    draw.text((MARGIN, 12), name, fill=INK, font=_font(18, bold=True))
    draw.text((right, 12), seconds, fill=INK, font=_font(18, bold=True), anchor="ra")

    computed = sum(forward["computed"] for forward in trace.forwards[:forwards])
    words = f"{computed:,} positions computed in {forwards} forwards"
    draw.text((right, 38), words, fill=QUIET, font=_font(13), anchor="ra")
    space = right - MARGIN - 2 * MARGIN - draw.textlength(f"{most:,} positions computed in 9999 forwards", _font(13))
    draw.rectangle((MARGIN, 42, MARGIN + space, 49), fill=OUTLINE["dropped"])
    if computed:
        draw.rectangle((MARGIN, 42, MARGIN + space * computed / most, 49), fill=OUTLINE["block"])

    for place, cell in enumerate(canvas.cells):
        row, column = divmod(place, columns)
        left = MARGIN + column * width
        top = HEADER + row * height
        _draw_cell(draw, cell, (left, top, left + width, top + height), duration, with_text=large)
    if rest := describe_uncomputed(canvas):
        first = next(place for place, cell in enumerate(canvas.cells) if cell.kind == "filled") // columns + 1
        middle = HEADER + (min(first, rows - 1) + rows) / 2 * height
        draw.text(((MARGIN + right) / 2, middle), rest, fill=QUIET, font=_font(14), anchor="mm")
    return picture


def _draw_cell(draw: ImageDraw, cell: Cell, box: tuple[int, int, int, int], duration: float, with_text: bool) -> None:
    left, top, right, bottom = box
    inner = (left, top + 1, right - 3, bottom - 2)
    if cell.kind == "filled":  # a sentence stands for all of them
        return
    if cell.forward is None:
        draw.rectangle(inner, fill=FILL[cell.kind], outline=OUTLINE[cell.kind])
        return

    colour = shade(cell.seconds, duration)
    draw.rectangle(inner, fill=colour, outline=OUTLINE["decided"])
    if with_text and cell.glyph:
        middle = ((left + right) / 2, (top + bottom) / 2)
        ink = LIGHT_INK if needs_light_text(colour) else INK
        draw.text(middle, cell.glyph[:MAX_CHARACTERS], fill=ink, font=_font(11), anchor="mm")


def _draw_legend(duration: float) -> Picture:
    """What the colours mean."""
    picture, draw = _sheet(2 * MARGIN + COLUMNS * CELL[0], LEGEND)
    font = _font(13)
    left = float(MARGIN)
    for kind, words in WORDS.items():
        draw.rectangle((left, 11, left + 22, 23), fill=FILL[kind], outline=OUTLINE[kind])
        draw.text((left + 29, 17), words, fill=QUIET, font=font, anchor="lm")
        left += 29 + draw.textlength(words, font) + 22
    early, late = "decoded at 0 s", f"{duration:.2f} s"
    draw.text((left, 17), early, fill=QUIET, font=font, anchor="lm")
    left += draw.textlength(early, font) + 8
    for step in range(80):
        draw.rectangle((left + step, 11, left + step, 23), fill=shade(step, 79))
    draw.text((left + 88, 17), late, fill=QUIET, font=font, anchor="lm")
    return picture


@cache
def _font(size: int, bold: bool = False) -> FreeTypeFont:
    from PIL import ImageFont

    name = "DejaVuSans-Bold" if bold else "DejaVuSans"
    return ImageFont.truetype(f"{quiet_matplotlib().get_data_path()}/fonts/ttf/{name}.ttf", size)
