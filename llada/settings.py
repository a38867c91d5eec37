"""LLaDA's decoding settings: the ones that all models share, and its own.

    from llada.settings import LLaDASettings
    settings = LLaDASettings(gen_length=256, threshold=0.9)

Imported, never run. It imports neither torch nor transformers, so that `python run.py --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dpad.engine.fields import setting
from dpad.engine.settings import DecodingSettings


@dataclass(frozen=True, kw_only=True)
class LLaDASettings(DecodingSettings):
    """LLaDA's settings: the shared ones, its remasking, Fast-dLLM's factor rule, and means against empty answers."""

    family: ClassVar[str] = "LLaDA"

    remasking: str = setting("low_confidence", "LLaDA: which positions are decoded first: the confident ones "
                             "(low_confidence) or random ones", choices=("low_confidence", "random"))
    factor: float | None = setting(None, "LLaDA: parallel decoding by Fast-dLLM's factor rule, instead of a threshold",
                                   above=0)
    suppress_eos: str | None = setting(None, "LLaDA, against empty answers: never decode EOS, or decode it and the end "
                                       "of a turn last in a block", choices=("never", "last"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"factor is {self.factor!r} while threshold is {self.threshold!r}; give one of the two")
        if self.factor is not None and self.rule is not None:
            raise ValueError(f"factor is {self.factor!r}, but there is a rule already; give one of the two")
        if self.factor is not None and self.alg not in (None, "maskgit_plus"):
            raise ValueError(f"alg is {self.alg!r}; with a factor it must be maskgit_plus")
        if self.remasking == "random" and (self.alg is not None or self.rule is not None):
            other = "a rule" if self.alg is None else f"alg {self.alg}"
            raise ValueError(f"remasking is 'random', but {other} orders the positions already; give one of the two")

    @property
    def is_random(self) -> bool:
        return super().is_random or self.remasking == "random"

    @property
    def parallel(self) -> bool:
        return super().parallel or self.factor is not None
