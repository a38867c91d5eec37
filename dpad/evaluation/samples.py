"""The samples of a run: samples.jsonl, one line per answer, with its document, target, correctness and cost.

Used by runs.py; `python postprocess_code.py results/humaneval-.../samples.jsonl` reads such a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpad.engine.answer_text import other
from dpad.evaluation.journal import Answer
from dpad.evaluation.metrics import metric_name
from dpad.results.files import write_whole

# What postprocess_code.py needs to know of a coding problem.
PROBLEM_FIELDS = ("task_id", "prompt", "entry_point", "test", "test_list", "test_imports", "test_setup_code")
COST_FIELDS = ("raw", "forwards", "tokens", "full_tokens", "seconds", "tokens_processed", "kept_suffix", "blocks")


def write_samples(
    path: Path, samples: dict[str, list[dict[str, Any]]], answers: dict[tuple[str, int, int], Answer], after_eos: str
) -> None:
    """Write the samples sorted by task, document and repeat, whole or not at all.

    samples: lm-eval's; per task, one entry for each document and filter. answers: by task, document and repeat.
    after_eos: which of an answer's texts was scored; a line has it as `answer`, and the other one as `other_answer`.
    """
    documents = _documents(samples)
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        for (task, doc_id, repeat), answer in sorted(answers.items(), key=lambda item: item[0]):
            cost = {name: getattr(answer, name) for name in COST_FIELDS}
            texts = {"answer": answer.scored(after_eos), "other_answer": answer.scored(other(after_eos))}
            line = documents[task, doc_id] | {"repeat": repeat} | texts | cost
            file.write(json.dumps(line, ensure_ascii=False, default=_to_json) + "\n")


def _documents(samples: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, int], dict[str, Any]]:
    """By task and document, what a line says about the document; `correct` has the metrics of all filters."""
    documents: dict[tuple[str, int], dict[str, Any]] = {}
    for task, entries in samples.items():
        for entry in entries:
            problem = entry["doc"]
            document = documents.setdefault((task, entry["doc_id"]), {
                "task": task,
                "doc_id": entry["doc_id"],
                "question": problem.get("question"),
                "prompt": entry["arguments"][0][0],
                "target": entry["target"],
                "correct": {},
            })
            if "task_id" in problem:  # a coding problem
                document["doc"] = {name: problem[name] for name in PROBLEM_FIELDS if name in problem}
            for metric in entry["metrics"]:
                document["correct"][metric_name(metric, entry["filter"])] = entry[metric]
    return documents


def _to_json(value: Any) -> Any:
    """numpy's scalars as plain numbers, everything else that JSON lacks as text."""
    return value.item() if callable(getattr(value, "item", None)) else str(value)
