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
import torch
from helpers import with_flags

import run
from dpad import ROOT
from dpad.engine import memory
from dpad.evaluation import processes
from dpad.evaluation.journal import Journal

pytestmark = pytest.mark.slow
# One token a forward, so that answers take long enough to be interrupted.
FLAGS = ["-t", "arithmetic-50", "-s", "2", "-l", "256", "-b", "32", "--limit", "7", "--device", "cpu"]


def command(checkpoint, output, *more):
    flags = ["-m", str(checkpoint), *FLAGS, "--output", str(output)]
    return [sys.executable, str(ROOT / "run.py"), *with_flags(flags, list(more))]


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
    (["--num_processes", "1000"], "num_processes is 1000; it must be at most "),
    (["-p", "70000"], "main_process_port is 70000; it must be an integer from 1 to 65535"),
    (["--limit", "0"], "limit is 0; it must be an integer of at least 1"),
    (["--batch_size", "0"], "batch_size is 0; it must be an integer of at least 1, or \"auto\""),
    (["--mc_samples", "0"], "mc_samples is 0; it must be an integer of at least 1"),
])
def test_bad_input_is_said_once(checkpoint_folder, tmp_path, capfd, flags, message):
    """What is wrong with the request is said by the one process that the user started, in one line."""
    assert run_here(checkpoint_folder, tmp_path, *with_flags(["--num_processes", "2"], flags)) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"run.py: {message}")


@pytest.mark.parametrize("launcher", ["run.py", "torchrun"])
def test_a_prompt_that_is_too_long_is_said_once(checkpoint_folder, tmp_path, launcher):
    """Guards what all processes find at the same time: one says it, however they were started."""
    several = ["--num_processes", "2"] if launcher == "run.py" else []
    flags = command(checkpoint_folder, tmp_path, "-s", "20", *several)
    if launcher == "torchrun":
        flags[:1] = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                     "--master_port", str(processes._free_port())]
    done = subprocess.run(flags, capture_output=True, text=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    lines = [line for line in done.stderr.splitlines() if line.startswith("run.py:")]
    assert len(lines) == 1 and "worked examples would fit" in lines[0], done.stderr
    assert launcher == "torchrun" or (done.returncode == 2 and done.stderr.count("\n") == 1)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_are_still_starting_end_with_their_launcher(checkpoint_folder, tmp_path, sent):
    """Guards the seconds before a process has joined the others: nobody is left who starts a run of his own."""
    launcher = subprocess.Popen(command(checkpoint_folder, tmp_path, "--num_processes", "2"),
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(started := children_of(launcher.pid)) < 2:
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    assert not list(tmp_path.iterdir()), "the processes are past their start"
    launcher.send_signal(sent)
    launcher.wait(60)
    while any(map(is_alive, started)):
        assert time.monotonic() < deadline, "a process outlived the one that launched it"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


# --- How many ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine without GPUs that has 8 cores and 4 GiB free; a function that sets its control group's limits."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(processes, "cores", lambda: 8)
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_control_groups", lambda: [tmp_path])
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable: 4194304 kB\n")

    def limit(maximum: str, used: int, version: int = 2) -> None:
        names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
        (tmp_path / names[0]).write_text(f"{maximum}\n")
        (tmp_path / names[1]).write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\n{'total_' * (version == 1)}inactive_file {2**28}\n")

    return limit


def test_cores_and_memory_bound_the_processes(machine):
    """Guards a machine against being taken to its end: the largest number that is allowed, and why."""
    gib = 2**30
    processes.check_count(8, None, 0)
    with pytest.raises(ValueError, match="^num_processes is 9; it must be at most 8 here: one for each processor core"):
        processes.check_count(9, None, 0)
    processes.check_count(2, "cpu", gib)
    with pytest.raises(ValueError, match="^num_processes is 3; it must be at most 2 here: each takes about 1.4 GiB of "
                                         "memory, and 4.0 GiB are free$"):
        processes.check_count(3, "cpu", gib)
    with pytest.raises(ValueError, match="at most 1 here: each takes about 32.4 GiB"):
        processes.check_count(2, None, 32 * gib)
    processes.check_count(1, None, 32 * gib)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_counts(machine, version):
    """Guards containers, whose limit is lower than what the machine has free; files that can be dropped are free."""
    machine(str(2**30), 2**29, version)
    assert memory.available_memory() == 2**29 + 2**28
    machine("max", 2**29, version)
    assert memory.available_memory() == 4 * 2**30
    machine(str(2**29), 2**30, version)
    assert memory.available_memory() == 0


def test_control_groups_are_found():
    """Guards the reading of /proc/self/cgroup: whatever is found lies below the mount, the innermost group first."""
    assert all(folder.is_relative_to(memory.CONTROL_GROUPS) for folder in memory._control_groups())
    assert 0 < memory.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("device, count, message", [
    (None, 2, None), ("cuda", 2, None), ("cuda", 3, "at most 2 here: one for each GPU"),
    ("cuda:1", 2, "at most 1 here: --device cuda:1 is one GPU"), ("cpu", 3, None),
])
def test_gpus_bound_the_processes(machine, monkeypatch, device, count, message):
    """Guards one GPU for each process; on the CPU of such a machine its cores count."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if message is None:
        processes.check_count(count, device, 0)
    else:
        with pytest.raises(ValueError, match=message):
            processes.check_count(count, device, 0)


@pytest.mark.parametrize("number, message", [
    (3, "num_processes is 3, but 2 processes have been launched already"), (2, None), (1, None),
])
def test_somebody_elses_launcher(monkeypatch, number, message):
    """Guards accelerate and torchrun: a number of ours beside theirs is not ignored."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    if message:
        with pytest.raises(ValueError, match=message):
            processes.check_flags(number, None, print)
    else:
        processes.check_flags(number, None, print)
