"""DPad: efficient decoding of masked diffusion language models with suffix dropout (arXiv 2508.14148).

    from dpad import load
    llada = load("tiny")          # or instruct, 1.5, base, dream-tiny, a checkpoint folder, a hub id

Its packages: engine (decoding, loading), evaluation (tasks, runs), results (records, tables, charts, documents),
interact (chat, traces) and training. Importing this package imports none of them, but from then on transformers' Auto
classes find LLaDA and Dream.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine import auto_classes, quantization

if TYPE_CHECKING:
    from dpad.engine.loading import load

__all__ = ["ROOT", "load"]

ROOT = Path(__file__).resolve().parents[1]  # the repository


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for: torch and transformers take seconds."""
    if name == "load":
        from dpad.engine.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


quantization.silence()
auto_classes.install()
