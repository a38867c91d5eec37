"""Which masked positions of a block are decoded at a step, and to what: the interface between the loop and a model.

A model family subclasses `UnmaskingRule` in its generate.py. The functions that these share are in selection.py.
Imported, never run.

Shapes: R rows of a batch, L block length, M positions that compete (of all rows), V vocabulary.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from dpad.engine.rules import RuleState
from dpad.engine.selection import choose_above, choose_most_confident, in_pieces, without_mask
from dpad.engine.settings import DecodingSettings, TokenIds

# Dream's fixed schedule: how much of a block is masked at its start, and at its end.
FIRST_TIME = 1.0
LAST_TIME = 1e-3


class UnmaskingRule(ABC):
    """Decides at every step of a block which masked positions are decoded. One subclass a model family.

    settings: how to decode. tokens: the special tokens. Steps count from 0 in each block; the loop leaves a block when
    nothing in it is masked.
    """

    def __init__(self, settings: DecodingSettings, tokens: TokenIds):
        self.settings = settings
        self.tokens = tokens
        self.times = torch.linspace(FIRST_TIME, LAST_TIME, settings.steps_per_block + 1)
        self.state: RuleState | None = None  # of the block, with a rule of rules.py
        self.turns: Tensor | None = None  # of the block, with `alg` origin: int64 [L], the step that decodes each place
        self.turn_sizes: list[int] = []  # how many places each of these steps decodes

    # --- A block: begin_block, then at each step quota, adjust, candidates, entropy and choose ---

    def begin_block(self, block: int, kept: Tensor | None = None) -> None:
        """Called before the first step of each block.

        block: its number, from 0. kept: int64 [R], how many suffix positions each of its rows keeps.
        """
        if self.settings.rule is not None:
            assert kept is not None
            self.state = self.settings.rule.begin(kept, self.settings.block_length, self.tokens.mask)
        if self.settings.order == "origin":
            turns = self._draw_turns(block)
            self.turn_sizes = turns.bincount().tolist()
            self.turns = turns if kept is None else turns.to(kept.device)

    def change_suffix(self, kept: Tensor) -> None:
        """Called when the block's rows go on with fewer suffix positions: int64 [R]."""
        if self.state is not None:
            self.state.kept = kept

    def keep(self, places: list[int]) -> None:
        """Called when rows leave the block: those at these places stay, in this order."""
        if self.state is not None:
            self.state.keep(places)

    @property
    def observes(self) -> bool:
        """Whether `adjust` wants the logits of all masked positions, also of those that do not compete."""
        return self.state is not None and self.state.observes

    def opens(self, step: int) -> bool:
        """Whether the block's first position, still masked, competes alone at this step; else all masked ones do."""
        return False

    @abstractmethod
    def quota(self, step: int, left: int) -> int | None:
        """How many of a row's `left` masks this step decodes; None when the confidences decide it.

        A step with a quota of 0 needs no forward and gets none.
        """

    def adjust(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The logits [M, V] that candidates, confidences and entropies are taken from, given the model's.

        rows, columns: int64 [M], each position's row in the present batch and its place in the block.
        """
        return logits if self.state is None else self.state.adjust(logits, rows, columns)

    @abstractmethod
    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The token that each competing position would become, int64 [M], and its confidence, float64 [M].

        Args:
            logits: [M, V] of the competing positions of all rows.
            columns: int64 [M], each one's place in its block, in [0, L).
            generator: a CPU generator that depends on seed, block and step alone. Draw for a whole block and index by
                `columns`, so that a row gets the same noise in any batch.
        """

    def entropy(self, logits: Tensor) -> Tensor | None:
        """The entropy of each position's prediction in nats, float64 [M]; None where the rule does not need it."""
        if self.settings.rule is None or not self.settings.rule.needs_entropy:
            return None
        pieces = (logits[piece].double().softmax(-1) for piece in in_pieces(logits))
        return torch.cat([torch.special.entr(p).sum(-1) for p in pieces])

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator,
               entropy: Tensor | None = None) -> Tensor:
        """Which positions to decode: bool [R, L], given confidences float64 [R, L] (-inf where nothing competes).

        generator: the one that `candidates` of this step drew from; draws for a block are shared by the rows.
        entropy: float64 [R, L], where `entropy` gives one.
        """
        if self.state is not None:
            return self.state.choose(confidence, entropy)
        if self.settings.threshold is not None:
            return choose_above(confidence, self.settings.threshold)
        assert quota is not None
        return choose_most_confident(confidence, quota)

    # --- Orders ---

    def order(self, log_p: Tensor, tokens: Tensor, columns: Tensor) -> Tensor:
        """What the settings order positions by, float64 [M]: the larger, the earlier.

        Args:
            log_p: float64 [M, V], the logarithms of each position's probabilities.
            tokens: int64 [M], the candidates. columns: int64 [M], each one's place in its block.
        """
        if self.settings.order == "entropy":
            p = log_p.exp()
            return (p * torch.log(p + 1e-10)).sum(-1)
        if self.settings.order == "topk_margin":
            first, second = without_mask(log_p, self.tokens.mask).topk(2).values.exp().unbind(-1)
            return first - second
        confidence = log_p.gather(-1, tokens[:, None]).squeeze(-1).exp()
        return confidence if self.turns is None else self.by_turns(confidence, columns)

    def by_turns(self, confidence: Tensor, columns: Tensor) -> Tensor:
        """With `alg` origin: the order that was drawn for the block; a NaN of the model stays visible."""
        assert self.turns is not None
        return 0 * confidence - self.turns[columns]

    def share(self, step: int) -> Tensor | float:
        """The part of the masks left that Dream's fixed schedule decodes at a step (as in Dream's code).

        Of the points t_0 = 1 > ... > t_s = 0.001 a block's steps use the intervals from t_1 on; the last takes all.
        """
        j = step + (not self.opens(0))
        if j >= self.settings.steps_per_block - 1:
            return 1.0
        return 1 - self.times[j + 1] / self.times[j]

    def _draw_turns(self, block: int) -> Tensor:
        """The step at which each place is decoded if a mask is decoded with probability `share` (Dream's `origin`).

        The predictions have no part in it, so the turns can be drawn before the block, once for all of its rows.
        """
        length = self.settings.block_length
        generator = noise_generator(self.settings.seed, block, -1)
        turns = torch.full((length,), -1)
        step = 0
        if self.opens(0):
            turns[0] = 0
            step = 1
        while (turns < 0).any():
            draws = torch.rand(length, generator=generator, dtype=torch.float64)
            turns[(turns < 0) & (draws < self.share(step))] = step
            step += 1
        return turns


def noise_generator(seed: int, block: int, step: int) -> Generator:
    """The noise of one step, the same for a row in any batch: a CPU generator seeded by these three numbers alone."""
    digest = hashlib.blake2b(f"{seed} {block} {step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
