"""What an evaluation measured: speed and scores."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def speed(answers: Sequence[dict]) -> dict:
    """Means over samples: `latency_s` and its median (seconds each), `tps` (tokens a second), `nfe`, and totals.

    A sample is an answer; in a multiple-choice task all choices of a document together are one. `samples` counts
    documents.
    """
    costs: dict[tuple, list[float]] = {}
    for answer in answers:
        choice = 0 if isinstance(answer["answer"], list) else answer["repeat"]
        cost = costs.setdefault((answer["task"], answer["doc_id"], choice), [0.0, 0])
        cost[0] += answer["seconds"]
        cost[1] += answer["forwards"]
    seconds, tokens = [cost[0] for cost in costs.values()], sum(answer["tokens"] for answer in answers)
    total = sum(seconds)
    return {
        "samples": len({(answer["task"], answer["doc_id"]) for answer in answers}),
        "latency_s": statistics.fmean(seconds) if answers else None,
        "latency_median_s": statistics.median(seconds) if answers else None,
        "tps": tokens / total if total else None,
        "nfe": statistics.fmean(cost[1] for cost in costs.values()) if answers else None,
        "answer_tokens": tokens,
        "seconds": total,
        "tokens_processed": sum(answer["tokens_processed"] for answer in answers),
        "empty_answers": sum(isinstance(answer["answer"], str) and not answer["answer"].strip() for answer in answers),
    }


def metrics_of(results: dict, task: str) -> dict:
    """{name: {"value", "stderr"}} of a task or group; an exact_match with a filter goes by the filter's name."""
    scores = results["results"]
    tables = {"": scores[task]} if any("," in key for key in scores.get(task, {})) else {
        f"{name}/" if len(scores) > 1 else "": table for name, table in scores.items()
    }
    metrics = {}
    for prefix, table in tables.items():
        for key, value in table.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr"):
                stderr = table.get(f"{metric}_stderr,{filter_name}")
                metrics[prefix + _metric_name(metric, filter_name)] = {
                    "value": value, "stderr": stderr if isinstance(stderr, (int, float)) else None
                }
    return metrics


def _metric_name(metric: str, filter_name: str) -> str:
    if filter_name == "none":
        return metric
    return filter_name if metric == "exact_match" else f"{metric},{filter_name}"
