"""What papers report, DPad's and those that compare with it, as data in benchmarks/paper.json with their sources.

    python run.py table benchmarks/long-cpu.json --paper llada-1.5          # measured, and beside it what they report
    python run.py table benchmarks/paper.json --paper llada-1.5/gsm8k/1024  # what they report, by itself
    python run.py table benchmarks/paper.json                               # all of it, and the scripts' hours
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dpad import ROOT
from dpad.engine.checks import suggest
from dpad.engine.configurations import VANILLA
from dpad.results.formatting import Table, number, ratio, times
from dpad.results.records import load

REPORTED = ROOT / "benchmarks" / "paper.json"

# Our own problems that stand in for a benchmark where the hub is out of reach.
STAND_INS = {
    "arithmetic-50": "gsm8k",
    "arithmetic-500": "gsm8k",
    "gsm8k-split": "gsm8k",
    "math-local": "minerva_math",
    "humaneval-local": "humaneval",
    "mbpp-local": "mbpp",
}

GRID = (32, 64, 128, 192, 256, 320, 384, 448, 512)  # kept suffix tokens in the paper's heatmap

OWN = "dpad"  # the source whose settings the scripts measure

# The parts of configurations' names, in the order of tables.
CACHES = ("PrefixCache", "DualCache")
METHODS = ("EarlyTermination", "DPad", "Streaming", "SSM")
METRICS = ("flexible", "strict", "math_verify", "exact_match", "pass@1", "accuracy")


class Reported(NamedTuple):
    """A row of a paper's table.

    source: the paper's key in the file. whose: who measured what, and where: "SSM's rerun of DPad (A800)". row: as in
    the file. title: the model's. hardware: of the source. speedup, tps_ratio: over Vanilla in the same table, or where
    that has none in the same paper; None where either number is missing.
    """

    source: str
    whose: str
    row: dict
    title: str
    hardware: str
    speedup: float | None
    tps_ratio: float | None

    @property
    def place(self) -> tuple[str, int]:
        """The benchmark and the answer length."""
        return self.row["benchmark"], self.row["gen_length"]

    @property
    def answer_tokens(self) -> float | None:
        """The mean answer length; where the paper does not state it, TPS × latency."""
        stated = self.row.get("answer_tokens")
        return stated if stated is not None else _product(self.row.get("tps"), self.row.get("latency_s"))

    @property
    def ms_per_token(self) -> float | None:
        """Milliseconds per answer token, from latency and answer length; without a length it is 1000 / TPS."""
        latency, tokens, tps = (self.row.get(key) for key in ("latency_s", "answer_tokens", "tps"))
        return 1000 * latency / tokens if latency and tokens else ratio(1000, tps)

    @property
    def order(self) -> tuple:
        """Where the row stands in a table: parts and variants of a method come last."""
        return bool(self.row.get("variant")), *name_order(self.row["name"])


def read() -> dict:
    """The whole file, see docs/file-formats.md."""
    return load([REPORTED])[0]


def reported(selection: str | None = None, record: dict | None = None) -> list[Reported]:
    """What papers report, by model, benchmark, answer length and configuration; in each by source.

    Args:
        selection: "llada-instruct", "llada-1.5" or "dream-base"; "llada-1.5/gsm8k" for one benchmark of it,
            "llada-1.5/gsm8k/1024" for one answer length. None for everything.
        record: a record of kind "paper"; None for benchmarks/paper.json.

    Raises:
        ValueError: nothing is reported for the selection, or the record contradicts itself.
    """
    record = record or read()
    _check(record)
    models, benchmarks = list(record["models"]), list(record["problems"])
    rows = [
        _reported(record, key, row) for key, source in record["sources"].items() for row in source["rows"]
    ]
    rows.sort(key=lambda theirs: (models.index(theirs.row["model"]), benchmarks.index(theirs.row["benchmark"]),
                                  theirs.row["gen_length"], theirs.order))
    return _select(rows, models, selection) if selection is not None else rows


def _select(rows: list[Reported], models: Sequence[str], selection: str) -> list[Reported]:
    """The rows of a model, or of a benchmark of it, or of an answer length of that."""
    model, *narrower = selection.split("/")
    if model not in models:
        raise ValueError(f"model is {model!r}; the paper has {', '.join(models)}{suggest(model, models)}")
    if len(narrower) > 2:
        raise ValueError(f"paper is {selection!r}; it must be MODEL, MODEL/TASK or MODEL/TASK/LENGTH")

    chosen = model
    rows = [theirs for theirs in rows if theirs.row["model"] == model]
    for key, value in zip(("benchmark", "gen_length"), narrower):
        values = dict.fromkeys(str(theirs.row[key]) for theirs in rows)
        if value not in values:
            raise ValueError(f"{key} is {value!r}; for {chosen} papers report {', '.join(values)}"
                             f"{suggest(value, values)}")
        rows = [theirs for theirs in rows if str(theirs.row[key]) == value]
        chosen += f"/{value}"
    return rows


def _reported(record: dict, key: str, row: dict) -> Reported:
    source = record["sources"][key]
    same = [other for other in source["rows"] if other["name"] == VANILLA.name and _work(other) == _work(row)]
    same.sort(key=lambda other: other["table"] != row["table"])
    vanilla = same[0] if same else {}

    titles = {entry["method"]: entry["title"] for entry in record["sources"].values()}
    rivals = [title for method, title in titles.items() if method in _parts(row["name"]) and method != source["method"]]
    whose = (f"{source['title']}'s rerun of {rivals[0]} ({source['gpu']})" if rivals
             else f"{source['title']} (authors, {source['gpu']})")
    return Reported(
        key, whose, row, record["models"][row["model"]], source["hardware"],
        ratio(vanilla.get("latency_s"), row.get("latency_s")), ratio(row.get("tps"), vanilla.get("tps")),
    )


def _work(row: dict) -> tuple:
    """What must agree before one row of a source may be divided by another."""
    return row["model"], row["benchmark"], row["shots"], row["gen_length"]


def _parts(name: str) -> list[str]:
    return name.removeprefix("+").split("+")


def _product(first: float | None, second: float | None) -> float | None:
    return first * second if first and second else None


def name_order(name: str) -> tuple:
    """The place of a configuration's name among others: one token a step first, then by cache, then by method."""
    parts = _parts(name)
    return "Parallel" in parts, *(
        max((order.index(part) + 1 for part in parts if part in order), default=0) for order in (CACHES, METHODS))


def _check(record: dict) -> None:
    """Raise ValueError where one part of a record names something that another part does not have."""
    if OWN not in record["sources"]:
        raise ValueError(f"the record has no sources.{OWN}, whose settings its scripts measure")
    allowed = {VANILLA.name, "Parallel", *CACHES, *METHODS}
    for key, source in record["sources"].items():
        seen = set()
        for index, row in enumerate(source["rows"]):
            place = f"sources.{key}.rows[{index}]"
            for field, values in (("model", record["models"]), ("benchmark", record["problems"]),
                                  ("table", source["tables"])):
                if row[field] not in values:
                    raise ValueError(f"{place}.{field} is {row[field]!r}; the record has {', '.join(values)}")
            if not allowed.issuperset(_parts(row["name"])):
                raise ValueError(f"{place}.name is {row['name']!r}; its parts must be {', '.join(sorted(allowed))}")
            for field, mark in (row.get("uncertain") or {}).items():
                if mark not in record["marks"] or field not in row.keys() | row["metrics"].keys():
                    raise ValueError(f"{place}.uncertain.{field} is {mark!r}; the field must be one of the row's, the "
                                     "mark one of the record's")
            identity = row["table"], *_work(row), row["name"], row.get("variant")
            if identity in seen:
                raise ValueError(f"{place} is there twice: table {row['table']}, {row['benchmark']}, {row['name']}")
            seen.add(identity)


# --- Tables -----------------------------------------------------------------------------------------------------------


def group(rows: Iterable[Reported]) -> list[list[Reported]]:
    """Rows that belong into one table: of one model, benchmark and answer length."""
    groups: dict[tuple, list[Reported]] = {}
    for theirs in rows:
        groups.setdefault((theirs.title, theirs.place), []).append(theirs)
    return list(groups.values())


def describe(rows: Sequence[Reported]) -> str:
    """The line above a table of one group."""
    benchmark, gen_length = rows[0].place
    shots = dict.fromkeys(f"{theirs.row['shots']}-shot" for theirs in rows)
    return f"{rows[0].title}, {benchmark}, {' and '.join(shots)}, G = {gen_length}, as reported"


def metric_labels(rows: Iterable[Reported]) -> list[str]:
    labels = dict.fromkeys(label for theirs in rows for label in theirs.row["metrics"])
    return sorted(labels, key=lambda label: METRICS.index(label) if label in METRICS else len(METRICS))


def reported_table(rows: Sequence[Reported]) -> Table:
    """A table of one group: who measured what, and the numbers, as precise as the paper gives them."""
    lines = [columns(theirs) for theirs in rows]
    varying = ["shots"] if len({theirs.row["shots"] for theirs in rows}) > 1 else []
    headings = ["configuration", "source", "table", *varying, "latency (s)", "speedup", "TPS", "TPS ratio",
                "ms/token", "tokens", *(f"{label} (%)" for label in metric_labels(rows))]
    return Table(headings, [[line.get(heading, "–") for heading in headings] for line in lines])


def columns(theirs: Reported) -> dict[str, str]:
    """The cells of a row by their headings; uncertain numbers have a mark, computed lengths a ≈."""
    row = theirs.row
    marks = {field: f" ({mark})" for field, mark in (row.get("uncertain") or {}).items()}
    about = "" if row.get("answer_tokens") else "≈ "

    def text(field: str, value: float | None) -> str:
        return "–" if value is None else f"{value}{marks.get(field, '')}"

    return {
        "configuration": row["name"] + (f" ({row['variant']})" if row.get("variant") else ""),
        "source": theirs.whose,
        "table": row["table"],
        "shots": str(row["shots"]),
        "latency (s)": text("latency_s", row.get("latency_s")),
        "speedup": times(theirs.speedup),
        "TPS": text("tps", row.get("tps")),
        "TPS ratio": times(theirs.tps_ratio),
        "tokens": _about(about, theirs.answer_tokens, 0) + marks.get("answer_tokens", ""),
        "ms/token": _about(about, theirs.ms_per_token, 1) + marks.get("answer_tokens", ""),
    } | {f"{label} (%)": text(label, value) for label, value in row["metrics"].items()}


def _about(about: str, value: float | None, digits: int) -> str:
    return number(value) if value is None else about + number(value, digits if value < 100 else 0)


def values(theirs: Reported) -> dict[str, Any]:
    """The numbers of a row for CSV, by the names that evaluations have there."""
    row = theirs.row
    tokens = theirs.answer_tokens
    return {
        "configuration": row["name"],
        "variant": row.get("variant"),
        "source": theirs.whose,
        "table": row["table"],
        "model": theirs.title,
        "task": row["benchmark"],
        "shots": row["shots"],
        "G": row["gen_length"],
        "hardware": theirs.hardware,
        "latency_s": row.get("latency_s"),
        "speedup": theirs.speedup,
        "tps": row.get("tps"),
        "tps_ratio": theirs.tps_ratio,
        "answer_length": tokens,
        "answer_length_from": None if tokens is None else "paper" if row.get("answer_tokens") else "tps * latency_s",
        "ms_per_token": theirs.ms_per_token,
        "uncertain": ", ".join(f"{field} ({mark})" for field, mark in (row.get("uncertain") or {}).items()),
    } | row["metrics"]


def explain(rows: Sequence[Reported], record: dict | None = None) -> str:
    """Below tables: where their numbers come from and how sure they are, for the sources and marks that occur."""
    record = record or read()
    lines = ["Speedup (in latency) and TPS ratio: over Vanilla of the same paper. ≈: from TPS and latency, where the "
             "paper states no answer length."]
    for key in dict.fromkeys(theirs.source for theirs in rows):
        source = record["sources"][key]
        tables = dict.fromkeys(theirs.row["table"] for theirs in rows if theirs.source == key)
        lines.append(f"- {source['title']}: {source['paper']}; {source['hardware']}, batch size "
                     f"{source['batch_size']}; {source['basis']}. "
                     + " ".join(f"[{table}] {source['tables'][table]}" for table in tables))
    marks = {mark for theirs in rows for mark in (theirs.row.get("uncertain") or {}).values()}
    lines += [f"- ({mark}): {text}." for mark, text in record["marks"].items() if mark in marks]
    return "\n".join(lines)


def scripts_table(records: Sequence[dict]) -> Table:
    """For each script of the paper's settings the table or figure that it makes, and how long that took the authors."""
    cells = []
    for record in records:
        own = [theirs.row for theirs in reported(record=record) if theirs.source == OWN]
        for script in record["scripts"]:
            if script["model"] not in record["models"]:
                raise ValueError(f"the script {script['script']} is of the model {script['model']!r}, which the record "
                                 "does not have")
            rows = [
                row for row in own if row["model"] == script["model"] and row["gen_length"] in script["gen_lengths"]
            ]
            hours = sum((row.get("latency_s") or 0) * record["problems"][row["benchmark"]] for row in rows) / 3600
            cells.append([f"`bash {script['script']}`", script["shows"], f"{hours:.0f}" if rows else "not reported"])
    return Table(["command", "makes", "hours on an A100"], cells)


def scripts_caption(records: Sequence[dict]) -> str:
    """Where the hours come from."""
    source = records[0]["sources"][OWN]
    return (f"Hours: the latencies that the authors report for an {source['hardware']} ({source['title']}, "
            f"{source['paper']}), times the benchmarks' numbers of problems; nothing that was measured here.")
