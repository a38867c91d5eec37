"""Tests of dpad/results/records.py: what a run's environment says, and which records are read.

    bash tests/run.sh tests/test_records.py
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from example_records import evaluation, vanilla_and_dpad

from dpad import ROOT
from dpad.results import files, records
from dpad.results.records import hardware_line, load


def test_environment_says_what_ran():
    import torch
    import transformers

    found = records.environment()
    assert found["torch"] == torch.__version__ and found["transformers"] == transformers.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["processor"]
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert found["commit"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert records.version("a-package-that-nobody-made") is None


def test_records_need_neither_torch_nor_lm_eval():
    program = ("import sys, dpad.results.records, dpad.results.charts, dpad.results.documents\n"
               "sys.exit(bool({'torch', 'lm_eval', 'matplotlib'} & set(sys.modules)))")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_commit_is_marked_when_the_tree_differs(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True,
                       capture_output=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit() == "unknown"
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    clean = records.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("2")
    assert records.commit() == clean + "+"
    inner = tmp_path / "unpacked"  # an archive inside somebody else's repository has no commit
    inner.mkdir()
    monkeypatch.setattr(records, "ROOT", inner)
    assert records.commit() == "unknown"



def test_the_device_that_computed_is_named():
    hardware = {"processor": "Test CPU", "cores": 1, "gpus": [{"name": "NVIDIA H200", "memory_gb": 139.8}]}
    record = evaluation("Vanilla", 1.0, environment={"hardware": hardware})
    assert hardware_line(record) == "Test CPU, 1 core"
    record["environment"]["hardware"]["threads"] = 4
    assert hardware_line(record) == "Test CPU, 1 core, 4 threads"
    record["settings"]["device"] = "cuda:0"
    assert hardware_line(record) == "NVIDIA H200 (140 GB)"


def test_load_takes_files_lists_and_folders(tmp_path):
    pair = vanilla_and_dpad()
    files.write_json(tmp_path / "all.json", pair)
    files.write_json(tmp_path / "folder" / "b.json", pair[1])
    files.write_json(tmp_path / "folder" / "a.json", pair[0])
    assert load(["all.json"], tmp_path) == pair == load([tmp_path / "folder"])


@pytest.mark.parametrize("content, message", [
    ({"kind": "other"}, "not a record of a run"), ([3], "not a record of a run"),
    ({"kind": "evaluation", "name": "x", "task": "t", "model": "m", "settings": {}, "metrics": {}}, "latency_s"),
])
def test_load_refuses_what_is_no_record(tmp_path, content, message):
    files.write_json(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=message):
        load([tmp_path / "x.json"])


def test_load_refuses_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no .json file"):
        load([tmp_path])
