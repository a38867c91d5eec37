"""Inside the sandbox: give up every right that can be given up, run the program, and judge from outside how it ended.

sandbox.py starts this file in a fresh interpreter (`python -I -S -B confinement.py` with a job as JSON on standard
input), so it imports nothing but the standard library, and little of that. There are two processes:

    supervisor    reads the job, forks, watches, and prints "passed" if the program ran to its end
    program       the fork: confines itself for good (limits, no capabilities, Landlock, seccomp), then runs the program

How the supervisor knows that the program ran to its end: nothing that the program could say, write or exit with counts.
Behind the program's end, the process waits in read(2) at a place that no code called by the program can have: outside
of `exec`, less deep on the C stack. The kernel tells the supervisor where that is (/proc/PID/syscall, the stack
pointer). So there is no secret to be found. What remains is said in docs/security.md.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import operator
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

MEMORY = 2**30  # bytes
FILE_SIZE = 2**22  # bytes
FOLDER_SIZE = 2**26  # bytes, of all files together
FOLDER_ENTRIES = 1000
OPEN_FILES = 32
PROCESSES = 64
POLL = 0.02  # seconds between two looks at the folder
STACK_TOLERANCE = 128  # bytes; a call through `exec` takes several hundred


def main() -> None:
    """Read the job from standard input, and print "passed" or "failed"."""
    job = json.loads(sys.stdin.buffer.read())
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.write(verdict, b"passed" if supervise(job, verdict) else b"failed")


# --- The supervisor ---------------------------------------------------------------------------------------------------


def supervise(job: dict, verdict: int) -> bool:
    """Run a job's program in a fork of this process; whether it ran to its end.

    job: `program` (source), `folder` (the only place in which it may write) and `seconds` (of computing time).
    verdict: a descriptor that the program must not have.
    """
    _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    hint_reader, hint_writer = os.pipe()
    go_reader, go_writer = os.pipe()
    leave = os._exit  # the program may put something else in its place
    child = os.fork()
    if child == 0:
        try:
            for descriptor in (verdict, hint_reader, go_writer):
                os.close(descriptor)
            _be_program(job, hint_writer, go_reader)
        finally:
            leave(1)

    os.close(hint_writer)
    os.close(go_reader)
    _control_process(PR_SET_DUMPABLE, 0)  # nobody may look into this process
    try:
        return _ends_well(hint_reader, go_reader, go_writer, job["folder"])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _ends_well(hint: int, go: int, go_writer: int, folder: str) -> bool:
    """Watch the program: False as soon as it ends, waits where its end is not, or fills its folder."""
    name = b""
    while not name.endswith(b"\n"):
        name += os.read(hint, 1) or b"\n"
    path = f"/proc/{name.decode().strip()}/syscall"
    if not os.read(hint, 1):
        return False
    before = _waiting_place(path, go)
    os.write(go_writer, b"g")

    looks = 0
    while True:
        ready, _, _ = select.select([hint], [], [], 0.001 if 0 < looks < 10 else POLL)
        if ready:
            if not os.read(hint, 4096):
                return False
            looks = 1
            if before is None:  # this system does not show it: the program has to be believed
                return True
        if looks:
            looks += 1
            place = _waiting_place(path, go, tries=1)
            if place is not None:
                return before is not None and place[0] == before[0] and abs(place[1] - before[1]) <= STACK_TOLERANCE
        if is_overfull(folder):
            return False


def _waiting_place(path: str, descriptor: int, tries: int = 10_000) -> tuple[str, int] | None:
    """Where a process waits for this descriptor: the system call and the stack pointer of its main thread.

    None if it does not wait there, or the system does not tell.
    """
    for attempt in range(tries):
        try:
            with open(path, encoding="ascii") as file:
                fields = file.read().split()  # number, six arguments, stack pointer, program counter; or "running"
        except OSError:
            return None
        if len(fields) == 9 and int(fields[1], 16) == descriptor:
            return fields[0], int(fields[7], 16)
        if attempt + 1 < tries:
            time.sleep(0.001)
    return None


def is_overfull(folder: str) -> bool:
    """Whether there are more files and folders under this folder than allowed, or more bytes in them."""
    entries = 0
    size = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    entries += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entries > FOLDER_ENTRIES or size > FOLDER_SIZE:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return False


# --- The program ------------------------------------------------------------------------------------------------------


def _be_program(job: dict, hint: int, go: int) -> None:
    """Confine this process, wait once for the supervisor, run the program, and wait again if it ran to its end."""
    _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        name = os.readlink("/proc/self")  # this process as /proc calls it, perhaps from outside of a namespace
    except OSError:
        name = ""
    os.write(hint, f"{name}\n".encode())

    _set_limits(job["seconds"])
    restrict_files = functools.partial(_restrict_with_landlock, job["folder"])
    for restrict in (_drop_capabilities, restrict_files, _restrict_with_seccomp):
        with contextlib.suppress(ImportError, OSError, AttributeError):  # the self-test finds out what holds
            restrict()

    wait: list[Callable[[], object]] = [functools.partial(os.write, hint, b"."), functools.partial(os.read, go, 1)]
    _call_in_turn(wait)
    code = compile(job["program"], "<program>", "exec", dont_inherit=True)
    _call_in_turn([functools.partial(exec, code, {"__name__": "__main__"}), *wait])


def _call_in_turn(steps: list[Callable[[], object]]) -> None:
    """Call each, unless one before it raises: in one expression, so that no Python code runs between them."""
    list(map(operator.call, steps))


def _set_limits(seconds: float) -> None:
    """Resource limits, setrlimit(2)."""
    limits = {
        "RLIMIT_CPU": int(seconds) + 1, "RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": FILE_SIZE, "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0, "RLIMIT_NPROC": PROCESSES, "RLIMIT_MSGQUEUE": 0, "RLIMIT_MEMLOCK": 0,
    }
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):  # this system lacks it, or it is already lower
            resource.setrlimit(getattr(resource, name), (limit, limit))


# --- Capabilities and attributes of a process: capabilities(7), prctl(2), linux/prctl.h -------------------------------

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION = 0x20080522
CAP_DAC_READ_SEARCH = 1 << 2  # kept, so that root still finds Python's library in other people's folders


def _control_process(option: int, value: int) -> None:
    """prctl(2), where it exists."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # here, because an interpreter may lack it

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _drop_capabilities() -> None:
    """Root becomes a user who owns root's files: it can no longer look into other processes, nor make devices."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits each
    libc = ctypes.CDLL(None)
    if libc.capget(header, sets) == 0:
        kept = sets[1] & CAP_DAC_READ_SEARCH
        libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


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

SECOND_ARGUMENT_OFFSET = 24

X32_SYSCALL_BIT = 0x40000000  # numbers from here on belong to x86_64's second interface
CLONE_THREAD = 0x00010000  # flag of clone(2): a thread of this process, not a new one
AF_UNIX = 1
TERMINAL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # isatty, size, bytes to read, blocking, cloexec


@dataclass(frozen=True)
class Architecture:
    """Numbers of an architecture: AUDIT_ARCH_... (linux/audit.h), and system calls (syscalls(2), asm/unistd.h)."""

    audit: int
    clone: int
    socketpair: int
    ioctl: int
    prctl: int
    prlimit64: int
    refused: dict[str, int]


CLONE3 = 435  # from 424 on, numbers are the same on every architecture
REFUSED_EVERYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
    "process_mrelease": 448, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467,
    "file_setattr": 469,
}
# System calls that no solution of an exercise needs: what changes files without opening them, other processes, the
# machine, or memory that outlives the process.
ARCHITECTURES = {
    "x86_64": Architecture(
        audit=0xC000003E, clone=56, socketpair=53, ioctl=16, prctl=157, prlimit64=302,
        refused={
            "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
            "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189,
            "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "truncate": 76,
            "mknod": 133, "mknodat": 259, "flock": 73, "fanotify_init": 300, "name_to_handle_at": 303,
            "open_by_handle_at": 304,
            "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234,
            "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "ptrace": 101, "process_vm_readv": 310,
            "process_vm_writev": 311, "kcmp": 312, "setsid": 112, "setpgid": 109, "setpriority": 141,
            "sched_setaffinity": 203, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314,
            "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279,
            "socket": 41, "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66,
            "semtimedop": 220, "msgget": 68, "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
            "memfd_create": 319, "add_key": 248, "request_key": 249, "keyctl": 250,
            "sethostname": 170, "setdomainname": 171, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
            "unshare": 272, "setns": 308, "capset": 126, "seccomp": 317, "bpf": 321, "perf_event_open": 298,
            "userfaultfd": 323, "personality": 135, "quotactl": 179, "acct": 163, "swapon": 167, "swapoff": 168,
            "reboot": 169, "syslog": 103, "vhangup": 153, "iopl": 172, "ioperm": 173, "settimeofday": 164,
            "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "init_module": 175, "finit_module": 313,
            "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
        },
    ),
    "aarch64": Architecture(  # without the oldest calls, such as fork and chmod
        audit=0xC00000B7, clone=220, socketpair=199, ioctl=29, prctl=167, prlimit64=261,
        refused={
            "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "utimensat": 88, "setxattr": 5, "lsetxattr": 6,
            "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "truncate": 45, "mknodat": 33,
            "flock": 32, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
            "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138,
            "rt_tgsigqueueinfo": 240, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
            "setsid": 157, "setpgid": 154, "setpriority": 140, "sched_setaffinity": 122, "sched_setscheduler": 119,
            "sched_setparam": 118, "sched_setattr": 274, "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239,
            "socket": 198, "shmget": 194, "shmat": 196, "shmctl": 195, "semget": 190, "semop": 193, "semctl": 191,
            "semtimedop": 192, "msgget": 186, "msgsnd": 189, "msgrcv": 188, "msgctl": 187, "mq_open": 180,
            "mq_unlink": 181, "memfd_create": 279, "add_key": 217, "request_key": 218, "keyctl": 219,
            "sethostname": 161, "setdomainname": 162, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
            "unshare": 97, "setns": 268, "capset": 91, "seccomp": 277, "bpf": 280, "perf_event_open": 241,
            "userfaultfd": 282, "personality": 92, "quotactl": 60, "acct": 89, "swapon": 224, "swapoff": 225,
            "reboot": 142, "syslog": 116, "vhangup": 58, "settimeofday": 170, "clock_settime": 112, "adjtimex": 171,
            "clock_adjtime": 266, "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104,
            "kexec_file_load": 294,
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


Instruction = tuple[int, int, int, int]  # operation, how many to skip if true and if false, value


def seccomp_filter(architecture: Architecture) -> list[Instruction]:
    """The filter, which runs on every system call."""
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
    for number in (architecture.refused | REFUSED_EVERYWHERE).values():
        instructions += [
            (JUMP_IF_EQUAL, 0, 1, number),
            (RETURN, 0, 0, NOT_PERMITTED),
        ]
    # clone may make threads, but no processes; socketpair may join two ends within the program, as asyncio does.
    instructions += _allow_only(architecture.clone, FIRST_ARGUMENT_OFFSET, JUMP_IF_ANY_BIT, CLONE_THREAD)
    instructions += _allow_only(architecture.socketpair, FIRST_ARGUMENT_OFFSET, JUMP_IF_EQUAL, AF_UNIX)
    instructions += _allow_only(architecture.prlimit64, FIRST_ARGUMENT_OFFSET, JUMP_IF_EQUAL, 0)  # its own limits
    instructions += _allow_only(architecture.prctl, FIRST_ARGUMENT_OFFSET, JUMP_IF_EQUAL, PR_SET_NAME)
    instructions += _allow_only(architecture.ioctl, SECOND_ARGUMENT_OFFSET, JUMP_IF_EQUAL, *TERMINAL_REQUESTS)
    return [*instructions, (RETURN, 0, 0, SECCOMP_RET_ALLOW)]


def _allow_only(number: int, offset: int, test: int, *values: int) -> list[Instruction]:
    """Allow this call if the lower half of an argument passes the test with one of the values, or else refuse it."""
    tests = [(test, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [
        (JUMP_IF_EQUAL, 0, len(values) + 3, number),
        (LOAD, 0, 0, offset),
        *tests,
        (RETURN, 0, 0, NOT_PERMITTED),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]


if __name__ == "__main__":
    main()
