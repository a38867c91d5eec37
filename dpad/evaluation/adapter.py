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

import dataclasses
import functools
import itertools
import time
from collections import Counter
from collections.abc import Sequence

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

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
from dpad.evaluation.metrics import speed
from dpad.evaluation.processes import ALONE, Processes

FIRST_BATCH = {"cuda": 64, "cpu": 16}  # what batch_size "auto" tries first


class _Answered(Exception):
    """All answers are on disk, and this process is not the one that scores them."""


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


def check_counts(**values) -> None:
    """Raise ValueError, naming argument and value, for a number that no run can have; None is no limit."""
    for name, value in values.items():
        least, auto = int(name != "num_fewshot"), name == "batch_size"
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not (whole or value is None and name.endswith("limit") or auto and value == "auto"):
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}" + ', or "auto"' * auto)
