"""Several processes on one evaluation: same answers as one, a killed process fails the run, and it can go on.

    python -m pytest tests/test_processes.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpad import ROOT
from dpad.evaluation import processes

pytestmark = pytest.mark.slow
FLAGS = ["-t", "arithmetic-50", "-s", "2", "-th", "0.02", "-l", "64", "-b", "32", "--limit", "7", "--device", "cpu"]


def command(checkpoint, output, *more):
    return [sys.executable, str(ROOT / "run.py"), "-m", str(checkpoint), *FLAGS, "--output", str(output), *more]


def samples_of(output: Path) -> list[dict]:
    [file] = output.glob("*/samples.jsonl")
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in file.read_text().splitlines()]


def record_of(output: Path) -> dict:
    [file] = output.glob("*/record.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def alone(checkpoint_folder, tmp_path_factory):
    """The run in one process."""
    output = tmp_path_factory.mktemp("alone")
    subprocess.run(command(checkpoint_folder, output), check=True, capture_output=True)
    return output


def test_two_processes_give_the_answers_of_one(checkpoint_folder, alone, tmp_path):
    """Each answers a part, which its own file shows; samples and metrics are those of one process."""
    done = subprocess.run(command(checkpoint_folder, tmp_path, "--num_processes", "2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = sorted(len(path.read_text().splitlines()) for path in tmp_path.glob("*/answers-*.jsonl"))
    assert counts == [3, 4]
    assert done.stdout.count("7 samples") == 1, "one process alone reports"
    assert samples_of(tmp_path) == samples_of(alone)
    assert record_of(tmp_path)["metrics"] == record_of(alone)["metrics"]
    assert (record_of(tmp_path)["processes"], record_of(alone)["processes"]) == (2, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_run_goes_on(checkpoint_folder, alone, tmp_path, count):
    """kill -9 of one process: the run ends, loudly and soon; the same command then ends as if nothing had been."""
    line = command(checkpoint_folder, tmp_path, "--num_processes", str(count))
    run = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim = wait_for_answers(tmp_path, run, count)
    os.kill(victim, signal.SIGKILL)
    error = run.communicate(timeout=120)[1]
    assert run.returncode != 0
    if count > 1:
        assert "was killed by SIGKILL, so the run was stopped; finished answers are kept" in error
    kept = sum(len(path.read_bytes().split(b"\n")) - 1 for path in tmp_path.glob("*/answers-*.jsonl"))
    assert 0 < kept
    subprocess.run(line, check=True, capture_output=True)
    assert samples_of(tmp_path) == samples_of(alone)
    assert record_of(tmp_path)["reused"] >= min(kept, 7)


def test_killing_the_launcher_kills_its_processes(checkpoint_folder, alone, tmp_path):
    """kill -9 of what the user started: nobody is left who holds the journal, so the same command goes on at once."""
    line = command(checkpoint_folder, tmp_path, "--num_processes", "2")
    run = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    worker = wait_for_answers(tmp_path, run, 2)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}/fd").exists() and list(Path(f"/proc/{worker}/fd").iterdir()):
        assert time.monotonic() < deadline, "a process outlived the one that launched it"
        time.sleep(0.05)
    subprocess.run(line, check=True, capture_output=True)
    assert samples_of(tmp_path) == samples_of(alone)


def wait_for_answers(output: Path, run: subprocess.Popen, count: int) -> int:
    """Wait for the first finished answer; the process that holds its journal."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        for path in output.glob("*/answers-*.jsonl"):
            if path.stat().st_size:
                return run.pid if count == 1 else holder_of(path)
        time.sleep(0.005)
    raise AssertionError(f"no answer: {run.communicate()[1]}")


def holder_of(path: Path) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.path.realpath(file) == str(path.resolve()) for file in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"nobody holds {path}")


def test_bad_input_is_said_once(checkpoint_folder, tmp_path):
    """What is wrong with the request is said by the one process that the user started, in one line."""
    done = subprocess.run(command(checkpoint_folder, tmp_path, "--num_processes", "2", "-t", "no-such-task"),
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("there is no task") == 1
    for count, port in ((0, "1"), (2, "70000")):
        line = command(checkpoint_folder, tmp_path, "--num_processes", str(count), "-p", port)
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for flag, value in (("--limit", "0"), ("--batch_size", "0"), ("--mc_samples", "0")):
        line = command(checkpoint_folder, tmp_path, "--num_processes", "2", flag, value)
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.splitlines() == [
            f"run.py: {flag[2:]} is 0; it must be an integer of at least 1" + ', or "auto"' * (flag == "--batch_size")]


def test_a_folder_in_use_is_said_once(checkpoint_folder, tmp_path):
    """Guards two runs on one folder: the second one of several processes ends with one sentence and status 2."""
    line = command(checkpoint_folder, tmp_path, "--num_processes", "2")
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_answers(tmp_path, first, 2)
        [journal] = tmp_path.glob("*/answers-0.jsonl")
        holder = holder_of(journal)
        os.kill(holder, signal.SIGSTOP)  # so that it holds the journal until the second run has been refused
        second = subprocess.run(line, capture_output=True, text=True)
        os.kill(holder, signal.SIGCONT)
    finally:
        first.wait(120)
    assert second.returncode == 2 and second.stderr.count("is in use by another run") == 1
    assert len(second.stderr.splitlines()) == 1


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes.current() == processes.ALONE
    processes.current().wait()  # returns at once
