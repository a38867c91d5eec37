"""environment.sh, demo/demo.sh, tests/run.sh and .ci/run: what they install and run, and what they say on a failure.

    bash tests/run.sh tests/test_setup.py

The scripts run in a copy of their files with a stand-in for Python that writes down how it was called, so nothing is
installed and what is checked does not depend on this machine's packages.
"""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

STAND_IN = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
"-c "*) exit "${OLD:-0}" ;;
"-m venv --clear "*)
    [ -z "${NO_VENV:-}" ] || exit 1
    rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*" show torch") echo "Version: ${TORCH:-}" ;;
*" install -r "*)
    sleep "${SLOW:-0}"
    [ -z "${NO_PIP:-}" ] || { echo "ERROR: No matching distribution"; exit 1; } ;;
"-m ruff "*) exit "${RUFF:-0}" ;;
"-m mypy "*) exit "${MYPY:-0}" ;;
"-m coverage "*--fail-under*) exit "${COVERAGE:-0}" ;;
"-m coverage "*) echo 90 ;;
"-m pytest "*) echo "3 passed"; exit "${TESTS:-0}" ;;
esac
"""


class Clone:
    """A fresh clone's scripts, and a Python that only writes down its calls."""

    def __init__(self, folder):
        self.folder, self.calls = folder / "a clone", folder / "calls"
        for name in ("environment.sh", "requirements.txt", "demo/demo.sh", "demo/requirements.txt",
                     "dpad/serve/requirements.txt", "tests/run.sh", ".ci/run"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        self.python = folder / "python-stand-in"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        (folder / "installed").mkdir()  # what .ci/run then need not install
        for name in ("chromium", "bwrap"):
            shutil.copy(self.python, folder / "installed" / name)

    def start(self, script, *arguments, **variables):
        drop = ("MODEL", "TASK", "LIMIT", "GEN_LENGTH")
        environment = {key: value for key, value in os.environ.items() if key not in drop}
        environment |= {"PYTHON": str(self.python), "CALLS": str(self.calls),
                        "PATH": f"{self.python.parent / 'installed'}:{os.environ['PATH']}"} | variables
        return subprocess.Popen(["bash", self.folder / script, *arguments], cwd="/", env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, script, *arguments, **variables):
        """Exit status, output, and how Python was called meanwhile."""
        self.calls.write_text("")
        process = self.start(script, *arguments, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output, self.called()

    def called(self):
        return [line for line in self.calls.read_text().splitlines() if not line.startswith("-c ")]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def installs(calls):
    """Installations of requirements.txt alone; the tests' script then installs the page's and the server's as well."""
    return [call for call in calls if " install -r " in call and "demo/requirements.txt" not in call]


def test_set_up_installs_once_and_again_when_requirements_change(clone):
    status, output, calls = clone.run("tests/run.sh")
    assert status == 0 and "Installing" in output and "3 passed" in output.splitlines()[-1]
    assert calls[0].startswith("-m venv") and len(installs(calls)) == 1
    status, output, calls = clone.run("tests/run.sh")
    assert status == 0 and "Installing" not in output
    assert [call.split()[1] for call in calls] == ["mypy", "ruff", "pytest", "coverage", "coverage"]
    with open(clone.folder / "requirements.txt", "a") as file:
        file.write("another==1.0\n")
    assert len(installs(clone.run("tests/run.sh")[2])) == 1


def test_extra_packages_are_installed_together_and_again_when_one_of_the_files_changes(clone):
    """Guards a clone that has the packages of an older file; the demo needs none of them."""
    def extra(script):
        return [call for call in clone.run(script)[2] if " install -r " in call and "demo/requirements.txt" in call]

    assert not extra("demo/demo.sh")
    [call] = extra("tests/run.sh")
    assert "dpad/serve/requirements.txt" in call and not extra("tests/run.sh")
    for name in ("demo/requirements.txt", "dpad/serve/requirements.txt"):
        with open(clone.folder / name, "a") as file:
            file.write("another==1.0\n")
        assert len(extra("tests/run.sh")) == 1


def test_set_up_repairs_a_broken_environment(clone):
    clone.run("tests/run.sh")
    (clone.folder / ".venv" / "bin" / "python").unlink()
    status, _, calls = clone.run("tests/run.sh")
    assert status == 0 and calls[0].startswith("-m venv") and len(installs(calls)) == 1


def test_set_up_says_why_it_failed_and_tries_again(clone):
    status, output, calls = clone.run("demo/demo.sh", NO_PIP="1")
    lines = output.splitlines()
    assert status == 1 and "No matching distribution" in lines[-2]
    assert "pip could not install" in lines[-1] and not any("demo.py" in call for call in calls)
    status, _, calls = clone.run("demo/demo.sh")
    assert status == 0 and len(installs(calls)) == 1 and calls[-1].endswith("demo/demo.py")


@pytest.mark.parametrize("variables, message", [
    ({"OLD": "1"}, "older than Python 3.11"), ({"PYTHON": "/no/such/python"}, "/no/such/python is missing"),
    ({"NO_VENV": "1"}, "python3-venv"),
])
def test_set_up_without_a_usable_python(clone, variables, message):
    status, output, calls = clone.run("tests/run.sh", **variables)
    assert status == 1 and message in output.splitlines()[-1] and not installs(calls)
    assert not (clone.folder / ".venv").exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock two set-ups at once are not kept apart")
def test_two_set_ups_at_once_install_once(clone):
    clone.calls.write_text("")
    both = [clone.start(script, SLOW="1") for script in ("tests/run.sh", "demo/demo.sh")]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert len(installs(clone.called())) == 1


def test_set_up_takes_the_cpu_build_of_torch_without_a_gpu(clone, tmp_path):
    real_gpu = os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi")
    if not real_gpu and sys.platform == "linux":
        calls = clone.run("tests/run.sh")[2]
        assert any("--no-deps" in call and call.endswith("torch==2.13.0+cpu") for call in calls)
        shutil.rmtree(clone.folder / ".venv")
        assert not any("+cpu" in call for call in clone.run("tests/run.sh", TORCH="2.13.0")[2])
        shutil.rmtree(clone.folder / ".venv")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    calls = clone.run("tests/run.sh", PATH=path, TORCH="2.13.0+cpu")[2]
    assert not any("+cpu" in call for call in calls) and any(call.endswith("uninstall --yes torch") for call in calls)


def test_run_sh_passes_arguments_on(clone):
    status, output, calls = clone.run("tests/run.sh", "-k", "two words")
    assert status == 0 and calls[-1] == "-m pytest -q -k two words" and output.splitlines()[-1] == "3 passed"
    status, output, calls = clone.run("tests/run.sh", "--fast", "-x")
    assert status == 0 and calls[-2:] == ["-m ruff check --quiet .", "-m pytest -q -m fast -n 2 --dist worksteal -x"]
    assert not any("mypy" in call for call in calls) and output.splitlines()[-1] == "3 passed"


@pytest.mark.parametrize("fault", ["ruff", "mypy", "coverage", "tests"])
def test_run_sh_passes_faults_on(clone, fault):
    """Guards the status, and the closing line of pytest at the end whatever is wrong."""
    status, output, _ = clone.run("tests/run.sh", **{fault.upper(): "1"})
    assert status == 1 and output.splitlines()[-1] == "3 passed"
    assert fault == "tests" or f"{fault}: " in output


@pytest.mark.parametrize("script", ["tests/run.sh", ".ci/run"])
def test_everything_is_measured(clone, script):
    """Guards the run of everything, which is also what continuous integration runs."""
    assert os.access(ROOT / script, os.X_OK) or script != ".ci/run"
    status, output, calls = clone.run(script)
    assert status == 0 and "All of the code: 90%" in output and output.splitlines()[-1] == "3 passed"
    assert any(call.startswith("-m pytest -q") and "--cov" in call for call in calls)
    assert any("dpad/engine" in call and call.endswith("--fail-under=95") for call in calls)
    assert clone.run(script, TESTS="1")[0] == 1


def test_demo_sh_turns_variables_into_flags(clone):
    variables = {"MODEL": "my model", "TASK": "t", "LIMIT": "3", "GEN_LENGTH": "64"}
    status, _, calls = clone.run("demo/demo.sh", "--from_scratch", **variables)
    assert status == 0
    assert calls[-1].endswith("/demo/demo.py --model my model --task t --limit 3 --gen_length 64 --from_scratch")
