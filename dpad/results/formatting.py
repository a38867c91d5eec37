"""How results are written: numbers as text, and tables as aligned columns or Markdown.

Imported by the modules that make tables and charts, never run.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

LAYOUT = "\n\t"
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder the text around them


class Table(NamedTuple):
    """Headings and cells as text. The first column is aligned to the left, all others to the right."""

    headings: list[str]
    cells: list[list[str]]


def as_columns(headings: Sequence[str], cells: Sequence[Sequence[str]], names: Sequence[str] = ()) -> str:
    """Aligned columns under a rule; the first is at least as wide as the longest of `names`."""
    widths = [max(map(len, column)) for column in zip(headings, *cells)]
    widths = [max(widths[0], *map(len, names), 0), *(max(width, 7) for width in widths[1:])]

    def align(line: Sequence[str]) -> str:
        return "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])

    heading = align(headings)
    return "\n".join([heading, "─" * len(heading), *map(align, cells)])


def as_markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


FORMATS: dict[str, Callable[[list[str], list[list[str]]], str]] = {"terminal": as_columns, "markdown": as_markdown}


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """None where either is missing or 0."""
    return numerator / denominator if numerator and denominator else None


def times(value: float | None) -> str:
    """A speedup: 1.50×, 137×."""
    return "–" if value is None else f"{value:.{2 if value < 100 else 0}f}×"


def seconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def milliseconds(value: float | None) -> str:
    """A time per token, with two digits at least: 41.8, 4.2, 0.59."""
    return number(value, 2 if value is not None and value < 1 else 1)


def count_samples(samples: int | str) -> str:
    return f"{samples} sample{'s' * (samples != 1)}"


def join_unique(values: Iterable[object]) -> str:
    """The different values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "unknown"


def printable(text: str, keep: str = "") -> str:
    """The text with control characters as escapes, so that what comes from a file cannot steer a terminal.

    keep: control characters that stay, such as LAYOUT.
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode("ascii") if _steers(c) and c not in keep else c for c in text)


def json_line(value: object) -> str:
    """A value as one line of JSON, in which nothing steers a terminal either; other scripts stay readable."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(f"\\u{ord(c):04x}" if _steers(c) else c for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDIRECTIONAL
