"""The web UI's command line: what it says it loads, and one sentence for flags that cannot be used. No browser needed.

    bash tests/run.sh tests/test_app_flags.py
"""

from __future__ import annotations

import io
import socket
import traceback
from contextlib import redirect_stderr

import pytest

from demo import app

pytest.importorskip("gradio", reason="demo/requirements.txt is not installed")


@pytest.fixture
def served(monkeypatch):
    """What would be served: the page itself is left out."""
    calls = []
    monkeypatch.setattr(app, "serve", lambda loaded, port: calls.append((loaded.name, port)))
    return calls


def refusal(capsys, *arguments):
    """The one line on which the program ends with status 2."""
    try:
        status = app.main(list(arguments))
    except SystemExit as end:
        status = end.code
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if not line.startswith("loading ")]
    assert status == 2 and len(lines) == 1 and not shown.out
    return lines[0]


@pytest.mark.parametrize("arguments, words", [
    (["--port", "99999"], "app.py: port is 99999; it must be an integer from 1 to 65535"),
    (["--port", "0"], "app.py: port is 0; it must be"),
    (["--port", "-1"], "app.py: port is -1; it must be"),
    (["--port", "9" * 30], "; it must be an integer from 1 to 65535"),
    (["--port", "http"], "app.py: argument --port: invalid int value: 'http'"),
    (["--port", "80.5"], "app.py: argument --port: invalid int value: '80.5'"),
    (["--port"], "app.py: argument --port: expected one argument"),
    (["--host", "nonsense"], "app.py: unrecognized arguments: --host nonsense"),
    (["-s", "4"], "app.py: unrecognized arguments: -s 4"),
    (["stray"], "app.py: unrecognized arguments: stray"),
    (["--por", "7860"], "app.py: unrecognized arguments: --por 7860"),
    (["-m", "tny"], "app.py: model is 'tny'; it must be"),
    (["-m", ""], "app.py: model is ''; it must be"),
    (["--device", "toaster"], "app.py: device is 'toaster'; it must be"),
    (["--dtype", "int8"], "app.py: dtype is 'int8'; it must be"),
])
def test_flags_that_cannot_be_used(served, capsys, arguments, words):
    assert words in refusal(capsys, *arguments)
    assert not served


def test_a_port_in_use(served, capsys):
    """Guards the check before the model is loaded, which may take minutes."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refusal(capsys, "--port", str(port))
    assert f"port is {port}, which cannot be used" in line and "choose another with --port" in line
    assert not served


def test_it_says_what_it_loads(served, capsys, checkpoint_folder):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    assert app.main(["-m", str(checkpoint_folder), "--port", str(port)]) == 0
    assert capsys.readouterr().err.startswith(f"loading {checkpoint_folder} ...\n")
    assert served == [(str(checkpoint_folder), port)]


def test_what_is_sent_to_the_page_cannot_steer_the_terminal():
    """Guards the terminal that serves the page: Gradio prints what it cannot use, such as a file's name."""
    shown = io.StringIO()
    with redirect_stderr(app.PlainText(shown)):
        try:
            raise ValueError("cannot move \x1b[31mx.jsonl\x07")
        except ValueError:
            traceback.print_exc()
    assert "\\x1b[31mx.jsonl\\x07\n" in shown.getvalue() and not set(shown.getvalue()) & set("\x1b\x07")
