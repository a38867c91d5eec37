"""Outputs are checked before the work: names, folders, links, and files that are something else, in every command.

    bash tests/run.sh tests/test_outputs.py
"""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest
from example_records import evaluation, vanilla_and_dpad

import run
from benchmarks import agreement, measurement
from dataset import arithmetic, gsm8k
from demo import pictures
from dpad import ROOT
from dpad.results import files, outputs

PNG = b"\x89PNG\r\n\x1a\nrest"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="x"/>'
TRACE = b'{"kind": "trace"}\n{}\n'
PROBLEM = b'{"question": "1?", "answer": "2"}\n'
RECORD = json.dumps(evaluation("Vanilla", 1.0)).encode()
BENCHMARK = (ROOT / "benchmarks" / "cpu-small.json").read_bytes()
CONTENTS = {  # of an existing file of each kind
    "a.gif": (outputs.GIF, b"GIF89a..."), "a.png": (outputs.PICTURE, PNG), "a.svg": (outputs.PICTURE, SVG),
    "a.jsonl": (outputs.TRACE, TRACE), "b.jsonl": (outputs.PROBLEMS, PROBLEM), "a.arrow": (outputs.ARROW, b"ARROW1..."),
    "a.json": (outputs.EVALUATION, RECORD), "b.json": (outputs.BENCHMARK, BENCHMARK),
    "c.json": (outputs.AGREEMENT, b'{"kind": "agreement"}'),
}


# --- The rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_ones_own_kind_is_replaced_and_nothing_else(tmp_path, name):
    kind, own = CONTENTS[name]
    path = tmp_path / name
    outputs.check("--x", path, kind)
    outputs.check("--x", path.with_suffix(path.suffix.upper()), kind)
    outputs.check("--x", tmp_path / "new" / "folder" / name, kind)
    for content in (own, b""):
        path.write_bytes(content)
        outputs.check("--x", path, kind)
    others = [content for other, content in CONTENTS.values() if other is not kind or content != own]
    for content in (*others, b"text", b"\xff\xfe\x00", b"{}", b"[]", b"{", b"[" * 5000, b"[" + RECORD + b"]"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--x is '.*{name}', an existing file that is not {kind.noun}; it must"):
            outputs.check("--x", path, kind)
        assert path.read_bytes() == content
    assert {entry.name for entry in tmp_path.iterdir()} == {name}, "checking leaves nothing behind"


@pytest.mark.parametrize("name, message", [
    ("", "the name must end in .png or .svg"), ("-", "must end in"), ("x", "must end in"), ("x.jpg", "must end in"),
    (".png", "must end in"), ("x.png.gz", "must end in"), ("folder.png", "which is a folder"),
    ("new.png/", "which is a folder"), ("file/x.png", "file is not a folder"), ("file/a/b/x.png", "is not a folder"),
    ("fifo.png", "which cannot be replaced"), ("loop.png", "cannot be written"), ("dangling/x.png", "is not a folder"),
    ("x" * 300 + ".png", "cannot be written: File name too long"), ("/proc/x.png", "nothing can be written in /proc"),
    ("device.png", "which cannot be replaced"),
])
def test_names_that_cannot_be_written(tmp_path, monkeypatch, name, message):
    """Guards work whose result has no place: every one of these would fail, or destroy something, at its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "device.png").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=message) as caught:
        outputs.check("--plot", name, outputs.PICTURE)
    assert str(caught.value).startswith(f"--plot is {name!r}") and "\n" not in str(caught.value)


def test_inputs_are_never_written(tmp_path, monkeypatch):
    """Guards what a command reads, by any of its names: relative, through a folder, a symbolic or a hard link."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.gif"
    source.write_bytes(b"GIF89a")
    (tmp_path / "link.gif").symlink_to("a.gif")
    (tmp_path / "hard.gif").hardlink_to(source)
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("a.gif", "./a.gif", "sub/../a.gif", "link.gif", "hard.gif", "folder/a.gif", str(source)):
        with pytest.raises(ValueError, match="which this command reads; it must be another file"):
            outputs.check("--gif", name, outputs.GIF, inputs=["a.gif"])
    outputs.check("--gif", "b.gif", outputs.GIF, inputs=["a.gif", "gone.gif"])
    with pytest.raises(ValueError, match="which this command reads"):
        outputs.check("--gif", "gone.gif", outputs.GIF, inputs=["gone.gif"])


def test_folders_must_be_writable(tmp_path, monkeypatch):
    """Guards read-only places. (The superuser may write everywhere, so the refusal is the system's, made up.)"""
    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    for check in (lambda: outputs.check("--plot", tmp_path / "sub" / "x.png", outputs.PICTURE),
                  lambda: outputs.check_folder("--output", tmp_path / "sub")):
        with pytest.raises(ValueError, match="but nothing can be written in .*: Read-only file system"):
            check()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_files_and_folders_without_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.png").chmod(stat.S_IRUSR)
    with pytest.raises(ValueError, match="which cannot be replaced"):
        outputs.check("--plot", tmp_path / "a.png", outputs.PICTURE)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ValueError, match="nothing can be written"):
        outputs.check("--plot", tmp_path / "b.png", outputs.PICTURE)


def test_links_lead_to_what_is_replaced(tmp_path):
    """Guards a link to a record: the file behind it gets the new content, and the link stays one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.json").write_text("{}")
    (tmp_path / "a.json").symlink_to("real/a.json")
    (tmp_path / "b.json").symlink_to("real/b.json")
    for name in ("a.json", "b.json"):
        files.write_json(tmp_path / name, [1])
        assert (tmp_path / name).is_symlink() and files.read_json(tmp_path / "real" / name) == [1]


@pytest.mark.parametrize("folder, message", [("file", "file is not a folder"), ("file/x", "file is not a folder"),
                                             ("", "it must be the name of a folder")])
def test_folders_are_checked(tmp_path, monkeypatch, folder, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=message):
        outputs.check_folder("--output", folder)
    for good in ("new", "new/deep", "."):
        outputs.check_folder("--output", good)


# --- Every command asks first -----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with something of each kind, in which loading a model is an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    (tmp_path / "bench.json").write_bytes(BENCHMARK)
    (tmp_path / "photo.png").write_text("no picture")
    (tmp_path / "notes.jsonl").write_text('{"question": "mine"}\n')
    (tmp_path / "t.jsonl").write_bytes(TRACE)
    files.write_json(tmp_path / "record.json", vanilla_and_dpad())
    (tmp_path / "folder.json").mkdir()

    def load(*arguments, **options):
        pytest.fail("the work began")

    monkeypatch.setattr(run, "load_model", load)
    monkeypatch.setattr(measurement, "make_subject", load)
    return tmp_path


TINY = ["-m", "tiny", "--device", "cpu"]
EVALUATE = ["-t", "arithmetic-50", *TINY]
GENERATE = ["generate", *TINY, "--prompt", "Hello"]


@pytest.mark.parametrize("command", [
    [*GENERATE, "--trace", "x.txt"], [*GENERATE, "--trace", "x"], [*GENERATE, "--trace", "notes.jsonl"],
    [*GENERATE, "--trace", "folder.json"], [*GENERATE, "--trace", "mine.json/t.jsonl"], [*GENERATE, "--trace", ""],
    [*GENERATE, "--trace", "-"],
    [*EVALUATE, "--record", "mine.json"], [*EVALUATE, "--record", "record.json"], [*EVALUATE, "--record", "bench.json"],
    [*EVALUATE, "--record", "x.yaml"], [*EVALUATE, "--record", ""], [*EVALUATE, "--record", "folder.json"],
    [*EVALUATE, "--record", "mine.json", "--from_scratch"],
    [*EVALUATE, "--record", "mine.json", "--num_processes", "2"],
    [*EVALUATE, "--output", "mine.json"], [*EVALUATE, "--output", "mine.json/x"], [*EVALUATE, "--output", ""],
    ["bench", "--plot", "x.xyz"], ["bench", "--plot", "photo.png"], ["bench", "--plot", "mine.json/x.png"],
    ["bench", "--plot", ""], ["bench", "--output", "mine.json"], ["bench", "--output", "x.txt"],
    ["bench", "--output", "record.json"], ["bench", "--output", "folder.json"], ["bench", "--output", ""],
    ["trace", "t.jsonl", "--gif", "t.jsonl"], ["trace", "t.jsonl", "--gif", "x.mp4"],
    ["trace", "t.jsonl", "--gif", "photo.gif/x.gif"], ["trace", "t.jsonl", "--gif", ""],
    ["table", "record.json", "--plot", "photo.png"], ["table", "record.json", "--plot", "record.json"],
    ["table", "record.json", "--plot", "x.pdf"], ["table", "record.json", "--plot", ""],
])
def test_commands_refuse_before_the_work(place, capsys, command):
    """Guards hours of work and files of other kinds: one line, status 2, and nothing has changed."""
    (place / "photo.gif").write_text("no GIF")
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert run.main(command) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1 and error.startswith("run.py: --")
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_pictures_of_several_tables_are_checked_too(place, capsys):
    """Guards the names that a figure of several pictures makes up."""
    files.write_json(place / "record.json", [*vanilla_and_dpad(), *(r | {"model": "b"} for r in vanilla_and_dpad())])
    (place / "x-arithmetic-50-b-256.png").write_text("mine")
    assert run.main(["table", "record.json", "--plot", "x.png"]) == 2
    output, error = capsys.readouterr()
    assert "an existing file that is not a picture" in error and not output
    assert (place / "x-arithmetic-50-b-256.png").read_text() == "mine" and not list(place.glob("x-*tiny*"))


def test_scripts_refuse_before_the_work(place, capsys, monkeypatch):
    monkeypatch.setattr(gsm8k, "fetch", lambda count: pytest.fail("the work began"))
    monkeypatch.setattr(arithmetic, "take", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(pictures, "make_gif", lambda folder: pytest.fail("the work began"))
    monkeypatch.setattr(agreement, "compare", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(pictures, "find_browser", lambda: "chromium")
    for output in ("mine.json", "x.txt", "folder.json"):
        assert gsm8k.main(["--output", output]) == 1
        with pytest.raises(SystemExit):
            arithmetic.main(["--output", output])
        monkeypatch.setattr(sys, "argv", ["agreement.py", "--device", "cpu", "--output", output])
        assert agreement.main() == 2
    (place / "denoising.gif").write_text("mine")
    assert pictures.main(["--output", "."]) == 2
    assert (place / "denoising.gif").read_text() == "mine"
    error = capsys.readouterr().err
    assert error.count("\n") == 10 and "Traceback" not in error


@pytest.mark.parametrize("arguments, status", [(["--help"], 0), ([], 2)])
def test_pictures_are_made_only_where_one_says(arguments, status, monkeypatch):
    """Guards tracked files: neither --help nor a bare call begins to draw."""
    monkeypatch.setattr(pictures, "make_gif", lambda folder: pytest.fail("the work began"))
    with pytest.raises(SystemExit) as caught:
        pictures.main(arguments)
    assert caught.value.code == status


def test_ones_own_files_are_written_again(tmp_path, monkeypatch, capsys):
    """Guards rewriting: a trace, a GIF and a record may take the place of earlier ones, also by a link."""
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "-l", "32", "-th", "0.5", "--prompt", "Tom has 3 bags with 4 apples each. How many apples?"]
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("t.jsonl")
    for name in ("t.jsonl", "t.jsonl", "link.jsonl", "empty.jsonl"):
        assert run.main(["generate", *flags, "--trace", name]) == 0
    assert run.main(["trace", "t.jsonl", "--gif", "t.GIF", "--seconds", "0.5"]) == 0
    assert run.main(["trace", "t.jsonl", "--gif", "t.GIF", "--seconds", "0.5"]) == 0
    assert (tmp_path / "t.GIF").read_bytes().startswith(b"GIF8") and (tmp_path / "link.jsonl").is_symlink()
    files.write_json(tmp_path / "r.json", vanilla_and_dpad())
    for _ in range(2):
        assert run.main(["table", "r.json", "--plot", "x.PNG"]) == 0
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")
