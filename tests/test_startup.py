"""The benchmark of start-up times: its stand-in for large weights, and its record.

    bash tests/run.sh tests/test_startup.py
"""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from benchmarks import startup
from dpad.engine.loading import FAMILIES
from dpad.results import records, tables


@pytest.mark.skipif(sys.platform == "win32", reason="sparse files")
def test_the_stand_in_is_a_checkpoint_that_takes_no_room(tmp_path):
    """Guards what the benchmark loads: a whole checkpoint by its header, of zeros that are nowhere on the disk."""
    size = startup.make_stand_in("small", tmp_path)
    status = os.stat(tmp_path / "model.safetensors")
    assert status.st_size > size > 50e6 and status.st_blocks * 512 < 2**20
    model = FAMILIES["llada"].network.load(tmp_path, torch.bfloat16, torch.device("cpu"))
    assert sum(weight.nbytes for weight in model.parameters()) == size
    assert not any(weight.any() for weight in model.parameters())


def test_the_record(monkeypatch, tmp_path, capsys):
    """Guards the whole command, with one quick process in place of those that import torch."""
    monkeypatch.setattr(startup, "COMMANDS", {"nothing": ["-c", "pass"]})
    monkeypatch.setattr(sys, "argv", ["startup", "--repeats", "2", "--shape", "small",
                                      "--output", str(tmp_path / "record.json")])
    assert startup.main() == 0
    [record] = records.load([tmp_path / "record.json"])
    assert [len(record["rows"][0][name]) for name in ("seconds", "processor_s")] == [2, 2]
    loading = record["loading"]
    assert len(loading["load_s"]) == 2
    if sys.platform == "linux":  # the weights are mapped: next to nothing of them is the process's own
        assert max(loading["own_mb"]) < 0.3 * loading["bytes"] / 2**20 < min(loading["mapped_mb"])
    printed = capsys.readouterr().out
    assert printed.strip() == tables.render([json.loads((tmp_path / "record.json").read_text())]).strip()
    assert "nothing" in printed and "zeros that take no room" in printed
