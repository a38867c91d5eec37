"""LLaDA with suffix dropout: configuration, model and generate loop. Importing it registers `llada` with transformers."""

from llada.configuration import LLaDAConfig
from llada.modeling import LLaDAModelLM

__all__ = ["LLaDAConfig", "LLaDAModelLM"]
