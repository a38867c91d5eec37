"""From logits to candidates, and from confidences to positions: the pure functions that all unmasking shares.

Imported, never run; torch is imported when the first of them is called.

Shapes: R rows of a batch, L block length, M positions that compete (of all rows), V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpad.engine.lazy import lazy_module

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
else:
    torch = lazy_module("torch")

# How many logits are turned into float64 at a time (see `in_pieces`): 2 MiB of them, which fit a core's cache; 128 MiB.
PIECE_ON_CPU = 2**18
PIECE_ON_GPU = 2**24
WITHOUT_FLOAT64 = ("mps",)  # types of devices


# --- Where ------------------------------------------------------------------------------------------------------------


def deciding_device(device: torch.device) -> torch.device:
    """Where logits are looked at in float64: on the model's device, or on the CPU where that has no float64.

    So decisions are the same everywhere, given the same logits. Of a step only the logits of the masked positions are
    moved, and the choice is moved back.
    """
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device. The processor goes on without a wait for a GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# --- Candidates -------------------------------------------------------------------------------------------------------


def in_pieces(logits: Tensor) -> list[slice]:
    """Slices of the rows of logits [M, V], small enough for work in float64 to stay in the processor's cache.

    On a GPU they only bound the memory: the vocabulary in float64 for every masked position of a batch is gigabytes.
    """
    size = PIECE_ON_GPU if logits.is_cuda else PIECE_ON_CPU
    rows = max(1, size // logits.shape[-1])
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] in float64 over the whole vocabulary: logits [M, V], tokens [M] -> [M]."""
    return torch.cat([
        logits[piece].log_softmax(-1, dtype=torch.float64).gather(-1, tokens[piece, None])
        for piece in in_pieces(logits)
    ]).squeeze(-1)


def best_but_mask(logits: Tensor, mask_id: int) -> Tensor:
    """The likeliest token that is not the mask, int64 [M] of logits [M, V]. The logits are unchanged on return."""
    logits_of_mask = logits[:, mask_id].clone()
    logits[:, mask_id] = float("-inf")  # in place: a copy of the logits costs as much as looking for the largest
    tokens = logits.argmax(-1)
    logits[:, mask_id] = logits_of_mask
    return tokens


def without_mask(logits: Tensor, mask_id: int) -> Tensor:
    """A copy of the logits in which the mask token cannot be chosen (confidence stays that of the originals)."""
    allowed = logits.clone()
    allowed[:, mask_id] = float("-inf")
    return allowed


def gumbel_noise(*shape: int, generator: Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise in float64: argmax(log p + noise) draws from p (Maddison et al. 2014)."""
    uniform = torch.rand(*shape, dtype=torch.float64, generator=generator)  # the same on every device
    return -torch.log(-torch.log(send(uniform, device)))


# --- Choices ----------------------------------------------------------------------------------------------------------


def choose_most_confident(confidence: Tensor, count: int) -> Tensor:
    """The `count` most confident positions of each row, the leftmost first among equals: bool [R, L]."""
    order = confidence.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, order[:, :count], True)


def choose_above(confidence: Tensor, threshold: float) -> Tensor:
    """Every position with confidence >= threshold, and always the most confident one (Fast-dLLM, algorithm 1)."""
    return (confidence >= threshold) | choose_most_confident(confidence, 1)
