"""Numbers in documents: renders the marked tables and values of Markdown files from records, or checks them.

    python -m dpad.results.documents README.md docs/*.md              # renew what is out of date
    python -m dpad.results.documents --check README.md docs/*.md      # change nothing; fail where something is

Marks are comments, which readers do not see. Paths count from the document's folder:

    <!-- table: benchmarks/demo-cpu.json -->
    ...whatever stands here is replaced by the table and its caption...
    <!-- /table -->

    DPad alone makes it <!-- value: benchmarks/demo-cpu.json +DPad speedup -->6.06×<!-- /value --> faster.

A table mark names files or folders of records of one kind. With `benchmarks/long-cpu.json beside llada-1.5` it is what
`run.py table --paper llada-1.5` shows, with the numbers of papers. `benchmarks/paper.json of llada-1.5/gsm8k/1024` are
those numbers by themselves. A value mark names a file, a row and a
column of its table. Where several rows have the same name, the next cells follow after commas: `+DPad,8`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpad.engine.command_line import Parser, say
from dpad.results import tables
from dpad.results.files import read_text, write_text
from dpad.results.records import load

TABLE_MARK = re.compile(r"(?P<start><!-- table: *(?P<paths>[^>]*?)(?: (?:beside|of) (?P<model>[\w./-]+))? *-->)"
                        r"(?P<body>.*?)(?P<end><!-- /table -->|\Z)", re.DOTALL)
VALUE_MARK = re.compile(r"(?P<start><!-- value: *(?P<place>[^>]*?) *-->)(?P<body>[^<]*)(?P<end><!-- /value -->)?")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = Parser(
        prog="python -m dpad.results.documents", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="DOCUMENT", type=Path, help="Markdown files")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a document is out of date")
    options = parser.parse_args(arguments)

    try:
        texts = {path: read_text(path, newline="") for path in options.paths}
        if not any(TABLE_MARK.search(text) or VALUE_MARK.search(text) for text in texts.values()):
            raise ValueError(f"{', '.join(map(str, texts))} has no table marks and no value marks")
        statuses = [renew_document(path, text, options.check) for path, text in texts.items()]
    except (ValueError, OSError) as error:
        say("documents.py", error)
        return 1
    return max(statuses)


def renew_document(path: Path, text: str, check: bool) -> int:
    """Write a document anew, or with `check` only say what is out of date; returns the exit status.

    Raises:
        ValueError: see `render_document`. OSError: the document cannot be written.
    """
    new_text, changes = render_document(text, path.parent)
    if not changes:
        print(f"{path}: every table and value equals its records")
        return 0

    if check:
        print(f"{path}: out of date: {', '.join(changes)}; run: python -m dpad.results.documents {path}",
              file=sys.stderr)
        return 1
    write_text(path, new_text)
    print(f"{path}: renewed {', '.join(changes)}")
    return 0


def render_document(text: str, folder: str | Path) -> tuple[str, list[str]]:
    """Renew the marked tables and values of a Markdown text.

    Args:
        folder: where the marks' paths count from.

    Returns:
        The new text, and what its marks name where something changed (empty when the text was up to date).

    Raises:
        ValueError: a mark names no records, its records cannot be read or lack the row or column, or it has no end.
    """
    changes: list[str] = []

    def renew_table(mark: re.Match) -> str:
        paths = mark["paths"].split()
        if not paths:
            raise ValueError("a table mark names no records")
        if not mark["end"] or "<!-- table:" in mark["body"]:
            raise ValueError(f"the table mark of {mark['paths']} has no <!-- /table -->")

        body = f"\n{render_table(paths, mark['model'], folder)}\n"
        if body != mark["body"]:
            changes.append(mark["paths"])
        return f"{mark['start']}{body}{mark['end']}"

    def renew_value(mark: re.Match) -> str:
        if not mark["end"]:
            raise ValueError(f"the value mark of {mark['place']} has no <!-- /value -->")

        body = look_up(mark["place"], folder)
        if body != mark["body"]:
            changes.append(mark["place"])
        return f"{mark['start']}{body}{mark['end']}"

    text = TABLE_MARK.sub(renew_table, text)
    return VALUE_MARK.sub(renew_value, text), changes


def render_table(paths: Sequence[str], model: str | None, folder: str | Path) -> str:
    """What stands between the marks of a table; with a `model`, see `tables.render`, it has what papers report."""
    records = load(paths, folder)
    if not model:
        return tables.markdown_table(records)
    text = tables.render(records, model, "markdown")
    return text if records[0]["kind"] == "paper" else f"{text}\n\n{tables.caption(records)}"


def look_up(place: str, folder: str | Path) -> str:
    """A cell of the table of a records file. place: the path, the row's name and the column's heading.

    Raises:
        ValueError: the file cannot be read, or has no such row or column, or several such rows.
    """
    parts = place.split(maxsplit=2)
    if len(parts) < 3:
        raise ValueError(f"the value mark {place!r} must name a file, a row and a column")

    path, name, heading = parts
    table = tables.table_of(load([path], folder))
    if heading not in table.headings:
        raise ValueError(f"{path} has no column {heading!r}; it has {', '.join(table.headings)}")

    first_cells = name.split(",")
    rows = [cells for cells in table.cells if cells[: len(first_cells)] == first_cells]
    if len(rows) != 1:
        raise ValueError(f"{path} has {len(rows)} rows {name!r}; the value mark must name exactly one")
    return rows[0][table.headings.index(heading)]


if __name__ == "__main__":
    sys.exit(main())
