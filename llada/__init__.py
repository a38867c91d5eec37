"""LLaDA with suffix dropout: configuration, model, settings and unmasking rule.

    from llada import LLaDAModelLM

Imported, never run. The first use of a class here registers model type `llada` with transformers' Auto classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llada.configuration import LLaDAConfig
    from llada.modeling import LLaDAModelLM

__all__ = ["LLaDAConfig", "LLaDAModelLM"]


def __getattr__(name: str) -> Any:
    """The classes, imported when they are first asked for: transformers takes seconds."""
    if name in __all__:
        from llada import modeling

        return getattr(modeling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
