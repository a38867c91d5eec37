r"""Which suffix positions a block may see: the heart of DPad (arXiv 2508.14148, section 4).

Before the first forward of a block, the decoding loop passes every position after the block to the sampler. The sampler
returns the positions to keep; the model never sees the others. A sampler is pure: no model, no device, no state. A new
strategy is a subclass with two methods and an entry in SAMPLERS. To see one at work:

    python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --watch \
        --prompt "Dan is 33. Zoe is 5 years older. How old is Zoe?"
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


@dataclass(frozen=True)
class FullSuffix(SuffixSampler):
    """Keeps everything: the vanilla baseline."""

    def indices(self, count: int, generator: Generator) -> Tensor:
        return torch.arange(count)

    def retention(self, count: int) -> Tensor:
        return torch.ones(count)


@dataclass(frozen=True)
class NoSuffix(SuffixSampler):
    """Keeps nothing: a block sees what stands before it alone, as in block diffusion (arXiv 2503.09573)."""

    def indices(self, count: int, generator: Generator) -> Tensor:
        return torch.arange(0)

    def retention(self, count: int) -> Tensor:
        return torch.zeros(count)


@dataclass(frozen=True)
class WindowSampler(SuffixSampler):
    """Keeps the `window` nearest positions: the sliding window alone, nothing dropped inside it."""

    window: int = setting(WINDOW, "the nearest suffix tokens that may be kept; at most the answer's length",
                          flags=("-w", "--window"), minimum=1, unit="tokens")

    def __post_init__(self) -> None:
        check_settings(self)

    def indices(self, count: int, generator: Generator) -> Tensor:
        return torch.arange(min(count, self.window))

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
class UniformSampler(WindowSampler):
    """Keeps `number` positions drawn evenly from the nearest `window`; all of them when `number` covers the suffix."""

    number: int = setting(0, "uniform: suffix tokens to keep, which must be said", flags=("-nt", "--num_tokens"),
                          minimum=0, unit="tokens")

    def indices(self, count: int, generator: Generator) -> Tensor:
        if self.number >= count:
            return torch.arange(count)
        return torch.randperm(min(count, self.window), generator=generator)[: self.number].sort().values

    def retention(self, count: int) -> Tensor:
        if self.number >= count:
            return torch.ones(count)
        reach = min(count, self.window)
        return (torch.arange(count) < reach) * min(1.0, self.number / reach)


# By the name that --dropout_strategy takes.
SAMPLERS: dict[str, type[SuffixSampler]] = {
    "null": FullSuffix,
    "gaussian": GaussianSampler,
    "uniform": UniformSampler,
    "window": WindowSampler,
    "block": NoSuffix,
}
