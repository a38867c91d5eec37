"""A dozen problems of our own in the form of MATH, asked and scored as lm-eval's minerva_math, without the hub.

Named by the task file beside it, never run. To see the task at work:

    python run.py -t math-local -m tiny --limit 3
"""

import json
from pathlib import Path

from datasets import Dataset
from lm_eval.tasks.minerva_math import utils

ROOT = Path(__file__).resolve().parents[2]
score = utils.process_results
examples = utils.list_fewshot_samples


def math_local(**metadata) -> dict:
    """dataset/math.jsonl, with the field `answer` that minerva_math takes from each solution's last box."""
    lines = (ROOT / "dataset" / "math.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": utils.process_docs(Dataset.from_list([json.loads(line) for line in lines]))}
