"""The tasks that a model is measured on: this repository's own (dataset/tasks/), lm-eval's, or a task file.

    python run.py -t arithmetic-50 -m tiny              # one of our own: offline
    python run.py -t gsm8k -m instruct                  # one of lm-eval's: its data come from the hub
    python run.py -t my_task.yaml -m tiny
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.tasks import TaskManager

from dpad import ROOT
from dpad.engine import hub
from dpad.engine.checks import suggest

TASK_FOLDER = ROOT / "dataset" / "tasks"


def load_tasks(name: str, num_fewshot: int = 0, seed: int = 1234) -> dict[str, Any]:
    """A task or group by name, or a task file by path, in the form of TaskManager.load.

    The repository's own tasks are looked up first and need neither lm-eval's index (seconds) nor, most of them, the
    network.

    Raises:
        ValueError: there is no such task, this repository cannot run it, its data or packages are missing, or it has
            too few worked examples.
    """
    own = own_tasks()
    is_file = name.endswith(".yaml")
    if is_file and not Path(name).is_file():
        raise ValueError(f"there is no task file {name!r}")

    manager = own if is_file or name in own.all_tasks else TaskManager()
    if not is_file and name not in manager.all_tasks:
        hint = suggest(name, [*own.all_tasks, *manager.all_tasks], count=4)
        raise ValueError(f"there is no task {name!r}{hint}" if hint else
                         f"there is no task {name!r}; this repository has {', '.join(own.all_tasks)}, and "
                         "`lm-eval ls tasks` lists lm-eval's")

    try:
        with quiet(), hub.offline_if_unreachable():
            loaded = manager.load([name])
    except ModuleNotFoundError as error:
        raise ValueError(f"task {name!r} needs the Python package {error.name!r}, which is not installed") from error
    except ValueError:
        raise
    except Exception as error:  # the hub's client raises OSErrors, its own and httpx's: all of them mean "no data"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if not hub.is_reachable():
            reason = "they are not in the local cache, and the hub is out of reach"
        raise ValueError(f"task {name!r} could not get its data: {reason}. {offline_hint()}") from error

    for task_name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise ValueError(f"task {task_name!r} asks for log-likelihoods of whole documents, which are not supported")
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {task_name!r} would run code that the model wrote inside this process, which is "
                             "not supported")
        check_fewshot(task_name, task, num_fewshot)
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return loaded


def own_tasks() -> TaskManager:
    """The tasks of this repository."""
    return TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)


def offline_hint() -> str:
    """Which of the repository's tasks have their data here, in the repository or in the hub's cache: they are tried."""
    manager = own_tasks()
    names = []
    with quiet(), hub.offline():
        for name in manager.all_tasks:
            with contextlib.suppress(Exception):  # whatever is missing: data, or a package
                manager.load([name])
                names.append(name)
    return f"Tasks that need no network: {', '.join(names)}"


def check_fewshot(name: str, task: Any, count: int) -> None:
    """Raise ValueError when a task has fewer worked examples than a prompt shall hold."""
    documents = getattr(getattr(task, "sampler", None), "df", None)
    if count and documents is not None:
        # A document is not an example of itself, where both come from the same split.
        available = len(documents) - (task.fewshot_cfg.split == task.config.test_split)
        if count > available:
            raise ValueError(f"num_fewshot is {count}; task {name!r} has {max(0, available)} worked examples")


def output_types(loaded: dict[str, Any]) -> set[str]:
    """What the tasks ask of a model: lm-eval's "generate_until", "multiple_choice" or "loglikelihood"."""
    return {task.OUTPUT_TYPE for task in loaded["tasks"].values()}


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
