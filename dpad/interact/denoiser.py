"""Answers for the web UI: a loaded model that decodes visitors' questions, each in a thread of its own.

Imported by page.py, never run.
"""

from __future__ import annotations

import itertools
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from dpad.engine import completion, loading, prompts
from dpad.engine.settings import DecodingSettings
from dpad.interact.trace import Trace, Tracer, read_trace

MAX_GEN_LENGTH = 512  # tokens of an answer
MAX_QUESTION = 2000  # characters
MAX_VISITORS = 2  # who are answered at the same time; others wait in a queue
MAX_SAVED = 64  # finished traces that wait to be downloaded
MAX_FILE = 8 * 2**20  # bytes of a trace that is opened
MAX_SHOWN = 64  # finished or opened traces, of all visitors, that can be played back
MAX_SHOWN_SIZE = 32 * 2**20  # bytes of those, as files
MAX_AGE = 3600  # seconds for which one can be played back


class Denoiser:
    """A loaded model that answers visitors' questions, each in a thread of its own."""

    def __init__(self, loaded: loading.LoadedModel) -> None:
        self.loaded = loaded
        self.folder = tempfile.TemporaryDirectory(prefix="dpad-")  # of saved traces; it goes when the process ends
        self.saved = itertools.count()
        self.shelf = Shelf(MAX_SHOWN, MAX_SHOWN_SIZE, MAX_AGE)
        self.seats = threading.BoundedSemaphore(2 * MAX_VISITORS)  # a comparison takes two

    def make_settings(self, choices: dict[str, Any]) -> DecodingSettings:
        """The decoding settings of a visitor's choices; ValueError if they cannot be used."""
        settings = self.loaded.family.settings.from_choices(choices)
        if settings.gen_length > MAX_GEN_LENGTH:
            raise ValueError(f"gen_length is {settings.gen_length}; on this page it must be at most {MAX_GEN_LENGTH}")
        return settings

    def start(self, question: str, settings: DecodingSettings, attention: bool = False) -> AnswerThread:
        """Begin to answer a question; ValueError if it cannot be answered.

        attention: the trace says what every block attends to.
        """
        question = (question or "").strip()
        if not question:
            raise ValueError("the question is empty; type one, or choose an example")
        if len(question) > MAX_QUESTION:
            raise ValueError(f"the question has {len(question)} characters; it must have at most {MAX_QUESTION}")

        text = self.loaded.chat(question) if self.loaded.chat_template else self.loaded.raw(question)
        prompts.check_prompt(self.loaded, text, settings.gen_length)
        thread = AnswerThread(self, question, text, settings, attention)
        thread.start()
        return thread

    def save(self, trace: Trace) -> Path:
        """Write a finished trace, in place of the one MAX_SAVED before it, and return its path."""
        file = Path(self.folder.name) / str(next(self.saved) % MAX_SAVED) / "trace.jsonl"
        trace.write(file)
        return file


class Shelf:
    """Traces that visitors look at: at most so many, so large together, and for so long; the oldest go first.

    Args:
        max_count: of traces, or pairs of them that are compared.
        max_size: of all of them, in bytes of their files.
        max_age: in seconds.
    """

    def __init__(self, max_count: int, max_size: int, max_age: float) -> None:
        self.max_count = max_count
        self.max_size = max_size
        self.max_age = max_age
        self._kept: OrderedDict[str, tuple[list[Trace], int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, traces: list[Trace], size: int) -> str:
        """Keep traces of so many bytes; the key that gets them back cannot be guessed."""
        key = secrets.token_hex(16)
        with self._lock:
            self._kept[key] = (traces, size, time.monotonic())
            self._drop()
        return key

    def get(self, key: str) -> list[Trace]:
        """The traces, or none when they are gone."""
        with self._lock:
            self._drop()
            return self._kept[key][0] if key in self._kept else []

    def __len__(self) -> int:
        with self._lock:
            self._drop()
            return len(self._kept)

    def _drop(self) -> None:
        while self._kept:
            _, _, since = next(iter(self._kept.values()))
            size = sum(size for _, size, _ in self._kept.values())
            if (len(self._kept) <= self.max_count and size <= self.max_size
                    and time.monotonic() - since <= self.max_age):
                break
            self._kept.popitem(last=False)


class AnswerThread(threading.Thread):
    """An answer while it is decoded. trace: what has been decoded so far."""

    def __init__(
        self, denoiser: Denoiser, question: str, text: str, settings: DecodingSettings, attention: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.denoiser = denoiser
        self.text = text
        self.settings = settings
        self.tracer = Tracer(denoiser.loaded, question, settings, listener=self._check_cancelled, attention=attention)
        self.cancelled = threading.Event()
        self.error: Exception | None = None

    @property
    def trace(self) -> Trace:
        return self.tracer.trace

    def run(self) -> None:
        loaded = self.denoiser.loaded
        try:
            with self.denoiser.seats:
                if self.cancelled.is_set():
                    return
                [answer] = completion.complete(loaded, [self.text], self.settings, streamer=self.tracer)
                self.tracer.finish(answer)
        except _Cancelled:
            pass
        except Exception as error:
            self.error = error

    def cancel(self) -> None:
        """End the answer at its next forward."""
        self.cancelled.set()

    def _check_cancelled(self, trace: Trace) -> None:
        if self.cancelled.is_set():
            raise _Cancelled

    def check(self) -> None:
        """Raise ValueError if decoding failed."""
        if self.error:
            raise ValueError(f"{type(self.error).__name__}: {self.error}")


class _Cancelled(Exception):
    """The visitor left, or pressed Stop."""


def read_uploaded(file: Path) -> Trace:
    """The trace in a file that a visitor opened; ValueError if it is none, or one that is too large to show."""
    if file.stat().st_size > MAX_FILE:
        raise ValueError(f"the file is larger than {MAX_FILE // 2**20} MB")

    try:
        trace = read_trace(file)
    except RecursionError:
        raise ValueError(f"{file} is not a trace: its JSON is nested too deeply") from None
    if trace.gen_length > 8 * MAX_GEN_LENGTH:
        raise ValueError(f"gen_length of the trace is {trace.gen_length}; it must be at most {8 * MAX_GEN_LENGTH}")
    if not trace.forwards:
        raise ValueError(f"{file} has no forward")
    return trace
