"""The tasks that a model is measured on: this repository's own (dataset/tasks/), lm-eval's, or a task file.

    python run.py -t arithmetic-50 -m tiny              # one of our own: offline
    python run.py -t gsm8k -m instruct                  # one of lm-eval's: its data come from the hub
    python run.py -t my_task.yaml -m tiny
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.tasks import TaskManager

from dpad import ROOT

TASK_FOLDER = ROOT / "dataset" / "tasks"


def load_tasks(name: str, num_fewshot: int = 0, seed: int = 1234) -> dict[str, Any]:
    """A task or group by name, or a task file by path, in the form of TaskManager.load.

    The repository's own tasks are looked up first and need neither lm-eval's index (seconds) nor the network.

    Raises:
        ValueError: there is no such task, this repository cannot run it, or its data or packages are missing.
    """
    own = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
    offline = f"Tasks that need no network: {', '.join(own.all_tasks)}"
    is_file = name.endswith(".yaml")
    if is_file and not Path(name).is_file():
        raise ValueError(f"there is no task file {name!r}")

    manager = own if is_file or name in own.all_tasks else TaskManager()
    if not is_file and name not in manager.all_tasks:
        close = difflib.get_close_matches(name, [*own.all_tasks, *manager.all_tasks], n=4, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists lm-eval's."
        raise ValueError(f"there is no task {name!r}: {hint} {offline}")

    try:
        with quiet():
            loaded = manager.load([name])
    except ModuleNotFoundError as error:
        raise ValueError(f"task {name!r} needs the Python package {error.name!r}, which is not installed") from error
    except ValueError:
        raise
    except Exception as error:  # the hub's client raises OSErrors, its own and httpx's: all of them mean "no data"
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"task {name!r} could not get its data; is the Hugging Face hub out of reach? "
                         f"({type(error).__name__}: {reason}) {offline}") from error

    for task_name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise ValueError(f"task {task_name!r} asks for log-likelihoods of whole documents, which are not supported")
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {task_name!r} would run code that the model wrote inside this process, which is "
                             "not supported")
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return loaded


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval and the hub's client; errors are still printed."""
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    progress_bar = lm_eval.api.task.tqdm

    for logger in loggers:
        logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(progress_bar, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = progress_bar
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
