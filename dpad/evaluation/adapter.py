"""A masked diffusion model as lm-eval sees it: answers prompts, and rates given answers by their log-likelihood.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e      # through runs.py
    python -m dpad.evaluation.lm_eval_cli --model dpad --tasks ...          # through lm-eval's own command line

Conventions that the published numbers were measured with: stop strings cut LLaDA's text, but not for HumanEval with the
chat template; few-shot examples stand in one user turn. Every request starts from the run's seed, so its answer does
not depend on the order of the requests, the batch or an interruption. How cost is counted: engine/completion.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from dpad.engine import likelihood
from dpad.engine.answer_text import AFTER_EOS
from dpad.engine.checks import check_choice, check_integer
from dpad.engine.completion import complete, is_out_of_memory, release_memory, warm_up
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import PromptTooLong, check_chat_template, check_prompt, count_tokens, cut_prompt
from dpad.engine.settings import DecodingSettings
from dpad.evaluation.journal import Answer, Journal, digest
from dpad.evaluation.metrics import speed
from dpad.evaluation.processes import ALONE, Processes

FIRST_BATCH = {"cuda": 64, "cpu": 16}  # what batch_size "auto" tries first

# lm-eval's kinds of requests; the names are those of the methods that answer them
GENERATE = "generate_until"
RATE = "loglikelihood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of lm-eval, checked and ready to be answered.

    key: names its answer in the journal. repeat: its number among the requests about the same document. prompt: the
    complete text. until: stop strings of an answer. target: the answer to rate. is_cut: the prompt has lost its start.
    """

    key: str
    task: str
    doc_id: int
    repeat: int
    prompt: str
    until: tuple[str, ...]
    target: str
    is_cut: bool


class DiffusionLM(LM):
    """A loaded masked diffusion model for lm-eval.

    Args:
        loaded: the model.
        settings: how to decode, an object of `loaded.family.settings`. A task's own generation settings are ignored,
            except for its stop strings.
        batch_size: requests per generate call; "auto" begins with FIRST_BATCH and halves it whenever memory runs out.
        prompt_limit: cut longer prompts to this many tokens, the last ones; None refuses prompts that leave no room
            for the answer.
        mc_samples: random masks per log-likelihood (engine/likelihood.py).
        after_eos: which of an answer's two texts is scored: one of AFTER_EOS (engine/answer_text.py).
        journal: keeps answers on disk and has those of earlier runs; None keeps answers in memory.
        progress: whether to show a progress bar on a terminal; a string is shown beside it. A bar is moved on instead.
        rehearse: give the first answer once without counting it, so that everything is warm when its time is taken.

    Attributes:
        batch_size_used: the current batch size; with "auto", what is left after the halvings.
        description: see `describe_settings`.
        answers: dict from (task, doc_id, repeat) to Answer, of all requests that lm-eval has made.
        fewshot_seed: of the worked examples in the prompts; the settings' seed until somebody sets another.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self, loaded: LoadedModel, settings: DecodingSettings, *, batch_size: int | str = 1,
        prompt_limit: int | None = None, mc_samples: int = 128, after_eos: str = "drop",
        journal: Journal | None = None, progress: bool | str | tqdm = True, rehearse: bool = False,
    ) -> None:
        super().__init__()
        check_answering(batch_size, prompt_limit, mc_samples, after_eos)
        self.loaded = loaded
        self.settings = settings
        self.batch_size = batch_size
        self.prompt_limit = prompt_limit
        self.mc_samples = mc_samples
        self.after_eos = after_eos
        self.journal = journal
        self.progress = progress
        self.rehearse = rehearse
        self.description = describe_settings(
            loaded, settings, batch_size=batch_size, prompt_limit=prompt_limit, mc_samples=mc_samples
        )

        self.fewshot_seed = settings.seed
        self._device = loaded.model.device
        self.batch_size_used = FIRST_BATCH.get(self._device.type, 16) if batch_size == "auto" else int(batch_size)
        self.answers: dict[tuple[str, int, int], Answer] = {}
        self._memory: dict[str, Answer] = {}  # in place of a journal
        self._keys_of_earlier_runs = frozenset(self._known)
        self._cut_documents: set[tuple[str, int]] = set()
        self._uses_chat_template = False  # until lm-eval asks for it, which it does for all prompts or for none

    @property
    def reused(self) -> int:
        """How many of the answers an earlier run had left in the journal."""
        return sum(answer.key in self._keys_of_earlier_runs for answer in self.answers.values())

    @property
    def cut_prompts(self) -> int:
        """How many documents had prompts longer than `prompt_limit`."""
        return len(self._cut_documents)

    # --- lm-eval's interface ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, in their order; those that the journal holds are not generated again."""
        return self._respond(GENERATE, requests, disable_tqdm)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation): the estimate of log p, and whether greedy decoding would write it."""
        return self._respond(RATE, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("log-likelihoods of whole documents (perplexities) are not supported")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; lm-eval calls this for every prompt of a run with the chat template."""
        check_chat_template(self.loaded, True)
        self._uses_chat_template = True
        return self.loaded.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    @property
    def tokenizer_name(self) -> str:
        return self.loaded.checkpoint.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.loaded.tokenizer.chat_template if chat_template else None

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's own command line adds to its results file: the settings, and what the answers cost."""
        return {"decoding": self.description | {"after_eos": self.after_eos},
                "speed": speed(list(self.answers.values()), self.after_eos)}

    # --- Answering ---

    def answer(
        self, kind: str, instances: Sequence[Instance], processes: Processes = ALONE, hide_progress: bool = False
    ) -> list[Request]:
        """Answer the requests that have no answer yet; of several processes, each takes its share of them.

        Args:
            kind: GENERATE or RATE.

        Returns:
            All the requests, in their order.

        Raises:
            ValueError: a request cannot be answered, which is checked before the first is; or memory ran out.
        """
        requests = self.prepare(kind, instances)
        if self.journal:
            self.journal.check(requests, rated=kind == RATE)
        unanswered = [request for request in requests if request.key not in self._known]
        share = unanswered[processes.rank :: processes.count]
        if not share:
            return requests

        if kind == GENERATE:
            warm_up(self.loaded, share[0].prompt, self.settings.gen_length)
            if self.rehearse:
                self._answer_batch(kind, _first_batch(share, self.batch_size_used))
        finished = len(requests) - len(unanswered) if processes.count == 1 else 0
        tokens = 0
        seconds = 0.0

        with self._progress_bar(finished, len(share), hide_progress) as bar:
            while share:
                batch = _first_batch(share, self.batch_size_used)
                answers = self._answer_batch(kind, batch)
                if answers is None:
                    continue
                del share[: len(batch)]
                for answer in answers:
                    self._keep(answer)
                    tokens += answer.tokens
                    seconds += answer.seconds
                bar.set_postfix_str(f"{tokens / seconds:.1f} tokens/s", refresh=False)
                bar.update(len(batch))
        return requests

    def _progress_bar(self, finished: int, count: int, hide: bool) -> AbstractContextManager[tqdm]:
        """The bar for `count` answers; the one that was given goes on, and stays open."""
        if isinstance(self.progress, tqdm):
            return nullcontext(self.progress)
        label = self.progress if isinstance(self.progress, str) else None
        disable = True if hide or not self.progress else None  # None: unless on a terminal
        return tqdm(total=finished + count, initial=finished, unit="sample", desc=label, disable=disable)

    def _respond(self, kind: str, instances: Sequence[Instance], disable_tqdm: bool) -> list:
        requests = self.answer(kind, instances, hide_progress=disable_tqdm)
        answers = [self._known[request.key] for request in requests]
        for answer in answers:
            self.answers[answer.task, answer.doc_id, answer.repeat] = answer
        return [answer.scored(self.after_eos) for answer in answers]

    @property
    def _known(self) -> dict[str, Answer]:
        return self.journal.answers if self.journal else self._memory

    def _keep(self, answer: Answer) -> None:
        if self.journal:
            self.journal.append(answer)
        else:
            self._memory[answer.key] = answer

    def _answer_batch(self, kind: str, batch: list[Request]) -> list[Answer] | None:
        """The answers to a batch; None when memory ran out and a smaller batch may fit."""
        try:
            return self._generate(batch) if kind == GENERATE else [self._rate(request) for request in batch]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out here, because the error holds on to the memory.
        self._take_smaller_batches(len(batch) if kind == GENERATE else self.batch_size_used)
        return None

    def _take_smaller_batches(self, size: int) -> None:
        """Halve the batch size after `size` sequences did not fit; ValueError when that is not possible."""
        if self.batch_size != "auto" or size == 1:
            raise ValueError(f"memory ran out on {size} sequence{'s' * (size > 1)} at once; finished answers are kept. "
                             "Use --batch_size auto, a shorter answer or a smaller dtype")
        self.batch_size_used = (size + 1) // 2
        release_memory()

    def _generate(self, batch: list[Request]) -> list[Answer]:
        # A document's first answer uses the run's seed; a task that asks for more wants them drawn independently.
        settings = dataclasses.replace(self.settings, seed=self.settings.seed + batch[0].repeat)
        completions = complete(self.loaded, [request.prompt for request in batch], settings, batch[0].until)
        answers = []
        for request, completion in zip(batch, completions, strict=True):
            fields = dataclasses.asdict(completion)
            answers.append(
                _answer_to(request, answer=fields.pop("text"), full_answer=fields.pop("full_text"), **fields)
            )
        return answers

    def _rate(self, request: Request) -> Answer:
        """The log-likelihood of one request; the random masks are what fills a batch."""
        model = self.loaded.model
        mask_id = model.config.mask_token_id
        start = time.perf_counter()

        prompt_ids = self._encode(request.prompt)
        target = self._encode(request.prompt + request.target)[len(prompt_ids) :]
        value = likelihood.log_likelihood(
            model, prompt_ids, target, mask_id=mask_id, scheme=self.loaded.family.likelihood, samples=self.mc_samples,
            batch_size=self.batch_size_used, seed=self.settings.seed,
        )
        matches = likelihood.greedy_tokens(model, prompt_ids, target, mask_id=mask_id)

        seconds = time.perf_counter() - start
        estimate_forwards = -(-self.mc_samples // self.batch_size_used)
        greedy_forwards = min(matches + 1, len(target))  # it ends with the first other token, or with the last
        return _answer_to(
            request,
            answer=[value, matches == len(target)],
            full_answer=[value, matches == len(target)],
            raw=request.target,
            forwards=estimate_forwards + greedy_forwards,
            tokens=len(target),
            full_tokens=len(target),
            seconds=seconds,
            tokens_processed=(self.mc_samples + greedy_forwards) * (len(prompt_ids) + len(target)),
        )

    def _encode(self, text: str) -> torch.Tensor:
        return torch.tensor(self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    # --- Preparing requests ---

    def prepare(self, kind: str, instances: Sequence[Instance]) -> list[Request]:
        """Check all requests and give them their keys, before the first one is answered.

        Raises:
            PromptTooLong, ValueError: a request cannot be answered; the message names its document.
        """
        prepare = self._prepare_prompt if kind == GENERATE else self._prepare_pair
        counts: Counter[tuple[str | None, int | None]] = Counter()  # requests about each document
        requests = []
        for instance in instances:
            document = (instance.task_name, instance.doc_id)
            try:
                requests.append(prepare(instance, counts[document]))
            except ValueError as error:
                raise type(error)(f"{instance.task_name}, document {instance.doc_id}: {error}") from None
            counts[document] += 1

        self._cut_documents |= {(request.task, request.doc_id) for request in requests if request.is_cut}
        return requests

    def _prepare_prompt(self, instance: Instance, repeat: int) -> Request:
        text, arguments = instance.args[:2]
        prompt, is_cut = self._complete_prompt(text)
        check_prompt(self.loaded, prompt, self.settings.gen_length)
        return self._request(instance, repeat, prompt, is_cut, until=self._stop_strings(instance, arguments))

    def _prepare_pair(self, instance: Instance, repeat: int) -> Request:
        """A context and its continuation; the choices of a multiple-choice document are its repeats."""
        text, continuation = instance.args
        context = text.rstrip()
        target = text[len(context) :] + continuation  # a space between the two belongs to the target's first token
        prompt, is_cut = self._complete_prompt(context)

        length = count_tokens(self.loaded, prompt + target)
        maximum = self.loaded.model.max_positions
        if length > maximum:
            raise PromptTooLong(f"prompt and answer have {length} tokens together; {self.loaded.name} holds {maximum}")
        return self._request(instance, repeat, prompt, is_cut, target=target)

    def _complete_prompt(self, text: str) -> tuple[str, bool]:
        """The text as the model gets it, and whether it was cut to `prompt_limit`."""
        prompt = text if self._uses_chat_template else self.loaded.raw(text)
        if self.prompt_limit is None:
            return prompt, False
        prompt, cut_tokens = cut_prompt(self.loaded, prompt, self.prompt_limit)
        return prompt, cut_tokens > 0

    def _request(
        self, instance: Instance, repeat: int, prompt: str, is_cut: bool, until: tuple[str, ...] = (), target: str = ""
    ) -> Request:
        key = digest([instance.task_name, instance.doc_id, repeat, prompt, until, target, self.description])
        return Request(key=key, task=instance.task_name, doc_id=instance.doc_id, repeat=repeat, prompt=prompt,
                       until=until, target=target, is_cut=is_cut)

    def _stop_strings(self, instance: Instance, arguments: dict[str, Any]) -> tuple[str, ...]:
        if not self.loaded.family.stop_strings:
            return (self.loaded.tokenizer.eos_token,)
        names = (str(instance.task_name), str(instance.doc.get("task_id")))
        if self._uses_chat_template and any(name.lower().startswith("humaneval") for name in names):
            return ()  # its stop strings, such as "\ndef", would cut a reply before the code that it explains
        until = arguments.get("until") or ()
        return (until,) if isinstance(until, str) else tuple(until)


def check_answering(
    batch_size: int | str, prompt_limit: int | None, mc_samples: int, after_eos: str = "drop"
) -> None:
    """Raise ValueError, naming the argument, its value and what is allowed, unless DiffusionLM can use these."""
    if batch_size != "auto":
        try:
            check_integer("batch_size", batch_size, 1)
        except ValueError as error:
            raise ValueError(f'{error}, or "auto"') from None
    if prompt_limit is not None:
        check_integer("prompt_limit", prompt_limit, 1)
    check_integer("mc_samples", mc_samples, 1)
    check_choice("after_eos", after_eos, AFTER_EOS)


def describe_settings(
    loaded: LoadedModel, settings: DecodingSettings, *, batch_size: int | str, prompt_limit: int | None, mc_samples: int
) -> dict[str, Any]:
    """All that an answer and its cost depend on besides the prompt and the checkpoint, in JSON's types."""
    return settings.to_json() | {
        "batch_size": batch_size,
        **loaded.describe_weights(),
        "prompt_limit": prompt_limit,
        "mc_samples": mc_samples,
    }


def _first_batch(requests: Sequence[Request], size: int) -> list[Request]:
    """The first requests, at most `size`, that share their seed and stop strings."""
    first = requests[0]
    alike = itertools.takewhile(
        lambda request: (request.repeat, request.until) == (first.repeat, first.until), requests[:size]
    )
    return list(alike)


def _answer_to(request: Request, **fields: Any) -> Answer:
    return Answer(key=request.key, task=request.task, doc_id=request.doc_id, repeat=request.repeat, **fields)
