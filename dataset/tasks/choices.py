"""A dozen multiple-choice questions of our own, to try log-likelihoods without the hub.

Named by the task file beside it, never run. To see the task at work:

    python run.py -t choices-local -m tiny --mc_samples 32
"""

import json
from pathlib import Path

from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]


def load(**metadata) -> dict:
    """dataset/choices.jsonl: `question`, `choices` (texts) and `answer` (the index of the right one)."""
    lines = (ROOT / "dataset" / "choices.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
