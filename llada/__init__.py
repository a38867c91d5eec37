"""LLaDA with suffix dropout: configuration, model, settings and unmasking rule.

    from llada import LLaDAModelLM

Imported, never run. From then on transformers' Auto classes find model type `llada`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dpad  # noqa: F401  (registers the classes: dpad/engine/auto_classes.py)

if TYPE_CHECKING:
    from llada.configuration import LLaDAConfig
    from llada.modeling import LLaDAModelLM

__all__ = ["LLaDAConfig", "LLaDAModelLM"]


def __getattr__(name: str) -> Any:
    """The classes, imported when they are first asked for: transformers takes seconds."""
    if name in __all__:
        from llada import configuration, modeling

        return next(getattr(module, name) for module in (configuration, modeling) if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
