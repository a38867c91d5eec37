"""README.md: its commands are ones that the command line takes, and its Python example runs.

    bash tests/run.sh tests/test_readme.py
"""

import re
import shlex

import pytest
from helpers import ROOT

import run

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python run\.py (.*?)(?:\s+#.*)?$", TEXT, flags=re.MULTILINE)


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_taken(command):
    """Guards against flags that were renamed: a newcomer's first line must not fail."""
    words = shlex.split(command)
    if words == ["--help"]:
        return
    named = words[0] in run.COMMANDS
    options = run.COMMANDS[words[0] if named else "evaluate"][0]().parse_args(words[named:])
    assert options.gen_length == 256
    if words[0] != "bench":
        assert run.decoding_from(options)["gen_length"] == 256


def test_scripts_exist():
    for script in re.findall(r"bash (\S+\.sh)", TEXT) + re.findall(r"python (\S+\.py)", TEXT):
        assert (ROOT / script).is_file(), script


def test_python_example_runs(capsys):
    """Guards the interface that the README shows."""
    [example] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out
