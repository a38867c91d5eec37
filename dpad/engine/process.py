"""What decoding asks of the libraries around it, once a process. Imported by the models, never run.

**Memory.** By default glibc, the C library of most Linux systems, gives large blocks back to the system as soon as they
are freed, and the top of its heap as soon as that is free. Between its products a layer makes and frees several tensors
of a few megabytes; if the system takes each of them back, it has to clear and hand out the same pages again in the next
layer, tens of thousands of times in one answer of the embedded models. tests/test_process.py counts these pages.

**Attention on a GPU.** cuDNN's attention plans anew for every shape, and the suffix has another length in every block.
"""

from __future__ import annotations

from functools import cache

import torch

LARGEST = 2**25 - 2**16  # bytes: glibc never keeps blocks of more than 32 MiB, their bookkeeping included


@cache
def prepare() -> None:
    """Have glibc keep what is freed, and torch leave cuDNN's attention aside."""
    keep_freed_memory()
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: blocks of up to 32 MiB, and up to 64 MiB at the top of the heap.

    When a block that came from the system is freed, glibc raises its limit for such blocks to the size of that one, and
    what it keeps at the top of the heap to twice as much (mallopt(3), M_MMAP_THRESHOLD). So freeing one large block is
    enough; as nothing is written to it, it takes no memory. Limits that the environment sets (MALLOC_TRIM_THRESHOLD_
    and others) stay as they are. With other libraries it changes nothing.
    """
    torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
