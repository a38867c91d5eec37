"""What the authors report (arXiv 2508.14148, on an A100-PCIe-80GB), from benchmarks/paper.json.

    python run.py table benchmarks/long-cpu.json --paper llada-1.5        # measured, and beside it what they report
    python run.py table benchmarks/paper.json                             # the scripts, and the hours that they take
"""

from __future__ import annotations

from collections.abc import Sequence

from dpad import ROOT
from dpad.engine.configurations import VANILLA
from dpad.results import files
from dpad.results.formatting import Table

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


def read() -> dict:
    """The whole file: `models` with their rows, `problems` of each benchmark, `scripts`, `source` and `hardware`."""
    return files.read_json(REPORTED)


def reported(model: str) -> dict[tuple, dict]:
    """The authors' rows of a model by (benchmark, answer length, configuration), each with its `speedup`.

    Args:
        model: "llada-instruct", "llada-1.5" or "dream-base".

    Raises:
        ValueError: there is no such model in the paper.
    """
    models = read()["models"]
    if model not in models:
        raise ValueError(f"model is {model!r}; the paper has {', '.join(models)}")

    rows = {(row["benchmark"], row["gen_length"], row["name"]): row for row in models[model]["rows"]}
    return {
        (benchmark, gen_length, name): row | {
            "speedup": rows[benchmark, gen_length, VANILLA.name]["latency_s"] / row["latency_s"],
        }
        for (benchmark, gen_length, name), row in rows.items()
    }


def describe_source(model: str) -> str:
    """Where a model's reported numbers come from, in a few words."""
    source = read()
    title = source["models"][model]["title"]
    return f"as reported by the authors for {title} on an {source['hardware']} ({source['source']})"


def scripts_table(records: Sequence[dict]) -> Table:
    """For each script of the paper's settings the table or figure that it makes, and how long that took the authors."""
    cells = []
    for source in records:
        for script in source["scripts"]:
            if script["model"] not in source["models"]:
                raise ValueError(f"the script {script['script']} is of the model {script['model']!r}, which the record "
                                 "does not have")
            rows = [
                row for row in source["models"][script["model"]]["rows"] if row["gen_length"] in script["gen_lengths"]
            ]
            missing = {row["benchmark"] for row in rows} - source["problems"].keys()
            if missing:
                raise ValueError(f"the record does not say how many problems {', '.join(sorted(missing))} has")
            hours = sum(row["latency_s"] * source["problems"][row["benchmark"]] for row in rows) / 3600
            cells.append([f"`bash {script['script']}`", script["shows"], f"{hours:.0f}" if rows else "not reported"])
    return Table(["command", "makes", "hours on an A100"], cells)


def scripts_caption(records: Sequence[dict]) -> str:
    """Where the hours come from."""
    return (f"Hours: the latencies that the authors report for an {records[0]['hardware']} ({records[0]['source']}), "
            "times the benchmarks' numbers of problems; nothing that was measured here.")
