"""What a run was: versions, hardware and commit, and JSON records that are written whole or not at all.

    python -m dpad.results.records        # prints the environment that a record made here and now would carry

A run's record is one JSON object with its settings, metrics and `environment()`. Tables, plots and the README's numbers
are rendered from such records (report.py), never typed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata

from dpad import ROOT
from dpad.results.files import read_json, read_lines, read_text, write_json  # noqa: F401  (until their users say files)


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
    """What computes: `processor` (name), `cores` (that this process may use), `threads` (that torch computes with, None
    without torch), `memory_gb` (GiB, None where the system does not say) and `gpus`, a list of `{"name", "memory_gb"}`
    of the GPUs that torch sees."""
    try:
        import torch  # here, so that reading records and drawing tables does not wait seconds for torch
    except ImportError:
        threads, gpus = None, []
    else:
        threads = torch.get_num_threads()
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(), "cores": cores(), "threads": threads, "memory_gb": _memory_gb(),
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
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    print(json.dumps(environment(), indent=2))
