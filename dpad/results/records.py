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
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from dpad import ROOT
from dpad.results import files

# Kinds of records, who writes them, and the keys that one must have.
KINDS = {
    "evaluation": ("name", "task", "model", "settings", "metrics", "latency_s", "samples"),  # run.py, the demo
    "benchmark": ("model", "settings", "rows"),  # run.py bench
    "growth": ("model", "settings", "rows"),  # run.py bench --gen_lengths
    "agreement": ("device", "problems", "rows"),  # benchmarks/agreement.py
    "paper": ("source", "hardware", "problems", "scripts", "models"),  # benchmarks/paper.json, typed from the paper
}


def load(paths: Sequence[str | Path], folder: str | Path = ".") -> list[dict]:
    """The records in files and folders, in the order of the paths; within a folder by file name.

    Args:
        paths: files that hold a record or a list of records, or folders of such files.
        folder: where relative paths count from.

    Raises:
        ValueError: a path is missing, is not JSON, or holds something else than records of one of KINDS.
    """
    records = []
    for path in (Path(folder) / path for path in paths):
        names = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not names:
            raise ValueError(f"{path} holds no .json file")

        for name in names:
            content = files.read_json(name)
            for record in content if isinstance(content, list) else [content]:
                _check(record, name)
                records.append(record)
    return records


def _check(record: object, path: Path) -> None:
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise ValueError(f"{path} holds something that is not a record of a run")
    missing = [key for key in KINDS[record["kind"]] if key not in record]
    if missing:
        raise ValueError(f"{path} holds a record without {', '.join(missing)}")


def hardware_line(record: dict) -> str:
    """The device that a record's run computed on, in words: the GPU of a run on one, otherwise the processor."""
    hardware = record.get("environment", {}).get("hardware", {})
    device = record.get("settings", record).get("device", "cuda")

    gpus = hardware.get("gpus") or []
    if gpus and not str(device).startswith("cpu"):
        memory = gpus[0].get("memory_gb")
        return gpus[0]["name"] + (f" ({memory:.0f} GB)" if memory else "")

    if "processor" not in hardware:
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
    return record.get("environment", {}).get("commit") or "unknown"


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
        A dict with `processor` (its name), `cores` (that this process may use), `threads` (that torch computes with,
        None without torch), `memory_gb` (GiB, None where the system does not say) and `gpus`, a list of
        `{"name", "memory_gb"}` of the GPUs that torch sees.
    """
    try:
        import torch  # here, so that reading records and drawing tables does not wait seconds for torch
    except ImportError:
        threads, gpus = None, []
    else:
        threads = torch.get_num_threads()
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]

    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
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


def commit() -> str:
    """The commit that the code stands at, with "+" where tracked files differ from it; "unknown" outside git."""
    if not (ROOT / ".git").exists():  # an archive unpacked inside another repository must not report that one's commit
        return "unknown"
    try:
        output = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return output.strip() or "unknown"


if __name__ == "__main__":
    print(json.dumps(environment(), indent=2))
