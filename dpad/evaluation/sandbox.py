"""Run untrusted programs, such as a model's answers to coding problems, in isolation.

    from dpad.evaluation.sandbox import isolation, run_program
    run_program("assert 1 + 1 == 2")        # "passed"; else "failed" or "timed out"
    print(isolation().describe())           # what a program cannot do on this machine

    python -m dpad.evaluation.sandbox       # prints what this machine offers, and what each level holds

Every program gets a fresh interpreter without site-packages, with an empty environment, in an empty folder of its own,
with limits on time, memory and files, and its output is thrown away. Around it goes what the system offers: bubblewrap
or else namespaces of our own (no network, no view of other processes, no descendant that lives on). Inside, the program
confines itself before it begins, and another process judges how it ended (confinement.py). None of this needs an
account or a service. What really holds on a machine is found out once, by programs that try to break it; below the
level that is asked for, nothing is run. docs/security.md says what is promised and what is not.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 3.0  # seconds
PROBE_TIMEOUT = 10.0  # seconds for the programs that try what the machine offers
INSIDE = Path(__file__).with_name("confinement.py")


# --- Running a program ------------------------------------------------------------------------------------------------


def run_program(program: str, timeout: float = TIMEOUT) -> str:
    """Run a program's source in isolation: "passed" if it ran to its end, "failed", or "timed out".

    timeout: seconds of wall time.

    Raises:
        ValueError: this machine does not offer the level of isolation that is asked for (`require_level`).
    """
    return _run(program, timeout, check_level().wrapper)


def _run(program: str, timeout: float, wrapper: str) -> str:
    folder = tempfile.mkdtemp(prefix="program-")
    try:
        return _run_in(folder, program, timeout, wrapper)
    finally:
        remove_folder(folder)


def _run_in(folder: str, program: str, timeout: float, wrapper: str) -> str:
    job = json.dumps({"program": program, "folder": folder, "seconds": timeout}).encode()
    try:
        process = subprocess.Popen(
            [*WRAPPERS[wrapper](folder), sys.executable, "-I", "-S", "-B", str(INSIDE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, env={},
            start_new_session=True,
        )
    except OSError:  # the wrapper does not exist
        return "failed"

    try:
        verdict, _ = process.communicate(job, timeout=timeout)  # the supervisor's, which the program cannot reach
        return "passed" if verdict == b"passed" else "failed"
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


def remove_folder(folder: str) -> None:
    """Remove a folder and all that is in it, however deep, long-named or locked; what cannot be removed stays.

    A folder in it that is not empty gives its content to the outermost one and is removed then. So there is no
    recursion, no path longer than that of a grandchild, and each entry is looked at once or twice.
    """
    prefix = secrets.token_hex(8)
    numbers = itertools.count()
    folders = _empty(folder)
    while folders:
        path = folders.pop()
        for inner in _empty(path):
            moved = os.path.join(folder, f"{prefix}-{next(numbers)}")
            with contextlib.suppress(OSError):
                os.rename(inner, moved)
                folders.append(moved)
        with contextlib.suppress(OSError):
            os.rmdir(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _empty(folder: str) -> list[str]:
    """Remove what can be removed from a folder at once; return the folders in it that remain. Follow no link."""
    remaining = []
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            os.unlink(folder)
        os.chmod(folder, 0o700)  # a locked one can be neither read nor moved
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(OSError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                try:
                    os.rmdir(entry.path)
                except OSError:
                    remaining.append(entry.path)
                    os.chmod(entry.path, 0o700)
    return remaining


def _bubblewrap(folder: str) -> list[str]:
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
        "--bind", folder, folder, "--chdir", folder, "--remount-ro", "/dev",  # last: the folder may lie in /dev/shm
    ]


def _namespaces(folder: str) -> list[str]:
    return [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--user", "--map-current-user", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL",
    ]


# The command that goes before the interpreter's, the best first.
WRAPPERS: dict[str, Callable[[str], list[str]]] = {
    "bubblewrap": _bubblewrap, "namespaces": _namespaces, "no wrapper": lambda folder: [],
}


# --- What this machine offers -----------------------------------------------------------------------------------------

LEVELS = ("none", "namespaces", "bubblewrap")  # from the weakest; the last two only if their self-test finds no hole
VARIABLE = "DPAD_ISOLATION"  # of the environment: the level that is required where nothing else is said
DEFAULT_LEVEL = os.environ.get(VARIABLE) or "namespaces"
_required = DEFAULT_LEVEL


@dataclass(frozen=True)
class Isolation:
    """A wrapper around programs on this machine, and what programs managed to do in it when they tried."""

    wrapper: str
    open: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """One of LEVELS."""
        return self.wrapper if self.wrapper in LEVELS and not self.open else LEVELS[0]

    def holes(self) -> list[str]:
        """What a program could still do; empty where everything is prevented."""
        return list(self.open)

    def describe(self) -> str:
        """One line for people: the wrapper, and what a program can or cannot do."""
        if self.open:
            return f"{self.wrapper}; a program COULD {', '.join(self.open)}"
        return (f"{self.wrapper}; a program cannot write outside its folder, use the network, start processes, or see "
                "or disturb others")


def require_level(level: str | None) -> None:
    """Ask for at least this level of isolation from now on; None means the default.

    Raises:
        ValueError: there is no such level.
    """
    global _required
    wanted = level or DEFAULT_LEVEL
    if wanted not in LEVELS:
        name = "isolation" if level else f"the environment variable {VARIABLE}"
        raise ValueError(f"{name} is {wanted!r}; it must be {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    _required = wanted


def check_level() -> Isolation:
    """What this machine offers, if that is enough.

    Raises:
        ValueError: it is not; the message says what to install, and the flag that accepts the risk.
    """
    require_level(_required)
    offered = isolation()
    if LEVELS.index(offered.level) < LEVELS.index(_required):
        raise ValueError(
            f"programs that a model wrote would run with isolation {offered.level!r} here ({offered.describe()}), and "
            f"{_required!r} is required: install the package bubblewrap, or accept the risk with --isolation "
            f"{offered.level} ({VARIABLE}={offered.level} for a whole script)"
        )
    return offered


@functools.cache
def isolation() -> Isolation:
    """The best that this machine offers; tried once, in about a second.

    Raises:
        ValueError: not even a program that does nothing runs to its end.
    """
    offers = []
    for wrapper in WRAPPERS:
        if offer := try_wrapper(wrapper):
            offers.append(offer)
            if not offer.open:
                break
    if not offers:
        raise ValueError(f"no program could be run: {sys.executable} does not start in an empty environment")
    return max(offers, key=lambda offer: LEVELS.index(offer.level))  # the first of equals


@functools.cache
def try_wrapper(wrapper: str) -> Isolation | None:
    """What a wrapper holds on this machine; None if no program runs in it.

    A program that tries to break out passes when all its attempts are refused. One that fails, or runs out of time,
    has shown nothing, and so counts as a hole.
    """
    if _run("pass", PROBE_TIMEOUT, wrapper) != "passed":
        return None

    with contextlib.ExitStack() as stack:
        outside = tempfile.mkdtemp(prefix="outside-")
        stack.callback(shutil.rmtree, outside, ignore_errors=True)
        Path(outside, "file").write_bytes(b"precious")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        names = {
            "FILE": os.path.join(outside, "file"), "NEW": os.path.join(outside, "new"),
            "PORT": listener.getsockname()[1], "PID": os.getpid(),
        }
        head = TRY + "".join(f"{name} = {value!r}\n" for name, value in names.items())
        holes = [
            hole for hole, attempts in ATTEMPTS.items()
            if _run(head + "".join(f"refused(lambda: {attempt})\n" for attempt in attempts), PROBE_TIMEOUT, wrapper)
            != "passed"
        ]
    if _run(FORGERY, PROBE_TIMEOUT, wrapper) != "failed":
        holes.append(FORGING)
    return Isolation(wrapper, tuple(holes))


TRY = """
import contextlib, ctypes, fcntl, mmap, os, resource, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def native(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def refused(action):
    try:
        action()
    except OSError:
        return
    raise AssertionError
"""
ATTEMPTS = {  # what must be refused, by the hole that there is otherwise
    "write files outside its folder": [
        "open(FILE, 'w')", "open(FILE, 'a')", "os.open(FILE, os.O_RDONLY | os.O_TRUNC)", "os.truncate(FILE, 0)",
        "os.remove(FILE)", "os.rename(FILE, 'mine')", "os.link(FILE, 'mine')", "open(NEW, 'w')", "os.mkdir(NEW)",
        "os.symlink('x', NEW)", "os.mkfifo(NEW)", "open('/dev/shm/dpad-probe', 'w')",
    ],
    "change the attributes of files outside its folder": [
        "os.chmod(FILE, 0)", "os.fchmod(os.open(FILE, os.O_RDONLY), 0)", "os.chown(FILE, -1, -1)",
        "os.fchown(os.open(FILE, os.O_RDONLY), -1, -1)", "os.utime(FILE)", "os.utime(os.open(FILE, os.O_RDONLY))",
        "os.setxattr(FILE, 'user.x', b'x')", "os.removexattr(FILE, 'user.x')",
        "fcntl.ioctl(os.open(FILE, os.O_RDONLY), 0x40086602, b'\\0' * 8)",  # FS_IOC_SETFLAGS
        "fcntl.flock(os.open(FILE, os.O_RDONLY), fcntl.LOCK_EX)",
    ],
    "use the network": [
        "socket.create_connection(('127.0.0.1', PORT), 1)", "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    ],
    "disturb other processes": [
        "os.kill(PID, 0)", "os.kill(os.getppid(), 0)", "os.killpg(0, 0)", "os.kill(-1, 0)",
        "resource.prlimit(PID, resource.RLIMIT_NOFILE)", "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
        "os.setpriority(os.PRIO_PROCESS, PID, 19)", "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(PID, {0})", "os.sched_setaffinity(os.getppid(), {0})", "os.setsid()", "os.nice(1)",
        "os.pidfd_open(os.getppid())", "os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
    ],
    "read the memory or environment of other processes": [
        *(f"open('/proc/%d/{name}' % {process}, 'rb').read(1)" for name in ("environ", "mem", "auxv")
          for process in ("PID", "os.getppid()")),
        "os.readlink('/proc/%d/fd/0' % PID)", "os.readlink('/proc/%d/fd/0' % os.getppid())",
        "native('ptrace', 0x4206, os.getppid(), 0, 0)",  # PTRACE_SEIZE
    ],
    "start processes": [
        "os.waitpid(os.fork() or os._exit(0), 0)", "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
    ],
    "change the machine or leave memory behind": [
        "os.memfd_create('x')", "native('shmget', 0, 4096, 0o1600)", "native('semget', 0, 1, 0o1600)",
        "native('msgget', 0, 0o1600)", "native('sethostname', b'x', 1)", "native('setdomainname', b'x', 1)",
        "os.mknod('device', stat.S_IFCHR | 0o600, os.makedev(1, 3))", "native('unshare', 0x10000000)",
        "native('mount', b'none', b'/', b'tmpfs', 0, 0)", "native('chroot', b'.')",
    ],
}
FORGING = "count as passed without reaching its end"
FORGERY = """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'passed')
    except OSError:
        pass
for descriptor in range(3, 64):
    try:
        os.read(descriptor, 1)
    except OSError:
        pass
os._exit(0)
"""


def describe_machine() -> str:
    """What each wrapper holds here, as a table for people, and what is chosen and required."""
    offers = {wrapper: try_wrapper(wrapper) for wrapper in WRAPPERS}
    holes = [*ATTEMPTS, FORGING]
    width = max(map(len, holes)) + 2
    lines = ["A program could ...".ljust(width) + "".join(f"{wrapper:<12}" for wrapper in offers)]
    for hole in holes:
        cells = ["-" if offer is None else "YES" if hole in offer.open else "no" for offer in offers.values()]
        lines.append(hole.ljust(width) + "".join(f"{cell:<12}" for cell in cells))
    missing = [wrapper for wrapper, offer in offers.items() if offer is None]
    lines += ["", *(f"{wrapper} is not available on this machine (-)" for wrapper in missing)]
    offered = isolation()
    lines.append(f"programs run with: {offered.wrapper}, level {offered.level!r} of {', '.join(LEVELS)}; "
                 f"{DEFAULT_LEVEL!r} or better is required unless --isolation says otherwise")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe_machine())
