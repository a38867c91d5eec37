"""A dozen problems of our own in the form of MATH, asked and scored as in lm-eval's minerva_math, without the hub.

The task file beside this one names these functions. To see the task at work:

    python run.py -t math-local -m tiny --limit 3
"""

from datasets import Dataset
from lm_eval.tasks.minerva_math import utils

from dataset import read_problems

score = utils.process_results
examples = utils.list_fewshot_samples


def math_local(**metadata: object) -> dict[str, Dataset]:
    """dataset/math.jsonl, with the field `answer` that minerva_math takes from the last box of each solution."""
    return {"test": utils.process_docs(Dataset.from_list(read_problems("math.jsonl")))}
