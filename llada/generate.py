"""LLaDA's unmasking rules, and its generate call (LLaDA, arXiv 2502.09992, section 2.4; Fast-dLLM, 2505.22618).

    from llada.generate import generate
    output = generate(model, input_ids, gen_length=256, suffix_sampler=GaussianSampler(256, 3, 1.6))

From the command line: python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples?"
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
    check_number,
    choose_above,
    choose_most_confident,
    decode,
    gumbel_noise,
    log_probability,
    without_mask,
)
from llada.modeling import LLaDAModelLM
from sampler import SuffixSampler

REMASKING = ("low_confidence", "random")
SUPPRESS_EOS = ("never", "last")


class LLaDARule(UnmaskingRule):
    """Decode the most confident positions: a fixed number a step, those above a threshold, or Fast-dLLM's factor rule.

    Confidence is the candidate's probability over the whole vocabulary in float64, or uniform noise when `remasking` is
    "random". The mask token is never a candidate. `suppress_eos` is what LLaDA's own evaluation does against answers
    that are empty: "never" takes EOS out of the vocabulary, "last" decodes EOS and the end of a turn (`eot_id`) after
    everything else in a block.
    """

    def __init__(self, settings: DecodingSettings, *, temperature: float = 0.0, remasking: str = "low_confidence",
                 threshold: float | None = None, factor: float | None = None, suppress_eos: str | None = None,
                 eot_id: int | None = None):
        check_number("temperature", temperature, 0, math.inf, or_equal=True)
        if remasking not in REMASKING:
            raise ValueError(f"remasking is {remasking!r}; it must be one of {', '.join(REMASKING)}")
        if threshold is not None:
            check_number("threshold", threshold, 0, 1)
            if factor is not None:
                raise ValueError(f"factor is {factor!r} while threshold is {threshold!r}; give one of the two")
        if factor is not None:
            check_number("factor", factor, 0, math.inf)
        self.settings, self.temperature, self.remasking = settings, temperature, remasking
        if suppress_eos is not None and suppress_eos not in SUPPRESS_EOS:
            raise ValueError(f"suppress_eos is {suppress_eos!r}; it must be {' or '.join(SUPPRESS_EOS)}, or None")
        self.threshold, self.factor, self.suppress_eos = threshold, factor, suppress_eos
        self.ends = (settings.eos_id, settings.eos_id if eot_id is None else eot_id)

    def quota(self, step: int, left: int) -> int | None:
        if self.threshold is not None or self.factor is not None:
            return None
        each, more = divmod(self.settings.block_length, self.settings.steps_per_block)
        return each + (step < more)

    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        length = self.settings.block_length
        if self.suppress_eos == "never":
            logits[:, self.settings.eos_id] = float("-inf")
        if self.temperature:
            # argmax of exp(logit) / (-log u)^T, taken as a logarithm so that nothing overflows.
            noise = gumbel_noise(length, logits.shape[-1], generator=generator, device=columns.device)
            allowed = without_mask(logits, self.settings.mask_id).double() + self.temperature * noise[columns]
            tokens = allowed.argmax(-1)
        else:
            tokens = best_but_mask(logits, self.settings.mask_id)
        confidence = log_probability(logits, tokens).exp()
        if self.remasking == "random":
            noise = torch.rand(length, dtype=torch.float64, generator=generator).to(columns.device)
            # The sum keeps a NaN of the model visible.
            confidence = noise[columns] + 0 * confidence
        if self.suppress_eos == "last":
            # Below every other confidence, in their own order; the most confident is decoded under any rule.
            confidence = confidence - 2 * ((tokens == self.ends[0]) | (tokens == self.ends[1]))
        return tokens, confidence

    def choose(self, confidence: Tensor, quota: int | None, generator: Generator) -> Tensor:
        if self.threshold is not None:
            return choose_above(confidence, self.threshold)
        if self.factor is not None:
            return choose_by_factor(confidence, self.factor)
        return choose_most_confident(confidence, quota)


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


def generate(
    model: LLaDAModelLM, input_ids: Tensor, *, gen_length: int = 256, block_length: int = 32, steps: int | None = None,
    temperature: float = 0.0, remasking: str = "low_confidence", threshold: float | None = None,
    factor: float | None = None, suppress_eos: str | None = None, cache: str = "none",
    suffix_sampler: SuffixSampler | None = None, early_termination: bool = False, mask_id: int | None = None,
    eos_id: int | None = None, seed: int = 1234, attention_mask: Tensor | None = None, streamer=None,
) -> DecodingOutput:
    """Answer every prompt with `gen_length` tokens, block by block.

    Args:
        model: a LLaDA model.
        input_ids: int64 [R, P], the prompts; unequal ones are padded on the left.
        gen_length: answer tokens G. block_length: tokens a block B; divides G.
        steps: forwards in all under the fixed schedule, a multiple of G / B (None: one token a forward).
        temperature: 0 takes the likeliest token; above it, Gumbel noise is added to the logits.
        remasking: "low_confidence" decodes confident positions first, "random" any.
        threshold: in (0, 1]; decode every position at least this confident (parallel decoding). Replaces `steps`.
        factor: above 0; Fast-dLLM's other parallel rule. Not together with `threshold`.
        suppress_eos: "never" or "last"; see LLaDARule.
        cache: "none", "prefix" or "dual".
        suffix_sampler: which suffix positions a block sees (sampler.py); None: all of them.
        early_termination: stop after a block that contains EOS, and fill up with EOS.
        mask_id, eos_id: token ids; None takes the model's configuration.
        seed: of the suffix draws and of the noise. The same seed gives a prompt the same answer in any batch.
        attention_mask: [R, P], 0 at the padding on the left, 1 elsewhere.
        streamer: an object with `put`, `put_draft` and `end`, such as transformers' TextDiffusionStreamer: gets the
            prompt, then each block's drafts and the finished block.

    Returns:
        DecodingOutput: sequences [R, P + G], forwards [R], decided_at [R, G], kept_suffix, tokens_processed.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    settings = DecodingSettings.for_model(
        model, mask_id, eos_id, gen_length=gen_length, block_length=block_length, steps=steps, cache=cache,
        suffix_sampler=suffix_sampler, early_termination=early_termination, seed=seed,
    )
    rule = LLaDARule(settings, temperature=temperature, remasking=remasking, threshold=threshold, factor=factor,
                     suppress_eos=suppress_eos, eot_id=model.config.eot_id)
    return decode(model, rule, input_ids, attention_mask, settings, streamer)
