"""A run: measure a model on a task, and keep its answers, samples and record in one folder.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e      # calls `evaluate` below

The folder is results/<task>-<model>-<hash>/, where the hash covers everything that the answers and their cost depend
on. The same command therefore finds its folder again and goes on there. It holds:

    run.json          what the hash covers, so that a later run with other settings can say what differs
    answers-0.jsonl   the journal (journal.py): one line per answer, in the order in which they were finished
    samples.jsonl     every document with its answer, target, correctness and cost, sorted by document (samples.py)
    record.json       the settings, metrics, speed and environment of the run, for `run.py table`
"""

from __future__ import annotations

import bisect
import glob
import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from tqdm import tqdm

from dpad.engine.adapters import describe_adapter
from dpad.engine.answer_text import other
from dpad.engine.checkpoint import relative_to_root
from dpad.engine.checks import check_integer, one_line
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import PromptTooLong, check_chat_template
from dpad.engine.settings import DecodingSettings
from dpad.evaluation import sandbox
from dpad.evaluation.adapter import DiffusionLM, check_answering, describe_settings
from dpad.evaluation.identity import code_version, fingerprint
from dpad.evaluation.journal import Journal, digest
from dpad.evaluation.metrics import metrics_of, speed
from dpad.evaluation.processes import ALONE, Processes
from dpad.evaluation.samples import write_samples
from dpad.evaluation.tasks import load_tasks, quiet
from dpad.results import files
from dpad.results.files import write_json
from dpad.results.records import environment

MAX_DIFFERENCES = 4  # from an earlier run, that a note names


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what was kept and how to go on."""


def evaluate(
    loaded: LoadedModel, task: str, settings: DecodingSettings, *, tasks: dict[str, Any] | None = None,
    num_fewshot: int = 0, batch_size: int | str = 1, limit: int | None = None, chat_template: bool | None = None,
    output: str | Path = "results", name: str = "", from_scratch: bool = False, command: str | None = None,
    progress: bool | str | tqdm = True, processes: Processes = ALONE, prompt_limit: int | None = None,
    mc_samples: int = 128, after_eos: str = "drop", note: Callable[[str], None] | None = None,
    isolation: str | None = None, rehearse: bool = False, fewshot_seed: int | None = None,
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
        progress: whether to show a progress bar on a terminal; a string is shown beside it. A bar is moved on instead.
        processes: this process among those that share the run.
        note: called with a sentence where a new run begins beside an earlier one of other settings, or the run's record
            is replaced by one of fewer samples.
        isolation: the least that is accepted for tasks that run the model's programs, one of sandbox.LEVELS; None is
            the default, sandbox.DEFAULT_LEVEL.
        rehearse: before the first answer that counts, give it once without counting it, so that everything is warm.
        fewshot_seed: draws the worked examples; None takes the settings' seed.

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
    if fewshot_seed not in (None, settings.seed):
        description["fewshot_seed"] = fewshot_seed

    sandbox.require_level(isolation)
    with quiet():
        seed = settings.seed if fewshot_seed is None else fewshot_seed
        tasks = tasks or load_tasks(task, num_fewshot, seed)
        draw_examples(tasks, seed)
        isolated = isolation_of(tasks, task, isolation)
        folder = run_folder(output, name, task, loaded, description)
        own = identity(task, loaded, description)
        earlier = describe_earlier_run(folder, own) if processes.rank == 0 else None
        with open_journal(folder, from_scratch, processes) as journal:
            if processes.rank == 0:
                write_json(folder / "run.json", own)
            if earlier and note and not journal.answers:
                note(earlier)
            lm = DiffusionLM(
                loaded, settings, batch_size=batch_size, prompt_limit=prompt_limit, mc_samples=mc_samples,
                after_eos=after_eos, journal=journal, progress=progress if processes.rank == 0 else False,
                rehearse=rehearse,
            )
            lm.fewshot_seed = seed
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
                "checkpoint": relative_to_root(loaded.checkpoint),
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
            } | isolated | describe_adapter(loaded.adapter)
            if note and (fewer := describe_fewer_samples(folder, record["samples"])):
                note(fewer)
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


def isolation_of(tasks: dict[str, Any], name: str, level: str | None) -> dict[str, str]:
    """For a record, how the programs of a task that runs any are isolated; empty for other tasks.

    level: what was asked for.

    Raises:
        ValueError: this machine offers less, or a level was asked for without need.
    """
    if any(getattr(task.config.process_results, "runs_programs", False) for task in tasks["tasks"].values()):
        return {"isolation": sandbox.check_level().describe()}
    if level is not None:
        raise ValueError(f"isolation {level!r} means nothing for task {name!r}, which runs no programs")
    return {}


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
    try:
        if processes.count > 1:
            requests = [
                request for kind, instances in build_requests(lm, tasks, limit, chat_template).items()
                for request in lm.answer(kind, instances, processes)
            ]
            processes.wait()
            journal.refresh()
            missing = sum(request.key not in journal.answers for request in requests)
            if missing:
                raise ValueError(f"{missing} answers of other processes are missing in {journal.folder}: their "
                                 "journals were deleted while the run was writing them. The same command gives these "
                                 "answers again")
        return score(lm, tasks, limit, chat_template) if processes.rank == 0 else None
    except PromptTooLong as error:
        count = max(task.config.num_fewshot or 0 for task in tasks["tasks"].values())
        fitting = count_fitting_examples(lm, tasks, count, limit, chat_template)
        if fitting is None:
            raise
        raise ValueError(f"{error}; num_fewshot is {count}, and {fitting} worked examples would fit") from None


def score(lm: DiffusionLM, tasks: dict[str, Any], limit: int | None, chat_template: bool) -> dict[str, Any]:
    """lm-eval's results for the answers that the model has, or gives now."""
    draw_examples(tasks, lm.fewshot_seed)  # the evaluator builds the requests again
    return evaluator.evaluate(lm, tasks, limit=limit, apply_chat_template=chat_template, fewshot_as_multiturn=False)


def draw_examples(tasks: dict[str, Any], seed: int) -> None:
    """Let the tasks draw their worked examples anew from this seed, when requests are built next."""
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=seed)


def count_fitting_examples(
    lm: DiffusionLM, tasks: dict[str, Any], too_many: int, limit: int | None, chat_template: bool
) -> int | None:
    """With how many worked examples, less than `too_many`, all prompts leave room for the answer; None if with none."""

    def fits(count: int) -> bool:
        for task in tasks["tasks"].values():
            task.set_config(key="num_fewshot", value=count)
        draw_examples(tasks, lm.fewshot_seed)
        try:
            for kind, instances in build_requests(lm, tasks, limit, chat_template).items():
                lm.prepare(kind, instances)
        except PromptTooLong:
            return False
        return True

    # The smallest number that does not fit, minus one. More examples are not always the same ones and another, so that
    # a number between may fit or not; the one that is found does fit.
    return bisect.bisect_left(range(too_many), True, key=lambda count: not fits(count)) - 1 if fits(0) else None


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
    """Where a run lives: the same folder for the same answers at the same cost."""
    stem = "-".join(_name_parts(name, task, loaded))
    return Path(output) / f"{stem}-{digest(identity(task, loaded, description), 10)}"


def _name_parts(name: str, task: str, loaded: LoadedModel) -> list[str]:
    task_name = Path(task).stem if task.endswith(".yaml") else task
    parts = [name, task_name, Path(loaded.name).name]
    return [re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts if part]


def identity(task: str, loaded: LoadedModel, description: dict[str, Any]) -> dict[str, Any]:
    """What a run's answers and their cost depend on: the content of run.json.

    `limit` is left out, so that a run can be extended to more documents; `after_eos` as well, because the answers are
    the same and the record has both scores.
    """
    return {
        "kind": "run",
        "task": task,
        "checkpoint": fingerprint(loaded.checkpoint, getattr(loaded.model.config, "_commit_hash", None)),
        "settings": {key: value for key, value in description.items() if key not in ("limit", "after_eos")},
        "code": code_version(),
    } | ({"adapter": loaded.adapter.sha256} if loaded.adapter else {})


def describe_earlier_run(folder: Path, own: dict[str, Any]) -> str | None:
    """A sentence about the run most like this one beside its folder, which the same name, task and model share.

    None where there is no such run, or this one has begun already.

    Args:
        folder: this run's. own: its `identity`.
    """
    if (folder / "run.json").exists():
        return None
    stem = folder.name.rpartition("-")[0]
    found = []
    for path in sorted(folder.parent.glob(f"{glob.escape(stem)}-*/run.json")):
        has_answers = any(file.stat().st_size for file in path.parent.glob("answers-*.jsonl"))
        if not has_answers or not re.fullmatch(r"[0-9a-f]{10}", path.parent.name.removeprefix(f"{stem}-")):
            continue
        try:
            found.append((_differences(files.read_json(path), own), path.parent))
        except ValueError:
            continue  # nothing depends on it
    if not found:
        return None
    differences, place = min(found, key=lambda entry: len(entry[0]))
    if len(differences) > MAX_DIFFERENCES:
        differences[MAX_DIFFERENCES:] = [f"{len(differences) - MAX_DIFFERENCES} more differences"]
    return f"a new run begins; the answers in {place} are of {', '.join(differences) or 'other settings'}"


def describe_fewer_samples(folder: Path, samples: int) -> str | None:
    """A sentence about a record in a run's folder that one of fewer samples is about to replace; None without one."""
    try:
        earlier = files.read_json(folder / "record.json").get("samples", 0)
        fewer = samples < earlier
    except (ValueError, AttributeError, TypeError):  # there is none, or none that this program wrote
        return None
    return (f"the record in {folder} was of {earlier} samples and is now of {samples}; all answers are kept, and the "
            "same command with the former --limit brings it back") if fewer else None


def _differences(earlier: Any, own: dict[str, Any]) -> list[str]:
    """What another run's identity has in place of this one's, in words."""
    if not isinstance(earlier, dict) or not isinstance(earlier.get("settings"), dict):
        raise ValueError("not the identity of a run")
    settings = earlier["settings"]
    words = [
        f"{name} {one_line(json.dumps(settings.get(name)), 60)} instead of {json.dumps(value)}"
        for name, value in own["settings"].items() if digest(settings.get(name)) != digest(value)
    ]
    names = {"task": "another task", "checkpoint": "other files of the checkpoint", "code": "another version of this "
             "program"}
    return words + [text for key, text in names.items() if digest(earlier.get(key)) != digest(own[key])]
