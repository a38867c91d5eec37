"""Several processes that share one evaluation: which one this is, waiting for the others, and launching them.

    python run.py -t gsm8k -m instruct --num_processes 4             # four GPUs of this machine
    accelerate launch --config_file nodes.yaml run.py -t gsm8k ...   # accelerate's own configuration: several machines

Every process answers its share of the requests and writes the answers into its own file of the run's journal, which
all processes can read (on several machines: in a shared folder). The processes exchange no data, they only wait for
each other; at the end process 0 scores all the answers. (Under lm-eval's own command line, which may have no journal,
they exchange the answers.)
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dpad import ROOT
from dpad.engine.checks import check_integer
from dpad.engine.memory import available_memory
from dpad.results.records import cores

RUN = ROOT / "run.py"
LAUNCHER = "DPAD_LAUNCHER"  # the environment variable that holds the launcher's process id
PR_SET_PDEATHSIG = 1  # of prctl(2)
BASE_MEMORY = 400 * 2**20  # bytes that a process takes besides the weights: Python, torch, lm-eval, answering
GRACE = 60  # seconds that the launcher has to end the other processes of a run in which one failed
# How long processes that are finished wait for the others. If one of them dies, its launcher ends the run at once.
MAX_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run: its number `rank` of `count`, and its `local_rank` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.count == 1:
            return
        import torch

        try:
            torch.distributed.barrier()
        except RuntimeError:  # another process has failed and said why; the launcher is about to end this one too
            time.sleep(GRACE)
            raise

    def gather(self, value: Any) -> list[Any]:
        """The values with which all processes have called this, in the order of their ranks."""
        if self.count == 1:
            return [value]
        import torch

        self.wait()
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Processes()


def current() -> Processes:
    """This process as its launcher (accelerate, torchrun) describes it in the environment; ALONE without one."""
    return Processes(
        rank=int(os.environ.get("RANK", 0)),
        count=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def join() -> Processes:
    """Connect to the other processes of the run, if there are any; call `leave` at the end."""
    processes = current()
    if processes.count > 1:
        from accelerate import PartialState

        # gloo, because the processes only wait for each other, and waiting must not occupy a GPU.
        PartialState(cpu=True, backend="gloo", timeout=MAX_WAIT)
    return processes


def end_with_launcher() -> None:
    """Ask the kernel (Linux) to kill this process as soon as the one that launched it dies, if it was launched by us.

    A launcher that is killed with SIGKILL has no chance to end its processes, and they would go on and hold the
    journal. Called before anything that takes time, so that it holds for processes that are still starting.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # it is no business of the processes that this one starts
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # the launcher died before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def is_first_to_fail() -> bool:
    """Whether this process shall say what went wrong: the first of a run to call this, as all may meet one fault."""
    processes = current()
    if processes.count == 1:
        return True
    from torch import distributed

    if not distributed.is_initialized():  # nothing was shared out yet, so all processes meet the same fault
        return processes.rank == 0
    try:
        return distributed.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # process 0, which holds the store, has ended: it has said why
        return False


def leave() -> None:
    """Disconnect from the other processes; without this the launcher warns of it."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device(processes: Processes) -> str | None:
    """The GPU for this process, or None on a machine without GPUs."""
    import torch

    if not torch.cuda.is_available():
        return None
    return f"cuda:{processes.local_rank % torch.cuda.device_count()}"


def check_flags(count: int, port: int | None, note: Callable[[str], None]) -> None:
    """Raise ValueError unless --num_processes and --main_process_port fit each other and this process's launcher.

    Args:
        note: says one line to the person who waits: here, that the port has no effect.
    """
    check_integer("num_processes", count, 1)
    launched = current().count
    if launched > 1 and count not in (1, launched):
        raise ValueError(f"num_processes is {count}, but {launched} processes have been launched already; leave it out")
    if port is not None:
        check_integer("main_process_port", port, 1, 2**16 - 1)
        if count == 1 and current().rank == 0:
            note(f"main_process_port is {port}, which has no effect without --num_processes")


def check_count(count: int, device: str | None, weight_bytes: int) -> None:
    """Raise ValueError unless this machine can run so many processes: one a GPU, or as cores and memory allow.

    Args:
        device: the value of --device.
        weight_bytes: of a model, which every process loads.
    """
    import torch

    gpus = 0 if (device or "").startswith("cpu") else torch.cuda.device_count()
    if gpus:
        maximum, reason = (1, f"--device {device} is one GPU") if ":" in (device or "") else (gpus, "one for each GPU")
    else:
        free, each = available_memory(), BASE_MEMORY + weight_bytes
        maximum, reason = cores(), "one for each processor core"
        if free // each < maximum:
            reason = f"each takes about {each / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
            maximum = max(1, free // each)
    if count > maximum:
        raise ValueError(f"num_processes is {count}; it must be at most {maximum} here: {reason}")


def launch(count: int, port: int | None, arguments: Sequence[str], device: str | None = None,
           way_on: str = "finished answers are kept, and the same command goes on from there") -> None:
    """Run `run.py` with these arguments in several processes on this machine, each on its own GPU if there are any.

    Args:
        count: number of processes, which `check_count` allows.
        port: the TCP port through which they find each other; None takes a free one.
        arguments: of the command line.
        device: the value of --device among them, if there is one.
        way_on: what to do after a run that was stopped.

    Raises:
        RuntimeError: a process failed; the others have been ended.
        SystemExit: a process refused its input and has said why.
        KeyboardInterrupt: Ctrl-C; all processes have ended.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if (device or "").startswith("cpu") or not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise accelerate silently runs a single process
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ[LAUNCHER] = str(os.getpid())
    for name in ("torch.distributed", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the errors below say in one sentence what failed

    flags = [
        "--multi_gpu",
        "--num_processes", str(count),
        "--num_machines", "1",
        "--mixed_precision", "no",
        "--dynamo_backend", "no",
        "--main_process_port", str(_free_port() if port is None else port),
    ]
    options = launch_command_parser().parse_args([*flags, str(RUN), *arguments])
    try:
        launch_command(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            raise SystemExit(2) from None
        reason = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        raise RuntimeError(f"process {rank + 1} of {count} {reason}, so the run was stopped; "
                           f"{way_on}") from None
    except SignalException:
        raise KeyboardInterrupt(f"interrupted: {way_on}") from None
    finally:
        del os.environ[LAUNCHER]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
