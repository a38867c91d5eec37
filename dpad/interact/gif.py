"""Draw traces as a GIF.

    python run.py trace dpad.jsonl --gif dpad.gif
    python run.py trace vanilla.jsonl dpad.jsonl --gif both.gif        # one above the other, on one clock
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpad.interact.canvas import Canvas, Cell, canvas_after, describe_trace, needs_light_text, shade
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
CELL = (64, 22)
SMALL_COLUMNS = 32
SMALL_CELL = (30, 12)
MARGIN = 16
HEADER = 62
MAX_CHARACTERS = 9  # of a cell's text

INK = "#1f2328"
LIGHT_INK = "#ffffff"
PAPER = "#ffffff"
QUIET = "#8b949e"
FILL = {"block": "#ffffff", "kept": "#d7e3f4", "dropped": "#f3f4f6", "filled": "#eceff1"}
OUTLINE = {"block": "#D55E00", "kept": "#6f93c4", "dropped": "#e8eaed", "filled": "#dfe3e6", "decided": "#c9ced4"}

LAST_FRAME = 2000  # milliseconds for which the last frame stays in addition


def write_gif(traces: Sequence[Trace], path: str | Path, seconds: float = 8.0, frames: int = 90) -> None:
    """Draw traces under each other on one clock, `seconds` long, and hold the last frame for two seconds more.

    The clock is scaled so that the slowest trace takes `seconds`; the others end earlier, in proportion to their speed.

    Raises:
        ValueError: see `check_gif`; or the path does not end in .gif.
    """
    from PIL import Image

    check_gif(traces, seconds, frames)
    if Path(path).suffix.lower() not in GIF.suffixes:
        raise ValueError(f"path is {str(path)!r}; the name must end in .gif")

    duration = max(trace.seconds for trace in traces)

    def draw(number: int) -> Picture:
        now = duration * (number / frames)  # the last one is exactly `duration`
        return _stack([_draw_canvas(trace, trace.forwards_by(now)) for trace in traces])

    # The palette is taken from early and late pictures: at the end there are no masks left whose colours it needs.
    palette = _stack([draw(1), draw(1 + frames // 4), draw(frames)]).quantize(colors=128)
    # One after the other, because all together they need much memory.
    pictures = (draw(number).quantize(palette=palette, dither=Image.Dither.NONE) for number in range(1, frames + 1))
    first = next(pictures)
    milliseconds = [round(1000 * seconds / frames)] * frames
    milliseconds[-1] += LAST_FRAME
    with write_whole(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=pictures, duration=milliseconds, loop=0,
                   optimize=True)


def check_gif(traces: Sequence[Trace], seconds: float = 8.0, frames: int = 90) -> None:
    """Raise ValueError where there is nothing to draw, or more than MAX_LENGTH tokens, or a number is out of range."""
    if not traces or not all(trace.forwards for trace in traces):
        raise ValueError("a GIF needs traces of at least one forward each")
    length = sum(trace.gen_length for trace in traces)
    if length > MAX_LENGTH:
        raise ValueError(f"the answers have {length} tokens together; a GIF shows at most {MAX_LENGTH}")
    if not 0 < seconds <= 60:
        raise ValueError(f"seconds is {seconds}; a GIF lasts more than 0 and at most 60 seconds")
    if not 2 <= frames <= 1000:
        raise ValueError(f"frames is {frames}; a GIF has 2 to 1000 frames")


def _stack(pictures: Sequence[Picture]) -> Picture:
    """The pictures under each other."""
    from PIL import Image

    width = max(picture.width for picture in pictures)
    height = sum(picture.height for picture in pictures)
    whole = Image.new("RGB", (width, height), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _draw_canvas(trace: Trace, forwards: int) -> Picture:
    """A trace's canvas after so many forwards, under a header with its settings and numbers."""
    from PIL import Image, ImageDraw

    canvas = canvas_after(trace, forwards)
    large = trace.gen_length <= MAX_LARGE
    columns = COLUMNS if large else SMALL_COLUMNS
    width, height = CELL if large else SMALL_CELL
    rows = -(-trace.gen_length // columns)

    picture = Image.new("RGB", (2 * MARGIN + columns * width, HEADER + rows * height + MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 10), describe_trace(trace), fill=INK, font=_font(18))
    draw.text((MARGIN, 36), _numbers(canvas), fill=QUIET, font=_font(13))
    for place, cell in enumerate(canvas.cells):
        row, column = divmod(place, columns)
        left = MARGIN + column * width
        top = HEADER + row * height
        _draw_cell(draw, cell, (left, top, left + width, top + height), trace, with_text=large)
    return picture


def _numbers(canvas: Canvas) -> str:
    return (f"{canvas.seconds:6.2f} s   {canvas.forwards} forwards   {canvas.state}   suffix kept {canvas.kept_suffix} "
            f"of {canvas.suffix}   computed {100 * canvas.share:.0f}% of the positions")


def _draw_cell(draw: ImageDraw, cell: Cell, box: tuple[int, int, int, int], trace: Trace, with_text: bool) -> None:
    left, top, right, bottom = box
    inner = (left + 1, top + 1, right - 2, bottom - 2)
    if cell.forward is None:
        draw.rectangle(inner, fill=FILL[cell.kind], outline=OUTLINE[cell.kind])
        return

    colour = shade(cell.forward, len(trace.forwards))
    draw.rectangle(inner, fill=colour, outline=OUTLINE[cell.kind])
    if with_text and cell.glyph:
        middle = ((left + right) / 2, (top + bottom) / 2)
        ink = LIGHT_INK if needs_light_text(colour) else INK
        draw.text(middle, cell.glyph[:MAX_CHARACTERS], fill=ink, font=_font(11), anchor="mm")


def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(f"{quiet_matplotlib().get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
