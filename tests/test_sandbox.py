"""The sandbox: honest programs pass, hostile ones fail, end in time and harm nothing.

    python -m pytest tests/test_sandbox.py
"""

import os
import socket
import time
from pathlib import Path

import pytest

from dpad.evaluation import sandbox

FLOOD = "while True: print('x' * 10**6)"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"


def test_an_honest_program_passes():
    """Guards the channel: the end of a program is a pass, an exception is not."""
    assert sandbox.run_program("import math, re\nassert math.sqrt(4) == 2\nprint('passed')") == "passed"
    assert sandbox.run_program("raise ValueError") == "failed"
    assert sandbox.run_program("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()") == "passed"


@pytest.mark.parametrize("wrapper", sandbox.WRAPPERS)
def test_asyncio_works(wrapper):
    """Guards solutions that use an event loop, which opens a pair of sockets, at every level of isolation."""
    if sandbox._run("pass", 20, wrapper) != "passed":
        pytest.skip(f"{wrapper} is not on this machine")
    program = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 3\nassert asyncio.run(f()) == 3"
    assert sandbox._run(program, 20, wrapper) == "passed"
    in_threads = program.replace("asyncio.sleep(0)", "asyncio.to_thread(len, 'abc')")
    assert sandbox._run(in_threads, 20, wrapper) == "passed"
    assert sandbox._run("import socket\nsocket.socket()", 20, wrapper) == "failed"


@pytest.mark.parametrize("program, outcome", [
    ("import sys\nsys.exit(0)\nassert False", "failed"),
    ("import os\nos._exit(0)\nassert False", "failed"),
    ("quit()", "failed"),
    ("while True: pass", "timed out"),
    ("import time\ntime.sleep(60)", "timed out"),
    (FLOOD, "timed out"),
    (BOMB, "timed out"),
    ("x = bytearray(4 * 2**30)", "failed"),
    ("x = []\nwhile True: x.append(bytearray(10**7))", "either"),  # a slow machine's time is up before its memory
    ("open('big', 'wb').write(bytes(10**8))", "failed"),
    ("import ctypes\nctypes.string_at(0)", "failed"),
    ("def f(): f()\nf()", "failed"),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "either"),
    ("import os\nos.execv('/bin/true', ['true'])", "failed"),
    ("import subprocess\nsubprocess.run(['true'], check=True)", "failed"),
    ("import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
     "failed"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", "failed"),
    ("\x00", "failed"),
], ids=lambda value: value.splitlines()[-1][:30] if len(value) > 9 else value)
@pytest.mark.slow
def test_hostile_programs_end_as_failed(program, outcome):
    """Guards scoring: early exits, loops, bombs, floods and hogs do not pass, and end in time."""
    timeout = {"timed out": 2, "either": 5, "failed": 20}[outcome]  # a busy machine takes long to start an interpreter
    started = time.monotonic()
    found = sandbox.run_program(program, timeout)
    assert found == outcome or (outcome == "either" and found != "passed")
    assert time.monotonic() - started < timeout + 10


@pytest.mark.slow
def test_hostile_programs_harm_nothing(tmp_path):
    """Guards this machine: files stay, this process lives, no connection arrives, nothing is left running."""
    precious = tmp_path / "precious"
    precious.write_text("still here")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    port, parent = listener.getsockname()[1], os.getpid()
    attacks = [
        f"import os\nos.remove({str(precious)!r})", f"open({str(precious)!r}, 'w').close()",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})", f"import os\nos.rename({str(precious)!r}, 'mine')",
        f"import os\nos.truncate({str(precious)!r}, 0)", f"import os, signal\nos.kill({parent}, signal.SIGKILL)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
        f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\nos._exit(0)",
    ]
    for attack in attacks:
        assert sandbox.run_program(attack, timeout=20) == "failed", attack
    assert precious.read_text() == "still here"
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(file.read_bytes())
        except OSError:  # it has just ended
            continue
    assert any(b"pytest" in command for command in commands) and not any(b"--inside" in command for command in commands)


def test_environment_and_output_are_private(monkeypatch):
    """Guards secrets: a program sees no variable of this process and no argument with its pass line."""
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    program = "import os, sys\nassert 'SECRET_TOKEN' not in os.environ\nassert len(sys.argv) < 3"
    assert sandbox.run_program(program) == "passed"


def test_the_weakest_level_still_scores():
    """Guards machines that offer nothing around the interpreter: outcomes are the same, and the holes are named."""
    assert sandbox._run("pass", 20, "no wrapper") == "passed"
    assert sandbox._run("import sys; sys.exit(0)", 20, "no wrapper") == "failed"
    assert sandbox._run("while True: pass", 1, "no wrapper") == "timed out"
    bare = sandbox.Isolation("no wrapper", no_writing=False, no_network=True, no_signals=True, no_processes=False)
    assert bare.holes() == ["write files outside its folder", "start processes"]
    assert "COULD write files outside its folder, start processes" in bare.describe()
