"""The samples of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dpad.evaluation.metrics import _metric_name

PROBLEM = ("task_id", "prompt", "entry_point", "test", "test_list", "test_imports", "test_setup_code")


def write_samples(path: Path, samples: dict[str, list[dict]], answers: dict[tuple[str, int, int], dict]) -> None:
    """One line per answer, sorted by task, document and repeat, written whole or not at all.

    samples: lm-eval's, per task one entry for each document and filter.
    """
    documents: dict[tuple[str, int], dict] = {}
    for task, entries in samples.items():
        for entry in entries:
            document = documents.setdefault((task, entry["doc_id"]), {
                "task": task, "doc_id": entry["doc_id"], "question": entry["doc"].get("question"),
                "prompt": entry["arguments"][0][0], "target": entry["target"], "correct": {},
            })
            if "task_id" in entry["doc"]:  # a coding problem: postprocess_code.py scores it from here
                document["doc"] = {name: entry["doc"][name] for name in PROBLEM if name in entry["doc"]}
            for metric in entry["metrics"]:
                document["correct"][_metric_name(metric, entry["filter"])] = entry[metric]
    lines = []
    for (task, doc_id, repeat), answer in sorted(answers.items()):
        cost = {name: answer[name] for name in ("answer", "raw", "forwards", "tokens", "seconds", "tokens_processed")}
        line = documents[task, doc_id] | {"repeat": repeat} | cost
        lines.append(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value):
    """numpy's scalars as plain numbers, anything else that JSON lacks as text."""
    return value.item() if callable(getattr(value, "item", None)) else str(value)
