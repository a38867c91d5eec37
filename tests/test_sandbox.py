"""The sandbox, at every level of isolation that this machine offers: honest programs pass, hostile ones fail, end in
time and harm nothing; below the level that is asked for, nothing runs.

    python -m pytest tests/test_sandbox.py
"""

import json
import os
import re
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers import ROOT

import run
from dpad.evaluation import confinement, runs, sandbox

FLOOD = "while True: print('x' * 10**6)"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"


@pytest.fixture(params=sandbox.WRAPPERS)
def wrapper(request):
    """A wrapper that this machine offers."""
    if sandbox.try_wrapper(request.param) is None:
        pytest.skip(f"{request.param} is not on this machine")
    return request.param


@pytest.fixture
def own_level(monkeypatch):
    """Tests of levels begin with the default that users have, and leave that of the tests behind."""
    default = sandbox.DEFAULT_LEVEL
    monkeypatch.setattr(sandbox, "DEFAULT_LEVEL", "namespaces")
    sandbox.require_level(None)
    yield
    sandbox.require_level(default)


def is_running(path):
    """Whether any process was started with this path in its command."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path).encode() in file.read_bytes():
                return True
        except OSError:  # it has just ended
            continue
    return False


# --- Honest programs --------------------------------------------------------------------------------------------------

HONEST = {
    "arithmetic": "import math, re\nassert math.sqrt(4) == 2\nprint('passed')",
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n"
               "    return await asyncio.to_thread(len, 'abc')\nassert asyncio.run(f()) == 3",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n"
               "    assert sum(pool.map(abs, range(9))) == 36",
    "a thread that goes on": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "files": "import os, tempfile\nopen('a', 'w').write('x')\nos.mkdir('d')\nos.rename('a', 'd/a')\n"
             "with tempfile.TemporaryDirectory() as folder: assert os.listdir(folder) == []",
    "recursion": "import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return n and 1 + f(n - 1)\nassert f(9000)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))",
    "tracing": "import sys\nsys.settrace(lambda *parts: None)\ndef f(): pass\nf()",
    "packages": "import decimal, fractions, hashlib, json, locale, queue, random, sqlite3, statistics, uuid, zlib",
}


@pytest.mark.parametrize("program", HONEST.values(), ids=HONEST)
def test_honest_programs_pass(wrapper, program):
    """Guards solutions: what exercises need works at every level, event loops and threads included."""
    assert sandbox._run(program, 20, wrapper) == "passed"


def test_an_honest_program_passes():
    """Guards the channel: the end of a program is a pass, an exception is not, nor is a text that does not compile."""
    assert sandbox.run_program("x = 1") == "passed"
    assert sandbox.run_program("raise ValueError") == "failed"
    assert sandbox.run_program("x = (") == "failed"
    assert sandbox.run_program("x = '\ud800'") == "failed"
    assert sandbox.run_program("\x00") == "failed"


# --- Passes are not forged --------------------------------------------------------------------------------------------

FORGERY_FILE = ROOT / "tests" / "data" / "forgeries.txt"  # programs, each below a line with its name
FORGERIES = dict(re.findall(r"^# --- (.*)\n((?:(?!# ---).*\n)*)", FORGERY_FILE.read_text(), re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_pass_is_forged(wrapper, program):
    """Guards scores: nothing that a program writes, calls, exits with or finds makes it pass before its end."""
    assert sandbox._run(program, 20, wrapper) == "failed"


# --- Programs end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program, outcome", [
    ("while True: pass", "timed out"),
    ("import time\ntime.sleep(60)", "timed out"),
    (FLOOD, "timed out"),
    (BOMB, "timed out"),
    ("import threading as t\nwhile True:\n    try: t.Thread(target=t.Event().wait).start()\n    except Exception: pass",
     "either"),
    ("x = bytearray(4 * 2**30)", "failed"),
    ("x = []\nwhile True: x.append(bytearray(10**7))", "either"),  # a slow machine's time is up before its memory
    ("open('big', 'wb').write(bytes(10**8))", "failed"),
    ("def f(): f()\nf()", "failed"),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "either"),
    ("import os\nos.execv('/bin/true', ['true'])", "failed"),
    ("import subprocess\nsubprocess.run(['true'], check=True)", "failed"),
    ("import os\nos.setsid()", "failed"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", "failed"),
], ids=lambda value: value.splitlines()[-1][:30] if len(value) > 9 else value)
@pytest.mark.slow
def test_hostile_programs_end_as_failed(wrapper, program, outcome, tmp_path, monkeypatch):
    """Guards scoring: loops, bombs, floods and hogs do not pass, end in time, and leave no process behind."""
    inside = tmp_path / "confinement.py"  # a path of its own, by which to know its processes
    inside.write_text(Path(confinement.__file__).read_text())
    monkeypatch.setattr(sandbox, "INSIDE", inside)
    timeout = {"timed out": 2, "either": 5, "failed": 20}[outcome]  # a busy machine takes long to start an interpreter
    started = time.monotonic()
    found = sandbox._run(program, timeout, wrapper)
    assert found == outcome or (outcome == "either" and found != "passed")
    assert time.monotonic() - started < timeout + 10
    deadline = time.monotonic() + 10  # the kernel takes a moment to end what was killed
    while is_running(inside) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(inside)


@pytest.mark.slow
def test_programs_end_with_a_killed_scorer(wrapper, tmp_path):
    """Guards machines on which scoring was killed: its program ends with it, at every level."""
    inside = tmp_path / "confinement.py"
    inside.write_text(Path(confinement.__file__).read_text())
    source = (f"import pathlib, tempfile\nfrom dpad.evaluation import sandbox\ntempfile.tempdir = {str(tmp_path)!r}\n"
              f"sandbox.INSIDE = pathlib.Path({str(inside)!r})\nsandbox._run('while True: pass', 60, {wrapper!r})")
    scorer = subprocess.Popen([sys.executable, "-c", source], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("program-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    scorer.kill()
    scorer.wait()
    while is_running(inside) and time.monotonic() < deadline + 10:
        time.sleep(0.05)
    assert not is_running(inside)


# --- Nothing is harmed ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hostile_programs_harm_nothing(wrapper, tmp_path):
    """Guards this machine: files and their attributes stay, this process keeps its limits, no connection arrives."""
    precious = tmp_path / "precious"
    precious.write_text("still here")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    port, parent = listener.getsockname()[1], os.getpid()

    def state():
        status = precious.stat()
        return [
            status.st_mode, status.st_uid, status.st_mtime_ns, status.st_size, os.listxattr(precious),
            os.listdir(tmp_path), os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0),
            resource.getrlimit(resource.RLIMIT_NOFILE), socket.gethostname(), "x" in os.listdir("/dev/shm"),
        ]

    before = state()
    name = repr(str(precious))
    attacks = [
        f"import os\nos.remove({name})", f"open({name}, 'w').close()", f"import os\nos.open({name}, os.O_TRUNC)",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})", f"import os\nos.rename({name}, 'mine')",
        f"import os\nos.truncate({name}, 0)", f"import os\nos.chmod({name}, 0)", f"import os\nos.utime({name})",
        f"import os\nos.fchmod(os.open({name}, 0), 0)", f"import os\nos.chown({name}, 1, 1)",
        f"import os\nos.setxattr({name}, 'user.x', b'x')", f"import os\nos.link({name}, 'mine')",
        f"import os\nos.symlink({name}, 'mine')\nopen('mine', 'w')",
        f"import os\nos.mkfifo({str(tmp_path / 'fifo')!r})",
        f"import fcntl\nfcntl.ioctl(open({name}), 0x40086602, bytes([16, 0, 0, 0, 0, 0, 0, 0]))",
        f"import os, signal\nos.kill({parent}, signal.SIGKILL)",
        f"import resource\nresource.prlimit({parent}, resource.RLIMIT_CPU, (0, 0))",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
        f"import os\nos.sched_setaffinity({parent}, {{0}})",
        f"import os\nos.setpriority(os.PRIO_PROCESS, {parent}, 19)",
        f"print(open('/proc/{parent}/environ', 'rb').read(1)[0])", f"open('/proc/{parent}/mem', 'rb+').read()",
        "import socket\nsocket.sethostname('x')",
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory('x', True, 9)",
        "import os\nos.memfd_create('x')", "import os\nos.mknod('device', 0o20600, os.makedev(1, 3))\nopen('device')",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.shmget(0, 4096, 0o1600) >= 0",
        f"import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.ptrace(0x4206, {parent}, 0, 0) == 0",
        f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\nos._exit(0)",
    ]
    for attack in attacks:
        assert sandbox._run(attack, 20, wrapper) == "failed", attack
    assert precious.read_text() == "still here" and state() == before
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def test_environment_and_output_are_private(wrapper, monkeypatch):
    """Guards secrets: a program sees no variable of this process and no argument."""
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    program = "import os, sys\nassert 'SECRET_TOKEN' not in os.environ\nassert len(sys.argv) < 2"
    assert sandbox._run(program, 20, wrapper) == "passed"


def test_the_temporary_folder_may_be_memory(wrapper, monkeypatch):
    """Guards machines whose temporary files live in /dev/shm, of which bubblewrap makes its own."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    assert sandbox._run("open('file', 'w').write('x')", 20, wrapper) == "passed"
    assert sandbox._run("open('/dev/shm/dpad-probe', 'w').write('x')", 20, wrapper) == "failed"


# --- The folder of a program ------------------------------------------------------------------------------------------

FOLDERS = {
    "3,000 nested": "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n",
    "long names": "import os\nfor _ in range(900):\n    os.mkdir('d' * 255)\n    os.chdir('d' * 255)\n",
    "too many folders": "import os\nfor n in range(10**6): os.mkdir(str(n))\n",
    "too many files": "for n in range(10**6): open(str(n), 'w').close()\n",
    "600 MB": "for n in range(300): open(str(n), 'wb').write(bytes(2**21))\n",
    "removed but open": "import os\nkept = []\nfor n in range(300):\n    kept.append(open('x', 'wb'))\n"
                        "    kept[-1].write(bytes(2**22))\n    os.unlink('x')\n",
    "its own folder removed": "import os\nos.rmdir(os.getcwd())\n",
    "its own folder renamed": "import os\nos.rename(os.getcwd(), os.getcwd() + '2')\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("program", FOLDERS.values(), ids=FOLDERS)
def test_the_folder_is_bounded_and_removed(wrapper, program, tmp_path, monkeypatch):
    """Guards the disk, which may be memory: too many or too large files end a program, and nothing of it stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert sandbox._run(program, 30, wrapper) == "failed"
    assert os.listdir(tmp_path) == []


def test_odd_content_is_removed(wrapper, tmp_path, monkeypatch):
    """Guards the clean-up: locked folders, links out of the folder, odd names; what links lead to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("still here")
    os.chmod(outside, 0o750)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (f"import os\nos.mkdir('d')\nopen('d/f', 'w').close()\nos.mkdir('d/locked', 0)\nos.mkdir('locked', 0)\n"
               f"os.symlink({str(outside)!r}, 'link')\nos.symlink({str(outside)!r}, 'd/link')\n"
               "os.symlink('..', 'd/up')\nos.symlink('nowhere', 'dangling')\nopen('\\udcff\\n', 'w').close()\n"
               "os.mkdir('-rf')\nos.umask(0o777)\nos.mkdir('a')\n")
    assert sandbox._run(program, 20, wrapper) == "passed"
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "file").read_text() == "still here" and stat.S_IMODE(outside.stat().st_mode) == 0o750


@pytest.mark.slow
def test_removing_never_raises(tmp_path):
    """Guards every rerun: a missing folder, a file, a link in its place, and depth beyond recursion."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("still here")
    link = tmp_path / "link"
    link.symlink_to(target)
    for path in (tmp_path / "missing", link):
        sandbox.remove_folder(str(path))
    assert (target / "file").read_text() == "still here"
    here = os.open(".", os.O_RDONLY)
    (deep := tmp_path / "deep").mkdir()
    try:
        os.chdir(deep)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
        os.close(here)
    assert confinement.is_overfull(str(deep))
    sandbox.remove_folder(str(deep))
    assert not deep.exists()


# --- Levels -----------------------------------------------------------------------------------------------------------

WEAK = sandbox.Isolation("no wrapper", ("write files outside its folder", "start processes"))


def test_levels_are_named_after_what_holds():
    """Guards the order, and the rule that a wrapper with a hole is no level."""
    assert WEAK.level == "none" and "COULD write files outside its folder, start processes" in WEAK.describe()
    assert sandbox.Isolation("no wrapper").level == "none" and sandbox.Isolation("namespaces").level == "namespaces"
    assert sandbox.Isolation("bubblewrap", ("use the network",)).level == "none"
    assert "cannot write outside its folder" in sandbox.Isolation("bubblewrap").describe()


def test_what_is_offered_here_holds():
    """Guards this machine's levels: whatever runs here with confinement leaves no hole in the self-test."""
    offered = sandbox.isolation()
    assert offered.level != "none" or offered.wrapper == "no wrapper", offered.describe()


def test_a_self_test_that_times_out_is_no_protection(monkeypatch):
    """Guards the verdict on a level: attempts must be seen to be refused."""
    outcomes = iter(["passed"])
    monkeypatch.setattr(sandbox, "_run", lambda *rest: next(outcomes, "timed out"))
    found = sandbox.try_wrapper.__wrapped__("bubblewrap")
    assert found.holes() == [*sandbox.ATTEMPTS, sandbox.FORGING] and found.level == "none"


MISSING = {  # what a machine may lack: a function of confinement.py, and the holes without it, alone and in bubblewrap
    "_restrict_with_landlock": (["write files outside its folder"], []),
    "_restrict_with_seccomp": (
        ["change the attributes of files outside its folder", "disturb other processes", "start processes",
         "change the machine or leave memory behind"],
        ["start processes", "change the machine or leave memory behind"],
    ),
    "_waiting_place": ([sandbox.FORGING], [sandbox.FORGING]),
}


@pytest.mark.slow
@pytest.mark.parametrize("function", MISSING)
def test_the_self_test_sees_what_is_missing(function, tmp_path, monkeypatch):
    """Guards the self-test itself: on a machine without Landlock, seccomp or /proc/PID/syscall it finds the holes."""
    source = Path(confinement.__file__).read_text()
    head = source.index(f"def {function}(")
    body = source.index('    """', head)
    broken = tmp_path / "confinement.py"
    broken.write_text(source[:body] + "    return None\n" + source[body:])
    os.chmod(tmp_path, 0o755)
    monkeypatch.setattr(sandbox, "INSIDE", broken)
    alone, in_bubblewrap = MISSING[function]
    assert set(alone) <= set(sandbox.try_wrapper.__wrapped__("no wrapper").holes())
    if sandbox.try_wrapper("bubblewrap"):
        holes = sandbox.try_wrapper.__wrapped__("bubblewrap").holes()
        assert set(in_bubblewrap) <= set(holes) and ("write files outside its folder" not in holes)


def test_too_weak_a_level_is_refused(monkeypatch, own_level):
    """Guards the user: nothing runs below the level; the message names the package and the flag, which works."""
    monkeypatch.setattr(sandbox, "isolation", lambda: WEAK)
    with pytest.raises(ValueError, match="COULD write.*install the package bubblewrap.*--isolation none"):
        sandbox.run_program("pass")
    sandbox.require_level("none")
    assert sandbox.run_program("pass") == "passed"
    sandbox.require_level("bubblewrap")
    monkeypatch.setattr(sandbox, "isolation", lambda: sandbox.Isolation("namespaces"))
    with pytest.raises(ValueError, match="'bubblewrap' is required"):
        sandbox.check_level()
    with pytest.raises(ValueError, match="isolation is 'docker'; it must be"):
        sandbox.require_level("docker")


def test_run_py_refuses_says_and_records_the_isolation(checkpoint_folder, tmp_path, monkeypatch, capsys, own_level):
    """Guards `run.py -t humaneval`: refused before the model is loaded; with the flag, shown and in the record."""
    monkeypatch.setattr(sandbox, "isolation", lambda: WEAK)
    command = ["-t", "humaneval-local", "-m", str(checkpoint_folder), "-l", "32", "--limit", "1",
               "--output", str(tmp_path)]
    monkeypatch.setattr(run, "load_model", lambda args: pytest.fail("the model was loaded"))
    assert run.main(command) == 2
    shown = capsys.readouterr().err
    assert "install the package bubblewrap" in shown and "--isolation none" in shown and shown.count("\n") == 1
    assert run.main(["-t", "arithmetic-50", "-m", str(checkpoint_folder), "--isolation", "none"]) == 2
    assert "runs no programs" in capsys.readouterr().err

    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "isolation", lambda: WEAK)
    assert run.main([*command, "--isolation", "none"]) == 0
    assert "COULD write files outside its folder" in capsys.readouterr().err
    [record] = tmp_path.glob("*/record.json")
    assert json.loads(record.read_text())["isolation"] == WEAK.describe()


def test_other_tasks_record_no_isolation():
    """Guards records of tasks without programs."""
    assert runs.isolation_of({"tasks": {}}, "arithmetic-50", None) == {}


def test_the_command_shows_every_level():
    """Guards `python -m dpad.evaluation.sandbox`: a row for every promise, a column for every level, what is chosen."""
    command = [sys.executable, "-m", "dpad.evaluation.sandbox"]
    shown = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert all(hole in shown for hole in (*sandbox.ATTEMPTS, *sandbox.WRAPPERS, *sandbox.LEVELS))
    assert sandbox.isolation().wrapper in shown.splitlines()[-1]


# --- The filter -------------------------------------------------------------------------------------------------------


def verdict(architecture, number, first=0, second=0, audit=None):
    """What the filter returns for a system call: a small machine for classic BPF."""
    data = {confinement.NUMBER_OFFSET: number, confinement.ARCHITECTURE_OFFSET: audit or architecture.audit,
            confinement.FIRST_ARGUMENT_OFFSET: first, confinement.SECOND_ARGUMENT_OFFSET: second}
    instructions = confinement.seccomp_filter(architecture)
    position = accumulator = 0
    while True:
        operation, if_true, if_false, value = instructions[position]
        position += 1
        if operation == confinement.RETURN:
            return value
        if operation == confinement.LOAD:
            accumulator = data[value]
        else:
            holds = {
                confinement.JUMP_IF_EQUAL: accumulator == value,
                confinement.JUMP_IF_AT_LEAST: accumulator >= value,
                confinement.JUMP_IF_ANY_BIT: bool(accumulator & value),
            }[operation]
            position += if_true if holds else if_false


@pytest.mark.parametrize("name", confinement.ARCHITECTURES)
def test_the_filter_decides_as_its_table_says(name):
    """Guards both architectures, one of which this machine is not: what is refused, always or by its arguments."""
    architecture = confinement.ARCHITECTURES[name]
    allowed, refused = confinement.SECCOMP_RET_ALLOW, confinement.NOT_PERMITTED
    for number in (architecture.refused | confinement.REFUSED_EVERYWHERE).values():
        assert verdict(architecture, number) == refused
    for number in (0, 1, 63 if name == "aarch64" else 3):
        assert verdict(architecture, number) == allowed
    assert verdict(architecture, 0, audit=1) == verdict(architecture, confinement.X32_SYSCALL_BIT) == refused
    assert verdict(architecture, confinement.CLONE3) == confinement.NO_SUCH_CALL
    assert verdict(architecture, architecture.clone, first=0x11) == refused
    assert verdict(architecture, architecture.clone, first=confinement.CLONE_THREAD | 0x11) == allowed
    assert [verdict(architecture, architecture.socketpair, first=family) for family in (1, 2)] == [allowed, refused]
    assert [verdict(architecture, architecture.prlimit64, first=pid) for pid in (0, 7)] == [allowed, refused]
    assert [verdict(architecture, architecture.prctl, first=option) for option in (4, 15)] == [refused, allowed]
    assert verdict(architecture, architecture.ioctl, second=0x5421) == allowed
    assert verdict(architecture, architecture.ioctl, second=0x40086602) == refused
    numbers = [*architecture.refused.values(), architecture.clone, architecture.socketpair, architecture.ioctl,
               architecture.prctl, architecture.prlimit64]
    assert len(numbers) == len(set(numbers))
