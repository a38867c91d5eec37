"""What a training run keeps in its folder: the state to resume from, the log, and the claim of the process that writes.

    train-state.pt, train-state-before.pt    weights, optimizers and step; removed when the run is complete
    train.jsonl                              one line for each start of the run, each log step and each measurement
    train.lock                               held while a process trains there

Imported by trainer.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dpad.engine.checks import check_integer, check_number
from dpad.results import files

STATE_PARTS = {"model", "optimizers", "step", "seconds", "identity"}
LOG_ENTRIES = (  # the parts of a start of the run, of a log step, and of a measurement
    {"command", "from_step", "processes", "settings", "identity", "parameters", "environment"},
    {"step", "seconds", "loss"},
    {"step", "seconds", "held_out_loss"},
    {"step", "seconds", "task"},
)


class State:
    """The saved state of a run; the one before it is kept beside it, in case the last one turns out to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "train-state.pt"
        self.before = folder / "train-state-before.pt"

    @property
    def exists(self) -> bool:
        return self.path.exists() or self.before.exists()

    def save(self, content: dict[str, Any]) -> None:
        """Keep a state with the parts STATE_PARTS."""
        with files.write_whole(self.path) as temporary:
            with open(temporary, "wb") as file:
                torch.save(content, file)
            if self.path.exists():
                os.replace(self.path, self.before)

    def load(self) -> dict[str, Any]:
        """What was saved last.

        Raises:
            ValueError: the file is damaged; the message says how to go on.
        """
        path = self.path if self.path.exists() else self.before  # killed between the two renamings of `save`
        try:
            content = torch.load(path, weights_only=True, mmap=True)
            if not (STATE_PARTS <= content.keys() and isinstance(content["identity"], dict)):
                raise ValueError("parts are missing")
            check_integer("step", content["step"], 1)
            check_number("seconds", content["seconds"], minimum=0)
        except Exception as error:  # torch has no error of its own for a file that is cut off or of another kind
            way_out = "name another folder"
            if path == self.path and self.before.exists():
                way_out = f"delete it, and --resume continues from the state before it, {self.before.name}"
            raise ValueError(f"{path} is damaged and cannot be continued from: {way_out}") from error
        return content

    def remove(self) -> None:
        self.before.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class Log:
    """train.jsonl: lines that are whole JSON objects, appended as the run goes on."""

    def __init__(self, path: Path, first_step: int) -> None:
        """first_step: the step that the run starts or resumes at; lines of later steps are dropped.

        Raises:
            ValueError: a line is not what this class writes.
        """
        self.path = path
        entries = read_log(path) if first_step and path.exists() else []
        kept = [entry for entry in entries if entry.get("step", entry.get("from_step", 0)) <= first_step]
        files.write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def add(self, entry: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict]:
    """The entries of a train.jsonl: starts of the run, log steps and measurements.

    A last line without its end is left out: the run was killed while it wrote it.

    Raises:
        ValueError: the file cannot be read, or a line is none of these.
    """
    entries = []
    try:
        for number, entry in files.read_json_lines(path, unfinished=True):
            if not isinstance(entry, dict) or not any(parts <= entry.keys() for parts in LOG_ENTRIES):
                raise files.LineError(path, number, "has other parts")
            entries.append(entry)
    except files.LineError as error:
        raise ValueError(f"{path}, line {error.number}: not a line of a training log: it {error.reason}") from error
    return entries


def leftovers(folder: Path) -> list[Path]:
    """Files that a killed run was writing (see files.write_whole)."""
    return [path for path in folder.iterdir() if re.fullmatch(r"\..+\.[0-9a-f]{8}\.part", path.name)]


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; ValueError when another one trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.samefile(f"/dev/fd/{file.fileno()}"):
                raise FileNotFoundError  # its holder has just ended, and a third process may have the new one
        except (BlockingIOError, FileNotFoundError):
            raise ValueError(f"--output {str(folder)!r} is in use by another run: name another folder") from None
        try:
            yield
        finally:
            path.unlink()
