"""Several processes on one evaluation: same answers as one, a killed process fails the run, and it can go on.

    python -m pytest tests/test_processes.py
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run
from dpad import ROOT
from dpad.evaluation import processes
from dpad.evaluation.journal import Journal

pytestmark = pytest.mark.slow
# One token a forward, so that answers take long enough to be interrupted.
FLAGS = ["-t", "arithmetic-50", "-s", "2", "-l", "256", "-b", "32", "--limit", "7", "--device", "cpu"]


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
    assert run_here(checkpoint_folder, output) == 0
    return output


def run_here(checkpoint, output, *more) -> int:
    """The exit status of the command in this process, which saves the imports."""
    return run.main(command(checkpoint, output, *more)[2:])


def test_two_processes_give_the_answers_of_one(checkpoint_folder, alone, tmp_path):
    """Each answers a part, which its own file shows; samples and metrics are those of one process."""
    done = subprocess.run(command(checkpoint_folder, tmp_path, "--num_processes", "2"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = sorted(len(path.read_text().splitlines()) for path in journals(tmp_path))
    assert counts == [3, 4]
    assert done.stdout.count("7 samples") == 1, "one process alone reports"
    assert samples_of(tmp_path) == samples_of(alone)
    assert record_of(tmp_path)["metrics"] == record_of(alone)["metrics"]
    assert (record_of(tmp_path)["processes"], record_of(alone)["processes"]) == (2, 1)


def test_a_killed_run_goes_on(checkpoint_folder, alone, tmp_path):
    """kill -9 of one process: the run ends, loudly and soon; the same command then ends as if nothing had been.

    (tests/test_cli.py kills a run of one process.)
    """
    line = command(checkpoint_folder, tmp_path, "--num_processes", "2")
    launcher = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.kill(holder_of(wait_for_answers(tmp_path, launcher)), signal.SIGKILL)
    error = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0
    assert "was killed by SIGKILL, so the run was stopped; finished answers are kept" in error

    answers = sum(len(path.read_bytes().split(b"\n")) - 1 for path in journals(tmp_path))
    assert 0 < answers
    subprocess.run(line, check=True, capture_output=True)
    assert samples_of(tmp_path) == samples_of(alone)
    assert record_of(tmp_path)["reused"] >= min(answers, 7)


def test_killing_the_launcher_kills_its_processes(checkpoint_folder, alone, tmp_path):
    """kill -9 of what the user started: nobody is left who holds a journal, so the run can go on at once."""
    line = command(checkpoint_folder, tmp_path, "--num_processes", "2")
    launcher = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_answers(tmp_path, launcher)
    launcher.kill()
    launcher.wait()

    deadline = time.monotonic() + 20
    while any(map(is_locked, journals(tmp_path))):
        assert time.monotonic() < deadline, "a process outlived the one that launched it"
        time.sleep(0.05)
    assert run_here(checkpoint_folder, tmp_path) == 0
    assert samples_of(tmp_path) == samples_of(alone)


def wait_for_answers(output: Path, launcher: subprocess.Popen) -> Path:
    """Wait for the first finished answer; the journal that has it."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and launcher.poll() is None:
        for path in journals(output):
            if path.stat().st_size:
                return path
        time.sleep(0.005)
    raise AssertionError(f"no answer: {launcher.communicate()[1]}")


def journals(output: Path) -> list[Path]:
    return list(output.glob("*/answers-*.jsonl"))


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holder_of(path: Path) -> int:
    """The process that has a file open."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.path.realpath(file) == str(path.resolve()) for file in (folder / "fd").iterdir()):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"nobody holds {path}")


@pytest.mark.parametrize("flags, message", [
    (["-t", "no-such-task"], "there is no task 'no-such-task'"),
    (["--num_processes", "0"], "num_processes is 0; it must be an integer of at least 1"),
    (["-p", "70000"], "main_process_port is 70000; it must be an integer from 1 to 65535"),
    (["--limit", "0"], "limit is 0; it must be an integer of at least 1"),
    (["--batch_size", "0"], "batch_size is 0; it must be an integer of at least 1, or \"auto\""),
    (["--mc_samples", "0"], "mc_samples is 0; it must be an integer of at least 1"),
])
def test_bad_input_is_said_once(checkpoint_folder, tmp_path, capfd, flags, message):
    """What is wrong with the request is said by the one process that the user started, in one line."""
    assert run_here(checkpoint_folder, tmp_path, "--num_processes", "2", *flags) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"run.py: {message}")


def test_a_folder_in_use_is_said_once(checkpoint_folder, alone, tmp_path):
    """Guards two runs on one folder: the second one, of several processes, ends with one sentence and status 2."""
    [folder] = alone.iterdir()
    with Journal(tmp_path / folder.name):
        done = subprocess.run(command(checkpoint_folder, tmp_path, "--num_processes", "2"), capture_output=True,
                              text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "is in use by another run" in done.stderr


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes.current() == processes.ALONE
    processes.current().wait()  # returns at once
