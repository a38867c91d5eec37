"""Tests of dpad/results/files.py: a file is the old one or the complete new one, and errors name the file.

    bash tests/run.sh tests/test_files.py
"""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dpad import ROOT
from dpad.engine.json_text import parse_json
from dpad.results import files
from dpad.results.files import write_whole


def test_files_need_only_the_standard_library():
    program = ("import sys, dpad.results.files; "
               "sys.exit(bool({'torch', 'numpy', 'lm_eval', 'matplotlib'} & set(sys.modules)))")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_write_whole_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    for content in (b"old", b"new"):
        with write_whole(path) as temporary:
            assert temporary.parent == path.parent and not temporary.exists()
            temporary.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b"old"
        assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("failure", [ValueError("broken"), KeyboardInterrupt()])
def test_write_whole_removes_its_temporary_file_on_any_failure(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)):
        with write_whole(path) as temporary:
            temporary.write_bytes(b"half")
            raise failure
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_write_whole_gives_the_permissions_of_any_new_file(tmp_path):
    former = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_text_keeps_its_line_ends(tmp_path):
    text = "a\r\nb\u2028c\n"
    files.write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_bytes() == text.encode()
    assert files.read_text(tmp_path / "a.txt", newline="") == text
    assert files.read_lines(tmp_path / "a.txt") == ["a", "b\u2028c"]


def test_json_round_trip(tmp_path):
    import numpy

    path = tmp_path / "new" / "folder" / "a.json"
    files.write_json(path, {"α": [1, 2.5, None, True], "n": numpy.float32(0.5), "nan": math.nan, "p": Path("x")})
    assert files.read_json(path) == {"α": [1, 2.5, None, True], "n": 0.5, "nan": None, "p": "x"}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"new": object()})
    monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"new": 1})
    assert files.read_json(path) == {"old": 1} and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_unreadable_json_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing.json cannot be read: No such file"):
        files.read_json(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ValueError, match="broken.json is not JSON: line 2"):
        files.read_json(tmp_path / "broken.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="bytes.json cannot be read: it is not UTF-8"):
        files.read_json(tmp_path / "bytes.json")


# --- JSON from anywhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [
    ("[" * 100_000, "nested deeper than 64 levels"), ('{"a":' * 100_000, "nested deeper than 64 levels"),
    ("[" * 70 + "]" * 70, "nested deeper than 64 levels"), ("[" * 700 + "]" * 700, "nested deeper than 64 levels"),
    ("NaN", "a number that is out of range"), ("[-Infinity]", "out of range"), ("1e999", "out of range"),
    ("1" * 30, "out of range"), ("1" * 10_000, "out of range"), ('{"a": [-1e300]}', "out of range"),
    ('"\\ud800"', "half of a surrogate pair"), ('{"\\udfff": 1}', "half of a surrogate pair"), ("{", "is not JSON: "),
    ("", "is not JSON: "), ("nonsense", "is not JSON: "), ("[1]\n2", "is not JSON: line 2, "),
    ("\x00", "is not JSON: "),
])
def test_json_that_nobody_should_have_to_handle(tmp_path, text, message):
    """Guards every reader: depth, numbers and text that would fail somewhere later, without a trace of where."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "x.json")
    assert str(caught.value).startswith("x.json ") and "\n" not in str(caught.value) and len(str(caught.value)) < 200
    (tmp_path / "x.jsonl").write_text("1\n" + text.replace("\n", " ") + "\n")
    with pytest.raises(files.LineError, match="x.jsonl, line 2 ") as caught:
        list(files.read_json_lines(tmp_path / "x.jsonl"))
    assert caught.value.number == 2


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, '"\\ud83d\\ude00"', "[1e18, -9223372036854775808, true]", "{}"])
def test_json_that_is_fine(text):
    assert parse_json(text, "") == json.loads(text)


def test_numbers_may_be_infinite_where_that_is_meant():
    assert parse_json("[-Infinity, 1e999]", "", largest=None) == [-math.inf, math.inf]


def test_reading_is_bounded(tmp_path, monkeypatch):
    """Guards memory: of a file without an end, such as a device, no more than the limit is read."""
    monkeypatch.setattr(files, "MAX_JSON", 10_000)
    for name in ("/dev/zero",):
        with pytest.raises(ValueError, match="is larger than|not JSON"):
            files.read_json(name)
        with pytest.raises(files.LineError, match="line 1 is longer than"):
            list(files.read_json_lines(name))
    with pytest.raises(ValueError, match="cannot be read: it is larger than"):
        files.read_text("/dev/zero", max_size=1000)
    (tmp_path / "a.jsonl").write_text("[1]\n" * 100)
    with pytest.raises(files.LineError, match="line 26 is beyond the 0 MB"):
        list(files.read_json_lines(tmp_path / "a.jsonl", max_size=100))


def test_lines_of_json(tmp_path):
    """Guards numbers of lines, line ends inside texts, and a last line that somebody may be writing."""
    path = tmp_path / "a.jsonl"
    path.write_text('"a\u2028b"\n{"c": 1}\n3', encoding="utf-8")
    assert list(files.read_json_lines(path)) == [(1, "a\u2028b"), (2, {"c": 1}), (3, 3)]
    assert list(files.read_json_lines(path, unfinished=True)) == [(1, "a\u2028b"), (2, {"c": 1})]
    path.write_bytes(b"1\n\xff\n")
    with pytest.raises(files.LineError, match="line 2 is not UTF-8 text"):
        list(files.read_json_lines(path))
    with pytest.raises(ValueError, match="gone.jsonl cannot be read: No such file"):
        list(files.read_json_lines(tmp_path / "gone.jsonl"))
