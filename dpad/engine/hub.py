"""Whether the Hugging Face hub answers, asked once: what is not there must not keep anybody waiting.

    with hub.offline_if_unreachable():
        datasets.load_dataset("openai/gsm8k", "main")       # from the cache alone, where the hub does not answer

Without this, the libraries try every request five times, for half a minute. Imported, never run.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

MAX_WAIT = 5.0  # seconds for an answer of the hub


@functools.cache
def ask() -> Question:
    """Send the one short request that decides; the answer can be waited for later, when other work is done."""
    return Question()


def is_reachable() -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, answers at all; False as well where HF_HUB_OFFLINE is set.

    Asked once in a process, and waited for once.
    """
    return ask().answer()


class Question:
    """A request to the hub, under way in a thread: looking up a name has no time limit of its own."""

    def __init__(self) -> None:
        self.answered = False
        self.deadline = time.monotonic() + MAX_WAIT
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _send(self) -> None:
        from huggingface_hub import constants, get_session

        with suppress(Exception):  # of any HTTP library that huggingface_hub may use: there is no answer
            self.answered = get_session().head(constants.ENDPOINT, timeout=MAX_WAIT).status_code < 500

    def answer(self) -> bool:
        """Whether there was an answer in time."""
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        return self.answered


@contextmanager
def offline() -> Iterator[None]:
    """Meanwhile huggingface_hub, transformers and datasets use their caches alone."""
    from huggingface_hub import constants

    modules: list[Any] = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before):
            module.HF_HUB_OFFLINE = value


def offline_if_unreachable() -> AbstractContextManager[None]:
    """`offline` where the hub does not answer; otherwise nothing changes."""
    return nullcontext() if is_reachable() else offline()
