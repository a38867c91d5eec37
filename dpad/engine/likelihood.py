"""How likely a masked diffusion model finds a given continuation: a Monte Carlo estimate, for multiple-choice tasks.

    python run.py -t arc_challenge -m base --mc_samples 128        # from the hub
    python run.py -t choices-local -m tiny                         # a dozen questions of our own, offline

A masked diffusion model does not give log p(target | prompt) directly, but a lower bound of it (LLaDA,
arXiv 2502.09992, eq. 6): mask a random part of the target, let the model predict that part from the rest, and divide
its log-probability by the fraction that was masked. The mean over random masks estimates the bound. The prompt is never
masked. Nothing follows the target, so there is no suffix that suffix dropout could drop.

Shapes: N samples, T target tokens, P prompt tokens, R rows of a batch, M masked positions, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dpad.engine.checks import check_choice, check_integer
from dpad.engine.selection import best_but_mask, deciding_device, log_probability
from dpad.engine.transformer import MaskedDiffusionModel

SCHEMES = ("counts", "rates")
MIN_RATE = 1e-3  # of "rates", as in Dream's evaluation


def draw_masks(samples: int, length: int, scheme: str, generator: Generator) -> tuple[Tensor, Tensor]:
    """Which of `length` target tokens each sample masks, bool [N, T], and the sample's weight, float32 [N].

    "counts" (LLaDA's evaluation): mask exactly l tokens, where l = 1 ... T are equally likely; weight T / l.
    "rates" (Dream's): mask each token with probability t, uniform in [MIN_RATE, 1]; weight 1 / t.
    Both spread l, or t, evenly over the samples from a random start, which leaves the estimate unbiased and reduces its
    variance.

    Raises:
        ValueError: there is no such scheme.
    """
    check_choice("scheme", scheme, SCHEMES)
    if scheme == "counts":
        start = int(torch.randint(1, length + 1, (), generator=generator))
        counts = (start - 1 + torch.arange(samples) * length // samples) % length + 1  # [N], in 1 ... T
        ranks = torch.rand(samples, length, generator=generator).argsort(-1).argsort(-1)  # [N, T], a random order
        return ranks < counts[:, None], length / counts.float()

    rates = (torch.rand((), generator=generator) + torch.arange(samples) / samples) % 1  # [N]
    rates = MIN_RATE + (1 - MIN_RATE) * rates
    return torch.rand(samples, length, generator=generator) < rates[:, None], 1 / rates


@torch.inference_mode()
def log_likelihood(
    model: MaskedDiffusionModel, prompt: Tensor, target: Tensor, *, mask_id: int, scheme: str, samples: int = 128,
    batch_size: int = 16, seed: int = 1234,
) -> float:
    """The estimate of log p(target | prompt), in nats.

    Args:
        model: LLaDA or Dream.
        prompt: int64 [P], may be empty.
        target: int64 [T].
        mask_id: the mask token.
        scheme: how masks are drawn, one of SCHEMES.
        samples: number of random masks N.
        batch_size: masks per forward.
        seed: of the masks; the same seed gives the same estimate, up to rounding at another batch_size.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    check_integer("samples", samples, 1)
    check_integer("batch_size", batch_size, 1)
    if not len(target):
        raise ValueError("target is empty; it must have at least one token")

    masks, weights = draw_masks(samples, len(target), scheme, Generator().manual_seed(seed))
    masks = masks.to(model.device)
    weights = weights.to(model.device)
    prompt = prompt.to(model.device)
    target = target.to(model.device)

    total = 0.0
    for batch, batch_weights in zip(masks.split(batch_size), weights.split(batch_size)):
        rows, columns = batch.nonzero(as_tuple=True)  # [M]
        if not len(rows):
            continue
        masked_target = torch.where(batch, mask_id, target)  # [R, T]
        sequences = torch.cat((prompt.expand(len(batch), -1), masked_target), dim=1)  # [R, P + T]
        logits = predictions(model, sequences, rows, len(prompt) + columns)  # [M, V]
        losses = F.cross_entropy(logits.float(), target[columns].to(logits.device), reduction="none")
        total -= (losses.double() * batch_weights[rows].to(logits.device)).sum().item()
    return total / samples


@torch.inference_mode()
def greedy_tokens(model: MaskedDiffusionModel, prompt: Tensor, target: Tensor, *, mask_id: int) -> int:
    """How many target tokens greedy decoding writes correctly before its first mistake; T if it writes the target.

    Greedy decoding unmasks the most confident position at each forward. A mistake ends it here, because a decoded token
    stays. Shapes and arguments as in `log_likelihood`.
    """
    prompt = prompt.to(model.device)
    target = target.to(model.device)
    canvas = torch.full_like(target, mask_id)  # [T]

    for count in range(len(target)):
        masked = (canvas == mask_id).nonzero().squeeze(-1)  # [M]
        sequence = torch.cat((prompt, canvas))[None]
        logits = predictions(model, sequence, torch.zeros_like(masked), len(prompt) + masked)
        tokens = best_but_mask(logits, mask_id)
        best = log_probability(logits, tokens).argmax()
        if tokens[best] != target[masked[best]]:
            return count
        canvas[masked[best]] = tokens[best]
    return len(target)


def predictions(model: MaskedDiffusionModel, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits [M, V] that predict the tokens of ids [R, Q] at `rows`, `columns` [M]; see `prediction_offset`.

    They are on the deciding device (selection.py).
    """
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    hidden = model.hidden_states(ids, positions)
    logits = model.head(hidden[rows, (columns - model.prediction_offset).clamp(min=0)])
    return logits.to(deciding_device(logits.device))
