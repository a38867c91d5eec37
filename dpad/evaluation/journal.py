"""The journal of answers: one JSON line per request, on disk as soon as the request is finished.

A run that stops for any reason keeps every finished answer, and the same command goes on from there. Used by
harness.py, never run; `cat results/*/answers-0.jsonl` shows journals.

What makes that safe: one process at a time holds a journal (flock); a line is one write to a file opened for appending,
followed by fsync; a line without its end, which a killed process leaves, is cut off on opening; anything else that is
not a line of this format is refused with its line number, because answers that were silently lost would be counted as
new work and answers that were silently wrong would be counted as results.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of a hash of a JSON value; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


class Journal:
    """Finished answers of one run, in `folder`/answers-<rank>.jsonl; a context manager that holds the file's lock.

    Args:
        folder: made if it is missing.
        rank: this process among several; each writes its own file and reads all of them.
        from_scratch: forget what is there.

    Attributes:
        answers: dict from key to answer, of all ranks' files.

    Raises:
        ValueError: another process holds the journal, or a line is corrupt.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, rank: int = 0, from_scratch: bool = False):
        self.folder = Path(folder)
        self.path = self.folder / f"answers-{rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            if from_scratch:
                for path in self.folder.glob("answers-*.jsonl"):
                    os.truncate(path, 0)
            self._cut_unfinished_line()
            self.answers = self.read()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, answer: dict) -> None:
        """Put an answer, a dict with a "key", on disk; when this returns it is there to stay."""
        line = (json.dumps(answer, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(self._file)
        self.answers[answer["key"]] = answer

    def read(self) -> dict[str, dict]:
        """The answers that are on disk, of all ranks."""
        answers = {}
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            answers |= _read(path)
        return answers

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder} is in use by another run: wait for that one or choose another "
                             "--output or --name") from None

    def _cut_unfinished_line(self) -> None:
        """Remove what follows the last line end: the start of a line whose writer was killed."""
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
            os.fsync(self._file)


def _read(path: Path) -> dict[str, dict]:
    answers = {}
    *lines, _unfinished = path.read_bytes().split(b"\n")  # unfinished: another rank is writing it
    for number, line in enumerate(lines, start=1):
        try:
            answer = json.loads(line)
            answers[answer["key"]] = answer
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number} is corrupt: repair or delete that line, or start over with "
                             "--from_scratch") from None
    return answers
