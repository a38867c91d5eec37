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
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import lm_eval.api.task
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from dpad import ROOT
from dpad.engine import likelihood
from dpad.engine.completion import (
    check_chat_template,
    check_prompt,
    complete,
    cut_prompt,
    describe_decoding,
    is_out_of_memory,
    release_memory,
    warm_up,
)
from dpad.engine.loading import FAMILIES, LoadedModel
from dpad.evaluation.journal import Journal, digest
from dpad.evaluation.processes import ALONE, Processes
from dpad.results import files, records

TASK_FOLDER = ROOT / "dataset" / "tasks"
# What an answer and its cost depend on; other files can change without making a journal's answers foreign.
ANSWERING_CODE = ("sampler.py", "dpad/engine/*.py", "*/configuration.py", "*/modeling.py", "*/generate.py")
PROBLEM = ("task_id", "prompt", "entry_point", "test", "test_list", "test_imports", "test_setup_code")
FIRST_BATCH = {"cuda": 64, "cpu": 16}  # what batch_size "auto" tries first


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; the message says what is kept and how to go on."""


class _Answered(Exception):
    """All answers are on disk, and this process is not the one that scores them."""


# --- The adapter ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """A request of lm-eval with what its answer depends on; `key` names it in the journal."""

    key: str
    task: str
    doc_id: int
    repeat: int
    prompt: str
    until: tuple[str, ...] = ()
    options: dict = dataclasses.field(default_factory=dict)
    target: str = ""  # of a log-likelihood
    cut_tokens: int = 0  # from the prompt's left


class DiffusionLM(LM):
    """A loaded masked diffusion model as lm-eval sees it: answers prompts, and rates given answers.

    Args:
        loaded: a models.LoadedModel.
        options: keyword arguments of its `generate`; a task's own generation settings do not change them, but for the
            stop strings.
        batch_size: requests per generate call; "auto" begins with FIRST_BATCH and takes half as many whenever memory
            runs out.
        journal: where finished answers are kept and found; None keeps them in memory.
        progress: show a progress bar where standard error is a terminal; a text is its label.
        processes: this process among those that share the run and its journal; each answers its share of the requests.
        prompt_limit: cut prompts of more tokens on the left; None refuses those that leave no room for the answer.
        mc_samples: random masks behind a log-likelihood (likelihood.py).

    Attributes:
        batch_size_used: the size of batches at the end: with "auto", what it came down to.
        settings: all that an answer and its cost depend on besides the prompt and the checkpoint, in JSON's types.
        answers: dict from (task, doc_id, repeat) to the answer of the journal's form, of all requests so far.
    """

    def __init__(self, loaded: LoadedModel, options: dict, *, batch_size: int | str = 1,
                 journal: Journal | None = None, progress: bool | str = True, processes: Processes = ALONE,
                 prompt_limit: int | None = None, mc_samples: int = 128):
        super().__init__()
        check_counts(batch_size=batch_size, prompt_limit=prompt_limit, mc_samples=mc_samples)
        self._device = loaded.model.device
        self.loaded, self.options, self.batch_size = loaded, options, batch_size
        self.batch_size_used = FIRST_BATCH.get(self._device.type, 16) if batch_size == "auto" else batch_size
        self.settings = describe_decoding(loaded.generate, options) | {
            "batch_size": batch_size, "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.model.device.type, "prompt_limit": prompt_limit, "mc_samples": mc_samples,
        }
        self.journal, self.progress, self.processes = journal, progress, processes
        self.answers: dict[tuple[str, int, int], dict] = {}
        self.reused = 0
        self.cut_prompts = 0
        self.kinds = set()  # of requests still to come; see `evaluate`
        self.in_chat = False  # until lm-eval asks for the chat template; it does so for all prompts or for none

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, in their order; requests that the journal holds are not generated again."""
        return self._finish("generate_until", self._prepare(requests), self._answer, disable_tqdm)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the estimate of log p, and whether greedy decoding would write it."""
        return self._finish("loglikelihood", self._prepare_pairs(requests), self._rate, disable_tqdm)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
        raise NotImplementedError("log-likelihoods of whole documents (perplexities) are not supported")

    def _finish(self, kind: str, prepared: list[_Request], answer_batch, disable_tqdm: bool) -> list:
        """Answer this process's share of what the journal does not hold, and return all answers in their order."""
        known = dict(self.journal.answers) if self.journal else {}
        todo = [request for request in prepared if request.key not in known]
        self.reused += len(prepared) - len(todo)
        todo = todo[self.processes.rank :: self.processes.count]
        done = 0 if self.processes.count > 1 else len(prepared) - len(todo)
        if todo and kind == "generate_until":
            warm_up(self.loaded, todo[0].prompt, self.settings["gen_length"])
        hide = True if disable_tqdm or not self.progress else None  # None: shown on a terminal
        tokens = seconds = 0
        label = self.progress if isinstance(self.progress, str) else None
        with tqdm(total=done + len(todo), initial=done, unit="sample", desc=label, disable=hide) as bar:
            while todo:
                batch = _first_batch(todo, self.batch_size_used)
                answers = answer_batch(batch)
                if answers is None:  # memory ran out
                    continue
                del todo[: len(batch)]
                for answer in answers:
                    known[answer["key"]] = answer
                    tokens, seconds = tokens + answer["tokens"], seconds + answer["seconds"]
                bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
                bar.update(len(batch))
        if self.processes.count > 1:
            self.processes.wait()
            known = self.journal.read()
            self.processes.wait()  # nobody writes on before all have read
        self.kinds.discard(kind)
        if self.processes.rank and not self.kinds:
            raise _Answered
        for request in prepared:
            self.answers[request.task, request.doc_id, request.repeat] = known[request.key]
        return [known[request.key]["answer"] for request in prepared]

    def _prepare(self, requests: list[Instance]) -> list[_Request]:
        """Check all prompts before the first is answered; number the repeats of a document."""
        seen: Counter = Counter()
        prepared = []
        for instance in requests:
            prompt, arguments = instance.args[:2]
            repeat = seen[instance.task_name, instance.doc_id]
            seen[instance.task_name, instance.doc_id] += 1
            cut = 0
            try:
                prompt = prompt if self.in_chat else self.loaded.raw(prompt)
                if self.settings["prompt_limit"]:
                    prompt, cut = cut_prompt(self.loaded, prompt, self.settings["prompt_limit"])
                check_prompt(self.loaded, prompt, self.settings["gen_length"])
            except ValueError as error:
                raise ValueError(f"{instance.task_name}, document {instance.doc_id}: {error}") from None
            # The first answer to a document uses the run's seed; a task that asks again wants another draw.
            options = self.options | {"seed": self.settings["seed"] + repeat}
            until = self._stop_strings(instance, arguments)
            key = digest([instance.task_name, instance.doc_id, repeat, prompt, until, self.settings])
            prepared.append(_Request(key, instance.task_name, instance.doc_id, repeat, prompt, until, options,
                                     cut_tokens=cut))
        self._count_cuts(prepared)
        return prepared

    def _count_cuts(self, prepared: list[_Request]) -> None:
        self.cut_prompts += len({(request.task, request.doc_id) for request in prepared if request.cut_tokens})

    def _prepare_pairs(self, requests: list[Instance]) -> list[_Request]:
        """The same for log-likelihoods; the answers to choose from are a document's repeats."""
        seen: Counter = Counter()
        prepared = []
        for instance in requests:
            prompt, target = instance.args
            repeat = seen[instance.task_name, instance.doc_id]
            seen[instance.task_name, instance.doc_id] += 1
            text = prompt.rstrip()  # a space at the seam belongs to the target's first token
            target = prompt[len(text) :] + target
            text, cut = text if self.in_chat else self.loaded.raw(text), 0
            if self.settings["prompt_limit"]:
                text, cut = cut_prompt(self.loaded, text, self.settings["prompt_limit"])
            size = len(self.loaded.tokenizer(text + target, add_special_tokens=False)["input_ids"])
            if size > self.loaded.model.max_positions:
                raise ValueError(f"{instance.task_name}, document {instance.doc_id}: prompt and answer have {size} "
                                 f"tokens together; {self.loaded.name} holds {self.loaded.model.max_positions}")
            key = digest([instance.task_name, instance.doc_id, repeat, text, target, self.settings])
            prepared.append(_Request(key, instance.task_name, instance.doc_id, repeat, text, target=target,
                                     cut_tokens=cut))
        self._count_cuts(prepared)
        return prepared

    def _rate(self, batch: list[_Request]) -> list[dict] | None:
        """Log-likelihoods of a batch, one after the other: the random masks of one are what fills a forward."""
        encode = functools.partial(self.loaded.tokenizer, add_special_tokens=False)
        model, answers = self.loaded.model, []
        options = {"mask_id": model.config.mask_token_id}
        for request in batch:
            started = time.perf_counter()
            prompt = encode(request.prompt)["input_ids"]
            target = torch.tensor(encode(request.prompt + request.target)["input_ids"][len(prompt) :])
            prompt = torch.tensor(prompt, dtype=torch.long)
            try:
                value = likelihood.log_likelihood(
                    model, prompt, target, scheme=FAMILIES[self.loaded.family].likelihood, **options,
                    samples=self.settings["mc_samples"], batch_size=self.batch_size_used, seed=self.settings["seed"],
                )
                right = likelihood.greedy_tokens(model, prompt, target, **options)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                value = None
            if value is None:
                return self._out_of_memory(self.batch_size_used)
            # Greedy decoding ends with the first token that is another, or with the last.
            greedy, samples = min(right + 1, len(target)), self.settings["mc_samples"]
            answers.append({
                "key": request.key, "task": request.task, "doc_id": request.doc_id, "repeat": request.repeat,
                "answer": [value, right == len(target)], "raw": request.target,
                "forwards": -(-samples // self.batch_size_used) + greedy, "tokens": len(target),
                "seconds": time.perf_counter() - started,
                "tokens_processed": (samples + greedy) * (len(prompt) + len(target)),
            })
        self._keep(answers)
        return answers

    def _out_of_memory(self, size: int) -> None:
        """Take half the size from now on, if there is any smaller; else ValueError."""
        if self.batch_size != "auto" or size == 1:
            raise ValueError(f"memory ran out on {size} sequence{'s' * (size > 1)} at once; finished answers are "
                             "kept. Take --batch_size auto, a shorter answer or a smaller dtype")
        self.batch_size_used = (size + 1) // 2
        release_memory()

    def _keep(self, answers: list[dict]) -> None:
        for answer in answers if self.journal else ():
            self.journal.append(answer)

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
            return self._out_of_memory(len(batch))
        answers = [
            {
                "key": request.key, "task": request.task, "doc_id": request.doc_id, "repeat": request.repeat,
                "answer": completion.text, "raw": completion.raw, "forwards": completion.forwards,
                "tokens": completion.tokens, "seconds": completion.seconds,
                "tokens_processed": completion.tokens_processed,
            }
            for request, completion in zip(batch, completions, strict=True)
        ]
        self._keep(answers)
        return answers

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


# --- Tasks ------------------------------------------------------------------------------------------------------------


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


# --- A run ------------------------------------------------------------------------------------------------------------


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
            files.write_json(folder / "record.json", record)
    return record | {"folder": str(folder)}


def check_counts(**values) -> None:
    """Raise ValueError, naming argument and value, for a number that no run can have; None is no limit."""
    for name, value in values.items():
        least, auto = int(name != "num_fewshot"), name == "batch_size"
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not (whole or value is None and name.endswith("limit") or auto and value == "auto"):
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}" + ', or "auto"' * auto)


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
