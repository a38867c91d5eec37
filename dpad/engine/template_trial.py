"""A chat template, tried once when its checkpoint is loaded: one that fails or never ends is refused.

Imported by loading.py, never run.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from dpad.engine.checks import one_line

TRIAL = "How many?"  # what the user says in the trial
MAX_SECONDS = 5
MAX_GROWTH = 2**28  # bytes of memory that the trial may take
MAX_NUMBER = 100_000  # that a template may name
GENERATION_TAG = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own, which Jinja alone does not know


def try_template(name: str, tokenizer: Any) -> None:
    """Render the chat template once; ValueError if it fails, or takes more than MAX_SECONDS or MAX_GROWTH.

    transformers renders templates in Jinja's sandbox, where they reach nothing outside, but may loop or grow for ever.
    Only a thread can be left to end later; the exception that is raised in it ends any loop of a template. What a
    template does with other turns than the one tried here is not known.
    """
    templates = tokenizer.chat_template
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        _check_operations(name, text)

    outcome: list[Any] = []

    def render() -> None:
        try:
            turns = [{"role": "user", "content": TRIAL}]
            outcome.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=render, name="chat template", daemon=True)
    thread.start()
    end = time.monotonic() + MAX_SECONDS
    memory = _resident()
    while thread.is_alive() and time.monotonic() < end and _resident() < memory + MAX_GROWTH:
        thread.join(0.02)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise ValueError(f"{name} has a chat template that takes more than {MAX_SECONDS} seconds or "
                         f"{MAX_GROWTH // 2**20} MB")
    [result] = outcome
    if isinstance(result, BaseException):
        reason = one_line(f"{type(result).__name__}: {result}")
        raise ValueError(f"{name} has a chat template that cannot be used ({reason})") from result
    if TRIAL not in result:
        raise ValueError(f"{name} has a chat template that leaves out what the user says")


def _check_operations(name: str, text: str) -> None:
    """Raise ValueError for what one operation of a template could do by itself: fill the memory, or never end."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAG.sub("", text))
    except (TemplateSyntaxError, RecursionError) as error:
        raise ValueError(f"{name} has a chat template that cannot be used ({one_line(error)})") from error
    numbers = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, (int, float))]
    if any(tree.find_all((nodes.Mul, nodes.Pow))) or any(abs(number) > MAX_NUMBER for number in numbers):
        raise ValueError(f"{name} has a chat template with products, powers or numbers above {MAX_NUMBER}")


def _resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
