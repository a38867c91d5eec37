"""A run: measure a model on a task, and keep its answers, samples and record in one folder.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e      # calls `evaluate` below

The folder is results/<task>-<model>-<hash>/, where the hash covers everything that the answers and their cost depend
on. The same command therefore finds its folder again and goes on there. It holds:

    answers-0.jsonl   the journal (journal.py): one line per answer, in the order in which they were finished
    samples.jsonl     every document with its answer, target, correctness and cost, sorted by document (samples.py)
    record.json       the settings, metrics, speed and environment of the run, for `run.py table`
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance

from dpad import ROOT
from dpad.engine.answer_text import other
from dpad.engine.checks import check_integer
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import check_chat_template
from dpad.engine.settings import DecodingSettings
from dpad.evaluation.adapter import DiffusionLM, check_answering, describe_settings
from dpad.evaluation.journal import Journal, digest
from dpad.evaluation.metrics import metrics_of, speed
from dpad.evaluation.processes import ALONE, Processes
from dpad.evaluation.samples import write_samples
from dpad.evaluation.tasks import load_tasks, quiet
from dpad.results.files import write_json
from dpad.results.records import environment

# The code that an answer and its cost depend on. Changes elsewhere leave old answers usable.
ANSWERING_CODE = ("sampler.py", "dpad/engine/*.py", "llada/*.py", "dream/*.py")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what was kept and how to go on."""


def evaluate(
    loaded: LoadedModel, task: str, settings: DecodingSettings, *, tasks: dict[str, Any] | None = None,
    num_fewshot: int = 0, batch_size: int | str = 1, limit: int | None = None, chat_template: bool | None = None,
    output: str | Path = "results", name: str = "", from_scratch: bool = False, command: str | None = None,
    progress: bool | str = True, processes: Processes = ALONE, prompt_limit: int | None = None, mc_samples: int = 128,
    after_eos: str = "drop",
) -> dict[str, Any] | None:
    """Measure a model on a task; write and return the run's record.

    Args:
        loaded: the model.
        task: a task or group of this repository or of lm-eval, or the path of a task file.
        settings: how to decode, an object of `loaded.family.settings`.
        tasks: the result of `load_tasks` for this task, if it has been loaded already.
        num_fewshot: worked examples in the prompt.
        batch_size, prompt_limit, mc_samples, after_eos: see DiffusionLM. The record has the scores under both
            conventions for text after EOS, because both texts are kept.
        limit: evaluate only the first documents, this many; None takes all of them.
        chat_template: None takes the model's default.
        output: the folder in which run folders are made.
        name: of the run, in its folder's name and in its record; by default the folder's name.
        from_scratch: ignore the answers of an earlier run with the same settings, finished or not.
        command: what the record says about how to repeat the run; by default this process's command line.
        progress: whether to show a progress bar on a terminal; a string is shown beside it.
        processes: this process among those that share the run.

    Returns:
        The content of record.json, and "folder", the path of the run's folder. None in every process but the first,
        which scores the answers of all.

    Raises:
        ValueError: one sentence about a setting, task or journal that cannot be used.
        Interrupted: Ctrl-C; finished answers are in the journal.
    """
    check_run(num_fewshot, limit, batch_size, prompt_limit, mc_samples, after_eos)
    chat_template = check_chat_template(loaded, chat_template)
    description = describe_settings(
        loaded, settings, batch_size=batch_size, prompt_limit=prompt_limit, mc_samples=mc_samples
    ) | {"num_fewshot": num_fewshot, "limit": limit, "chat_template": chat_template, "after_eos": after_eos}

    with quiet():
        tasks = tasks or load_tasks(task, num_fewshot, settings.seed)
        folder = run_folder(output, name, task, loaded, description)
        with open_journal(folder, from_scratch, processes) as journal:
            lm = DiffusionLM(
                loaded, settings, batch_size=batch_size, prompt_limit=prompt_limit, mc_samples=mc_samples,
                after_eos=after_eos, journal=journal, progress=progress if processes.rank == 0 else False,
            )
            try:
                results = answer_and_score(lm, journal, tasks, processes, limit, chat_template)
            except KeyboardInterrupt:
                journal.refresh()
                raise Interrupted(f"interrupted: {len(journal.answers)} finished answers are kept in {folder}; "
                                  "the same command goes on from there") from None
            if results is None:
                return None
            other_results = results
            if any(answer.answer != answer.full_answer for answer in lm.answers.values()):
                lm.after_eos = other(after_eos)
                other_results = score(lm, tasks, limit, chat_template)

            record = {
                "kind": "evaluation",
                "name": name or folder.name,
                "task": task,
                "model": loaded.name,
                "checkpoint": _relative(loaded.checkpoint),
                "command": command or shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
                "settings": description,
                "metrics": metrics_of(results, task),
                "other_metrics": {"after_eos": other(after_eos), "metrics": metrics_of(other_results, task)},
                **speed(list(lm.answers.values()), after_eos),
                "batch_size_used": lm.batch_size_used,
                "reused": lm.reused,
                "cut_prompts": lm.cut_prompts,
                "processes": processes.count,
                "environment": environment(),
            }
            write_samples(folder / "samples.jsonl", results["samples"], lm.answers, after_eos)
            write_json(folder / "record.json", record)
    return record | {"folder": str(folder)}


def check_run(
    num_fewshot: int = 0, limit: int | None = None, batch_size: int | str = 1, prompt_limit: int | None = None,
    mc_samples: int = 128, after_eos: str = "drop",
) -> None:
    """Raise ValueError, naming the argument, its value and what is allowed, unless `evaluate` can use these."""
    check_integer("num_fewshot", num_fewshot, 0)
    if limit is not None:
        check_integer("limit", limit, 1)
    check_answering(batch_size, prompt_limit, mc_samples, after_eos)


# --- Several processes ------------------------------------------------------------------------------------------------


def open_journal(folder: Path, from_scratch: bool, processes: Processes) -> Journal:
    """The journal, opened by all processes before any of them answers, so that all see the same answers in it."""
    if processes.rank == 0:
        journal = Journal(folder, from_scratch=from_scratch)
    processes.wait()  # the first process decides whether the folder is in use, and deletes old answers
    if processes.rank > 0:
        journal = Journal(folder, processes.rank)
    processes.wait()  # every process has cut off its unfinished line
    journal.refresh()
    processes.wait()  # nobody writes before all have read: what is unanswered then is what they share out
    return journal


def answer_and_score(
    lm: DiffusionLM, journal: Journal, tasks: dict[str, Any], processes: Processes, limit: int | None,
    chat_template: bool,
) -> dict[str, Any] | None:
    """lm-eval's results; None in every process but the first.

    Several processes each answer their share of the requests before lm-eval's evaluator runs, which works alone: in the
    first process it then finds all the answers in the journal.
    """
    if processes.count > 1:
        for kind, instances in build_requests(lm, tasks, limit, chat_template).items():
            lm.answer(kind, instances, processes)
        processes.wait()
        journal.refresh()
    return score(lm, tasks, limit, chat_template) if processes.rank == 0 else None


def score(lm: DiffusionLM, tasks: dict[str, Any], limit: int | None, chat_template: bool) -> dict[str, Any]:
    """lm-eval's results for the answers that the model has, or gives now."""
    for task in tasks["tasks"].values():  # the evaluator builds the requests again, from the same few-shot examples
        task.set_fewshot_seed(seed=lm.settings.seed)
    return evaluator.evaluate(lm, tasks, limit=limit, apply_chat_template=chat_template, fewshot_as_multiturn=False)


def build_requests(
    lm: DiffusionLM, tasks: dict[str, Any], limit: int | None, chat_template: bool
) -> dict[str, list[Instance]]:
    """The requests that `evaluator.evaluate` would make of this model, by kind: built as it builds them."""
    requests: dict[str, list[Instance]] = defaultdict(list)
    for task in tasks["tasks"].values():
        task.build_all_requests(
            limit=limit,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=False,
            chat_template=lm.apply_chat_template if chat_template else None,
            tokenizer_name=lm.tokenizer_name if chat_template else "",
        )
        for instance in task.instances:
            requests[instance.request_type] += [instance] * instance.repeats
    return requests


# --- Identity ---------------------------------------------------------------------------------------------------------


def run_folder(
    output: str | Path, name: str, task: str, loaded: LoadedModel, description: dict[str, Any]
) -> Path:
    """Where a run lives: the same folder for the same answers at the same cost.

    `limit` is left out of the identity, so that a run can be extended to more documents; `after_eos` as well, because
    the answers are the same and the record has both scores.
    """
    depends_on = {key: value for key, value in description.items() if key not in ("limit", "after_eos")}
    identity = digest([task, fingerprint(loaded), depends_on, code_version()], 10)
    task_name = Path(task).stem if task.endswith(".yaml") else task
    parts = [name, task_name, Path(loaded.name).name, identity]
    return Path(output) / "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts if part)


def fingerprint(loaded: LoadedModel) -> list[Any]:
    """What identifies a checkpoint: the hub's commit, or the names, sizes and times of a folder's files."""
    folder = Path(loaded.checkpoint)
    if not folder.is_dir():
        return [loaded.checkpoint, getattr(loaded.model.config, "_commit_hash", None)]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja"))
    return [str(folder.resolve()), [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]]


def code_version() -> str:
    """A hash of the source files that an answer and its cost depend on."""
    files = sorted({path for pattern in ANSWERING_CODE for path in ROOT.glob(pattern)})
    content = b"".join(str(path.relative_to(ROOT)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


def _relative(checkpoint: str) -> str:
    """A folder inside the repository by its path there, so that records do not tell where a clone lies."""
    path = Path(checkpoint)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else checkpoint
