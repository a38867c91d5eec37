"""Tables of records of every kind, as text for the terminal, Markdown or CSV, with captions.

    python run.py table benchmarks/demo-cpu.json                              # also: --format markdown, --format csv
    python run.py table results/main_1.5/1.5 --paper llada-1.5                # beside what the authors report

Every number comes from a record. Evaluations are shown one table for each task, model, answer length, number of samples
and machine, rows in the paper's order, and each comparison by itself; all other records of one kind share a table.
evaluations.py, comparisons.py, benchmarks.py, studies.py and paper.py make the rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from dpad.engine.configurations import VANILLA
from dpad.results import benchmarks, comparisons, evaluations, paper, studies
from dpad.results.formatting import FORMATS, Table, as_columns, as_markdown

TABLES: dict[str, Callable[[Sequence[dict]], Table]] = {
    "evaluation": evaluations.evaluation_table,
    "comparison": comparisons.comparison_table,
    "benchmark": benchmarks.benchmark_table,
    "growth": benchmarks.growth_table,
    "agreement": benchmarks.agreement_table,
    "training steps": benchmarks.steps_table,
    "study": studies.study_table,
    "paper": paper.scripts_table,
}
CAPTIONS: dict[str, Callable[[Sequence[dict]], str]] = {
    "evaluation": evaluations.evaluation_caption,
    "comparison": comparisons.comparison_caption,
    "benchmark": benchmarks.benchmark_caption,
    "growth": benchmarks.benchmark_caption,
    "agreement": benchmarks.agreement_caption,
    "training steps": benchmarks.steps_caption,
    "study": studies.study_caption,
    "paper": paper.scripts_caption,
}


def render(records: Sequence[dict], model: str | None = None, form: str = "terminal") -> str:
    """All tables of these records: evaluations by what makes them comparable, a table for each comparison and for
    each other kind.

    Args:
        model: the key of a model in benchmarks/paper.json, whose reported numbers stand beside evaluations.
        form: "terminal", "markdown" or "csv" (a single table of all evaluations, plain numbers in full precision).

    Raises:
        ValueError: there are no records; see `paper.reported` and `evaluations.evaluation_rows`.
    """
    reported = paper.reported(model) if model else {}
    if model and "evaluation" not in _kinds_of(records):
        raise ValueError(f"the paper's numbers for {model} stand beside evaluations, and there are none")
    parts = []
    for kind in _kinds_of(records):
        group = [record for record in records if record["kind"] == kind]
        if form == "csv":
            parts.append(csv_table(group, reported).rstrip("\n"))
        elif kind == "evaluation":
            groups = evaluations.group_by_table(group)
            for rows, title in zip(groups, evaluations.describe_tables(groups)):
                heading = f"**{title}**\n" if form == "markdown" else title
                table = evaluations.evaluation_table(rows, reported, intervals=True)
                parts.append(f"{heading}\n{FORMATS[form](*table)}")
            parts.append(_explain_columns(group, model))
        elif kind == "comparison":
            for record in group:
                title = comparisons.comparison_title(record)
                heading = f"**{title}**\n" if form == "markdown" else title
                parts += [f"{heading}\n{FORMATS[form](*table_of([record]))}", caption([record])]
        else:
            parts.append(f"{FORMATS[form](*table_of(group))}\n\n{caption(group)}")
    return "\n\n".join(parts)


def _explain_columns(records: Sequence[dict], model: str | None) -> str:
    text = "[ ]: 95 % interval (Wilson)."
    if any(row.speedup is None for row in evaluations.evaluation_rows(records)):
        text += (f" Speedup –: no run of {VANILLA.name} has the same task, model, lengths, samples and machine, or "
                 "several have.")
    if model:
        text += f" paper: {paper.describe_source(model)}."
    return text


def terminal_table(records: Sequence[dict], names: Sequence[str] = ()) -> str:
    """One table with aligned columns; at most 112 characters wide with the names and metrics of the demo.

    Args:
        names: names of rows still to come, so that the columns stay where they are while a table grows.
    """
    return as_columns(*table_of(records), names)


def markdown_table(records: Sequence[dict]) -> str:
    """One table as Markdown, with the caption under it."""
    return f"{as_markdown(*table_of(records))}\n\n{caption(records)}"


def csv_table(records: Sequence[dict], reported: Mapping[tuple, dict] | None = None) -> str:
    """One table as comma-separated values with a heading line.

    Of evaluations and comparisons: plain numbers in full precision, empty where unknown, the authors' in columns that
    begin with paper_. Of other kinds: the cells of the table as they are.
    """
    if _kind_of(records) == "evaluation":
        lines = evaluations.evaluation_values(records, reported)
    elif _kind_of(records) == "comparison":
        lines = comparisons.comparison_values(records)
    else:
        headings, cells = table_of(records)
        lines = [headings, *cells]

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def table_of(records: Sequence[dict]) -> Table:
    """One table of records of one kind.

    Raises:
        ValueError: there are no records, or they are of different kinds; see `evaluations.evaluation_rows`.
    """
    return TABLES[_kind_of(records)](records)


def caption(records: Sequence[dict]) -> str:
    """What the numbers of one table were measured with: model, task, samples, G, hardware, dtype, commit."""
    return CAPTIONS[_kind_of(records)](records)


def _kinds_of(records: Sequence[dict]) -> list[str]:
    """The different kinds, in the records' order; ValueError where there are no records."""
    if not records:
        raise ValueError("there are no records to show")
    return list(dict.fromkeys(record["kind"] for record in records))


def _kind_of(records: Sequence[dict]) -> str:
    """The kind of all records; ValueError where they have several."""
    kinds = _kinds_of(records)
    if len(kinds) > 1:
        raise ValueError(f"records of different kinds ({', '.join(kinds)}) do not make one table")
    return kinds[0]
