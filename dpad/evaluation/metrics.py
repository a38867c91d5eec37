"""What a run measured: its speed, and the metrics of its task.

Used by runs.py; every record that it writes holds these numbers. `cat results/*/record.json` shows them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dpad.evaluation.journal import Answer


def speed(answers: Sequence[Answer], after_eos: str = "drop") -> dict[str, Any]:
    """The cost of answers, in total and per sample; `after_eos` says which of their two texts has the tokens.

    A sample is an answer; in a multiple-choice task, all choices of a document together are one sample.

    Returns:
        `samples` (number of documents); means over samples: `latency_s` and `latency_median_s` (seconds), `nfe`
        (forwards), `slots` (that these computed), `answer_length` (tokens); `tps` (answer tokens per second) and
        `ms_per_token`, its inverse; `kept_suffix` (suffix positions, per block that was entered); totals:
        `answer_tokens`, `seconds`, `tokens_processed`, `empty_answers`. Means of nothing are None.
    """
    seconds: dict[tuple[str, int, int], float] = defaultdict(float)
    forwards: dict[tuple[str, int, int], int] = defaultdict(int)
    for answer in answers:
        is_choice = isinstance(answer.answer, list)
        sample = (answer.task, answer.doc_id, 0 if is_choice else answer.repeat)
        seconds[sample] += answer.seconds
        forwards[sample] += answer.forwards

    tokens = sum(answer.tokens if after_eos == "drop" else answer.full_tokens for answer in answers)
    total_seconds = sum(seconds.values())
    slots = sum(answer.tokens_processed for answer in answers)
    blocks = sum(answer.blocks for answer in answers)
    return {
        "samples": len({(answer.task, answer.doc_id) for answer in answers}),
        "latency_s": statistics.fmean(seconds.values()) if seconds else None,
        "latency_median_s": statistics.median(seconds.values()) if seconds else None,
        "tps": tokens / total_seconds if total_seconds else None,
        "ms_per_token": 1000 * total_seconds / tokens if tokens else None,
        "nfe": statistics.fmean(forwards.values()) if forwards else None,
        "slots": slots / len(seconds) if seconds else None,
        "answer_length": tokens / len(seconds) if seconds else None,
        "kept_suffix": sum(answer.kept_suffix * answer.blocks for answer in answers) / blocks if blocks else None,
        "answer_tokens": tokens,
        "seconds": total_seconds,
        "tokens_processed": slots,
        "empty_answers": sum(isinstance(text := answer.scored(after_eos), str) and not text.strip()
                             for answer in answers),
    }


def metrics_of(results: dict[str, Any], task: str) -> dict[str, dict[str, float | None]]:
    """{name: {"value", "stderr"}} of a task or group, from lm-eval's results.

    A group that lm-eval aggregates counts as one; otherwise its tasks' names stand before the metrics' names.
    """
    scores = results["results"]
    if any("," in key for key in scores.get(task, {})):
        scores = {task: scores[task]}

    metrics = {}
    for task_name, table in scores.items():
        prefix = "" if len(scores) == 1 else f"{task_name}/"
        for key, value in table.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr"):
                error = table.get(f"{metric}_stderr,{filter_name}")
                metrics[prefix + metric_name(metric, filter_name)] = {
                    "value": value,
                    "stderr": error if isinstance(error, (int, float)) else None,
                }
    return metrics


def metric_name(metric: str, filter_name: str) -> str:
    """What a record calls one of lm-eval's metrics; an exact_match with a filter goes by the filter's name."""
    if filter_name == "none":
        return metric
    return filter_name if metric == "exact_match" else f"{metric},{filter_name}"
