"""The journal: an answer that was appended is never lost, and nothing else is taken for an answer.

    python -m pytest tests/test_journal.py
"""

import dataclasses
import fcntl
import json
import os

import pytest

from dpad.evaluation.journal import Answer, Journal, digest


def answer(key: str, text: str = "") -> Answer:
    return Answer(key=key, task="task", doc_id=0, repeat=0, answer=text, full_answer=text, raw=text,
                  forwards=1, tokens=1, full_tokens=1, seconds=0.5, tokens_processed=8)


def line(key: str) -> bytes:
    return json.dumps(dataclasses.asdict(answer(key))).encode() + b"\n"


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
    b'{"key": "of another form", "answer": "5", "time": 1.5}\n',
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
