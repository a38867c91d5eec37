"""Run programs that nobody has read, such as a model's answers to coding problems, so that they can do no harm.

    from dpad.evaluation.sandbox import isolation, run_program
    run_program("assert 1 + 1 == 2")        # "passed"; else "failed" or "timed out"
    print(isolation().describe())           # what a program is kept from on this machine

    python -m dpad.evaluation.sandbox                       # prints that

Every program gets a fresh interpreter without site-packages, with an empty environment, in an empty folder of its
own, with limits on time, memory and files, and its output thrown away. What the system offers is put around it:
bubblewrap or else namespaces of its own (no network, no view of other processes, death of all descendants), Landlock
(no writing outside its folder, no TCP, no signals to others) and seccomp (no new processes, no sockets, no signals).
None of it needs an account or a service. What really holds here is tried once, by programs that try to break it.

A program has passed when it ran to its end: only then does a random line reach this process through a private pipe. An
exit status would not do (`sys.exit(0)` before the tests), nor would output (a program can print anything). A program
written to cheat this very runner could find that line in its memory; it could not get out.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass

TIMEOUT = 3.0  # seconds
MEMORY, FILE_SIZE, OPEN_FILES = 2**30, 2**24, 32


# --- The outside ------------------------------------------------------------------------------------------------------


def run_program(program: str, timeout: float = TIMEOUT) -> str:
    """Run a program's source in isolation: "passed" when it came to its end, "failed", or "timed out".

    timeout: seconds of wall time.
    """
    return _run(program, timeout, isolation().wrapper)


def _run(program: str, timeout: float, wrapper: str) -> str:
    nonce = secrets.token_hex(16)
    reader, writer = os.pipe()
    process = None
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        try:
            job = {"program": program, "nonce": nonce, "writer": writer, "folder": folder, "seconds": timeout}
            interpreter = [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__), "--inside"]
            command = [*WRAPPERS[wrapper](folder), *interpreter]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
                env={}, pass_fds=(writer,), start_new_session=True,
            )
            os.close(writer)
            writer = None
            try:
                process.communicate(json.dumps(job).encode(), timeout=timeout)
            except subprocess.TimeoutExpired:
                return "timed out"
            os.set_blocking(reader, False)  # a descendant that got away might hold the other end
            try:
                return "passed" if os.read(reader, 100).decode(errors="replace") == nonce else "failed"
            except BlockingIOError:
                return "failed"
        except OSError:  # the wrapper does not exist
            return "failed"
        finally:
            if process is not None:
                _kill(process)
            os.close(reader)
            if writer is not None:
                os.close(writer)


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stdin and not process.stdin.closed:
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass


def _bubblewrap(folder: str) -> list[str]:
    return ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
            "--bind", folder, folder, "--chdir", folder]


def _namespaces(folder: str) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--user", "--map-current-user", "--net", "--pid", "--ipc",
            "--uts", "--fork", "--kill-child=KILL"]


WRAPPERS = {"bubblewrap": _bubblewrap, "namespaces": _namespaces, "no wrapper": lambda folder: []}  # the best first


@dataclass(frozen=True)
class Isolation:
    """What surrounds a program here, and which of its attempts failed when it was tried."""

    wrapper: str
    no_writing: bool
    no_network: bool
    no_signals: bool
    no_processes: bool

    def holes(self) -> list[str]:
        """What a program could still do; empty where everything is kept from it."""
        doors = {"write files outside its folder": self.no_writing, "use the network": self.no_network,
                 "send signals to other processes": self.no_signals, "start processes": self.no_processes}
        return [action for action, shut in doors.items() if not shut]

    def describe(self) -> str:
        holes = self.holes()
        return f"{self.wrapper}; a program " + (f"COULD {', '.join(holes)}" if holes else
                                               "cannot write outside its folder, use the network, send signals or "
                                               "start processes")


@functools.cache
def isolation() -> Isolation:
    """What this machine offers; tried once, in about a second.

    Raises:
        RuntimeError: not even a program that does nothing comes to its end.
    """
    for wrapper in WRAPPERS:
        if _run("pass", 10, wrapper) == "passed":
            break
    else:
        raise RuntimeError(f"no program could be run: {sys.executable} does not start in an empty environment")
    listener = socket.create_server(("127.0.0.1", 0))
    outside = tempfile.mkdtemp(prefix="outside-")
    attempts = {
        "no_writing": f"open({os.path.join(outside, 'file')!r}, 'w').close()",
        "no_network": f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 1)",
        "no_signals": f"import os; os.kill({os.getpid()}, 0)",
        "no_processes": "import os; os.waitpid(os.fork() or os._exit(0), 0)",
    }
    try:
        failed = {name: _run(attempt, 10, wrapper) != "passed" for name, attempt in attempts.items()}
        return Isolation(wrapper, **failed)
    finally:
        listener.close()
        shutil.rmtree(outside, ignore_errors=True)


# --- The inside -------------------------------------------------------------------------------------------------------


def _inside() -> None:
    """In the fresh interpreter: shut every door that can be shut, run the program, and say so when it has ended."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _limit(job["seconds"])
    try:
        import ctypes  # here: an interpreter may lack it

        _landlock(ctypes, job["folder"])
        _seccomp(ctypes)
    except (ImportError, OSError, AttributeError):
        pass  # what holds is found out by trying, not by asking
    exec(compile(job["program"], "program.py", "exec"), {"__name__": "__main__"})
    os.write(job["writer"], job["nonce"].encode())


def _limit(seconds: float) -> None:
    import resource

    limits = {"RLIMIT_CPU": int(seconds) + 1, "RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": FILE_SIZE,
              "RLIMIT_NOFILE": OPEN_FILES, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 64}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):
            pass  # not on this system, or already lower


def _landlock(ctypes, folder: str) -> None:
    """No writing outside `folder`, no TCP, no signals to others, as far as the kernel's Landlock goes (landlock(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    writing = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))  # write, remove, make
    writing |= (version >= 2) << 13 | (version >= 3) << 14  # link or rename across folders, truncate
    tcp, scopes = (version >= 4) * 0b11, (version >= 6) * 0b11
    rules = (ctypes.c_uint64 * 3)(writing, tcp, scopes)
    size = 8 * (1 + (version >= 4) + (version >= 6))
    ruleset = libc.syscall(444, rules, ctypes.c_size_t(size), 0)
    for path, rights in ((folder, writing), (os.devnull, 1 << 1)):
        place = os.open(path, os.O_PATH)
        beneath = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        libc.syscall(445, ruleset, 1, beneath, 0)
        os.close(place)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges
    libc.syscall(446, ruleset, 0)
    os.close(ruleset)


# System calls that no solution of an exercise needs: architecture's audit number, clone, and those refused.
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, 56, (
        41, 53,  # socket, socketpair
        57, 58, 59, 322,  # fork, vfork, execve, execveat
        62, 200, 234, 424, 129, 297,  # kill, tkill, tgkill, pidfd_send_signal, rt_sigqueueinfo, rt_tgsigqueueinfo
        101, 310, 311, 165, 166, 272, 308, 321, 425, 155, 161, 169,  # ptrace, process_vm_*, mounts, unshare, bpf, ...
    )),
    "aarch64": (0xC00000B7, 220, (198, 199, 221, 281, 129, 130, 131, 424, 138, 240, 117, 270, 271, 40, 39, 97, 268, 280,
                                  425, 41, 51, 142)),
}
CLONE3, CLONE_THREAD = 435, 0x10000
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026  # the call, EPERM, ENOSYS


def _seccomp(ctypes) -> None:
    """Refuse SYSTEM_CALLS for good; threads may still be made."""
    machine = os.uname().machine
    if machine not in SYSTEM_CALLS:
        return
    audit, clone, refused = SYSTEM_CALLS[machine]
    load, equal, has, at_least, leave = 0x20, 0x15, 0x45, 0x35, 0x06
    filters = [
        (load, 0, 0, 4), (equal, 1, 0, audit), (leave, 0, 0, REFUSE),  # another architecture's numbers mean others
        (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (leave, 0, 0, REFUSE),
        (equal, 0, 1, CLONE3), (leave, 0, 0, ABSENT),  # its flags are out of sight; the C library takes clone instead
    ]
    for number in refused:
        filters += [(equal, 0, 1, number), (leave, 0, 0, REFUSE)]
    filters += [(equal, 1, 0, clone), (leave, 0, 0, ALLOW), (load, 0, 0, 16), (has, 1, 0, CLONE_THREAD),
                (leave, 0, 0, REFUSE), (leave, 0, 0, ALLOW)]
    code = b"".join(
        operation.to_bytes(2, "little") + bytes((if_true, if_false)) + value.to_bytes(4, "little")
        for operation, if_true, if_false, value in filters
    )
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges: the condition for the next line
    libc.prctl(22, 2, ctypes.byref(Program(len(filters), ctypes.addressof(buffer))), 0, 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        _inside()
    else:
        print(isolation().describe())
