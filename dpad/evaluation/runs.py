"""A run of an evaluation."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path

from lm_eval import evaluator

from dpad import ROOT
from dpad.engine.completion import check_chat_template
from dpad.engine.loading import LoadedModel
from dpad.evaluation.adapter import DiffusionLM, _Answered, check_counts
from dpad.evaluation.journal import Journal, digest
from dpad.evaluation.metrics import metrics_of, speed
from dpad.evaluation.processes import ALONE, Processes
from dpad.evaluation.samples import write_samples
from dpad.evaluation.tasks import load_tasks, quiet
from dpad.results import records

# What an answer and its cost depend on; other files can change without making a journal's answers foreign.
ANSWERING_CODE = ("sampler.py", "dpad/engine/*.py", "*/configuration.py", "*/modeling.py", "*/generate.py")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; the message says what is kept and how to go on."""


def evaluate(
    loaded: LoadedModel, task: str, *, num_fewshot: int = 0, batch_size: int | str = 1, limit: int | None = None,
    chat_template: bool | None = None, output: str | Path = "results", name: str = "", from_scratch: bool = False,
    command: str | None = None, progress: bool | str = True, tasks: dict | None = None,
    processes: Processes = ALONE, prompt_limit: int | None = None, mc_samples: int = 128, **options,
) -> dict | None:
    """Measure a model on a task; write and return the run's record.

    Args:
        loaded: a models.LoadedModel.
        task: a task or group of this repository or of lm-eval, or the path of a task file.
        num_fewshot: worked examples in the prompt.
        batch_size: requests per generate call, or "auto": as many as memory allows.
        limit: documents to use, the first ones (None: all).
        chat_template: None takes the model's default.
        output: the folder that run folders are made in.
        name: of the run, in its folder's name and record; by default the folder's name.
        from_scratch: ignore answers of an earlier, unfinished or finished run with the same settings.
        command: what the record says about how to repeat it; by default this process's command line.
        progress: show a progress bar on a terminal; a text is its label.
        tasks: what `load_tasks` gave for this task, by a caller who wanted its errors before loading a model.
        processes, prompt_limit, mc_samples: see DiffusionLM.
        options: decoding settings, the keyword arguments of the model's `generate`.

    Returns:
        The record as it stands in record.json, and "folder", the path of the run's folder. None in every process but
        the first, which scores the answers of all.

    Raises:
        ValueError: one sentence on a setting, task or journal that cannot be used.
        Interrupted: Ctrl-C; finished answers are in the journal.
    """
    check_counts(num_fewshot=num_fewshot, limit=limit)
    chat_template = check_chat_template(loaded, chat_template)
    lm = DiffusionLM(loaded, options, batch_size=batch_size, progress=progress if processes.rank == 0 else False,
                     processes=processes, prompt_limit=prompt_limit, mc_samples=mc_samples)
    settings = lm.settings | {"num_fewshot": num_fewshot, "limit": limit, "chat_template": chat_template}
    with quiet():
        tasks = tasks or load_tasks(task, num_fewshot, settings["seed"])
        folder = run_folder(output, name, task, loaded, settings)
        lm.kinds = {"generate_until" if entry.OUTPUT_TYPE == "generate_until" else "loglikelihood"
                    for entry in tasks["tasks"].values()}
        with open_journal(folder, from_scratch, processes) as lm.journal:
            try:
                results = evaluator.evaluate(
                    lm, tasks, limit=limit, apply_chat_template=chat_template, fewshot_as_multiturn=False
                )
            except _Answered:
                return None
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted: {len(lm.journal.read())} finished answers are kept in {folder}; "
                                  "the same command goes on from there") from None
            record = {
                "kind": "evaluation", "name": name or folder.name, "task": task, "model": loaded.name,
                "checkpoint": _relative(loaded.checkpoint),
                "command": command or shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
                "settings": settings, "metrics": metrics_of(results, task), **speed(list(lm.answers.values())),
                "batch_size_used": lm.batch_size_used, "reused": lm.reused, "cut_prompts": lm.cut_prompts,
                "processes": processes.count, "environment": records.environment(),
            }
            write_samples(folder / "samples.jsonl", results["samples"], lm.answers)
            records.write_json(folder / "record.json", record)
    return record | {"folder": str(folder)}


def open_journal(folder: Path, from_scratch: bool, processes: Processes) -> Journal:
    """The journal, opened by all processes before any of them answers, so that all see the same answers in it.

    The first process opens first: whether the folder is in use is its to say, and the files its to empty.
    """
    if processes.rank:
        processes.wait()
    journal = Journal(folder, processes.rank, from_scratch and processes.rank == 0)
    if not processes.rank:
        processes.wait()
    processes.wait()
    journal.answers = journal.read()
    processes.wait()  # nobody writes before all have read: they share out what is not answered yet
    return journal


def run_folder(output: str | Path, name: str, task: str, loaded: LoadedModel, settings: dict) -> Path:
    """Where a run lives: the same for the same answers at the same cost. `limit` is left out: a run may be extended."""
    depends_on = {key: value for key, value in settings.items() if key != "limit"}
    identity = [task, fingerprint(loaded), depends_on, code_version()]
    parts = [name, Path(task).stem if task.endswith(".yaml") else task, Path(loaded.name).name, digest(identity, 10)]
    return Path(output) / "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts if part)


def fingerprint(loaded: LoadedModel) -> list:
    """What tells a checkpoint from others: the hub's commit, or names, sizes and times of a folder's files."""
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
