"""Records of runs: what each kind must have, reading them, and the environment that every one of them carries.

    python -m dpad.results.records        # prints the environment that a record made here and now would carry

A record is one JSON object with the settings of a run, what was measured, and `environment()`. A file holds one record
or a list of them. Tables, charts and the documents' numbers are rendered from records, never typed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dpad import ROOT
from dpad.results import files, forms
from dpad.results.formatting import printable

# Kinds of records, who writes them, and the form that one must have (see forms.py).
KINDS: dict[str, dict[str, Any]] = {
    "evaluation": forms.EVALUATION,  # run.py, the demo
    "comparison": forms.COMPARISON,  # run.py compare
    "benchmark": forms.BENCHMARK,  # run.py bench
    "growth": forms.GROWTH,  # run.py bench --gen_lengths
    "agreement": forms.AGREEMENT,  # benchmarks/agreement.py
    "quantization": forms.QUANTIZATION,  # benchmarks/quantization.py
    "startup": forms.STARTUP,  # benchmarks/startup.py
    "authors": forms.AUTHORS,  # benchmarks/against_authors.py
    "training steps": forms.TRAINING_STEPS,  # benchmarks/training/steps.py
    "load": forms.LOAD,  # benchmarks/load.py
    "study": forms.STUDY,  # benchmarks/training/study.py
    "attention": forms.ATTENTION,  # run.py attention
    "paper": forms.PAPER,  # benchmarks/paper.json, typed from the paper
}
MAX_FILES = 20_000  # .json files in a folder
MAX_NOTES = 5


def load(
    paths: Sequence[str | Path], folder: str | Path = ".", note: Callable[[str], None] | None = None,
) -> list[dict]:
    """The records in files and folders, in the order of the paths; within a folder by path. Equal ones count once.

    A folder is searched with all its subfolders, hidden ones and links left out, and may hold other files: what is no
    record is skipped. Control characters in a record's texts become escapes.

    Args:
        paths: files that hold a record or a list of records, or folders in which such files are.
        folder: where relative paths count from.
        note: called with a sentence about what was skipped in a folder.

    Raises:
        ValueError: a path is missing, a file is not JSON or holds something else than records of one of KINDS, or
            nothing in a folder is a record.
    """
    records: dict[str, dict] = {}
    for path in (Path(folder) / path for path in paths):
        found = _search(path, note or (lambda _: None)) if path.is_dir() else _read(path)
        for record in found:
            records.setdefault(json.dumps(record, sort_keys=True), record)
    return list(records.values())


def _search(folder: Path, note: Callable[[str], None]) -> list[dict]:
    """The records in a folder and its subfolders."""
    names = _json_files(folder)
    if not names:
        raise ValueError(f"{folder} holds no .json file, and none of its subfolders does")

    records: list[dict] = []
    faults: list[str] = []
    others = 0
    for name in names:
        try:
            found = _read(name)
        except ForeignError:
            others += name.name != "run.json"  # the identity of a run, beside its record
        except ValueError as error:
            faults.append(str(error))
        else:
            records += found
    if not records:
        reason = f": {faults[0]}" if faults else ""
        raise ValueError(f"{folder} holds no record of a run in its {len(names)} .json "
                         f"file{'s' * (len(names) != 1)}{reason}")

    for fault in faults[:MAX_NOTES]:
        note(f"skipped: {fault}")
    if len(faults) > MAX_NOTES:
        note(f"skipped: {len(faults) - MAX_NOTES} more files that cannot be used")
    if others:
        note(f"skipped: {others} .json file{'s' * (others != 1)} in {folder} without records")
    return records


def _json_files(folder: Path) -> list[Path]:
    paths: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        candidates = [Path(place) / name for name in names if name.endswith(".json") and not name.startswith(".")]
        paths += (path for path in candidates if path.is_file())
        if len(paths) > MAX_FILES:
            raise ValueError(f"{folder} holds more than {MAX_FILES} .json files; name a smaller folder")
    return sorted(paths)


class ForeignError(ValueError):
    """A JSON file that holds something else than records."""


def _read(path: Path) -> list[dict]:
    """The records in a file."""
    content = files.read_json(path)
    if content == []:
        raise ValueError(f"{path} holds an empty list: there is no record in it")

    entries = content if isinstance(content, list) else [content]
    kinds = [entry.get("kind") if isinstance(entry, dict) else None for entry in entries]
    for entry, kind in zip(entries, kinds):
        if not isinstance(kind, str) or kind not in KINDS:
            # One record among other things is a damaged file; without any, the file is somebody else's.
            error = ValueError if any(isinstance(kind, str) and kind in KINDS for kind in kinds) else ForeignError
            raise error(f"{path} holds something that is not a record of a run")
        if kind == "evaluation" and entry.get("samples") == 0:
            raise ValueError(f"{path} holds a record of 0 samples: there is nothing to show")
        fault = forms.fault(entry, KINDS[kind])
        if fault:
            raise ValueError(f"{path} holds a record of kind {kind!r} that cannot be used: {fault}")
    return [_plain(entry) for entry in entries]


def _plain(value: Any) -> Any:
    """The same value with every text printable."""
    if isinstance(value, dict):
        return {printable(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value


def numbers_of(settings: Mapping[str, Any]) -> str | None:
    """The numbers that a model computed with: float32, or bfloat16 with int8 weights; None where that is unknown."""
    dtype, scheme = settings.get("dtype"), settings.get("quantize")
    return f"{dtype} with {scheme} weights" if dtype and scheme else dtype


def hardware_line(record: dict) -> str:
    """The device that a record's run computed on, in words: the GPU of a run on one, otherwise the processor."""
    hardware = (record.get("environment") or {}).get("hardware") or {}
    device = record.get("settings", record).get("device", "cuda")

    gpus = hardware.get("gpus") or []
    if gpus and not str(device).startswith("cpu"):
        memory = gpus[0].get("memory_gb")
        return gpus[0]["name"] + (f" ({memory:.0f} GB)" if memory else "")

    if not hardware.get("processor"):
        return "unknown hardware"

    parts = [hardware["processor"].replace("(R)", "").replace("(TM)", "").strip()]
    core_count = hardware.get("cores")
    threads = hardware.get("threads")
    if core_count:
        parts.append(f"{core_count} core{'s' * (core_count != 1)}")
    if threads and threads != core_count:
        parts.append(f"{threads} thread{'s' * (threads != 1)}")
    return ", ".join(parts)


def commit_of(record: dict) -> str:
    """The commit that a record was made at, "unknown" where it does not say."""
    return (record.get("environment") or {}).get("commit") or "unknown"


# --- The environment --------------------------------------------------------------------------------------------------


def environment() -> dict:
    """Versions, hardware, commit and date of this process, ready for a record.

    Returns:
        A dict with `python`, `torch`, `transformers`, `lm_eval`, `numpy` (versions, None where not installed),
        `platform` (operating system), `hardware` (see `hardware`), `commit` (see `commit`) and `date` (UTC, ISO 8601).
    """
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "lm_eval": version("lm_eval"),
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "hardware": hardware(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str | None:
    """The installed version of a package, or None; it is read from the package's metadata, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict:
    """The machine of this process.

    Returns:
        A dict with `processor` (its name), `cores` (that this process may use), `threads` (that torch computes with),
        `products` (the library that it multiplies weights with in float32, and `onednn_gain`, see products.py; all None
        without torch), `memory_gb` (GiB, None where the system does not say) and `gpus`, a list of
        `{"name", "memory_gb"}` of the GPUs that torch sees.
    """
    try:
        import torch  # here, so that reading records and drawing tables does not wait seconds for torch
    except ImportError:
        threads, library, gain, gpus = None, None, None, []
    else:
        from dpad.engine import products

        library, gain = products.library(), round(products.gain(), 2)
        threads = torch.get_num_threads()
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]

    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
        "products": library,
        "onednn_gain": gain,
        "memory_gb": _memory_gb(),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return " ".join(line.partition(":")[2].split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # fewer than os.cpu_count() in a batch system's allocation
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def commit(root: Path | None = None) -> str:
    """The commit that the code stands at, with "+" where tracked files differ from it; "unknown" outside git.

    root: the folder of a repository, this one's by default.
    """
    root = ROOT if root is None else root
    if not (root / ".git").exists():  # an archive unpacked inside another repository must not report that one's commit
        return "unknown"
    try:
        output = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return output.strip() or "unknown"


if __name__ == "__main__":
    print(json.dumps(environment(), indent=2))
