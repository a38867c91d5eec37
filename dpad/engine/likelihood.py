"""How likely a masked diffusion model finds a given continuation: a Monte-Carlo estimate, for multiple-choice tasks.

    python run.py -t arc_challenge -m base --mc_samples 128        # from the hub
    python run.py -t choices-local -m tiny                         # a dozen questions of our own, offline

The model has no log p(target | prompt) to read off. What it has is a bound (LLaDA, arXiv 2502.09992, eq. 6): mask a
part of the target, let the model predict that part from the rest, and weight its log-probability by the inverse of the
part masked. The mean over random masks estimates the bound; no mask is drawn on the prompt. There is no suffix here:
the sequence ends with the target, so suffix dropout has nothing to drop and changes no likelihood. Imported, never run.

Shapes: N samples, T target tokens, P prompt tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dpad.engine.checks import check_integer
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.engine.unmasking import best_but_mask, log_probability

SCHEMES = ("counts", "rates")
LEAST_RATE = 1e-3  # of "rates", as in Dream's evaluation


def draw_masks(samples: int, length: int, scheme: str, generator: Generator) -> tuple[Tensor, Tensor]:
    """Which of `length` target tokens each sample masks, bool [N, T], and its weight, float32 [N].

    "counts" (LLaDA's): mask exactly l tokens, l = 1 ... T equally often; weight T / l. "rates" (Dream's): mask each
    token with probability t; weight 1 / t. Both spread l, or t, evenly over the samples, from a random start: the
    estimate stays unbiased and varies less.
    """
    if scheme == "counts":
        start = int(torch.randint(1, length + 1, (), generator=generator))
        count = (start - 1 + torch.arange(samples) * length // samples) % length + 1  # [N], in 1 ... T
        order = torch.rand(samples, length, generator=generator).argsort(-1).argsort(-1)  # a random rank of each token
        return order < count[:, None], length / count.float()
    if scheme == "rates":
        t = (torch.rand((), generator=generator) + torch.arange(samples) / samples) % 1
        t = LEAST_RATE + (1 - LEAST_RATE) * t
        return torch.rand(samples, length, generator=generator) < t[:, None], 1 / t
    raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}")


@torch.inference_mode()
def log_likelihood(model: MaskedDiffusionModel, prompt: Tensor, target: Tensor, *, mask_id: int, scheme: str,
                   samples: int = 128, batch_size: int = 16, seed: int = 1234) -> float:
    """The estimate of log p(target | prompt), in nats.

    Args:
        model: LLaDA or Dream. prompt: int64 [P], may be empty. target: int64 [T]. mask_id: the mask token.
        scheme: one of SCHEMES. samples: random masks N. batch_size: of them, how many in one forward.
        seed: of the masks; the same seed gives the same estimate (up to rounding at another batch_size).

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    for name, value in (("samples", samples), ("batch_size", batch_size)):
        check_integer(name, value, 1)
    if not len(target):
        raise ValueError("target is empty; it must have a token at least")
    masks, weights = draw_masks(samples, len(target), scheme, Generator().manual_seed(seed))
    masks, weights = masks.to(model.device), weights.to(model.device)
    prompt, target = prompt.to(model.device), target.to(model.device)
    total = 0.0
    for first in range(0, samples, batch_size):
        masked, weight = masks[first : first + batch_size], weights[first : first + batch_size]
        rows, places = masked.nonzero(as_tuple=True)
        if not len(rows):
            continue
        shown = torch.where(masked, mask_id, target)
        logits = predictions(model, torch.cat((prompt.expand(len(masked), -1), shown), 1), rows, len(prompt) + places)
        losses = F.cross_entropy(logits.float(), target[places], reduction="none")
        total -= (losses.double() * weight[rows]).sum().item()
    return total / samples


@torch.inference_mode()
def greedy_tokens(model: MaskedDiffusionModel, prompt: Tensor, target: Tensor, *, mask_id: int) -> int:
    """How many of the target's tokens greedy decoding, the most confident mask a forward, writes as they are.

    All of them: greedy decoding writes the target. It stops at the first token that is another: what is decoded stays,
    so nothing after it can mend that.
    """
    prompt, target = prompt.to(model.device), target.to(model.device)
    shown = torch.full_like(target, mask_id)
    for right in range(len(target)):
        places = (shown == mask_id).nonzero().squeeze(-1)
        logits = predictions(model, torch.cat((prompt, shown))[None], torch.zeros_like(places), len(prompt) + places)
        tokens = best_but_mask(logits, mask_id)
        best = log_probability(logits, tokens).argmax()
        if tokens[best] != target[places[best]]:
            return right
        shown[places[best]] = tokens[best]
    return len(target)


def predictions(model: MaskedDiffusionModel, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits [M, V] that predict the tokens of ids [R, Q] at `rows`, `columns` [M]; see `prediction_offset`."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    hidden = model.hidden_states(ids, positions)
    return model.head(hidden[rows, (columns - model.prediction_offset).clamp(min=0)])
