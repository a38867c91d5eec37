"""The journal: an answer that was appended is never lost, and nothing else is taken for an answer.

    python -m pytest tests/test_journal.py
"""

import dataclasses
import fcntl
import json
import math
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpad.evaluation import journal as journal_module
from dpad.evaluation.journal import Answer, Journal, digest


def answer(key: str, text: str = "") -> Answer:
    return Answer(key=key, task="task", doc_id=0, repeat=0, answer=text, full_answer=text, raw=text,
                  forwards=1, tokens=1, full_tokens=1, seconds=0.5, tokens_processed=8)


def line(key: str, /, changed: bool = False, **changes) -> bytes:
    """A line of a journal, with the right checksum unless it was `changed` afterwards."""
    fields = dataclasses.asdict(answer(key))
    fields |= {} if changed else changes
    fields["checksum"] = digest(fields, 8)
    return json.dumps(fields | (changes if changed else {})).encode() + b"\n"


def test_journal_returns_what_was_appended(tmp_path):
    """An answer is found again under its key, with line breaks and any script inside its text."""
    text = "line\nbreak \u2028 中 \"quoted\" \ud800"
    with Journal(tmp_path) as journal:
        journal.append(answer("a", text=text))
        journal.append(answer("b"))
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a", "b"]
        assert journal.answers["b"] == answer("b")
        assert journal.answers["a"].answer.startswith("line\nbreak \u2028 中")


@pytest.mark.parametrize("rest", [b"{", b'{"key": "b", "answer": "5', b'{"key": "b"}', b"\xe4\xb8"])
def test_unfinished_last_line_is_cut_off(tmp_path, rest):
    """What a killed process had half written is dropped, on disk too, and the next answer starts on its own line."""
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(line("a") + rest)
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a"]
        assert path.read_bytes() == line("a")
        journal.append(answer("c"))
    assert path.read_bytes() == line("a") + line("c")


@pytest.mark.parametrize("bad", [
    b"{not json\n", b"\n", b"[1]\n", b'{"answer": "no key"}\n', b"\xff\n", b"3\n",
    b'{"key": "of another form", "answer": "5", "time": 1.5}\n', b"[" * 100_000 + b"\n", b'{"a":' * 500 + b"\n",
    line("b", answer="\ud800"), line("b", doc_id="0"), line("b", doc_id=-1), line("b", doc_id=True), line("b", task=5),
    line("b", answer=5), line("b", answer=None), line("b", answer=["x", True]), line("b", answer=[-1.5, 1]),
    line("b", answer=[-1.5, True, 0]), line("b", raw=None), line("b", forwards=1.5), line("b", tokens="1"),
    line("b", seconds=-1), line("b", seconds="0.5"), line("b", seconds=float("nan")), line("b", key=7),
    line("b", extra=1), line("b", tokens_processed=2**70),
    b"9" * 5000 + b"\n",
])
def test_corruption_elsewhere_is_refused_with_its_line(tmp_path, bad):
    """A journal that was damaged is never read as if those answers were not there, and is left as it is."""
    content = line("a") + bad + line("b")
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"answers-0\.jsonl, line 2 is corrupt"):
        Journal(tmp_path)
    assert path.read_bytes() == content
    Journal(tmp_path, from_scratch=True).close()  # the refusal released the lock, and starting over is the way out
    assert path.read_bytes() == b""


@pytest.mark.parametrize("change", [
    {"answer": "6"}, {"key": "c"}, {"doc_id": 1}, {"repeat": 1}, {"task": "other"}, {"raw": "x"}, {"seconds": 0.1},
    {"full_answer": "6"}, {"tokens": 2}, {"checksum": "00000000"}, {"answer": "5\u0000"},
])
def test_a_changed_line_is_noticed(tmp_path, change):
    """Guards answers that were edited, or whose keys were swapped: the checksum of the line no longer fits."""
    (tmp_path / "answers-0.jsonl").write_bytes(line("a") + line("b", changed=True, **change))
    with pytest.raises(ValueError, match=r"answers-0\.jsonl, line 2 is corrupt, it was changed after it was written"):
        Journal(tmp_path)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Answer)])
def test_a_missing_field_is_noticed_before_the_work(tmp_path, field):
    fields = dataclasses.asdict(answer("a"))
    del fields[field]
    (tmp_path / "answers-0.jsonl").write_text(json.dumps(fields | {"checksum": digest(fields, 8)}) + "\n")
    with pytest.raises(ValueError, match=f"line 1 is corrupt or comes from another version .*, it has no {field}: "):
        Journal(tmp_path)


@pytest.mark.parametrize("places", [(0, 0), (0, 1)])
def test_two_answers_to_one_request_are_refused(tmp_path, places):
    """Guards against the last one winning in silence, in one file or in those of two processes; the same answer twice,
    however long it took, is one answer."""
    paths = [tmp_path / f"answers-{rank}.jsonl" for rank in places]
    for path, other in zip(paths, ({}, {"seconds": 9.0})):
        with open(path, "ab") as file:
            file.write(line("a", **other))
    with Journal(tmp_path) as journal:
        assert journal.answers["a"].seconds == 0.5
    with open(paths[1], "ab") as file:
        file.write(line("a", answer="6"))
    with pytest.raises(ValueError, match=r"answers-.\.jsonl, line . and .*answers-0\.jsonl, line 1 are two different "
                                         "answers to one request: delete"):
        Journal(tmp_path)


@dataclasses.dataclass
class Asked:
    """A request."""

    key: str
    task: str = "task"
    doc_id: int = 0
    repeat: int = 0


def test_answers_belong_to_their_requests(tmp_path):
    """Guards keys that were given to other documents, with checksums that fit."""
    (tmp_path / "answers-0.jsonl").write_bytes(line("a") + line("r", answer=[-1.5, True], full_answer=[-1.5, True]))
    with Journal(tmp_path) as journal:
        journal.check([Asked("a"), Asked("unknown")], rated=False)
        journal.check([Asked("r")], rated=True)
        wrong = [(Asked("a", doc_id=1), False), (Asked("a", repeat=1), False), (Asked("a", task="x"), False),
                 (Asked("a"), True), (Asked("r"), False)]
        for request, rated in wrong:
            with pytest.raises(ValueError, match="is no answer to the request of that key"):
                journal.check([request], rated=rated)


def test_a_deleted_journal_is_said(tmp_path):
    """Guards two runs on one folder, between which the file was deleted: the first one writes into no file that others
    see, and says so."""
    with Journal(tmp_path) as journal:
        journal.append(answer("a"))
        journal.path.unlink()
        for call in (lambda: journal.append(answer("b")), journal.refresh):
            with pytest.raises(ValueError, match="answers-0.jsonl was deleted or replaced while this run was writing"):
                call()
        with Journal(tmp_path) as second:
            assert not second.answers
            with pytest.raises(ValueError, match="was deleted or replaced"):
                journal.append(answer("b"))
            second.append(answer("c"))


def test_numbers_that_are_none_can_be_read_again(tmp_path):
    """Guards a run whose model rates an answer with NaN: it can go on."""
    with Journal(tmp_path) as journal:
        journal.append(dataclasses.replace(answer("a"), answer=[math.nan, False], full_answer=[-math.inf, False]))
    with Journal(tmp_path) as journal:
        assert math.isnan(journal.answers["a"].answer[0]) and journal.answers["a"].full_answer == [-math.inf, False]


def test_a_long_journal_is_cut_at_its_last_line(tmp_path, monkeypatch):
    """Guards the search from the end: lines longer than a piece, and a file of nothing but half a line."""
    monkeypatch.setattr(journal_module, "CHUNK", 7)
    path = tmp_path / "answers-0.jsonl"
    for rest in (b"", b"x", b"x" * 6, b"x" * 7, b"x" * 50):
        for whole in (b"", line("a"), line("a") + line("b")):
            path.write_bytes(whole + rest)
            Journal(tmp_path).close()
            assert path.read_bytes() == whole


def test_second_run_on_a_journal_is_refused(tmp_path):
    """Two processes never write one journal; a refused second run does not truncate it either."""
    with Journal(tmp_path) as journal:
        journal.append(answer("a"))
        with pytest.raises(ValueError, match="in use by another run"):
            Journal(tmp_path, from_scratch=True)
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a"]


def test_all_ranks_answers_are_read(tmp_path):
    """A run with another number of processes still finds every answer; an unfinished line of a rank is left to it."""
    (tmp_path / "answers-1.jsonl").write_bytes(line("b") + b'{"key": "c"')
    with Journal(tmp_path, rank=0) as journal:
        assert list(journal.answers) == ["b"]
        with open(tmp_path / "answers-0.jsonl", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / "answers-1.jsonl").read_bytes().endswith(b'{"key": "c"')


def test_short_write_is_an_error(tmp_path, monkeypatch):
    """A full disk may take a part of a line: that is no finished answer."""
    with Journal(tmp_path) as journal:
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
        with pytest.raises(OSError, match="only 5 of"):
            journal.append(answer("a"))
        assert not journal.answers


def test_digest_tells_values_apart():
    """Order of keys does not matter, everything else does."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, ["a", 1], {"a": None})}) == 5


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_gives_another_answer(tmp_path, data):
    """The law of checksums: with any one byte changed, a journal is refused or gives the answers that were written."""
    answers = {key: answer(key, text=f"{key} #### {number}") for number, key in enumerate("abc")}
    path = tmp_path / "answers-0.jsonl"
    path.unlink(missing_ok=True)
    with Journal(tmp_path) as journal:
        for entry in answers.values():
            journal.append(entry)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with Journal(tmp_path) as journal:
            assert all(answers[key] == entry for key, entry in journal.answers.items())
            assert len(journal.answers) >= 2, "only the last line may have lost its end"
    except ValueError as error:
        assert "is corrupt" in str(error) and "\n" not in str(error)
