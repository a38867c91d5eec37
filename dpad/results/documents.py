"""Tables and plots of records, of evaluations and of `run.py bench`: every number comes from a record, none is typed.

    python -m dpad.results.documents results/demo/tiny-arithmetic-50/records.json                # the table, for the terminal
    python -m dpad.results.documents records.json --format markdown                              # or markdown, csv
    python -m dpad.results.documents records.json --plot chart.png                               # the bar chart
    python -m dpad.results.documents README.md                                                   # renew the tables in a document
    python -m dpad.results.documents --check README.md                                           # fail when a table is out of date

A document marks a table by the records it shows, with paths relative to the document:

    <!-- table: demo/records.json -->
    ...whatever stands here is replaced...
    <!-- /table -->

With `demo/records.json beside llada-1.5` the authors' numbers for that model stand beside them (paper.py).

A records file holds one record or a list of records; a folder stands for all records in its *.json files.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dpad.results import paper
from dpad.results.charts import draw
from dpad.results.records import load
from dpad.results.tables import caption, csv_table, markdown_table, terminal_table

MARK = re.compile(r"(<!-- table: *(?P<paths>[^>]*?)(?: beside (?P<paper>[\w.-]+))? *-->)"
                  r"(?P<body>.*?)(?P<end><!-- /table -->|\Z)", re.DOTALL)


def render_document(text: str, folder: str | Path) -> tuple[str, list[str]]:
    """Renew the marked tables of a markdown text.

    Args:
        folder: where the marks' paths count from.

    Returns:
        The new text, and the marks' paths whose table changed (empty when the text was up to date).

    Raises:
        ValueError: a mark names no records, its records cannot be read, or it lacks its `<!-- /table -->`.
    """
    changed = []

    def renew(found: re.Match) -> str:
        paths = found["paths"].split()
        if not paths:
            raise ValueError("a table mark names no records")
        if not found["end"] or "<!-- table:" in found["body"]:
            raise ValueError(f"the table mark of {found['paths']} has no <!-- /table -->")
        found_records = load(paths, folder)
        if found["paper"]:
            body = f"\n{paper.render(found_records, found['paper'], 'markdown')}\n\n{caption(found_records)}\n"
        else:
            body = f"\n{markdown_table(found_records)}\n"
        if body != found["body"]:
            changed.append(found["paths"])
        return f"{found[1]}{body}{found['end']}"

    return MARK.sub(renew, text), changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="documents.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="records (files or folders), or markdown documents")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a document is out of date")
    parser.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal")
    parser.add_argument("--plot", metavar="PNG", help="draw the chart into this file instead of printing a table")
    options = parser.parse_args(arguments)
    try:
        documents = [path for path in options.paths if path.endswith(".md")]
        if documents and len(documents) < len(options.paths):
            raise ValueError("give either documents (.md) or records, not both")
        if documents:
            return max([_renew_document(Path(path), options.check) for path in documents])
        if options.check:
            raise ValueError("--check takes documents (.md)")
        found = load(options.paths)
        if options.plot:
            draw(found, options.plot)
            print(f"wrote {options.plot}")
        elif options.format == "terminal":
            print(f"{terminal_table(found)}\n\n{caption(found)}")
        else:
            print((markdown_table(found) if options.format == "markdown" else csv_table(found)).rstrip("\n"))
        return 0
    except (ValueError, OSError) as error:
        print(f"documents.py: {error}", file=sys.stderr)
        return 1


def _renew_document(path: Path, check: bool) -> int:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error
    renewed, changed = render_document(text, path.parent)
    if not MARK.search(text):
        print(f"{path} has no table marks", file=sys.stderr)
        return 1
    if not changed:
        print(f"{path}: every table equals its records")
        return 0
    if check:
        print(f"{path}: out of date: {', '.join(changed)}; run: python -m dpad.results.documents {path}", file=sys.stderr)
        return 1
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(renewed, encoding="utf-8", newline="")
    os.replace(temporary, path)
    print(f"{path}: renewed {', '.join(changed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
