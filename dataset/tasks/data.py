"""Documents of the arithmetic tasks for lm-eval: the 50 kept in the repository, or as many fresh ones as asked.

Named by the task files beside it, never run. To see a task at work:

    python run.py -t arithmetic-50 -m tiny --limit 5
"""

import json
import sys
from pathlib import Path

from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # lm-eval loads this file by its path, whatever the working directory
    sys.path.append(str(ROOT))

from dataset import arithmetic  # noqa: E402

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
