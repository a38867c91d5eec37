"""LLaDA with suffix dropout: configuration, model and unmasking rules.

Imported, never run; importing it registers model type `llada` with transformers' Auto classes.
"""

from llada.configuration import LLaDAConfig
from llada.modeling import LLaDAModelLM

__all__ = ["LLaDAConfig", "LLaDAModelLM"]
