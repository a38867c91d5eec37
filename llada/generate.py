"""LLaDA's unmasking rules, and its generate call (LLaDA, arXiv 2502.09992, section 2.4; Fast-dLLM, 2505.22618).

    from llada.generate import generate
    output = generate(model, input_ids, gen_length=256, suffix_sampler=GaussianSampler(256, 3, 1.6))

From the command line:

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"
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
    send,
    without_mask,
)
from dpad.engine.settings import TokenIds
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.engine.unmasking import UnmaskingRule
from llada.settings import LLaDASettings


class LLaDARule(UnmaskingRule):
    """Decode the most confident positions: a fixed number a step, those above a threshold, or Fast-dLLM's factor rule.

    Confidence is the candidate's probability over the whole vocabulary in float64, another order where `alg` names one,
    or uniform noise when `remasking` is "random". The mask token is never a candidate. `suppress_eos` is what LLaDA's
    own evaluation does against empty answers: "never" takes EOS out of the vocabulary, "last" decodes EOS and the end
    of a turn after everything else in a block.
    """

    settings: LLaDASettings

    def quota(self, step: int, left: int) -> int | None:
        if self.settings.parallel:
            return None
        if self.turns is not None:
            return self.turn_sizes[step]
        share, rest = divmod(self.settings.block_length, self.settings.steps_per_block)
        return share + (step < rest)

    def adjust(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self.settings.suppress_eos == "never":  # before a rule sees them: its entropies and credits are without EOS
            logits[:, self.tokens.eos] = float("-inf")
        return super().adjust(logits, rows, columns)

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        settings = self.settings
        if settings.temperature:
            # argmax of exp(logit) / (-log u)^T, taken as a logarithm so that nothing overflows.
            shape = settings.block_length, logits.shape[-1]
            noise = gumbel_noise(*shape, generator=generator, device=columns.device)
            allowed = without_mask(logits, self.tokens.mask).double() + settings.temperature * noise[columns]
            tokens = allowed.argmax(-1)
        else:
            tokens = best_but_mask(logits, self.tokens.mask)
        if settings.order in ("maskgit_plus", "origin"):
            confidence = log_probability(logits, tokens).exp()
            if self.turns is not None:
                confidence = self.by_turns(confidence, columns)
        else:
            confidence = torch.cat([
                self.order(logits[piece].log_softmax(-1, dtype=torch.float64), tokens[piece], columns[piece])
                for piece in in_pieces(logits)
            ])

        if settings.remasking == "random":
            noise = torch.rand(settings.block_length, dtype=torch.float64, generator=generator)
            # The sum keeps a NaN of the model visible.
            confidence = send(noise, columns.device)[columns] + 0 * confidence
        if settings.suppress_eos == "last":
            # Below every other confidence, in their own order; the most confident is decoded under any rule.
            behind = 2 if settings.order in ("maskgit_plus", "topk_margin") else 1e6  # entropies and turns are larger
            end_of_turn = self.tokens.eos if self.tokens.end_of_turn is None else self.tokens.end_of_turn
            confidence = confidence - behind * ((tokens == self.tokens.eos) | (tokens == end_of_turn))
        return tokens, confidence

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator,
               entropy: Tensor | None = None) -> Tensor:
        if self.settings.factor is not None:
            return choose_by_factor(confidence, self.settings.factor)
        return super().choose(confidence, quota, generator, entropy)


def choose_by_factor(confidence: Tensor, factor: float) -> Tensor:
    """Fast-dLLM's factor rule (section 3.3): bool [R, L], given confidences float64 [R, L], -inf where none competes.

    Of m sorted confidences c_1 >= ... >= c_m the n-th passes when c_n >= 1 - factor / (n + 1); c_1 always passes. Those
    before the first failure are decoded; if only the last one fails, all m.
    """
    ordered, order = confidence.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)  # n
    competing = ordered != float("-inf")  # a NaN competes, so that a broken model ends in an error and not in a loop
    passed = (ordered >= 1 - factor / (rank + 1)) | (rank == 1)
    before_failure = (passed & competing).long().cumprod(dim=-1).sum(dim=-1, keepdim=True)  # [R, 1]
    competitors = competing.sum(dim=-1, keepdim=True)  # m
    count = torch.where(before_failure == competitors - 1, competitors, before_failure)
    return torch.zeros_like(competing).scatter_(1, order, rank <= count)


@takes_settings(LLaDASettings)
def generate(
    model: MaskedDiffusionModel, input_ids: Tensor, *, attention_mask: Tensor | None = None, streamer: Any = None,
    mask_id: int | None = None, eos_id: int | None = None, **settings: Any,
) -> DecodingOutput:
    """Answer every prompt with `gen_length` tokens, block by block.

    Args:
        model: a LLaDA model.
        input_ids: int64 [R, P], the prompts; unequal ones are padded on the left.
        attention_mask: [R, P], 0 at the padding on the left, 1 elsewhere.
        streamer: an object with `put`, `put_draft` and `end`, such as transformers' TextDiffusionStreamer: gets the
            prompt, then the drafts of each block and the finished block.
        mask_id, eos_id: token ids; None takes those of the model's configuration.
        suffix_sampler: which suffix positions a block sees (sampler.py); None: all of them.
        soft_suffix: SSM's soft suffix (dpad/engine/soft.py); None: suffix positions enter as plain masks.
        rule: parallel decoding by a rule of dpad/engine/rules.py instead of a threshold.
        {settings}

    Returns:
        DecodingOutput: sequences [R, P + G], forwards [R], decided_at [R, G], kept_suffix, tokens_processed.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    rule = LLaDARule(LLaDASettings(**settings), TokenIds.of(model, mask_id, eos_id))
    return decode(model, rule, input_ids, attention_mask, streamer)
