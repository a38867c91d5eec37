"""JSON that may come from anywhere, read within bounds: of size, of depth, of numbers.

    parse_json('{"a": [1, 2]}', "x.json")      # the value, or ValueError with one sentence that names x.json

Imported, never run; standard library only.
"""

from __future__ import annotations

import json
from typing import Any

MAX_JSON = 2**24  # bytes of a JSON file, or of a line of JSON
MAX_DEPTH = 64  # lists and objects inside each other
MAX_NUMBER = 2**64


def parse_json(text: str, place: str, largest: float | None = MAX_NUMBER) -> Any:
    """The value of a JSON text that may come from anywhere.

    Args:
        place: what the message calls it, such as the file and the line.
        largest: what numbers may reach, above and below zero; None: anything, NaN and Infinity included.

    Raises:
        ValueError: the text is not JSON; or it is nested deeper than MAX_DEPTH, holds a number that is out of range, or
            half of a surrogate pair, which is no text.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"{place} is not JSON: {line}{error.msg}") from error
    except RecursionError:
        raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # Python refuses integers of thousands of digits
        raise ValueError(f"{place} holds a number that is out of range") from None

    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                inner += entry
                inner += entry.values()
            elif isinstance(entry, list):
                inner += entry
            elif isinstance(entry, str):
                if not entry.isascii() and any("\ud800" <= character <= "\udfff" for character in entry):
                    raise ValueError(f"{place} holds half of a surrogate pair, which is no text")
            elif largest and isinstance(entry, (int, float)) and not -largest <= entry <= largest:  # or NaN
                raise ValueError(f"{place} holds a number that is out of range")
        level = inner
        if not level:
            return value
    raise ValueError(f"{place} is nested deeper than {MAX_DEPTH} levels")
