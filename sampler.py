"""Which suffix positions a block may see: the heart of DPad (arXiv 2508.14148, section 4).

Before a block's first forward the loop in decoding.py hands the sampler every position after the block; the sampler
returns the ones to keep, and the model never sees the others. Pure: no model, no device, no state. A new strategy is a
subclass with two methods. Imported, never run; `python run.py generate --help` shows how to choose one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


class SuffixSampler(ABC):
    """Chooses suffix positions by their distance to the block: index 0 is the position right after it."""

    @abstractmethod
    def indices(self, count: int, generator: Generator) -> Tensor:
        """Which of `count` suffix positions to keep: int64, ascending, each in [0, count)."""

    @abstractmethod
    def retention(self, count: int) -> Tensor:
        """The probability with which each of `count` suffix positions is kept, float32 [count]."""

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


def _check_window(window: int) -> None:
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window is {window!r}; it must be an integer from 1 to gen_length")


@dataclass(frozen=True)
class FullSuffix(SuffixSampler):
    """Keeps everything: the vanilla baseline."""

    def indices(self, count: int, generator: Generator) -> Tensor:
        return torch.arange(count)

    def retention(self, count: int) -> Tensor:
        return torch.ones(count)


@dataclass(frozen=True)
class WindowSampler(SuffixSampler):
    """Keeps the `window` nearest positions: the sliding window alone, nothing dropped inside it."""

    window: int

    def __post_init__(self):
        _check_window(self.window)

    def indices(self, count: int, generator: Generator) -> Tensor:
        return torch.arange(min(count, self.window))

    def retention(self, count: int) -> Tensor:
        return (torch.arange(count) < self.window).float()


@dataclass(frozen=True)
class GaussianSampler(SuffixSampler):
    """DPad's sampler: a sliding window thinned by Gaussian distance decay (section 4.2).

    Position i of the suffix is kept with probability min(1, scale / sqrt(2 pi) * exp(-x_i^2 / 2)), where x runs from 0
    to `k_sigma` in `window` even steps, and with probability 0 beyond the window. The paper writes x_i = k i / W; the
    authors' code, and so every published number, uses k i / (W - 1).
    """

    window: int
    k_sigma: float
    scale: float

    def __post_init__(self):
        _check_window(self.window)
        for name in ("k_sigma", "scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")

    def _density(self, count: int) -> Tensor:
        density = torch.zeros(count)
        x = torch.linspace(0, self.k_sigma, self.window)[:count]
        density[: len(x)] = self.scale / math.sqrt(2 * math.pi) * torch.exp(-0.5 * x**2)
        return density

    def indices(self, count: int, generator: Generator) -> Tensor:
        # One draw for every position, those beyond the window included, as in the recordings of the reference.
        return (torch.rand(count, generator=generator) < self._density(count)).nonzero().squeeze(1)

    def retention(self, count: int) -> Tensor:
        return self._density(count).clamp(max=1)


@dataclass(frozen=True)
class UniformSampler(SuffixSampler):
    """Keeps `number` positions drawn evenly from the nearest `window`; all of them when `number` covers the suffix."""

    window: int
    number: int

    def __post_init__(self):
        _check_window(self.window)
        if isinstance(self.number, bool) or not isinstance(self.number, int) or self.number < 0:
            raise ValueError(f"number is {self.number!r}; it must be an integer of at least 0")

    def indices(self, count: int, generator: Generator) -> Tensor:
        if self.number >= count:
            return torch.arange(count)
        return torch.randperm(min(count, self.window), generator=generator)[: self.number].sort().values

    def retention(self, count: int) -> Tensor:
        if self.number >= count:
            return torch.ones(count)
        reach = min(count, self.window)
        return (torch.arange(count) < reach) * min(1.0, self.number / reach)
