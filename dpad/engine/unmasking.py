"""Which masked positions of a block are decoded at a step, and to what: the interface between the loop and a model.

A model family subclasses `UnmaskingRule` in its generate.py. The functions that these share are in selection.py.
Imported, never run.

Shapes: R rows of a batch, L block length, M positions that compete (of all rows), V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Generator, Tensor

from dpad.engine.settings import DecodingSettings, TokenIds


class UnmaskingRule(ABC):
    """Decides at every step of a block which masked positions are decoded. One subclass a model family.

    settings: how to decode. tokens: the special tokens. Steps count from 0 in each block; the loop leaves a block when
    nothing in it is masked.
    """

    def __init__(self, settings: DecodingSettings, tokens: TokenIds):
        self.settings = settings
        self.tokens = tokens

    def begin_block(self, block: int) -> None:  # noqa: B027
        """Called before the first step of each block, which are numbered from 0. For rules that keep a state."""

    def opens(self, step: int) -> bool:
        """Whether the block's first position, still masked, competes alone at this step; else all masked ones do."""
        return False

    @abstractmethod
    def quota(self, step: int, left: int) -> int | None:
        """How many of a row's `left` masks this step decodes; None when the confidences decide it.

        A step with a quota of 0 needs no forward and gets none.
        """

    @abstractmethod
    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The token that each competing position would become, int64 [M], and its confidence, float64 [M].

        Args:
            logits: [M, V] of the competing positions of all rows.
            columns: int64 [M], each one's place in its block, in [0, L).
            generator: a CPU generator that depends on seed, block and step alone. Draw for a whole block and index by
                `columns`, so that a row gets the same noise in any batch.
        """

    @abstractmethod
    def choose(self, confidence: Tensor, quota: int | None, generator: Generator) -> Tensor:
        """Which positions to decode: bool [R, L], given confidences float64 [R, L] (-inf where nothing competes).

        generator: the one that `candidates` of this step drew from; draws for a block are shared by the rows.
        """
