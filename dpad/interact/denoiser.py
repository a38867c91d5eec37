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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dpad.engine import completion, loading, prompts
from dpad.engine.settings import PARTS, SAMPLER, DecodingSettings, part_defaults
from dpad.interact.gif import write_gif
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

    @property
    def model_words(self) -> str:
        """The model's name and size: LLaDA-tiny, 3 M parameters."""
        size = float(sum(parameter.numel() for parameter in self.loaded.model.parameters()))
        for unit in ("", " k", " M", " B"):
            if size < 999.5 or unit == " B":
                break
            size /= 1000
        return f"{self.loaded.title}, {size:.0f}{unit} parameters"

    def idle_trace(self, settings: DecodingSettings) -> Trace:
        """A trace before the first forward, with the suffix that the first block will see."""
        import torch

        from dpad.engine.decoding import draw_suffix

        assert settings.suffix_sampler is not None
        generator = torch.Generator().manual_seed(settings.seed)
        kept = draw_suffix(settings.suffix_sampler, settings.block_length, settings.gen_length, generator).tolist()
        head = {"gen_length": settings.gen_length, "block_length": settings.block_length,
                "settings": settings.to_json()}
        return Trace(head, [{"block": 0, "seconds": 0.0, "computed": 0, "kept": kept, "decided": []}])

    def save(self, trace: Trace) -> Path:
        """Write a finished trace, in place of what was saved MAX_SAVED files before it, and return its path."""
        file = self._new_file("trace.jsonl")
        trace.write(file)
        return file

    def save_gif(self, traces: Sequence[Trace]) -> Path:
        """Draw finished traces as a GIF, likewise."""
        file = self._new_file("dpad.gif")
        write_gif(traces, file)
        return file

    def _new_file(self, name: str) -> Path:
        folder = Path(self.folder.name) / str(next(self.saved) % MAX_SAVED)
        for earlier in folder.glob("*"):
            earlier.unlink()
        folder.mkdir(exist_ok=True)
        return folder / name

    # --- Settings of traces and links ---

    def read_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The choices behind the settings that a trace holds (`DecodingSettings.to_json`).

        Raises:
            ValueError: they are not settings of this model's family, or a value is not allowed on this page.
        """
        fields = {part.field for part in PARTS}
        choices = {name: value for name, value in record.items() if name not in {*fields, "device", "steps"}}
        for part in PARTS:
            value = record.get(part.field)
            if value is not None:  # an object's name, where it has one, and its parameters
                choices |= {part.selector.name: True, **{part.selector.name if key == "name" else key: parameter
                                                         for key, parameter in value.items()}}
        settings = self.make_settings(choices)
        if not settings.parallel and record.get("steps", settings.total_steps) != settings.total_steps:
            settings = self.make_settings(choices | {"steps": record["steps"]})
        return settings.as_choices()

    def read_link(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """The choices that a link's query holds, by the settings' labels; ValueError where they cannot be used."""
        names = {entry.label: entry for entry in self.loaded.family.settings.choices()}
        choices = {names[label].name if label in names else label: names[label].parse(text) if label in names else text
                   for label, text in texts.items()}
        return self.make_settings(choices).as_choices()

    def write_link(self, settings: DecodingSettings, question: str) -> str:
        """The query of a link to the page with these settings: what differs from the command line's defaults."""
        choices = settings.as_choices()
        entries = self.loaded.family.settings.choices()
        usual = {entry.name: entry.default for entry in entries} | part_defaults(choices)
        texts = {entry.label: "none" if choices[entry.name] is None else str(choices[entry.name]) for entry in entries
                 if entry.name in choices and choices[entry.name] != usual[entry.name]}
        texts[SAMPLER.selector.label] = choices[SAMPLER.selector.name]  # without a setting a link says nothing of them
        return "?" + urlencode(texts | {"question": question})


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
