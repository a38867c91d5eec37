"""Makes AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM find a class of models.

Imported by llada/modeling.py, dream/modeling.py and auto_classes.py, never run.
"""

from __future__ import annotations

from typing import Any


def register_model(model_class: Any) -> None:
    """Register a class, or what stands for it, by its `config_class`, in place of what was registered for that one."""
    from transformers.models.auto import modeling_auto

    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"):
        getattr(modeling_auto, name).register(model_class.config_class, model_class, exist_ok=True)
