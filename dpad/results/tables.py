"""Tables of records of every kind, as text for the terminal, Markdown or CSV, with captions.

    python run.py table benchmarks/demo-cpu.json                              # also: --format markdown, --format csv
    python run.py table results/main_1.5/1.5 --paper llada-1.5                # beside what papers report

Every number comes from a record. Evaluations are shown one table for each task, model, answer length, number of samples
and machine, rows in the paper's order, and each comparison by itself; all other records of one kind share a table.
evaluations.py, comparisons.py, benchmarks.py, loads.py, studies.py, attentions.py and paper.py make the rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from dpad.engine.configurations import VANILLA
from dpad.results import attentions, benchmarks, comparisons, evaluations, loads, paper, studies
from dpad.results.formatting import FORMATS, Table, as_columns, as_markdown

TABLES: dict[str, Callable[[Sequence[dict]], Table]] = {
    "evaluation": evaluations.evaluation_table,
    "comparison": comparisons.comparison_table,
    "benchmark": benchmarks.benchmark_table,
    "growth": benchmarks.growth_table,
    "agreement": benchmarks.agreement_table,
    "quantization": benchmarks.quantization_table,
    "startup": benchmarks.startup_table,
    "authors": benchmarks.authors_table,
    "training steps": benchmarks.steps_table,
    "load": loads.load_table,
    "study": studies.study_table,
    "attention": attentions.attention_table,
    "paper": paper.scripts_table,
}
CAPTIONS: dict[str, Callable[[Sequence[dict]], str]] = {
    "evaluation": evaluations.evaluation_caption,
    "comparison": comparisons.comparison_caption,
    "benchmark": benchmarks.benchmark_caption,
    "growth": benchmarks.benchmark_caption,
    "agreement": benchmarks.agreement_caption,
    "quantization": benchmarks.quantization_caption,
    "startup": benchmarks.startup_caption,
    "authors": benchmarks.authors_caption,
    "training steps": benchmarks.steps_caption,
    "load": loads.load_caption,
    "study": studies.study_caption,
    "attention": attentions.attention_caption,
    "paper": paper.scripts_caption,
}


def render(records: Sequence[dict], model: str | None = None, form: str = "terminal") -> str:
    """All tables of these records: evaluations by what makes them comparable, a table for each comparison and for
    each other kind.

    Args:
        model: what of benchmarks/paper.json stands beside evaluations: "llada-1.5", "llada-1.5/gsm8k/1024"; of records
            of kind "paper", what is shown by itself.
        form: "terminal", "markdown" or "csv" (a single table of all evaluations, plain numbers in full precision).

    Raises:
        ValueError: there are no records; see `paper.reported` and `evaluations.evaluation_rows`.
    """
    reported = paper.reported(model) if model else []
    if model and not {"evaluation", "paper"} & set(_kinds_of(records)):
        raise ValueError(f"the reported numbers for {model} stand beside evaluations, and there are none; benchmarks/"
                         "paper.json shows them by themselves")
    parts = []
    for kind in _kinds_of(records):
        group = [record for record in records if record["kind"] == kind]
        if form == "csv":
            parts.append(csv_table(group, reported, model).rstrip("\n"))
        elif kind == "evaluation":
            groups = evaluations.group_by_table(group)
            for rows, title in zip(groups, evaluations.describe_tables(groups)):
                parts.append(_titled(title, evaluations.evaluation_table(rows, reported, intervals=True), form))
            parts.append(_explain_columns(group, reported))
        elif kind == "comparison":
            for record in group:
                parts += [_titled(comparisons.comparison_title(record), table_of([record]), form), caption([record])]
        else:
            if not (kind == "paper" and model):
                parts.append(f"{FORMATS[form](*table_of(group))}\n\n{caption(group)}")
            if kind == "paper":
                parts += _reported_tables(group, model, form)
    return "\n\n".join(parts)


def _titled(title: str, table: Table, form: str) -> str:
    heading = f"**{title}**\n" if form == "markdown" else title
    return f"{heading}\n{FORMATS[form](*table)}"


def _explain_columns(records: Sequence[dict], reported: Sequence[paper.Reported]) -> str:
    text = "[ ]: 95 % interval (Wilson)."
    if any(row.speedup is None for row in evaluations.evaluation_rows(records)):
        text += (f" Speedup –: no run of {VANILLA.name} has the same task, model, lengths, samples and machine, or "
                 "several have.")
    theirs = evaluations.beside(records, reported)
    if reported and not theirs:
        text += f" Nothing is reported for {reported[0].title} on these tasks and answer lengths."
    return f"{text}\n\n{paper.explain(theirs)}" if theirs else text


def _reported_tables(records: Sequence[dict], model: str | None, form: str) -> list[str]:
    """What papers report, by itself: the tables and, below them, their sources."""
    parts = []
    for record in records:
        rows = paper.reported(model, record)
        parts += [_titled(paper.describe(group), paper.reported_table(group), form) for group in paper.group(rows)]
        parts.append(paper.explain(rows, record))
    return parts


def terminal_table(records: Sequence[dict], names: Sequence[str] = ()) -> str:
    """One table with aligned columns; at most 112 characters wide with the names and metrics of the demo.

    Args:
        names: names of rows still to come, so that the columns stay where they are while a table grows.
    """
    return as_columns(*table_of(records), names)


def markdown_table(records: Sequence[dict]) -> str:
    """One table as Markdown, with the caption under it."""
    return f"{as_markdown(*table_of(records))}\n\n{caption(records)}"


def csv_table(records: Sequence[dict], reported: Sequence[paper.Reported] = (), model: str | None = None) -> str:
    """One table as comma-separated values with a heading line.

    Of evaluations, comparisons, and what papers report: plain numbers in full precision, empty where unknown; `source`
    says whose a row is. Of other kinds: the cells of the table as they are.
    """
    kind = _kind_of(records)
    if kind == "evaluation":
        values = evaluations.evaluation_values(records, reported)
    elif kind == "comparison":
        values = comparisons.comparison_values(records)
    elif kind == "paper":
        values = [paper.values(row) for record in records for row in paper.reported(model, record)]
    else:
        headings, cells = table_of(records)
        values = [dict(zip(headings, line)) for line in cells]

    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in values for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
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
