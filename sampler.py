r"""Which suffix positions a block may see: the heart of DPad (arXiv 2508.14148, section 4).

Before the first forward of a block, the decoding loop passes every position after the block to the sampler. The sampler
returns the positions to keep; the model never sees the others. A sampler is pure: no model, no device, no state. DPad's
comes first, then others to compare it with. A new strategy is a subclass with `retention`, and with `indices` if it
draws, and an entry in SAMPLERS. To see one at work:

    python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --watch \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpad.engine.fields import check_settings, setting
from dpad.engine.lazy import lazy_module

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
else:
    torch = lazy_module("torch")

WINDOW = 256  # the default window; shorter answers take their own length


class SuffixSampler(ABC):
    """Chooses suffix positions by their distance to the block: index 0 is the position right after it.

    is_random: whether another seed can keep other positions.
    """

    is_random = False

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def retention(self, count: int) -> Tensor:
        """The probability with which each of `count` suffix positions is kept, float32 [count]."""

    def indices(self, count: int, generator: Generator) -> Tensor:
        """Which of `count` suffix positions to keep: int64, ascending, each in [0, count). Without dice the sure ones.
        """
        return (self.retention(count) == 1).nonzero().squeeze(1)

    def sample(self, positions: Tensor, generator: Generator) -> Tensor:
        """The positions to keep.

        Args:
            positions: int64 [n], the suffix in ascending order; may be empty.
            generator: the CPU generator of the request, which the draws advance.

        Returns:
            int64 [kept], a subset of `positions` in ascending order.
        """
        return positions[self.indices(len(positions), generator)]

    def check(self, gen_length: int) -> None:
        """Raise ValueError when a setting does not fit an answer of `gen_length` tokens."""
        window = getattr(self, "window", None)
        if window is not None and window > gen_length:
            raise ValueError(f"window is {window}; it must be at most gen_length ({gen_length})")


def with_last(kept: Tensor, last: bool) -> Tensor:
    """What is kept, or how probably, [count]; `last`: the answer's last position in any case."""
    if last and len(kept):
        kept[-1] = True
    return kept


@dataclass(frozen=True)
class FullSuffix(SuffixSampler):
    """Keeps everything: the vanilla baseline."""

    def retention(self, count: int) -> Tensor:
        return torch.ones(count)


@dataclass(frozen=True)
class WindowSampler(SuffixSampler):
    """Keeps the `window` nearest positions: the sliding window alone, nothing dropped inside it."""

    window: int = setting(WINDOW, "the nearest suffix tokens that may be kept; at most the answer's length; anchor and "
                          "ssm have 64, streaming 96 and attention 8", flags=("-w", "--window"), minimum=1,
                          unit="tokens")

    def retention(self, count: int) -> Tensor:
        return (torch.arange(count) < self.window).float()


@dataclass(frozen=True)
class GaussianSampler(WindowSampler):
    """DPad's sampler: a sliding window thinned by Gaussian distance decay (section 4.2).

    Position i of the suffix is kept with probability min(1, scale / sqrt(2 pi) * exp(-x_i^2 / 2)), where x runs from 0
    to `k_sigma` in `window` even steps, and with probability 0 beyond the window. The paper writes x_i = k i / W; the
    authors' code, and so every published number, uses k i / (W - 1).
    """

    k_sigma: float = setting(4.0, "gaussian: standard deviations in the window; the paper has 3 or 4",
                             flags=("-k", "--k_sigma"), above=0)
    scale: float = setting(2.0, "gaussian: factor on the probability to keep a position; the paper has 1.6 to 2.3",
                           flags=("-sc", "--scale"), above=0)
    last: bool = setting(False, "gaussian, anchor: keep the answer's last position whatever its distance (default: off "
                         "for gaussian, on for anchor)", flags=("--keep_last",), negation=("--no_keep_last",))
    is_random = True

    def _density(self, count: int) -> Tensor:
        density = torch.zeros(count)
        x = torch.linspace(0, self.k_sigma, self.window)[:count]
        density[: len(x)] = self.scale / math.sqrt(2 * math.pi) * torch.exp(-0.5 * x**2)
        return density

    def retention(self, count: int) -> Tensor:
        return with_last(self._density(count).clamp(max=1), self.last)

    def indices(self, count: int, generator: Generator) -> Tensor:
        # One draw for every position, those beyond the window included, as in the recordings of the reference.
        kept = torch.rand(count, generator=generator) < self._density(count)
        return with_last(kept, self.last).nonzero().squeeze(1)


# --- Others, by distance ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvenGaussianSampler(GaussianSampler):
    """The Gaussian sampler's density without its dice: as many positions, spread evenly instead of drawn.

    A position is kept where the sum of the probabilities up to it passes the next half-integer (systematic sampling,
    Madow and Madow 1944, with its random start replaced by 1/2). So the number kept among the nearest i positions
    differs from what GaussianSampler keeps there on average by at most 1/2, for every i.
    """

    is_random = False
    indices = SuffixSampler.indices

    def retention(self, count: int) -> Tensor:
        passed = (self._density(count).clamp(max=1).double().cumsum(0) + 0.5).floor()
        return with_last(passed.diff(prepend=torch.zeros(1, dtype=torch.float64)).float(), self.last)


@dataclass(frozen=True)
class UniformSampler(WindowSampler):
    """Keeps `number` positions drawn evenly from the nearest `window`; all of them when `number` covers the suffix."""

    number: int = setting(0, "uniform: suffix tokens to keep, which must be said", flags=("-nt", "--num_tokens"),
                          minimum=0, unit="tokens")
    is_random = True

    def retention(self, count: int) -> Tensor:
        if self.number >= count:
            return torch.ones(count)
        reach = min(count, self.window)
        return (torch.arange(count) < reach) * min(1.0, self.number / reach)

    def indices(self, count: int, generator: Generator) -> Tensor:
        if self.number >= count:
            return torch.arange(count)
        return torch.randperm(min(count, self.window), generator=generator)[: self.number].sort().values


@dataclass(frozen=True)
class AnchorSampler(WindowSampler):
    """Keeps the `window` nearest positions, every `stride`-th position beyond them, and the last one.

    Without a stride this is Streaming-dLLM's suffix (arXiv 2601.17917); with the block's length as the stride it is
    SSM's (arXiv 2608.23167): the first position of every later block.
    """

    window: int = setting(64, "the nearest suffix tokens", flags=("-w", "--window"), minimum=1, unit="tokens")
    stride: int = setting(0, "anchor: keep every position whose distance is a multiple of this; 0 keeps none beyond "
                          "the window", minimum=0, unit="tokens")
    last: bool = setting(True, "keep the answer's last position whatever its distance", flags=("--keep_last",))

    def retention(self, count: int) -> Tensor:
        places = torch.arange(count)
        kept = places < self.window
        if self.stride:
            kept |= places % self.stride == 0
        return with_last(kept, self.last).float()


@dataclass(frozen=True)
class NoSuffix(SuffixSampler):
    """Keeps nothing: a block sees what stands before it alone, as in block diffusion (arXiv 2503.09573)."""

    def retention(self, count: int) -> Tensor:
        return torch.zeros(count)


# --- Others, by attention ---------------------------------------------------------------------------------------------


class ScoredSampler(SuffixSampler):
    """Chooses after a block's first forward, which sees the whole suffix, by the attention that the block paid to it.

    Not DPad, whose choice needs no scores: for comparison. One forward a block costs as much as without dropout.
    """

    @abstractmethod
    def select(self, scores: Tensor) -> Tensor:
        """Which suffix positions stay for the rest of the block: bool [R, n].

        Args:
            scores: float32 [R, n], the attention that the block's queries paid to each suffix position in the first
                forward, averaged over layers, heads and queries.
        """

    def retention(self, count: int) -> Tensor:
        return torch.ones(count)


@dataclass(frozen=True)
class AttentionSampler(ScoredSampler):
    """Keeps the `top_k` suffix positions that the block attends to most, and the `window` nearest.

    The pruning that articles about the paper describe. Of equal scores the nearer position comes first.
    """

    window: int = setting(8, "attention: the nearest suffix tokens, kept whatever their scores",
                          flags=("-w", "--window"), minimum=0, unit="tokens")
    top_k: int = setting(64, "attention: suffix tokens to keep by their scores", minimum=0, unit="tokens")

    def select(self, scores: Tensor) -> Tensor:
        best = scores.argsort(dim=-1, descending=True, stable=True)[:, : self.top_k]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        kept[:, : self.window] = True
        return kept


@dataclass(frozen=True)
class SpotlightSampler(ScoredSampler):
    """Drops the `removed` most attended positions from `beyond` on, and keeps all others: the paper's lottery-ticket
    test (table 1), which asks whether the far tokens in the spotlight of attention matter. Here it is made per block.
    """

    removed: int = setting(10, "spotlight: how many of the most attended far suffix tokens to drop", minimum=0,
                           unit="tokens")
    beyond: int = setting(128, "spotlight: suffix tokens from this distance on count as far", minimum=0, unit="tokens")

    def select(self, scores: Tensor) -> Tensor:
        kept = torch.ones_like(scores, dtype=torch.bool)
        best = scores[:, self.beyond :].argsort(dim=-1, descending=True, stable=True)[:, : self.removed]
        return kept.scatter_(1, best + self.beyond, False)


# By the name that --dropout_strategy takes.
SAMPLERS: dict[str, type[SuffixSampler]] = {
    "null": FullSuffix,
    "gaussian": GaussianSampler,
    "gaussian-even": EvenGaussianSampler,
    "uniform": UniformSampler,
    "window": WindowSampler,
    "anchor": AnchorSampler,
    "attention": AttentionSampler,
    "spotlight": SpotlightSampler,
    "block": NoSuffix,
}
