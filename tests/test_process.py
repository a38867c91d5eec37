"""Memory that a layer frees stays with the process, for the next layer.

    bash tests/run.sh tests/test_process.py
"""

import os
import platform
import subprocess
import sys

import pytest
from helpers import ROOT

COUNT = """
import resource, torch
from dpad.engine.loading import load

torch.set_num_threads(1)
loaded = load("tiny", device="cpu", dtype="float32")
canvas = torch.zeros(1, 384, dtype=torch.long)
forward = lambda: loaded.model.hidden_states(canvas, torch.arange(384)[None])
with torch.inference_mode():
    for _ in range(3):
        forward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        forward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def pages_of_a_forward(**variables: str) -> float:
    """How many pages the system hands out anew in one forward of a warm process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    run = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other rules")
def test_a_forward_takes_its_memory_from_the_one_before():
    """Guards the time of small models, a large part of which went into pages that each layer gave back and got again.

    The control arm has glibc's own limits, which the environment fixes.
    """
    fixed = {"MALLOC_TRIM_THRESHOLD_": str(2**17), "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    assert pages_of_a_forward() < 50
    assert pages_of_a_forward(**fixed) > 1000
