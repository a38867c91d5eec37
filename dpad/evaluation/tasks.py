"""The tasks that an evaluation can measure a model on."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import datasets
import lm_eval.api.task
from lm_eval.tasks import TaskManager

from dpad import ROOT

TASK_FOLDER = ROOT / "dataset" / "tasks"


def load_tasks(name: str, num_fewshot: int = 0, seed: int = 1234) -> dict:
    """A task or group by name, or a task file by path, as TaskManager.load gives it.

    The repository's own tasks are looked up first and need neither lm-eval's index (seconds) nor the network.

    Raises:
        ValueError: there is no such task, it is not a generation task, or its data or packages cannot be had.
    """
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
    own = manager.all_tasks
    if name.endswith(".yaml"):
        if not Path(name).is_file():
            raise ValueError(f"there is no task file {name!r}")
    elif name not in own:
        manager = TaskManager()
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, [*own, *manager.all_tasks], n=4, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists lm-eval's"
            raise ValueError(f"there is no task {name!r}: {hint} Tasks that need no network: {', '.join(own)}")
    try:
        with quiet():
            loaded = manager.load([name])
    except ModuleNotFoundError as error:
        raise ValueError(f"task {name!r} needs the Python package {error.name!r}, which is not installed") from error
    except ValueError:
        raise
    except Exception as error:  # the hub's client raises OSErrors, its own and httpx's: all mean "no data"
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"task {name!r} could not get its data; is the Hugging Face hub out of reach? "
                         f"({type(error).__name__}: {reason}) Tasks that need no network: {', '.join(own)}") from error
    for task_name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise ValueError(f"task {task_name!r} asks for log-likelihoods of whole documents, which are not supported")
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {task_name!r} would run code that the model wrote, inside this process: refused")
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return loaded


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval and the hub's client from printing what a person evaluating does not need; errors stay."""
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    levels, bar = [logger.level for logger in loggers], lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
