"""Documents of the arithmetic tasks for lm-eval: the 50 kept in the repository, or as many fresh ones as asked.

Named by the task files beside it, never run. To see a task at work:

    python run.py -t arithmetic-50 -m tiny --limit 5
"""

import json

from datasets import Dataset

from dataset import arithmetic, gsm8k
from dpad import ROOT

FEWSHOT_PROBLEMS = 64  # training problems that few-shot examples are drawn from
FEWSHOT_SEED = 2024


def load(problem_file: str | None = None, problem_count: int = 500, problem_seed: int = 2024, **metadata):
    """The documents of a task: `question` and `answer` as in GSM8K, in the splits "train" (few-shot) and "test".

    problem_file: a .jsonl file in dataset/; without it `problem_count` test problems are generated from `problem_seed`.
    metadata: whatever else lm-eval passes on from the task file; it changes nothing.
    """
    if problem_file is None:
        test = arithmetic.take(problem_count, problem_seed, split="test")
    else:
        lines = (ROOT / "dataset" / problem_file).read_text(encoding="utf-8").splitlines()
        test = [json.loads(line) for line in lines]
    train = arithmetic.take(FEWSHOT_PROBLEMS, FEWSHOT_SEED, split="train")
    columns = ("question", "answer")
    return {
        split: Dataset.from_list([{column: problem[column] for column in columns} for problem in problems])
        for split, problems in (("train", train), ("test", test))
    }


def load_gsm8k(**metadata) -> dict:
    """The GSM8K problems that dataset/gsm8k.py fetched (`question`, `answer`, `ans`), as the split "test".

    Raises:
        ValueError: dataset/gsm8k-50.arrow is missing or unreadable; the message names the command that makes it.
    """
    return {"test": Dataset.from_list(gsm8k.read())}
