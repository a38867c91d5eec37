"""Answers for the web UI: a loaded model that decodes visitors' questions, each in a thread of its own.

Imported by page.py, never run.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
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


class Denoiser:
    """A loaded model that answers visitors' questions, each in a thread of its own."""

    def __init__(self, loaded: loading.LoadedModel) -> None:
        self.loaded = loaded
        self.folder = tempfile.TemporaryDirectory(prefix="dpad-")  # of saved traces; it goes when the process ends
        self.saved = itertools.count()
        self.seats = threading.BoundedSemaphore(2 * MAX_VISITORS)  # a comparison takes two

    def make_settings(self, choices: dict[str, Any]) -> DecodingSettings:
        """The decoding settings of a visitor's choices; ValueError if they cannot be used."""
        settings = self.loaded.family.settings.from_choices(choices)
        if settings.gen_length > MAX_GEN_LENGTH:
            raise ValueError(f"gen_length is {settings.gen_length}; on this page it must be at most {MAX_GEN_LENGTH}")
        return settings

    def start(self, question: str, settings: DecodingSettings) -> AnswerThread:
        """Begin to answer a question; ValueError if it cannot be answered."""
        question = (question or "").strip()
        if not question:
            raise ValueError("the question is empty; type one, or choose an example")
        if len(question) > MAX_QUESTION:
            raise ValueError(f"the question has {len(question)} characters; it must have at most {MAX_QUESTION}")

        text = self.loaded.chat(question) if self.loaded.chat_template else self.loaded.raw(question)
        prompts.check_prompt(self.loaded, text, settings.gen_length)
        thread = AnswerThread(self, question, text, settings)
        thread.start()
        return thread

    def save(self, trace: Trace) -> Path:
        """Write a finished trace, in place of the one MAX_SAVED before it, and return its path."""
        file = Path(self.folder.name) / str(next(self.saved) % MAX_SAVED) / "trace.jsonl"
        trace.write(file)
        return file


class AnswerThread(threading.Thread):
    """An answer while it is decoded. trace: what has been decoded so far."""

    def __init__(self, denoiser: Denoiser, question: str, text: str, settings: DecodingSettings) -> None:
        super().__init__(daemon=True)
        self.denoiser = denoiser
        self.text = text
        self.settings = settings
        self.tracer = Tracer(denoiser.loaded, question, settings, listener=self._check_cancelled)
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

    trace = read_trace(file)
    if trace.gen_length > 8 * MAX_GEN_LENGTH:
        raise ValueError(f"gen_length of the trace is {trace.gen_length}; it must be at most {8 * MAX_GEN_LENGTH}")
    if not trace.forwards:
        raise ValueError(f"{file} has no forward")
    return trace
