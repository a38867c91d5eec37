"""Records of evaluations that never ran, for the tests of tables, charts and documents."""

from __future__ import annotations

from typing import Any

from dpad.engine.configurations import CONFIGURATIONS
from dpad.engine.settings import DecodingSettings


def settings_of(name: str, gen_length: int) -> dict[str, Any]:
    """The settings in a record of a named configuration; vanilla decoding for other names."""
    if name not in CONFIGURATIONS:
        name = "Vanilla"
    choices = CONFIGURATIONS[name].choices(gen_length)
    return DecodingSettings.from_choices(choices).to_json()


def evaluation(
    name: str, latency: float, *, flexible: float = 0.8, strict: float = 0.5, task: str = "arithmetic-50",
    length: int = 256, cores: int = 2, sampler: dict | None = None, **more: Any,
) -> dict[str, Any]:
    """A record as dpad/evaluation/runs.py writes it, with the numbers that the tables show."""
    settings = settings_of(name, length) | {"dtype": "float32", "device": "cpu", "num_fewshot": 0, "batch_size": 1}
    if sampler is not None:
        settings["suffix_sampler"] = sampler
    return {
        "kind": "evaluation",
        "name": name,
        "task": task,
        "model": "tiny",
        "samples": 50,
        "settings": settings,
        "metrics": {
            "flexible-extract": {"value": flexible, "stderr": 0.05},
            "strict-match": {"value": strict, "stderr": 0.06},
        },
        "latency_s": latency,
        "tps": 12.34,
        "nfe": 256.0,
        "environment": {"commit": "abc1234", "hardware": {"processor": "Test(R) CPU", "cores": cores, "gpus": []}},
    } | more


def vanilla_and_dpad() -> list[dict[str, Any]]:
    return [evaluation("Vanilla", 2.0), evaluation("+DPad", 0.483, flexible=0.82)]


def study(arm: str, seed: int, right: dict[tuple[str, str], str], **settings: Any) -> dict[str, Any]:
    """A record of the study. right: by task and way of decoding, which answers were right, as in "1101"."""
    problems = len(next(iter(right.values())))
    return {
        "kind": "study",
        "model": f"{arm}-{seed}",
        "arm": arm,
        "seed": seed,
        "settings": {"problems": problems, "threshold": 0.9, "dtype": "float32", "device": "cpu"} | settings,
        "rows": [
            {"task": task, "decoding": decoding, "right": answers, "expected_suffix": 12.4, "tokens_processed": 900}
            for (task, decoding), answers in right.items()
        ],
        "environment": {"commit": "abc1234", "hardware": {"processor": "Test(R) CPU", "cores": 2, "gpus": []}},
    }
