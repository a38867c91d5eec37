"""The journal of answers: one JSON line per answer, on disk as soon as the answer is finished.

A run that stops for any reason keeps every finished answer, and the same command goes on from there. Used by runs.py
and adapter.py; to see a journal: `cat results/*/answers-0.jsonl`

Why that is safe: only one process at a time holds a journal (flock). A line is a single write to a file opened for
appending, followed by fsync. If a killed process left a line without its end, that line is cut off on opening. Any
other line that is not an answer is refused with its line number: skipping it would count an old answer as new work, and
believing it would count a damaged answer as a result.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and what it cost; the fields are the keys of a journal's line.

    key: names the request, with everything that its answer depends on. task, doc_id, repeat: whose answer it is; a
    document has several when a task asks for several or, in multiple choice, one for each choice. answer: the text, or
    [log-likelihood, whether greedy decoding would write it]. full_answer: the same, with the text after EOS. raw: the
    text before the cut. forwards, tokens, full_tokens, seconds, tokens_processed: as in engine/completion.py.
    """

    key: str
    task: str
    doc_id: int
    repeat: int
    answer: Any
    full_answer: Any
    raw: str
    forwards: int
    tokens: int
    full_tokens: int
    seconds: float
    tokens_processed: int

    def scored(self, after_eos: str) -> Any:
        """The answer that is scored under a convention for text after EOS (engine/answer_text.py)."""
        return self.answer if after_eos == "drop" else self.full_answer


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of a hash of a JSON value; equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


class Journal:
    """Finished answers of one run, in `folder`/answers-<rank>.jsonl; a context manager that holds the file's lock.

    Args:
        folder: made if it is missing.
        rank: this process among several; each writes its own file and reads all of them.
        from_scratch: delete the answers that are there.

    Attributes:
        answers: dict from key to Answer, of all ranks' files.

    Raises:
        ValueError: another process holds the journal, or a line is not an answer.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, rank: int = 0, from_scratch: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / f"answers-{rank}.jsonl"
        self.answers: dict[str, Answer] = {}

        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            if from_scratch:
                for path in self._files():
                    os.truncate(path, 0)
            self._cut_unfinished_line()
            self.refresh()
        except BaseException:
            self.close()
            raise

    def append(self, answer: Answer) -> None:
        """Put an answer on disk; when this returns, it has reached the disk."""
        text = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
        line = (text + "\n").encode("utf-8", "backslashreplace")

        count = os.write(self._file, line)
        if count != len(line):
            raise OSError(f"{self.path}: only {count} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(self._file)

        self.answers[answer.key] = answer

    def refresh(self) -> None:
        """Read the answers again that are on disk, of all ranks."""
        self.answers = {}
        for path in self._files():
            self.answers |= _read(path)

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("answers-*.jsonl"))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.folder} is in use by another run: wait for it to end, or choose another --output "
                             "or --name") from None

    def _cut_unfinished_line(self) -> None:
        """Remove what follows the last line end: the start of a line whose writer was killed."""
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)
            os.fsync(self._file)


def _read(path: Path) -> dict[str, Answer]:
    answers = {}
    *lines, _unfinished = path.read_bytes().split(b"\n")  # unfinished: another rank is writing it
    for number, line in enumerate(lines, start=1):
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(f"{path}, line {number} is corrupt or comes from another version of this program: repair "
                             "or delete that line, or start over with --from_scratch") from None
        answers[answer.key] = answer
    return answers
