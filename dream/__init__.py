"""Dream with suffix dropout: configuration, model and unmasking rules.

Imported, never run; importing it registers model type `Dream` with transformers' Auto classes.
"""

from dream.configuration import DreamConfig
from dream.modeling import DreamModel
from dream.tokenization import DreamTokenizer

__all__ = ["DreamConfig", "DreamModel", "DreamTokenizer"]
