r"""Which type of numbers is faster on this processor, by a measurement: what `--dtype auto` takes.

    python run.py generate -m tiny --dtype auto \
        --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"

Some processors have units for bfloat16 (AVX512-BF16, AMX). Whether a machine has them, whether torch uses them and what
that gains is seen best by trying. Imported, never run.
"""

from __future__ import annotations

from functools import cache

import torch

from dpad.engine.products import multiply, times_as_fast

ROWS, WIDTH = 96, 2048  # of a product that takes milliseconds: what a cached step computes, in a layer of middling size
GAIN = 1.3  # how many times faster bfloat16 must be: it rounds, and a measurement is noisy


@cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 this processor multiplies matrices in bfloat16 (below 1: slower)."""
    wide, narrow = (
        (torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    with torch.inference_mode():
        return times_as_fast(lambda: multiply(*wide), lambda: multiply(*narrow))


def faster_dtype() -> torch.dtype:
    """bfloat16 where it is at least GAIN times as fast as float32, and otherwise float32."""
    return torch.bfloat16 if bfloat16_gain() >= GAIN else torch.float32
