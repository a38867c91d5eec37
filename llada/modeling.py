"""LLaDA as a model of transformers.

Imported, never run. `LLaDAModelLM.from_pretrained(folder_or_hub_id)` loads LLaDA-8B-Base, LLaDA-8B-Instruct,
LLaDA-1.5 or checkpoints/llada-tiny; AutoModel and AutoModelForCausalLM find it too once `llada` is imported.
"""

from __future__ import annotations

from dpad.engine.generation import AnsweringModel
from dpad.engine.registry import register_model
from llada.configuration import LLaDAConfig
from llada.generate import LLaDARule
from llada.network import LLaDANetwork
from llada.settings import LLaDASettings


class LLaDAModelLM(LLaDANetwork, AnsweringModel):
    """LLaDA (arXiv 2502.09992) with `generate`, `from_pretrained` and all else of transformers' models."""

    base_model_prefix = "model"
    settings_class = LLaDASettings
    rule_class = LLaDARule
    _no_split_modules = ["LLaDABlock"]

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.post_init()


register_model(LLaDAModelLM)
