"""Coding tasks for lm-eval: HumanEval and MBPP from the hub, and a dozen problems of our own in the form of each.

The task files beside this one name these functions. To see a task at work, offline:

    python run.py -t humaneval-local -m tiny --limit 3

lm-eval's own versions of these tasks run the model's programs inside lm-eval's process and download the code for that.
Here sandbox.py runs the programs, after all generation is done, and every answer is scored twice: as the model wrote it
(`pass@1_raw`) and cleaned by postprocess_code.py (`pass@1`). Where the machine offers less isolation than is asked for,
loading the problems fails already.
"""

from datasets import Dataset, load_dataset

from dataset import read_problems
from dpad.evaluation import sandbox
from postprocess_code import clean, program, raw_program

FEWSHOT_PROBLEMS = 3
MBPP_FEWSHOT_IDS = (2, 3, 4)
HUMANEVAL_COLUMNS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
MBPP_COLUMNS = ("task_id", "text", "code", "test_list")


def humaneval(**metadata: object) -> dict[str, Dataset]:
    """HumanEval's 164 problems, from the hub (Chen et al., arXiv 2107.03374)."""
    sandbox.check_level()
    return {"test": load_dataset("openai/openai_humaneval", split="test")}


def mbpp(**metadata: object) -> dict[str, Dataset]:
    """MBPP's 500 test problems, from the hub, and the authors' three few-shot examples (arXiv 2108.07732)."""
    sandbox.check_level()
    examples = load_dataset("google-research-datasets/mbpp", "full", split="prompt")
    examples = examples.filter(lambda problem: problem["task_id"] in MBPP_FEWSHOT_IDS)
    return {"train": examples, "test": load_dataset("google-research-datasets/mbpp", "full", split="test")}


def humaneval_local(**metadata: object) -> dict[str, Dataset]:
    """dataset/programs.jsonl in HumanEval's form."""
    return {"test": _own_problems(HUMANEVAL_COLUMNS)}


def mbpp_local(**metadata: object) -> dict[str, Dataset]:
    """dataset/programs.jsonl in MBPP's form; the first problems are the few-shot examples."""
    problems = _own_problems(MBPP_COLUMNS)
    return {
        "train": problems.select(range(FEWSHOT_PROBLEMS)),
        "test": problems.select(range(FEWSHOT_PROBLEMS, len(problems))),
    }


def _own_problems(columns: tuple[str, ...]) -> Dataset:
    sandbox.check_level()
    problems = read_problems("programs.jsonl")
    return Dataset.from_list([{column: problem[column] for column in columns} for problem in problems])


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the answer's program passes the problem's tests: cleaned, and as the model wrote it."""
    programs = {"pass@1": program(clean(results[0], doc), doc), "pass@1_raw": raw_program(results[0], doc)}
    return {metric: float(sandbox.run_program(text) == "passed") for metric, text in programs.items()}


score.runs_programs = True  # type: ignore[attr-defined]  # so that a run's record says how they were isolated
