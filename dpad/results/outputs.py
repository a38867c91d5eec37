"""Outputs: whether a file can be written where a flag says, asked before the work whose result it will hold.

    outputs.check("--gif", "both.gif", outputs.GIF, inputs=["vanilla.jsonl", "dpad.jsonl"])
    outputs.check_folder("--output", "results")

A name must end as its kind's names do, and its folder must be writable, or such that it can be made. A file that is
there already is replaced only if it is of the same kind; one that the command reads never is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dpad.results import files


@dataclass(frozen=True)
class Kind:
    """A kind of file that commands write.

    noun: what people call it. suffixes: of its names, in any case. matches: whether an existing file, which is not
    empty, is one.
    """

    noun: str
    suffixes: tuple[str, ...]
    matches: Callable[[Path], bool]


def _begins_with(*signatures: bytes) -> Callable[[Path], bool]:
    return lambda path: _start_of(path).startswith(signatures)


def _start_of(path: Path, count: int = 2**12) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _is_picture(path: Path) -> bool:
    start = _start_of(path)
    return b"<svg" in start if path.suffix.lower() == ".svg" else start.startswith(b"\x89PNG\r\n\x1a\n")


def _holds_record(*kinds: str) -> Callable[[Path], bool]:
    """Whether a file holds one record of these kinds; a list of records is not what one run may replace."""

    def matches(path: Path) -> bool:
        content = files.read_json(path)
        return isinstance(content, dict) and content.get("kind") in kinds

    return matches


def _first_line_has(**fields: object) -> Callable[[Path], bool]:
    """Whether the first line of a file is a JSON object with these fields; `...` stands for any value."""

    def matches(path: Path) -> bool:
        _, entry = next(files.read_json_lines(path))
        return isinstance(entry, dict) and all(
            name in entry and value in (..., entry[name]) for name, value in fields.items()
        )

    return matches


GIF = Kind("a GIF", (".gif",), _begins_with(b"GIF87a", b"GIF89a"))
PICTURE = Kind("a picture of that format", (".png", ".svg"), _is_picture)
TRACE = Kind("a trace", (".jsonl",), _first_line_has(kind="trace"))
CONVERSATION = Kind("a conversation", (".jsonl", ".json"), _holds_record("conversation"))
PROBLEMS = Kind("a file of problems", (".jsonl",), _first_line_has(question=..., answer=...))
ARROW = Kind("an Arrow file", (".arrow",), _begins_with(b"ARROW1"))
EVALUATION = Kind("the record of an evaluation", (".json",), _holds_record("evaluation"))
COMPARISON = Kind("the record of a comparison", (".json",), _holds_record("comparison"))
BENCHMARK = Kind("the record of a benchmark", (".json",), _holds_record("benchmark", "growth"))
TRAINING_STEPS = Kind("a record of training steps", (".json",), _holds_record("training steps"))
AGREEMENT = Kind("a record of agreement", (".json",), _holds_record("agreement"))
QUANTIZATION = Kind("a record of quantization", (".json",), _holds_record("quantization"))
STARTUP = Kind("a record of start-up times", (".json",), _holds_record("startup"))
AUTHORS = Kind("a record beside the authors' code", (".json",), _holds_record("authors"))
LOAD = Kind("a record of a server under load", (".json",), _holds_record("load"))
ATTENTION = Kind("a record of attention", (".json",), _holds_record("attention"))
STUDY = Kind("a record of the study", (".json",), _holds_record("study"))


def check(name: str, path: str | Path, kind: Kind, inputs: Iterable[str | Path] = ()) -> None:
    """Check that a file of a kind can be written.

    Args:
        name: of the flag or argument, for the message.
        inputs: files that the same command reads.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    shown = f"{name} is {str(path)!r}"
    is_folder = str(path).endswith(os.sep)
    path = Path(path)
    if path.suffix.lower() not in kind.suffixes:
        raise ValueError(f"{shown}; the name must end in {' or '.join(kind.suffixes)}")
    try:
        if any(_same_file(path, Path(source)) for source in inputs):
            raise ValueError(f"{shown}, which this command reads; it must be another file")
        target = path.resolve() if path.is_symlink() else path
        if is_folder or target.is_dir():
            raise ValueError(f"{shown}, which is a folder; it must be a file")
        if target.exists() and not (target.is_file() and os.access(target, os.R_OK | os.W_OK)):
            raise ValueError(f"{shown}, which cannot be replaced; it must be a file that may be read and written")
        if target.exists() and target.stat().st_size and not _matches(kind, target):
            raise ValueError(f"{shown}, an existing file that is not {kind.noun}; it must be a new file, or "
                             f"{kind.noun} that may be replaced")
        _check_writable(shown, target.parent)
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ValueError(f"{shown}, which cannot be written: {getattr(error, 'strerror', None) or error}") from None


def check_folder(name: str, folder: str | Path) -> None:
    """Check that files can be written in a folder, which need not exist yet. Raises ValueError, as `check` does."""
    shown = f"{name} is {str(folder)!r}"
    if not str(folder):
        raise ValueError(f"{shown}; it must be the name of a folder")
    try:
        _check_writable(shown, Path(folder))
    except OSError as error:
        raise ValueError(f"{shown}, which cannot be written: {error.strerror}") from None


def _same_file(path: Path, other: Path) -> bool:
    """Whether both names lead to one file, through links of any kind or by being equal."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def _matches(kind: Kind, path: Path) -> bool:
    try:
        return kind.matches(path)
    except ValueError:  # not JSON, not text
        return False


def _check_writable(shown: str, folder: Path) -> None:
    """Raise ValueError unless a file can be made in a folder, or in the one where the missing folders will be made."""
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{shown}, but {folder} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{shown}, but nothing can be written in {folder}: {error.strerror}") from None
