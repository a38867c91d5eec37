"""Dream's unmasking rules, and its generate call (Dream 7B, arXiv 2508.15487; Fast-dLLM, 2505.22618).

    from dream.generate import generate
    output = generate(model, input_ids, gen_length=256, suffix_sampler=GaussianSampler(128, 3, 1.6))

From the command line: python run.py generate -m dream-instruct --prompt "Write a haiku about rain."
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dpad.engine.decoding import (
    DecodingOutput,
    DecodingSettings,
    UnmaskingRule,
    best_but_mask,
    check_integer,
    check_number,
    choose_above,
    choose_most_confident,
    decode,
    gumbel_noise,
    in_pieces,
    log_probability,
    without_mask,
)
from dream.modeling import DreamModel
from sampler import SuffixSampler

FIRST_TIME, LAST_TIME = 1.0, 1e-3  # of the fixed schedule: how much of a block is still masked, from start to end


class DreamRule(UnmaskingRule):
    """Decode by a fixed schedule, the positions of least entropy first, or every position above a threshold.

    With a cache, a block's opening forward (step 0) decodes exactly the block's first position, greedily: its
    prediction stands at the position before the block, which later steps do not recompute.
    """

    def __init__(self, settings: DecodingSettings, *, temperature: float = 0.0, top_p: float | None = None,
                 top_k: int | None = None, alg_temp: float = 0.0, threshold: float | None = None):
        check_number("temperature", temperature, 0, math.inf, or_equal=True)
        check_number("alg_temp", alg_temp, 0, math.inf, or_equal=True)
        if top_p is not None:
            check_number("top_p", top_p, 0, 1)
        if top_k is not None:
            check_integer("top_k", top_k, 1)
        if threshold is not None:
            check_number("threshold", threshold, 0, 1)
            if alg_temp:
                raise ValueError(f"alg_temp is {alg_temp!r} while threshold is {threshold!r}; give one of the two")
        self.settings, self.temperature, self.top_p, self.top_k = settings, temperature, top_p, top_k
        self.alg_temp, self.threshold = alg_temp, threshold
        self.times = torch.linspace(FIRST_TIME, LAST_TIME, settings.steps_per_block + 1)

    def opens(self, step: int) -> bool:
        return self.settings.cache != "none" and step == 0

    def quota(self, step: int, left: int) -> int | None:
        if self.threshold is not None:
            return None
        if self.opens(step):
            return 1
        # Steps 1 to s - 1 have the intervals [t_j, t_j+1]; the first interval, t_0 to t_1, is never used.
        j = step + (not self.opens(0))
        if j >= self.settings.steps_per_block - 1:
            return left
        return int(left * (1 - self.times[j + 1] / self.times[j]))

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The confidence is the candidate's probability with a threshold, else the negative entropy."""
        noise = None
        if self.temperature and not self.opens(step):
            shape = self.settings.block_length, logits.shape[-1]
            noise = gumbel_noise(*shape, generator=generator, device=columns.device)[columns]
        pieces = [(logits[piece], None if noise is None else noise[piece]) for piece in in_pieces(logits)]
        tokens, confidence = zip(*(self._candidates(*piece) for piece in pieces))
        return torch.cat(tokens), torch.cat(confidence)

    def _candidates(self, logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        mask_id, filters = self.settings.mask_id, self.top_p is not None or self.top_k is not None
        if noise is None and not filters and self.threshold is not None:
            tokens = best_but_mask(logits, mask_id)
            return tokens, log_probability(logits, tokens).exp()
        logits = logits.double() if noise is None else logits.double() / self.temperature
        log_p = keep_top(logits, self.top_p, self.top_k).log_softmax(-1)  # [M, V]
        allowed = without_mask(log_p, mask_id)
        if filters:  # where they leave the mask alone, the next best token is the candidate
            lost = (allowed == float("-inf")).all(-1, keepdim=True)
            allowed = torch.where(lost, without_mask(logits.log_softmax(-1), mask_id), allowed)
        tokens = (allowed if noise is None else allowed + noise).argmax(-1)
        if self.threshold is not None:
            return tokens, log_p.gather(-1, tokens[:, None]).squeeze(-1).exp()
        p = log_p.exp()
        return tokens, (p * torch.log(p + 1e-10)).sum(-1)

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator) -> Tensor:
        if self.threshold is not None:
            return choose_above(confidence, self.threshold)
        if self.alg_temp:
            # The largest of confidence / alg_temp + Gumbel noise are a draw without replacement from the softmax.
            confidence = confidence / self.alg_temp + gumbel_noise(
                confidence.shape[1], generator=generator, device=confidence.device)
        return choose_most_confident(confidence, quota)


def keep_top(logits: Tensor, top_p: float | None, top_k: int | None) -> Tensor:
    """Logits [M, V] with -inf outside the nucleus of mass `top_p`, then outside the `top_k` largest.

    The nucleus is the shortest run of likeliest tokens whose probability exceeds top_p, and holds one token at least.
    """
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        outside = probability.cumsum(-1) - probability > top_p  # the mass before a token is above top_p already
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    if top_k is not None:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    return logits


def generate(
    model: DreamModel, input_ids: Tensor, *, gen_length: int = 256, block_length: int = 32, steps: int | None = None,
    temperature: float = 0.0, top_p: float | None = None, top_k: int | None = None, alg_temp: float = 0.0,
    threshold: float | None = None, cache: str = "none", suffix_sampler: SuffixSampler | None = None,
    early_termination: bool = False, mask_id: int | None = None, eos_id: int | None = None, seed: int = 1234,
    attention_mask: Tensor | None = None, streamer=None,
) -> DecodingOutput:
    """Answer every prompt with `gen_length` tokens, block by block.

    Args:
        model: a Dream model.
        input_ids, gen_length, block_length, cache, suffix_sampler, early_termination, mask_id, eos_id, seed,
            attention_mask, streamer: as in `llada.generate.generate`.
        steps: points of the fixed schedule in all, a multiple of G / B (None: as many as tokens). A point that decodes
            nothing takes no forward.
        temperature: 0 takes the likeliest token; above it, tokens are drawn from softmax(logits / temperature).
        top_p: in (0, 1]; top_k: at least 1. Keep the likeliest tokens alone, before the softmax.
        alg_temp: above 0, draw the positions from softmax(-entropy / alg_temp) instead of taking the least entropy.
        threshold: in (0, 1]; decode every position at least this confident (parallel decoding). Replaces `steps`.

    Returns:
        DecodingOutput: sequences [R, P + G], forwards [R], decided_at [R, G], kept_suffix, tokens_processed.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    settings = DecodingSettings.for_model(
        model, mask_id, eos_id, gen_length=gen_length, block_length=block_length, steps=steps, cache=cache,
        suffix_sampler=suffix_sampler, early_termination=early_termination, seed=seed,
    )
    rule = DreamRule(settings, temperature=temperature, top_p=top_p, top_k=top_k, alg_temp=alg_temp,
                     threshold=threshold)
    return decode(model, rule, input_ids, attention_mask, settings, streamer)
