"""Dream's decoding settings: the ones that all models share, and its own.

    from dream.settings import DreamSettings
    settings = DreamSettings(gen_length=256, threshold=0.9)

Imported, never run. It imports neither torch nor transformers, so that `python run.py --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dpad.engine.fields import setting
from dpad.engine.settings import DecodingSettings
from sampler import AttentionSampler


@dataclass(frozen=True, kw_only=True)
class DreamSettings(DecodingSettings):
    """Dream's settings: the shared ones, and how tokens and positions are drawn."""

    family: ClassVar[str] = "Dream"
    own_order: ClassVar[str] = "entropy"

    top_p: float | None = setting(None, "Dream: draw from the likeliest tokens that have this probability together",
                                  above=0, maximum=1)
    top_k: int | None = setting(None, "Dream: draw from this many of the likeliest tokens. With -d attention: suffix "
                                 "tokens to keep by their scores (64)", minimum=1)
    alg_temp: float = setting(0.0, "Dream: above 0, draw the positions too, at this temperature", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.alg_temp:
            raise ValueError(f"alg_temp is {self.alg_temp!r} while threshold is {self.threshold!r}; give one of the "
                             "two")
        if self.alg_temp and (self.rule is not None or self.alg == "origin"):
            other = "a rule" if self.alg is None else f"alg {self.alg}"
            raise ValueError(f"alg_temp is {self.alg_temp!r}, but {other} chooses the positions; give one of the two")
        if self.top_k is not None and isinstance(self.suffix_sampler, AttentionSampler):
            raise ValueError(f"top_k is {self.top_k!r}, but with dropout_strategy attention the sampler has this name; "
                             "leave one out")

    @property
    def is_random(self) -> bool:
        return super().is_random or self.alg_temp > 0
