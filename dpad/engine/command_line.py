"""What every command line here shares: how flags are read, text on any terminal, and what is said while one waits.

    parser = Parser(prog="run.py")
    with waiting_for("the libraries"):
        import torch

Imported by the programs, never run; standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from dpad.engine.checks import check_text, one_line, suggest

PATIENCE = 1.0  # seconds of silence before a person is told what is being waited for
MAX_MESSAGE = 4000  # characters


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that every mistake ends in one line and status 2, and no word is ignored in silence.

    Unknown flags and values get a suggestion. A flag that is given twice is refused, text that is not UTF-8, and a word
    such as -nt8 or -name, which argparse takes for -n with the value t8 or ame. Parsing calls `use_utf8`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        for action in (None, "store"):
            self.register("action", action, _Store)
        self.given: dict[str, argparse.Action] = {}  # by the name of a value: the flag that has set it

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        use_utf8()
        self.given.clear()
        words = sys.argv[1:] if args is None else list(args)
        for flag, word in zip(["", *words], words):
            self._check_word(word, flag if flag.startswith("-") else "an argument")
        namespace, unknown = self.parse_known_args(words, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0])
            hint = suggest(flag.partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace

    def _check_word(self, word: str, name: str) -> None:
        try:
            check_text(name, word)
        except ValueError as error:
            self.error(str(error))
        flags = self._option_string_actions
        flag = word.partition("=")[0]
        if not re.fullmatch(r"-[a-z]\S+", word) or flag in flags:
            return
        for known in flags:
            if word.startswith(known) and len(known) > 2:
                self.error(f"unrecognized argument: {word}; did you mean '{known} {word.removeprefix(known)}'?")
        if f"-{flag}" in flags:
            self.error(f"unrecognized argument: {word}; did you mean '-{flag}'?")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(action, f"{error.message}{suggest(value, action.choices or ())}") from None

    def error(self, message: str) -> NoReturn:
        """End with one line; argparse would print the usage before it."""
        say(self.prog.removeprefix("python -m ").split()[0], f"{message} (see --help)")
        self.exit(2)


def say(program: str, message: object) -> None:
    """One line of a program on standard error; nothing in it, such as a name from a file, can steer a terminal."""
    print(f"{program}: {one_line(message, MAX_MESSAGE)}", file=sys.stderr, flush=True)


class _Store(argparse.Action):
    """argparse's "store", for flags that have one value: a second one would replace the first in silence."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.dest in parser.given:
            earlier = parser.given[self.dest]
            second = "twice" if earlier is self else f"beside {earlier.option_strings[-1]}"
            raise argparse.ArgumentError(self, f"given {second}; give one value")
        parser.given[self.dest] = self
        setattr(namespace, self.dest, values)


def use_utf8() -> None:
    """Let text in and out of this process whatever the terminal's encoding: nothing read or printed can fail on it.

    Standard input is UTF-8, and bytes that are not become lone surrogates, which `check_text` refuses. Characters that
    standard output or error cannot show become question marks.
    """
    for stream, options in (
        (sys.stdin, {"encoding": "utf-8", "errors": "surrogateescape"}),
        (sys.stdout, {"errors": "replace"}),
        (sys.stderr, {"errors": "replace"}),
    ):
        if hasattr(stream, "reconfigure"):  # tests and notebooks put other objects in place
            stream.reconfigure(**options)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say on a terminal what is being loaded, once it has taken a second; the line disappears when it is done.

    Pipes and files get nothing, and of several processes one speaks.
    """
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or os.environ.get("RANK", "0") != "0":
        yield
        return

    def show() -> None:
        shown.set()
        print(f"loading {one_line(what)} ...", end="", file=sys.stderr, flush=True)

    shown = threading.Event()
    timer = threading.Timer(PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown.is_set():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
