"""Reading and writing files: every file that this project writes is either the old one or the complete new one.

    with write_whole("chart.png") as temporary:
        figure.savefig(temporary, format="png")

Needs nothing but the standard library, so that tables and `--help` do not wait for torch.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Replace a file in one step: the caller writes a temporary file beside it, which then takes its place.

    Whatever interrupts the writing, the path holds either its former content or all of the new content. The new content
    is on the disk before it takes the place of the old, folders are made as needed, and the file gets the permissions
    that any new file would get.

    Yields:
        The path of the temporary file, in the same folder, which does not exist yet.

    Raises:
        OSError: the file cannot be written; its former content is untouched and the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    try:
        yield temporary

        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; line ends are written as they are.

    Raises:
        OSError: see `write_whole`.
    """
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Numbers that JSON lacks (NaN, infinities) become null; numpy's and torch's scalars become plain numbers and paths
    become text.

    Raises:
        TypeError: something in `value` has no JSON form.
        OSError: see `write_whole`.
    """
    write_text(path, json.dumps(_to_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _to_json(value: Any) -> Any:
    """The same structure in JSON's own types, with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _to_json(entry) for key, entry in value.items()}

    if isinstance(value, (list, tuple)):
        return [_to_json(entry) for entry in value]

    if isinstance(value, Path):
        return str(value)

    if not isinstance(value, (str, int, float, bool, type(None))) and callable(getattr(value, "item", None)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_text(path: str | Path, newline: str | None = None) -> str:
    """The content of a text file.

    Args:
        newline: as in `open`: None turns every line end into a newline; "" keeps them as they are.

    Raises:
        ValueError: the file is missing, cannot be read or is not UTF-8; the message names it and the reason.
    """
    try:
        with open(path, encoding="utf-8", newline=newline) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{path} cannot be read: {reason}") from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file. Only a newline ends one: what a model wrote may hold others, such as U+2028.

    Raises:
        ValueError: see `read_text`.
    """
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: see `read_text`; or the file is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: line {error.lineno}, {error.msg}") from error
