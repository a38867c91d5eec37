"""What the authors report (arXiv 2508.14148, on an A100-PCIe-80GB), from benchmarks/paper.json.

    python run.py table benchmarks/long-cpu.json --paper llada-1.5        # measured, and beside it what they report
"""

from __future__ import annotations

from dpad import ROOT
from dpad.engine.configurations import VANILLA
from dpad.results import files

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
