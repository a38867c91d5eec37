"""The lm-eval adapter that all models share: requests in, a journal of answers, metrics out, one record per run.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e      # calls `evaluate` below

A run is a folder, results/<task>-<model>-<hash>/, where the hash covers all that the answers and their cost depend on:

    answers-0.jsonl   the journal (journal.py): one line per request as it finishes, in the order of finishing
    samples.jsonl     every document with its answer, target, correctness and cost, sorted by document
    record.json       the settings, metrics, speed and environment of the run, for report.py

Conventions that the published numbers were measured with: stop strings cut LLaDA's text, but not for HumanEval with the
chat template; few-shot examples stand in one user turn; every request starts from the run's seed, so its answer does
not depend on the order, the batch or an interruption. Speed is counted as completion.py says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lm_eval.api.task
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

import records
from completion import (
    check_chat_template,
    check_prompt,
    complete,
    describe_decoding,
    is_out_of_memory,
    release_memory,
    warm_up,
)
from journal import Journal, digest
from models import FAMILIES, LoadedModel

ROOT = Path(__file__).resolve().parent
TASK_FOLDERS = [ROOT / "dataset" / "tasks", ROOT / "demo"]
# What an answer and its cost depend on; other files can change without making a journal's answers foreign.
ANSWERING_CODE = ("sampler.py", "transformer.py", "graphs.py", "decoding.py", "models.py", "completion.py",
                  "*/configuration.py", "*/modeling.py", "*/generate.py")
PROBLEM = ("task_id", "prompt", "entry_point", "test", "test_list", "test_imports", "test_setup_code")
FIRST_BATCH = {"cuda": 64, "cpu": 16}  # what batch_size "auto" tries first


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; the message says what is kept and how to go on."""


# --- The adapter ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """A request of lm-eval with what its answer depends on; `key` names it in the journal."""

    key: str
    task: str
    doc_id: int
    repeat: int
    prompt: str
    until: tuple[str, ...]
    options: dict


class DiffusionLM(LM):
    """A loaded masked diffusion model as lm-eval sees it, for generation tasks.

    Args:
        loaded: a models.LoadedModel.
        options: keyword arguments of its `generate`; a task's own generation settings do not change them, but for the
            stop strings.
        batch_size: requests per generate call; "auto" begins with FIRST_BATCH and takes half as many whenever memory
            runs out.
        journal: where finished answers are kept and found; None keeps them in memory.
        progress: show a progress bar where standard error is a terminal; a text is its label.

    Attributes:
        batch_size_used: the size of batches at the end: with "auto", what it came down to.
        settings: all that an answer and its cost depend on besides the prompt and the checkpoint, in JSON's types.
        answers: dict from (task, doc_id, repeat) to the answer of the journal's form, of all requests so far.
    """

    def __init__(self, loaded: LoadedModel, options: dict, *, batch_size: int | str = 1,
                 journal: Journal | None = None, progress: bool | str = True):
        super().__init__()
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1
        if not whole and batch_size != "auto":
            raise ValueError(f'batch_size is {batch_size!r}; it must be an integer of at least 1, or "auto"')
        self._device = loaded.model.device
        self.loaded, self.options, self.batch_size = loaded, options, batch_size
        self.batch_size_used = FIRST_BATCH.get(self._device.type, 16) if batch_size == "auto" else batch_size
        self.settings = describe_decoding(loaded.generate, options) | {
            "batch_size": batch_size, "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": str(loaded.model.device),
        }
        self.journal, self.progress = journal, progress
        self.answers: dict[tuple[str, int, int], dict] = {}
        self.reused = 0
        self.in_chat = False  # until lm-eval asks for the chat template; it does so for all prompts or for none

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, in their order; requests that the journal holds are not generated again."""
        prepared = self._prepare(requests)
        known = dict(self.journal.answers) if self.journal else {}
        todo = [request for request in prepared if request.key not in known]
        done = len(prepared) - len(todo)
        self.reused += done
        if todo:
            warm_up(self.loaded, todo[0].prompt, self.settings["gen_length"])
        hide = True if disable_tqdm or not self.progress else None  # None: shown on a terminal
        tokens = seconds = 0
        label = self.progress if isinstance(self.progress, str) else None
        with tqdm(total=len(prepared), initial=done, unit="sample", desc=label, disable=hide) as bar:
            while todo:
                batch = _first_batch(todo, self.batch_size_used)
                answers = self._answer(batch)
                if answers is None:  # memory ran out
                    self.batch_size_used = (len(batch) + 1) // 2
                    continue
                del todo[: len(batch)]
                for answer in answers:
                    known[answer["key"]] = answer
                    tokens, seconds = tokens + answer["tokens"], seconds + answer["seconds"]
                bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
                bar.update(len(batch))
        for request in prepared:
            self.answers[request.task, request.doc_id, request.repeat] = known[request.key]
        return [known[request.key]["answer"] for request in prepared]

    def _prepare(self, requests: list[Instance]) -> list[_Request]:
        """Check all prompts before the first is answered; number the repeats of a document."""
        seen: Counter = Counter()
        prepared = []
        for instance in requests:
            prompt, arguments = instance.args[:2]
            repeat = seen[id(instance)]
            seen[id(instance)] += 1
            try:
                prompt = prompt if self.in_chat else self.loaded.raw(prompt)
                check_prompt(self.loaded, prompt, self.settings["gen_length"])
            except ValueError as error:
                raise ValueError(f"{instance.task_name}, document {instance.doc_id}: {error}") from None
            # The first answer to a document uses the run's seed; a task that asks again wants another draw.
            options = self.options | {"seed": self.settings["seed"] + repeat}
            until = self._stop_strings(instance, arguments)
            key = digest([instance.task_name, instance.doc_id, repeat, prompt, until, self.settings])
            prepared.append(_Request(key, instance.task_name, instance.doc_id, repeat, prompt, until, options))
        return prepared

    def _stop_strings(self, instance: Instance, arguments: dict) -> tuple[str, ...]:
        if not FAMILIES[self.loaded.family].stop_strings:
            return (self.loaded.tokenizer.eos_token,)
        until = arguments.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        names = str(instance.task_name), str(instance.doc.get("task_id"))
        if self.in_chat and any(name.lower().startswith("humaneval") for name in names):
            return ()  # its stop strings, such as "\ndef", would cut a reply before the code that it explains
        return until

    def _answer(self, batch: list[_Request]) -> list[dict] | None:
        """Answer a batch and write it into the journal; None when memory ran out and a smaller batch may fit."""
        try:
            completions = complete(self.loaded, [request.prompt for request in batch], batch[0].options,
                                   batch[0].until)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            completions = None  # the error holds on to what was allocated: go on when it is gone
        if completions is None:
            if self.batch_size != "auto" or len(batch) == 1:
                raise ValueError(f"memory ran out on {len(batch)} prompt{'s' * (len(batch) > 1)} at once; finished "
                                 "answers are kept. Take --batch_size auto, a shorter answer or a smaller dtype")
            release_memory()
            return None
        answers = [
            {
                "key": request.key, "task": request.task, "doc_id": request.doc_id, "repeat": request.repeat,
                "answer": completion.text, "raw": completion.raw, "forwards": completion.forwards,
                "tokens": completion.tokens, "seconds": completion.seconds,
                "tokens_processed": completion.tokens_processed,
            }
            for request, completion in zip(batch, completions, strict=True)
        ]
        for answer in answers if self.journal else ():
            self.journal.append(answer)
        return answers

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("only generation tasks are supported, and this one asks for log-likelihoods")

    loglikelihood_rolling = loglikelihood

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        check_chat_template(self.loaded, True)
        self.in_chat = True
        return self.loaded.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    @property
    def tokenizer_name(self) -> str:
        return self.loaded.checkpoint.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.loaded.tokenizer.chat_template if chat_template else None

    def get_model_info(self) -> dict:
        """For the results file of lm-eval's own command line: the settings and what generation cost."""
        return {"decoding": self.settings, "speed": speed(list(self.answers.values()))}


def _first_batch(requests: Sequence[_Request], size: int) -> list[_Request]:
    """The first requests, `size` at most, that share seed and stop strings."""
    first = requests[0]
    alike = itertools.takewhile(
        lambda request: (request.repeat, request.until) == (first.repeat, first.until), requests[:size]
    )
    return list(alike)


def speed(answers: Sequence[dict]) -> dict:
    """Means over answers: `latency_s` and its median (seconds a sample), `tps` (tokens a second), `nfe`, and totals."""
    seconds, tokens = [answer["seconds"] for answer in answers], sum(answer["tokens"] for answer in answers)
    total = sum(seconds)
    return {
        "samples": len(answers),
        "latency_s": statistics.fmean(seconds) if answers else None,
        "latency_median_s": statistics.median(seconds) if answers else None,
        "tps": tokens / total if total else None,
        "nfe": statistics.fmean(answer["forwards"] for answer in answers) if answers else None,
        "answer_tokens": tokens,
        "seconds": total,
        "tokens_processed": sum(answer["tokens_processed"] for answer in answers),
        "empty_answers": sum(not answer["answer"].strip() for answer in answers),
    }


# --- Tasks ------------------------------------------------------------------------------------------------------------


def load_tasks(name: str, num_fewshot: int = 0, seed: int = 1234) -> dict:
    """A task or group by name, or a task file by path, as TaskManager.load gives it.

    The repository's own tasks are looked up first and need neither lm-eval's index (seconds) nor the network.

    Raises:
        ValueError: there is no such task, it is not a generation task, or its data or packages cannot be had.
    """
    folders = [str(folder) for folder in TASK_FOLDERS if folder.is_dir()]
    manager = TaskManager(include_path=folders, include_defaults=False)
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
        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(f"task {task_name!r} asks for log-likelihoods; only generation tasks are supported")
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"task {task_name!r} would run code that the model wrote, inside this process: refused")
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return loaded


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval and the hub's client from printing what a person evaluating does not need; errors stay."""
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


# --- A run ------------------------------------------------------------------------------------------------------------


def evaluate(
    loaded: LoadedModel, task: str, *, num_fewshot: int = 0, batch_size: int | str = 1, limit: int | None = None,
    chat_template: bool | None = None, output: str | Path = "results", name: str = "", from_scratch: bool = False,
    command: str | None = None, progress: bool | str = True, tasks: dict | None = None, **options,
) -> dict:
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
        options: decoding settings, the keyword arguments of the model's `generate`.

    Returns:
        The record as it stands in record.json, and "folder", the path of the run's folder.

    Raises:
        ValueError: one sentence on a setting, task or journal that cannot be used.
        Interrupted: Ctrl-C; finished answers are in the journal.
    """
    for argument, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{argument} is {value!r}; it must be an integer of at least {least}")
    chat_template = check_chat_template(loaded, chat_template)
    lm = DiffusionLM(loaded, options, batch_size=batch_size, progress=progress)
    settings = lm.settings | {"num_fewshot": num_fewshot, "limit": limit, "chat_template": chat_template}
    with quiet():
        tasks = tasks or load_tasks(task, num_fewshot, settings["seed"])
        folder = run_folder(output, name, task, loaded, settings)
        with Journal(folder, from_scratch=from_scratch) as lm.journal:
            try:
                results = evaluator.evaluate(
                    lm, tasks, limit=limit, apply_chat_template=chat_template, fewshot_as_multiturn=False
                )
            except KeyboardInterrupt:
                raise Interrupted(f"interrupted: {len(lm.journal.read())} finished answers are kept in {folder}; "
                                  "the same command goes on from there") from None
            record = {
                "kind": "evaluation", "name": name or folder.name, "task": task, "model": loaded.name,
                "checkpoint": _relative(loaded.checkpoint),
                "command": command or shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
                "settings": settings, "metrics": metrics_of(results, task), **speed(list(lm.answers.values())),
                "batch_size_used": lm.batch_size_used, "reused": lm.reused, "environment": records.environment(),
            }
            write_samples(folder / "samples.jsonl", results["samples"], lm.answers)
            records.write_json(folder / "record.json", record)
    return record | {"folder": str(folder)}


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


def write_samples(path: Path, samples: dict[str, list[dict]], answers: dict[tuple[str, int, int], dict]) -> None:
    """One line per answer, sorted by task, document and repeat, written whole or not at all.

    samples: lm-eval's, per task one entry for each document and filter.
    """
    documents: dict[tuple[str, int], dict] = {}
    for task, entries in samples.items():
        for entry in entries:
            document = documents.setdefault((task, entry["doc_id"]), {
                "task": task, "doc_id": entry["doc_id"], "question": entry["doc"].get("question"),
                "prompt": entry["arguments"][0][0], "target": entry["target"], "correct": {},
            })
            if "task_id" in entry["doc"]:  # a coding problem: postprocess_code.py scores it from here
                document["doc"] = {name: entry["doc"][name] for name in PROBLEM if name in entry["doc"]}
            for metric in entry["metrics"]:
                document["correct"][_metric_name(metric, entry["filter"])] = entry[metric]
    lines = []
    for (task, doc_id, repeat), answer in sorted(answers.items()):
        cost = {name: answer[name] for name in ("answer", "raw", "forwards", "tokens", "seconds", "tokens_processed")}
        line = documents[task, doc_id] | {"repeat": repeat} | cost
        lines.append(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(value):
    """numpy's scalars as plain numbers, anything else that JSON lacks as text."""
    return value.item() if callable(getattr(value, "item", None)) else str(value)
