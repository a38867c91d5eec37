"""Run untrusted programs, such as a model's answers to coding problems, in isolation.

    from dpad.evaluation.sandbox import isolation, run_program
    run_program("assert 1 + 1 == 2")        # "passed"; else "failed" or "timed out"
    print(isolation().describe())           # what a program cannot do on this machine

    python -m dpad.evaluation.sandbox       # prints that

Every program gets a fresh interpreter without site-packages, with an empty environment, in an empty folder of its own,
with limits on time, memory and files, and its output is thrown away. Around it goes what the system offers: bubblewrap
or else namespaces of our own (no network, no view of other processes, no descendant that lives on), Landlock (no
writing outside its folder, no TCP, no signals to other processes) and seccomp (no new processes, no sockets, no
signals). None of this needs an account or a service. What really holds on a machine is found out once, by running
programs that try to break it.

A program has passed when it ran to its end: only then does it send a random token through a private pipe. Its exit
status would prove nothing (`sys.exit(0)` before the tests), nor would its output (a program can print anything). A
program written to cheat this very runner could find the token in its own memory and so count as passed; it still could
not leave the sandbox.

This file is also what the fresh interpreter starts (`python -I -S -B sandbox.py --inside`), so it imports nothing but
the standard library.
"""

from __future__ import annotations

import contextlib
import errno
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
from collections.abc import Callable
from dataclasses import dataclass

TIMEOUT = 3.0  # seconds
PROBE_TIMEOUT = 10.0  # seconds for the programs that try what the machine offers
MEMORY = 2**30  # bytes
FILE_SIZE = 2**24  # bytes
OPEN_FILES = 32
PROCESSES = 64


# --- Outside the sandbox ----------------------------------------------------------------------------------------------


def run_program(program: str, timeout: float = TIMEOUT) -> str:
    """Run a program's source in isolation: "passed" if it ran to its end, "failed", or "timed out".

    timeout: seconds of wall time.
    """
    return _run(program, timeout, isolation().wrapper)


def _run(program: str, timeout: float, wrapper: str) -> str:
    token = secrets.token_hex(16)
    read_end, write_end = os.pipe()

    with (
        os.fdopen(read_end, "rb", buffering=0) as receiver,
        os.fdopen(write_end, "wb", buffering=0) as sender,
        tempfile.TemporaryDirectory(prefix="program-") as folder,
    ):
        job = {"program": program, "token": token, "sender": write_end, "folder": folder, "seconds": timeout}
        interpreter = [sys.executable, "-I", "-S", "-B", os.path.abspath(__file__), "--inside"]
        try:
            process = subprocess.Popen(
                [*WRAPPERS[wrapper](folder), *interpreter], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd=folder, env={}, pass_fds=(write_end,), start_new_session=True,
            )
        except OSError:  # the wrapper does not exist
            return "failed"

        try:
            sender.close()  # the program holds the only other copy
            process.communicate(json.dumps(job).encode(), timeout=timeout)
            os.set_blocking(read_end, False)  # a descendant that escaped might still hold the other end
            return "passed" if receiver.read(100) == token.encode() else "failed"
        except subprocess.TimeoutExpired:
            return "timed out"
        except OSError:
            return "failed"
        finally:
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and its descendants (it leads a process group), and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _bubblewrap(folder: str) -> list[str]:
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
        "--bind", folder, folder, "--chdir", folder,
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


@dataclass(frozen=True)
class Isolation:
    """The wrapper around programs on this machine, and what programs were not able to do when they tried."""

    wrapper: str
    no_writing: bool
    no_network: bool
    no_signals: bool
    no_processes: bool

    def holes(self) -> list[str]:
        """What a program could still do; empty where everything is prevented."""
        prevented = {
            "write files outside its folder": self.no_writing,
            "use the network": self.no_network,
            "send signals to other processes": self.no_signals,
            "start processes": self.no_processes,
        }
        return [action for action, holds in prevented.items() if not holds]

    def describe(self) -> str:
        """One line for people: the wrapper, and what a program can or cannot do."""
        if holes := self.holes():
            return f"{self.wrapper}; a program COULD {', '.join(holes)}"
        return (f"{self.wrapper}; a program cannot write outside its folder, use the network, send signals or start "
                "processes")


@functools.cache
def isolation() -> Isolation:
    """What this machine offers; tried once, in about a second.

    Raises:
        RuntimeError: not even a program that does nothing runs to its end.
    """
    for wrapper in WRAPPERS:
        if _run("pass", PROBE_TIMEOUT, wrapper) == "passed":
            break
    else:
        raise RuntimeError(f"no program could be run: {sys.executable} does not start in an empty environment")

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    outside = tempfile.mkdtemp(prefix="outside-")
    attempts = {
        "no_writing": f"open({os.path.join(outside, 'file')!r}, 'w').close()",
        "no_network": f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
        "no_signals": f"import os; os.kill({os.getpid()}, 0)",
        "no_processes": "import os; os.waitpid(os.fork() or os._exit(0), 0)",
    }
    try:
        failures = {name: _run(attempt, PROBE_TIMEOUT, wrapper) != "passed" for name, attempt in attempts.items()}
        return Isolation(wrapper, **failures)
    finally:
        listener.close()
        shutil.rmtree(outside, ignore_errors=True)


# --- Inside: in the fresh interpreter ---------------------------------------------------------------------------------


def _inside() -> None:
    """Give up everything that can be given up, run the program, and report that it ran to its end."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    _set_limits(job["seconds"])
    try:
        _restrict_with_landlock(job["folder"])
        _restrict_with_seccomp()
    except (ImportError, OSError, AttributeError):
        pass  # `isolation` finds out what holds by trying it

    exec(compile(job["program"], "program.py", "exec"), {"__name__": "__main__"})
    os.write(job["sender"], job["token"].encode())


def _set_limits(seconds: float) -> None:
    """Resource limits, setrlimit(2)."""
    import resource

    limits = {
        "RLIMIT_CPU": int(seconds) + 1, "RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": FILE_SIZE, "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0, "RLIMIT_NPROC": PROCESSES,
    }
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):
            pass  # this system lacks it, or it is already lower


# prctl(2), linux/prctl.h
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38


# --- Landlock: landlock(7), linux/landlock.h --------------------------------------------------------------------------

SYS_LANDLOCK_CREATE_RULESET = 444  # the same numbers on every architecture
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1 << 0  # a flag: return the version of the kernel's interface
LANDLOCK_RULE_PATH_BENEATH = 1

FILE_RIGHTS = {  # LANDLOCK_ACCESS_FS_...: (bit, since version)
    "WRITE_FILE": (1 << 1, 1),
    "REMOVE_DIR": (1 << 4, 1),
    "REMOVE_FILE": (1 << 5, 1),
    "MAKE_CHAR": (1 << 6, 1),
    "MAKE_DIR": (1 << 7, 1),
    "MAKE_REG": (1 << 8, 1),
    "MAKE_SOCK": (1 << 9, 1),
    "MAKE_FIFO": (1 << 10, 1),
    "MAKE_BLOCK": (1 << 11, 1),
    "MAKE_SYM": (1 << 12, 1),
    "REFER": (1 << 13, 2),  # link or rename between folders
    "TRUNCATE": (1 << 14, 3),
}
NETWORK_RIGHTS = {"BIND_TCP": (1 << 0, 4), "CONNECT_TCP": (1 << 1, 4)}  # LANDLOCK_ACCESS_NET_...
SCOPES = {"ABSTRACT_UNIX_SOCKET": (1 << 0, 6), "SIGNAL": (1 << 1, 6)}  # LANDLOCK_SCOPE_...
NETWORK_VERSION = 4  # since this version the ruleset has the field for network rights,
SCOPE_VERSION = 6  # and since this one the field for scopes


def _restrict_with_landlock(folder: str) -> None:
    """No writing outside `folder`, no TCP, no signals to other processes, as far as the kernel's Landlock goes."""
    import ctypes  # here, because an interpreter may lack it

    libc = ctypes.CDLL(None, use_errno=True)
    no_size = ctypes.c_size_t(0)
    version = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, no_size, LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return

    fields = [_mask(FILE_RIGHTS, version)]  # struct landlock_ruleset_attr, as long as this version knows it
    if version >= NETWORK_VERSION:
        fields.append(_mask(NETWORK_RIGHTS, version))
    if version >= SCOPE_VERSION:
        fields.append(_mask(SCOPES, version))
    attributes = (ctypes.c_uint64 * len(fields))(*fields)
    ruleset = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(8 * len(fields)), 0)

    allowed = {folder: _mask(FILE_RIGHTS, version), os.devnull: FILE_RIGHTS["WRITE_FILE"][0]}
    for path, rights in allowed.items():
        descriptor = os.open(path, os.O_PATH)
        # struct landlock_path_beneath_attr, packed: allowed_access (64 bits), parent_fd (32 bits)
        beneath = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        libc.syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, beneath, 0)
        os.close(descriptor)

    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # the kernel demands it before the next line
    libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _mask(rights: dict[str, tuple[int, int]], version: int) -> int:
    """The bits of those rights that this version of Landlock has."""
    return sum(bit for bit, since in rights.values() if version >= since)


# --- Seccomp: seccomp(2), linux/seccomp.h, linux/bpf_common.h ---------------------------------------------------------

SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000  # the call fails with the error number in the lower 16 bits
NOT_PERMITTED = SECCOMP_RET_ERRNO | errno.EPERM
NO_SUCH_CALL = SECCOMP_RET_ERRNO | errno.ENOSYS

# Classic BPF's operations: class | size | mode
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS: load 32 bits of struct seccomp_data at this offset
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_IF_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_IF_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

# Offsets in struct seccomp_data
NUMBER_OFFSET = 0  # of the system call
ARCHITECTURE_OFFSET = 4
FIRST_ARGUMENT_OFFSET = 16  # its lower half, on a little-endian machine

X32_SYSCALL_BIT = 0x40000000  # numbers from here on belong to x86_64's second interface
CLONE_THREAD = 0x00010000  # flag of clone(2): a thread of this process, not a new one
AF_UNIX = 1
CLONE3 = 435  # the same number on every architecture


@dataclass(frozen=True)
class Architecture:
    """Numbers of an architecture: AUDIT_ARCH_... (linux/audit.h), and system calls (syscalls(2), asm/unistd.h)."""

    audit: int
    clone: int
    socketpair: int
    refused: dict[str, int]  # system calls that no solution of an exercise needs


ARCHITECTURES = {
    "x86_64": Architecture(
        audit=0xC000003E,
        clone=56,
        socketpair=53,
        refused={
            "socket": 41,
            "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
            "kill": 62, "tkill": 200, "tgkill": 234, "pidfd_send_signal": 424,
            "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
            "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
            "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
            "unshare": 272, "setns": 308, "bpf": 321, "io_uring_setup": 425, "reboot": 169,
        },
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        clone=220,
        socketpair=199,
        refused={
            "socket": 198,
            "execve": 221, "execveat": 281,  # fork and vfork do not exist here
            "kill": 129, "tkill": 130, "tgkill": 131, "pidfd_send_signal": 424,
            "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240,
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
            "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "unshare": 97, "setns": 268, "bpf": 280, "io_uring_setup": 425, "reboot": 142,
        },
    ),
}


def _restrict_with_seccomp() -> None:
    """Refuse the system calls of the table for good; the program may still make threads."""
    import ctypes

    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        return

    instructions = seccomp_filter(architecture)
    code = b"".join(  # struct sock_filter: operation (16 bits), two jumps (8 bits each), value (32 bits)
        operation.to_bytes(2, "little") + bytes((if_true, if_false)) + value.to_bytes(4, "little")
        for operation, if_true, if_false, value in instructions
    )
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        """struct sock_fprog"""

        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # the kernel demands it before the next line
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def seccomp_filter(architecture: Architecture) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (operation, skip if true, skip if false, value) that run on every system call."""
    instructions = [
        # Another architecture's calls have other numbers: refuse them all.
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (JUMP_IF_EQUAL, 1, 0, architecture.audit),
        (RETURN, 0, 0, NOT_PERMITTED),

        (LOAD, 0, 0, NUMBER_OFFSET),
        (JUMP_IF_AT_LEAST, 0, 1, X32_SYSCALL_BIT),
        (RETURN, 0, 0, NOT_PERMITTED),

        # clone3 keeps its flags in memory, which a filter cannot read; without it the C library takes clone.
        (JUMP_IF_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, NO_SUCH_CALL),
    ]
    for number in architecture.refused.values():
        instructions += [
            (JUMP_IF_EQUAL, 0, 1, number),
            (RETURN, 0, 0, NOT_PERMITTED),
        ]
    instructions += [
        # socketpair may join two ends within the program, as asyncio does.
        (JUMP_IF_EQUAL, 0, 4, architecture.socketpair),
        (LOAD, 0, 0, FIRST_ARGUMENT_OFFSET),
        (JUMP_IF_EQUAL, 0, 1, AF_UNIX),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
        (RETURN, 0, 0, NOT_PERMITTED),

        (JUMP_IF_EQUAL, 1, 0, architecture.clone),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),

        # clone may make threads, but no processes.
        (LOAD, 0, 0, FIRST_ARGUMENT_OFFSET),
        (JUMP_IF_ANY_BIT, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, NOT_PERMITTED),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    return instructions


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        _inside()
    else:
        print(isolation().describe())
