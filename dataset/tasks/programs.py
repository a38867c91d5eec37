"""Coding tasks for lm-eval: HumanEval and MBPP from the hub, and a dozen problems of our own in the form of each.

Named by the task files beside it, never run. To see a task at work, offline:

    python run.py -t humaneval-local -m tiny --limit 3

lm-eval's own files for these tasks run the programs inside its process and need the network for that; here they are
run by sandbox.py, after all generation is done, and every answer is scored twice: as it is (`pass@1_raw`) and cleaned
as postprocess_code.py says (`pass@1`).
"""

import json

from datasets import Dataset, load_dataset

from dpad import ROOT
from dpad.evaluation import sandbox
from postprocess_code import before, clean, program

FEWSHOT = 3
HUMANEVAL = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
MBPP = ("task_id", "text", "code", "test_list")


def humaneval(**metadata) -> dict:
    """HumanEval's 164 problems, from the hub (Chen et al., arXiv 2107.03374)."""
    return {"test": load_dataset("openai/openai_humaneval", split="test")}


def mbpp(**metadata) -> dict:
    """MBPP's 500 test problems, from the hub, and the three that its authors prompt with (arXiv 2108.07732)."""
    shown = load_dataset("google-research-datasets/mbpp", "full", split="prompt")
    shown = shown.filter(lambda problem: problem["task_id"] in (2, 3, 4))
    return {"train": shown, "test": load_dataset("google-research-datasets/mbpp", "full", split="test")}


def humaneval_local(**metadata) -> dict:
    """dataset/programs.jsonl in HumanEval's form."""
    return {"test": _own(HUMANEVAL)}


def mbpp_local(**metadata) -> dict:
    """The same in MBPP's form; the first ones are for few-shot examples."""
    problems = _own(MBPP)
    return {"train": problems.select(range(FEWSHOT)), "test": problems.select(range(FEWSHOT, len(problems)))}


def _own(columns: tuple[str, ...]) -> Dataset:
    lines = (ROOT / "dataset" / "programs.jsonl").read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([{column: json.loads(line)[column] for column in columns} for line in lines])


def score(doc: dict, results: list[str]) -> dict:
    """Whether the answer's program passes the problem's tests: cleaned, and as it is."""
    programs = {
        "pass@1": program(clean(results[0], doc), doc), "pass@1_raw": program(before(doc) + results[0], doc),
    }
    return {name: float(sandbox.run_program(text) == "passed") for name, text in programs.items()}
