"""Reading and writing files: every file that this project writes is either the old one or the complete new one.

    with write_whole("chart.png") as temporary:
        figure.savefig(temporary, format="png")

Needs nothing but the standard library, so that tables and `--help` do not wait for torch.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpad.engine.json_text import MAX_JSON, MAX_NUMBER, parse_json


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Replace a file in one step: the caller writes a temporary file beside it, which then takes its place.

    Whatever interrupts the writing, the path holds either its former content or all of the new content. The new content
    is on the disk before it takes the place of the old, folders are made as needed, and the file gets the permissions
    that any new file would get. Whether a path may be replaced is for `outputs.check` to say, before the work.

    Yields:
        The path of the temporary file, in the same folder, which does not exist yet.

    Raises:
        OSError: the file cannot be written; its former content is untouched and the temporary file is removed.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # the file that the link leads to is replaced, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    try:
        yield temporary

        give_usual_mode(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def give_usual_mode(path: str | Path) -> None:
    """Give a file the permissions that any new file would get; safetensors lets nobody else read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; line ends are written as they are.

    Raises:
        OSError: see `write_whole`.
    """
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all.

    Numbers that JSON lacks (NaN, infinities) become null; numpy's and torch's scalars become plain numbers and paths
    become text. indent: of nested lines; None writes one line.

    Raises:
        TypeError: something in `value` has no JSON form.
        OSError: see `write_whole`.
    """
    write_text(path, json.dumps(_to_json(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


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


# --- Reading ----------------------------------------------------------------------------------------------------------

MAX_TEXT = 2**28  # characters of a text file, which may come from anywhere


def read_text(path: str | Path, newline: str | None = None, max_size: int = MAX_TEXT) -> str:
    """The content of a text file.

    Args:
        newline: as in `open`: None turns every line end into a newline; "" keeps them as they are.
        max_size: in characters.

    Raises:
        ValueError: the file is missing, cannot be read, is not UTF-8 or too large; the message names it and the reason.
    """
    try:
        with open(path, encoding="utf-8", newline=newline) as file:
            text = file.read(max_size + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{path} cannot be read: {reason}") from error
    if len(text) > max_size:
        raise ValueError(f"{path} cannot be read: it is larger than {max_size // 2**20} MB")
    return text


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
        ValueError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, max_size=MAX_JSON), str(path))


class LineError(ValueError):
    """A line of a file that is not JSON, or that is not to be read. number: from 1. reason: what it is, as in "is not
    JSON"."""

    def __init__(self, path: str | Path, number: int, reason: str) -> None:
        super().__init__(f"{path}, line {number} {reason}")
        self.number = number
        self.reason = reason


def read_json_lines(
    path: str | Path, max_size: int | None = None, unfinished: bool = False, largest: float | None = MAX_NUMBER,
) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the content of each line of a JSONL file, one after the other.

    Args:
        max_size: of the file, in bytes; a line has at most MAX_JSON in any case.
        unfinished: leave out a last line without an end, which somebody may be writing.
        largest: see `parse_json`.

    Raises:
        LineError: a line is too long or not JSON, or the file is too large.
        ValueError: the file cannot be read.
    """
    size = 0
    try:
        with open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_JSON + 1)
                size += len(line)
                if len(line) > MAX_JSON:
                    raise LineError(path, number, f"is longer than {MAX_JSON // 2**20} MB")
                if not line or (unfinished and not line.endswith(b"\n")):
                    return
                if max_size is not None and size > max_size:
                    raise LineError(path, number, f"is beyond the {max_size // 2**20} MB that are read of such a file")
                try:
                    content = parse_json(line.decode("utf-8"), "", largest)
                except UnicodeDecodeError:
                    raise LineError(path, number, "is not UTF-8 text") from None
                except ValueError as error:
                    raise LineError(path, number, str(error).strip()) from error
                yield number, content
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
