"""The journal of answers: one JSON line per answer, on disk as soon as the answer is finished.

A run that stops for any reason keeps every finished answer, and the same command goes on from there. Used by runs.py
and adapter.py; to see a journal: `cat results/*/answers-0.jsonl`

Why that is safe: only one process at a time holds a journal (flock). A line is a single write to a file opened for
appending, followed by fsync. If a killed process left a line without its end, that line is cut off on opening. Any
other line that is not an answer as it was written is refused with its line number: each has a checksum. So are two
answers to one request, and an answer that stands under the key of another request. Skipping such lines would count old
answers as new work, and believing them would count damaged answers as results.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dpad.engine.checkpoint import listing
from dpad.results import files, forms


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and what it cost; the fields are the keys of a journal's line.

    key: names the request, with everything that its answer depends on. task, doc_id, repeat: whose answer it is; a
    document has several when a task asks for several or, in multiple choice, one for each choice. answer: the text, or
    [log-likelihood, whether greedy decoding would write it]. full_answer: the same, with the text after EOS. raw: the
    text before the cut. The others are as in engine/completion.py.
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
    kept_suffix: float = 0.0
    blocks: int = 0

    def scored(self, after_eos: str) -> Any:
        """The answer that is scored under a convention for text after EOS (engine/answer_text.py)."""
        return self.answer if after_eos == "drop" else self.full_answer


def digest(value: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of a hash of a JSON value; equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


CHUNK = 2**16  # bytes
TEXT = forms.Leaf("text", lambda value: isinstance(value, str))
RATING = forms.Leaf("text, or a number with true or false", lambda value: isinstance(value, str) or (
    isinstance(value, list) and len(value) == 2 and isinstance(value[0], float) and isinstance(value[1], bool)))
LINE = {  # the form of a line: the fields of Answer, and a checksum of them
    "key": TEXT, "task": TEXT, "doc_id": forms.ZERO_OR_MORE, "repeat": forms.ZERO_OR_MORE, "answer": RATING,
    "full_answer": RATING, "raw": TEXT, "forwards": forms.ZERO_OR_MORE, "tokens": forms.ZERO_OR_MORE,
    "full_tokens": forms.ZERO_OR_MORE, "seconds": forms.AMOUNT, "tokens_processed": forms.ZERO_OR_MORE,
    "kept_suffix": forms.AMOUNT, "blocks": forms.ZERO_OR_MORE, "checksum": TEXT,
}


class Journal:
    """Finished answers of one run, in `folder`/answers-<rank>.jsonl; a context manager that holds the file's lock.

    Args:
        folder: made if it is missing.
        rank: this process among several; each writes its own file and reads all of them.
        from_scratch: delete the answers that are there.

    Attributes:
        answers: dict from key to Answer, of all ranks' files.

    Raises:
        ValueError: another process holds the journal, a line is not an answer, or a request has two.
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
        """Put an answer on disk; when this returns, it has reached the disk.

        Raises:
            ValueError: somebody deleted or replaced the journal's file.
            OSError: the answer could not be written.
        """
        # Halves of surrogate pairs are no text: a reader would refuse them. Every question mark is as good.
        fields = json.loads(json.dumps(dataclasses.asdict(answer), ensure_ascii=False).encode("utf-8", "replace"))
        text = json.dumps(fields | {"checksum": digest(fields, 8)}, ensure_ascii=False)
        line = (text + "\n").encode("utf-8")

        self._check_in_place()
        count = os.write(self._file, line)
        if count != len(line):
            raise OSError(f"{self.path}: only {count} of {len(line)} bytes could be written; is the disk full?")
        os.fsync(self._file)

        self.answers[answer.key] = Answer(**fields)

    def refresh(self) -> None:
        """Read the answers again that are on disk, of all ranks. Raises ValueError as the class does."""
        self._check_in_place()
        answers: dict[str, Answer] = {}
        places: dict[str, str] = {}
        for path in self._files():
            for place, answer in _read(path):
                earlier = answers.setdefault(answer.key, answer)
                if _content(earlier) != _content(answer):
                    raise ValueError(f"{place} and {places[answer.key]} are two different answers to one request: "
                                     "delete one of these lines, or start over with --from_scratch")
                places.setdefault(answer.key, place)
        self.answers = answers

    def check(self, requests: Iterable[Any], rated: bool) -> None:
        """Check that the answers of requests are theirs, and of their kind.

        Args:
            requests: objects with the key, task, doc_id and repeat of an `Answer`, such as the adapter's Request.
            rated: whether the requests ask for log-likelihoods, and not for texts.

        Raises:
            ValueError: an answer is of another document, or of another kind.
        """
        for request in requests:
            answer = self.answers.get(request.key)
            if answer is None:
                continue
            theirs = (answer.task, answer.doc_id, answer.repeat, isinstance(answer.answer, list),
                      isinstance(answer.full_answer, list))
            if theirs != (request.task, request.doc_id, request.repeat, rated, rated):
                raise ValueError(f"{self.folder}: the line with the key {request.key} is no answer to the request of "
                                 f"that key, {request.task}, document {request.doc_id}: delete it, or start over with "
                                 "--from_scratch")

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

    def _check_in_place(self) -> None:
        """Raise ValueError where the file that this process writes is no longer what others find at its path."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            same = False
        if not same:
            raise ValueError(f"{self.path} was deleted or replaced while this run was writing it; the same command "
                             "gives the answers again that it held")

    def _cut_unfinished_line(self) -> None:
        """Remove what follows the last line end: the start of a line whose writer was killed."""
        size = start = os.fstat(self._file).st_size
        finished = 0
        while start and not finished:  # backwards, because a journal may be large
            start = max(0, start - CHUNK)
            place = os.pread(self._file, CHUNK, start).rfind(b"\n")
            finished = 0 if place < 0 else start + place + 1
        if finished < size:
            os.ftruncate(self._file, finished)
            os.fsync(self._file)


def _read(path: Path) -> Iterator[tuple[str, Answer]]:
    """The place and the answer of each line; what another rank has not finished writing is left out."""
    advice = "repair or delete that line, or start over with --from_scratch"
    try:
        for number, fields in files.read_json_lines(path, unfinished=True, largest=None):
            place = f"{path}, line {number}"
            fault = forms.fault(fields, LINE)
            if not fault and fields.keys() > LINE.keys():
                fault = f"it has {listing(fields.keys() - LINE.keys())}"
            if fault:
                raise ValueError(f"{place} is corrupt or comes from another version of this program, {fault.strip()}: "
                                 f"{advice}")
            if fields.pop("checksum") != digest(fields, 8):
                raise ValueError(f"{place} is corrupt, it was changed after it was written: {advice}")
            yield place, Answer(**fields)
    except files.LineError as error:
        raise ValueError(f"{path}, line {error.number} is corrupt, it {error.reason}: {advice}") from error


def _content(answer: Answer) -> str:
    """What two answers to one request must agree in: everything but the time that they took."""
    return digest(dataclasses.asdict(answer) | {"seconds": 0})
