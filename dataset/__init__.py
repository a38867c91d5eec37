"""Problems: the files of this folder, the programs that make or fetch them, and tasks/, lm-eval's tasks about them."""

import json
from pathlib import Path


def read_problems(name: str) -> list[dict]:
    """The problems of a .jsonl file in this folder, one JSON object each."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
