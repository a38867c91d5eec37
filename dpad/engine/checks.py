"""Checks of what people pass in. Each raises ValueError in one sentence: the argument, its value, what is allowed.

    check_integer("batch_size", 0, minimum=1)     # ValueError: batch_size is 0; it must be an integer of at least 1

Imported by everything that takes arguments; standard library only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

MAX_INTEGER = 2**63 - 1  # what an int64 tensor holds


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_INTEGER) -> None:
    """Raise ValueError unless `value` is an integer in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        too_large = isinstance(value, int) and value > maximum
        bounds = f"from {minimum} to {maximum}" if too_large or maximum < MAX_INTEGER else f"of at least {minimum}"
        raise ValueError(f"{name} is {value!r}; it must be an integer {bounds}")


def check_number(
    name: str, value: object, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> None:
    """Raise ValueError unless `value` is a finite number of at least `minimum`, above `above` and at most `maximum`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
        or (maximum is not None and value > maximum)
    ):
        bounds = {"of at least": minimum, "above": above, "at most": maximum}
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        raise ValueError(f"{name} is {value!r}; it must be a finite number {' and '.join(words)}".rstrip())


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}{suggest(value, choices)}")


def suggest(value: object, choices: Iterable[str], count: int = 1) -> str:
    """`; did you mean "this"?` for a value that looks like one of the choices; otherwise nothing.

    count: how many of them are named, at most.
    """
    names = {name.lower(): name for name in choices}
    close = difflib.get_close_matches(str(value).lower(), names, n=count)
    return f"; did you mean {' or '.join(repr(names[name]) for name in close)}?" if close else ""


def check_text(name: str, value: str) -> None:
    """Raise ValueError unless a text can be written as UTF-8, which bytes of another encoding cannot.

    Python hands bytes of the command line and of standard input that are not UTF-8 on as lone surrogates; JSON may hold
    them too. Tokenizers and files refuse them.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def check_config(integers: dict[str, object], optional: dict[str, object], numbers: dict[str, object]) -> None:
    """Check fields of a config.json: integers of at least 1, others that may also be None, and numbers above 0.

    Raises:
        ValueError: naming the first field that does not fit, its value and what is allowed.
    """
    for name, value in integers.items():
        check_integer(f"config field {name}", value, 1)
    for name, value in optional.items():
        if value is not None:
            check_integer(f"config field {name}", value, 1)
    for name, value in numbers.items():
        check_number(f"config field {name}", value, above=0)
