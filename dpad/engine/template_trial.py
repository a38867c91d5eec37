"""A tokenizer and its chat template, tried once when their checkpoint is loaded: what fails or never ends is refused.

Imported by loading.py, never run.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dpad.engine.checkpoint import MAX_TEMPLATE
from dpad.engine.checks import one_line

TRIAL = "How many?"  # what the user says in the trial
MAX_SECONDS = 5.0  # of the template
MAX_GROWTH = 2**28  # bytes of memory that the template may take
TOKENIZER_SECONDS = 60.0
TOKENIZER_GROWTH = 2**31  # bytes
MAX_NUMBER = 100_000  # that a template may name
GENERATION_TAG = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own, which Jinja alone does not know
READY = b"\n"  # what the child says when the tokenizer has been read
LIMIT = b"limit"


def try_tokenizer(name: str, load: Callable[[], Any]) -> None:
    """Read the tokenizer, use it, and render its chat template, all in a copy of this process with bounds.

    transformers renders templates in Jinja's sandbox, where they reach nothing outside. But a single operation, or one
    expression of a tokenizer's normalizer, may take all memory or never end, and only a process can be ended in it.
    What a template does with other turns than the one tried here is not known. Nothing is tried outside of Linux: macOS
    does not let a process with threads make a copy of itself safely, and Windows not at all.

    Args:
        name: of the checkpoint, for messages.
        load: reads the tokenizer. What it raises is not reported here: reading it afterwards will raise the same.

    Raises:
        ValueError: the tokenizer takes more than TOKENIZER_SECONDS or TOKENIZER_GROWTH, or the template more than
            MAX_SECONDS or MAX_GROWTH; or the template fails.
    """
    if sys.platform != "linux":
        return
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the child calls none of them
        child = os.fork()
    if not child:
        _try_in_child(sender, load)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)

    if said.startswith(READY):
        part, seconds, growth = "chat template", MAX_SECONDS, MAX_GROWTH
    else:
        part, seconds, growth = "tokenizer", TOKENIZER_SECONDS, TOKENIZER_GROWTH
    fault = said.removeprefix(READY)
    if status or fault == LIMIT:
        raise ValueError(f"{name} has a {part} that takes more than {seconds:g} seconds or {growth // 2**20} MB")
    if fault:
        raise ValueError(f"{name} has a chat template {fault.decode()}")


def _try_in_child(sender: int, load: Callable[[], Any]) -> NoReturn:  # pragma: no cover (not seen in a copy)
    """Say through a pipe what is wrong with a tokenizer's template, and end this process."""
    try:
        import resource

        null = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):  # libraries warn of what is said by the parent anyway
            os.dup2(null, stream)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _limit(TOKENIZER_SECONDS, TOKENIZER_GROWTH)
        tokenizer = load()
        tokenizer(TRIAL)
        os.write(sender, READY)
        if tokenizer.chat_template is not None:
            _limit(MAX_SECONDS, MAX_GROWTH)
            try:
                os.write(sender, (_fault_of_template(tokenizer) or "").encode())
            except MemoryError:
                raise
            except Exception as error:
                reason = one_line(f"{type(error).__name__}: {error}")
                os.write(sender, f"that cannot be used ({reason})".encode())
    except MemoryError:
        os.write(sender, LIMIT)
    except BaseException:  # of `load`
        pass
    finally:
        os._exit(0)


def _limit(seconds: float, growth: int) -> None:  # pragma: no cover (as above)
    """End this process after so many seconds, and let it have no more than so many bytes in addition."""
    import resource

    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return  # a system that does not say: there, time alone is bounded
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = size + growth if hard == resource.RLIM_INFINITY else min(size + growth, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _fault_of_template(tokenizer: Any) -> str | None:
    """What is wrong with a tokenizer's template, as the end of a sentence; raises what rendering it raises."""
    templates = tokenizer.chat_template
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        fault = _fault_of_text(text)
        if fault:
            return fault
    turns = [{"role": "user", "content": TRIAL}]
    result = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return None if TRIAL in result else "that leaves out what the user says"


def _fault_of_text(text: str) -> str | None:
    """What one operation of a template could do by itself with other turns: fill the memory, or never end."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    if len(text) > MAX_TEMPLATE:
        return f"larger than {MAX_TEMPLATE / 2**20:g} MB"
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAG.sub("", text))
    except (TemplateSyntaxError, RecursionError) as error:
        return f"that cannot be used ({one_line(error)})"
    numbers = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, (int, float))]
    if any(tree.find_all((nodes.Mul, nodes.Pow))) or any(abs(number) > MAX_NUMBER for number in numbers):
        return f"with products, powers or numbers above {MAX_NUMBER}"
    return None
