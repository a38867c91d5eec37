"""Dream with suffix dropout: configuration, model, tokenizer, settings and unmasking rule.

    from dream import DreamModel

Imported, never run. From then on transformers' Auto classes find model types `Dream` and `illada`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dpad  # noqa: F401  (registers the classes: dpad/engine/auto_classes.py)

if TYPE_CHECKING:
    from dream.configuration import DreamConfig, ILLaDAConfig
    from dream.modeling import DreamModel, ILLaDAModelLM
    from dream.tokenization import DreamTokenizer

__all__ = ["DreamConfig", "DreamModel", "DreamTokenizer", "ILLaDAConfig", "ILLaDAModelLM"]


def __getattr__(name: str) -> Any:
    """The classes, imported when they are first asked for: transformers takes seconds."""
    if name in __all__:
        from dream import configuration, modeling, tokenization

        modules = (configuration, modeling, tokenization)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
