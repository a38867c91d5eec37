"""Dream and iLLaDA as models of transformers.

Imported, never run. `DreamModel.from_pretrained(folder_or_hub_id)` loads Dream-v0-Base-7B and Dream-v0-Instruct-7B;
AutoModel and AutoModelForCausalLM find it too once `dream` is imported.
"""

from __future__ import annotations

from typing import ClassVar

from dpad.engine.generation import AnsweringModel
from dpad.engine.registry import register_model
from dpad.engine.settings import DecodingSettings
from dpad.engine.unmasking import UnmaskingRule
from dream.configuration import DreamConfig
from dream.generate import DreamRule
from dream.network import DreamNetwork, ILLaDANetwork
from dream.settings import DreamSettings
from llada.generate import LLaDARule
from llada.settings import LLaDASettings


class DreamModel(DreamNetwork, AnsweringModel):
    """Dream (arXiv 2508.15487) with `generate`, `from_pretrained` and all else of transformers' models."""

    base_model_prefix = "model"
    settings_class: ClassVar[type[DecodingSettings]] = DreamSettings
    rule_class: ClassVar[type[UnmaskingRule]] = DreamRule
    _no_split_modules = ["DreamDecoderLayer"]

    def __init__(self, config: DreamConfig):
        super().__init__(config)
        self.post_init()


class ILLaDAModelLM(ILLaDANetwork, DreamModel):
    """iLLaDA (arXiv 2606.25331), which decodes as LLaDA does."""

    settings_class = LLaDASettings
    rule_class = LLaDARule


register_model(DreamModel)
register_model(ILLaDAModelLM)
