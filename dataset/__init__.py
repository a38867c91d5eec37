"""Problems: the files of this folder, the programs that make or fetch them, and tasks/, lm-eval's tasks about them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from dpad.engine import hub
from dpad.engine.checks import one_line

if TYPE_CHECKING:
    import datasets

GSM8K = ("openai/gsm8k", "main")  # its id on the hub and its configuration


def read_problems(name: str) -> list[dict]:
    """The problems of a .jsonl file in this folder, one JSON object each."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def fetch_rows(hub_id: str, configuration: str | None, split: str) -> datasets.Dataset:
    """One split of a data set, from the hub or the hub's local cache.

    Raises:
        ValueError: the hub is out of reach and the cache does not hold the data set, the data set has no such
            configuration or split, or the package datasets is not installed; in one sentence.
    """
    try:
        import datasets  # here, because it takes a second and most of what uses this module does not need it
    except ModuleNotFoundError as error:
        raise ValueError(f"{hub_id} needs the Python package {error.name!r}, which is not installed") from error

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # otherwise it reports every retry
    try:
        with hub.offline_if_unreachable():
            return datasets.load_dataset(hub_id, configuration, split=split)
    except Exception as error:  # the libraries underneath raise many unrelated kinds, especially offline
        reason = one_line(str(error) or type(error).__name__)
        hint = "" if hub.is_reachable() else "; is this machine online?"
        raise ValueError(f"{hub_id} could not be fetched from the hub ({reason}){hint}") from error
