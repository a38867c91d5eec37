"""Several processes that share one evaluation: who am I, wait for the others, and starting them through accelerate.

    python run.py -t gsm8k -m instruct --num_processes 4             # four GPUs of this machine
    accelerate launch --config_file nodes.yaml run.py -t gsm8k ...   # accelerate's own configuration: several machines

Every process answers its share of the requests into its own file of the run's journal, which all can read (on several
machines: a shared folder). They exchange nothing but the signal that they are there; process 0 then scores all answers.
Imported, never run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from dpad import ROOT
from dpad.results.records import cores

LAUNCHER = "DPAD_LAUNCHER"  # the environment variable that tells a process who launched it
PR_SET_PDEATHSIG = 1  # of prctl(2)
RUN = ROOT / "run.py"
GRACE = 60  # seconds that a launcher has to end the other processes of a run in which one failed
PATIENCE = timedelta(days=7)  # processes finish at different times; one that dies ends the run at once, by its launcher


@dataclass(frozen=True)
class Processes:
    """This process among those of a run: its number `rank` of `count`, and `local_rank` among those of its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            import torch

            try:
                torch.distributed.barrier()
            except RuntimeError:  # another one has ended and said why; the launcher is about to end this one as well
                time.sleep(GRACE)
                raise


ALONE = Processes()


def current() -> Processes:
    """What a launcher (accelerate, torchrun) says about this process; without one it is alone."""
    return Processes(*(int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))))


def join() -> Processes:
    """Meet the other processes of the run, if there are any; `leave` at the end."""
    found = current()
    if found.count > 1:
        _end_with_launcher()
        from accelerate import PartialState

        # gloo: the processes only wait for each other, and waiting must not occupy a GPU.
        PartialState(cpu=True, backend="gloo", timeout=PATIENCE)
    return found


def _end_with_launcher() -> None:
    """Have the kernel (Linux) kill this process when the one that `launch`ed it is killed, and cannot."""
    launcher = os.environ.get(LAUNCHER)
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):  # it was, before this process could ask
            os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    """Part from the others, so that the launcher does not warn of a group that was never left."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device(here: Processes) -> str | None:
    """The GPU that a process of several takes, or None for what a process alone would take."""
    import torch

    return f"cuda:{here.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def launch(count: int, port: int | None, arguments: Sequence[str], device: str | None = None) -> None:
    """Run `run.py` with these arguments in `count` processes of this machine, each with its own GPU if there are any.

    port: the TCP port that they meet at; None takes a free one. device: what the arguments ask for.

    Raises:
        ValueError: count or port cannot be used, or there are fewer GPUs. RuntimeError: a process failed; the others
        have been ended. SystemExit: a process refused its input and has said why. KeyboardInterrupt: Ctrl-C; all have
        ended.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gpus = 0 if (device or "").startswith("cpu") else torch.cuda.device_count()
    if gpus and count > gpus:
        raise ValueError(f"num_processes is {count}; it must be at most the number of GPUs here ({gpus})")
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"main_process_port is {port}; it must lie between 1 and {2**16 - 1}")
    from accelerate.commands.launch import launch_command, launch_command_parser

    if not gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it accelerate runs one process and says nothing
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))
    os.environ[LAUNCHER] = str(os.getpid())
    for name in ("torch.distributed", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a failure is told below, in a sentence
    flags = ["--multi_gpu", "--num_processes", count, "--num_machines", 1, "--mixed_precision", "no",
             "--dynamo_backend", "no", "--main_process_port", free_port() if port is None else port]
    options = launch_command_parser().parse_args([*map(str, flags), str(RUN), *arguments])
    try:
        launch_command(options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            raise SystemExit(2) from None
        how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        raise RuntimeError(f"process {rank + 1} of {count} {how}, so the run was stopped; finished answers are kept, "
                           "and the same command goes on from there") from None
    except SignalException:
        raise KeyboardInterrupt("interrupted: finished answers are kept, and the same command goes on from "
                                "there") from None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
