"""Dream's unmasking rules, and its generate call (Dream 7B, arXiv 2508.15487; Fast-dLLM, 2505.22618).

    from dream.generate import generate
    output = generate(model, input_ids, gen_length=256, suffix_sampler=GaussianSampler(128, 3, 1.6))

From the command line: python run.py generate -m dream-instruct --prompt "Write a haiku about rain."
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dpad.engine.decoding import DecodingOutput, decode
from dpad.engine.fields import takes_settings
from dpad.engine.selection import (
    best_but_mask,
    gumbel_noise,
    in_pieces,
    log_probability,
    without_mask,
)
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.engine.unmasking import UnmaskingRule
from dream.settings import DreamSettings


class DreamRule(UnmaskingRule):
    """Decode by a fixed schedule, the positions of least entropy first, or every position above a threshold.

    With a cache, a block's opening forward (step 0) decodes exactly the block's first position, greedily: its
    prediction stands at the position before the block, which later steps do not recompute.
    """

    settings: DreamSettings

    def opens(self, step: int) -> bool:
        return self.settings.cache != "none" and step == 0

    def quota(self, step: int, left: int) -> int | None:
        if self.settings.parallel:
            return None
        if self.opens(step):
            return 1
        if self.turns is not None:
            return self.turn_sizes[step]
        return int(left * self.share(step))

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The confidence is the candidate's probability with a threshold, else the negative entropy, or as `alg` says.
        """
        noise = None
        if self.settings.temperature and not self.opens(step):
            shape = self.settings.block_length, logits.shape[-1]
            noise = gumbel_noise(*shape, generator=generator, device=columns.device)[columns]
        pieces = [(logits[piece], columns[piece], None if noise is None else noise[piece])
                  for piece in in_pieces(logits)]
        tokens, confidence = zip(*(self._candidates(*piece) for piece in pieces))
        return torch.cat(tokens), torch.cat(confidence)

    def _candidates(self, logits: Tensor, columns: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        settings = self.settings
        mask_id = self.tokens.mask
        filters = settings.top_p is not None or settings.top_k is not None
        if noise is None and not filters:
            tokens = best_but_mask(logits, mask_id)
            if settings.order == "maskgit_plus":
                return tokens, log_probability(logits, tokens).exp()
            return tokens, self.order(logits.log_softmax(-1, dtype=torch.float64), tokens, columns)

        logits = logits.double() if noise is None else logits.double() / settings.temperature
        log_p = keep_top(logits, settings.top_p, settings.top_k).log_softmax(-1)  # [M, V]
        allowed = without_mask(log_p, mask_id)
        if filters:  # where they leave nothing but the mask, the next best token is the candidate
            only_mask = (allowed == float("-inf")).all(-1, keepdim=True)
            allowed = torch.where(only_mask, without_mask(logits.log_softmax(-1), mask_id), allowed)
        tokens = (allowed if noise is None else allowed + noise).argmax(-1)
        return tokens, self.order(log_p, tokens, columns)

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator,
               entropy: Tensor | None = None) -> Tensor:
        if self.settings.alg_temp:
            # The largest of confidence / alg_temp + Gumbel noise are a draw without replacement from the softmax.
            noise = gumbel_noise(confidence.shape[1], generator=generator, device=confidence.device)
            confidence = confidence / self.settings.alg_temp + noise
        return super().choose(confidence, quota, generator, entropy)


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


@takes_settings(DreamSettings)
def generate(
    model: MaskedDiffusionModel, input_ids: Tensor, *, attention_mask: Tensor | None = None, streamer: Any = None,
    mask_id: int | None = None, eos_id: int | None = None, **settings: Any,
) -> DecodingOutput:
    """Answer every prompt with `gen_length` tokens, block by block.

    Args:
        model: a Dream model.
        input_ids: int64 [R, P], the prompts; unequal ones are padded on the left.
        attention_mask, streamer, mask_id, eos_id: as in `llada.generate.generate`.
        suffix_sampler: which suffix positions a block sees (sampler.py); None: all of them.
        soft_suffix: SSM's soft suffix (dpad/engine/soft.py); None: suffix positions enter as plain masks.
        rule: parallel decoding by a rule of dpad/engine/rules.py instead of a threshold.
        {settings}

    With the fixed schedule, `steps` counts its points. A point that decodes nothing takes no forward.

    Returns:
        DecodingOutput: sequences [R, P + G], forwards [R], decided_at [R, G], kept_suffix, tokens_processed.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    rule = DreamRule(DreamSettings(**settings), TokenIds.of(model, mask_id, eos_id))
    return decode(model, rule, input_ids, attention_mask, streamer)
