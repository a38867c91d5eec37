"""The thread that decodes: prompts that wait are answered in batches, each exactly as it would be alone.

    decoder = Decoder(loaded, Limits())
    decoder.start()
    decoder.submit(Job(ids, settings, GrowingAnswer(loaded.answer_text, 100), listener=print))

Only prompts whose settings agree, seed included, share a batch; the block loop gives every row the tokens that it gets
alone (docs/exactness.md). A row whose answer is complete, or whose client has gone, leaves at the end of its block;
when nobody waits any more, decoding ends at the next forward. Imported, never run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpad.engine import completion
from dpad.engine.loading import LoadedModel
from dpad.engine.settings import DecodingSettings
from dpad.serve.limits import Limits
from dpad.serve.text import GrowingAnswer

# --- What a job's listener is told, in the decoding thread ------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Text that is certain."""

    text: str


@dataclass(frozen=True)
class Draft:
    """A forward has changed the block: `job.draft` is new. Only one is on its way at a time."""


@dataclass(frozen=True)
class Finished:
    """The answer is complete. reason: "stop" or "length"."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """There will be no answer."""

    error: Exception


class Job:
    """A prompt that is to be answered.

    Args:
        ids: its tokens. settings: how to decode. answer: takes the tokens.
        listener: is called in the decoding thread with Text, Draft, Finished or Failed; it must not block.
        wants_drafts: whether Draft is among them.
    """

    def __init__(self, ids: Sequence[int], settings: DecodingSettings, answer: GrowingAnswer,
                 listener: Callable[[Any], None], wants_drafts: bool = False) -> None:
        self.ids = ids
        self.settings = settings
        self.answer = answer
        self.listener = listener
        self.wants_drafts = wants_drafts
        self.arrived = time.monotonic()
        self.over = False  # finished, failed or cancelled
        self.draft = ""
        self._draft_is_pending = False

    def take(self, block: Sequence[int], last: bool) -> None:
        """The next finished block; called for a job that is not over."""
        text = self.answer.add(block, last)
        if text:
            self.listener(Text(text))
        if self.answer.finish_reason:
            self.over = True
            self.listener(Finished(self.answer.finish_reason))

    def take_draft(self, block: Sequence[int]) -> None:
        self.draft = self.answer.draft(block)
        if not self._draft_is_pending:  # a slow reader gets the latest one, not all of them
            self._draft_is_pending = True
            self.listener(Draft())

    def read_draft(self) -> str:
        self._draft_is_pending = False
        return self.draft

    def fail(self, error: Exception) -> None:
        if not self.over:
            self.over = True
            self.listener(Failed(error))

    def cancel(self) -> None:
        """Nobody waits any more. From any thread."""
        self.over = True


# --- The thread -------------------------------------------------------------------------------------------------------


class Decoder(threading.Thread):
    """Decodes what is submitted, in batches.

    Args:
        loaded: the model.
        limits: how many make a batch, and how long a first prompt waits for others.
        on_batch: called after each batch with its number of prompts and its seconds.
    """

    def __init__(self, loaded: LoadedModel, limits: Limits,
                 on_batch: Callable[[int, float], None] = lambda rows, seconds: None) -> None:
        super().__init__(name="decoder", daemon=True)
        self.loaded = loaded
        self.limits = limits
        self.on_batch = on_batch
        self.decoding: list[Job] = []
        self.seconds_per_prompt = 0.0  # of the latest batch
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closed: Exception | None = None  # why

    @property
    def waiting(self) -> int:
        """How many prompts wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Answer a prompt as soon as possible. From any thread."""
        with self._changed:
            if self._closed is None:
                self._waiting.append(job)
                self._changed.notify()
                return
        job.fail(self._closed)

    def close(self, error: Exception) -> None:
        """Fail all that is not finished, and end the thread."""
        with self._changed:
            self._closed = error
            jobs = [*self._waiting, *self.decoding]
            self._changed.notify()
        for job in jobs:
            job.fail(error)

    def run(self) -> None:
        try:
            while batch := self._next_batch():
                self._answer(batch)
                self.decoding = []
        except Exception as error:  # a fault in here: nobody must wait for a thread that has ended
            self.close(error)

    def _next_batch(self) -> list[Job]:
        """The jobs that are decoded next: the oldest and those that can share its batch. Empty: the end."""
        with self._changed:
            while self._closed is None:
                self._waiting = [job for job in self._waiting if not job.over]
                if not self._waiting:
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                patience = oldest.arrived + self.limits.batch_wait / 1000 - time.monotonic()
                if len(self._waiting) < self.limits.max_batch and patience > 0:
                    self._changed.wait(patience)
                    continue
                batch = [job for job in self._waiting if job.settings == oldest.settings][: self.limits.max_batch]
                self._waiting = [job for job in self._waiting if job not in batch]
                self.decoding = batch
                return batch
        return []

    def _answer(self, jobs: list[Job]) -> None:
        """Decode a batch. Of one that fails the halves are tried, so that no prompt fails because of others."""
        start = time.monotonic()
        try:
            self._decode(jobs)
            failure = None
        except _Deserted:
            return
        except Exception as error:
            failure = error.with_traceback(None)  # which would hold the batch's tensors
        if failure is None:
            seconds = time.monotonic() - start
            self.seconds_per_prompt = seconds / len(jobs)
            self.on_batch(len(jobs), seconds)
            return

        if completion.is_out_of_memory(failure):
            completion.release_memory()
        jobs = [job for job in jobs if not job.over]
        for job in jobs:
            job.answer.restart()
        if len(jobs) == 1:
            jobs[0].fail(failure)
            return
        for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
            if half:
                self._answer(half)

    def _decode(self, jobs: list[Job]) -> None:
        width = max(len(job.ids) for job in jobs)
        input_ids = torch.zeros((len(jobs), width), dtype=torch.long)  # [R, P]
        attention_mask = torch.zeros_like(input_ids)
        for row, job in enumerate(jobs):
            input_ids[row, width - len(job.ids) :] = torch.tensor(job.ids)
            attention_mask[row, width - len(job.ids) :] = 1

        def check_wanted(block: int, first: bool) -> None:
            if all(job.over for job in jobs):
                raise _Deserted

        rows = (_RowsWithDrafts if any(job.wants_drafts for job in jobs) else _Rows)(jobs)
        device = self.loaded.model.device
        self.loaded.generate(input_ids.to(device), jobs[0].settings, attention_mask=attention_mask.to(device),
                             streamer=rows, on_forward=check_wanted)


class _Deserted(Exception):
    """Nobody waits for any row of the batch."""


class _Rows:
    """The streamer of a batch: hands every row's finished blocks to its job."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.puts = 0  # the prompts, then the blocks

    def put(self, tokens: Tensor) -> None:
        """The prompts [R, P], then every finished block [R, L]."""
        self.puts += 1
        if self.puts == 1:
            return
        last = self.puts - 1 == self.jobs[0].settings.blocks
        for job, block in zip(self.jobs, tokens.tolist()):
            if not job.over:
                job.take(block, last)

    def unwanted(self) -> Tensor:
        """bool [R]: the rows whose answer is complete, or for which nobody waits."""
        return torch.tensor([job.over for job in self.jobs])

    def end(self) -> None:
        """transformers' streamers have it."""


class _RowsWithDrafts(_Rows):
    def put_draft(self, tokens: Tensor) -> None:
        """The block [R, L] after each forward, masks included."""
        for job, block in zip(self.jobs, tokens.tolist()):
            if job.wants_drafts and not job.over:
                job.take_draft(block)
