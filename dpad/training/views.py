"""What a training sample shows to the model, and what the loss asks of it; batches of samples.

    view = draw_view(example, settings, tokens, rng, level=0.5)        # one sample
    batches = [collate(group) for group in grouped(views, max_tokens=8192)]

A sample of the objective `blockwise` is what decoding meets (DPad, arXiv 2508.14148, section 4; the training itself is
this repository's): the prompt, the clean answer before a block, the block with some tokens masked, and of the masks
behind it those that a suffix sampler keeps, each at its original position. The block is any up to the one that holds
the first EOS. The loss is over the block.

A sample of `full` is that of LLaDA's fine-tuning (arXiv 2502.09992, algorithm 2): the prompt and the whole canvas, in
which every token is masked with one probability.

In both, a token is masked with probability t, drawn evenly from the noise range, and counts 1/t over the number of
tokens that the loss covers. Imported by trainer.py.

Shapes: Q positions that one sample shows, R rows of a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dpad.engine.decoding import draw_suffix, visible_columns
from dpad.engine.settings import TokenIds
from dpad.training.examples import Example
from dpad.training.settings import TrainingSettings


class View(NamedTuple):
    """One sample: input ids [Q], original positions [Q], targets [Q] (int64); weights in the loss [Q] (float32).

    The weight is 0 wherever the input is not a mask that the loss covers.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor


class Batch(NamedTuple):
    """Samples as one batch [R, Q], padded on the left as decoding pads; key_mask: False at padding, None without."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    key_mask: Tensor | None


def draw_view(example: Example, settings: TrainingSettings, tokens: TokenIds, rng: random.Random,
              level: float) -> View:
    """Draw one sample of an example.

    Args:
        example: its answer gets a canvas that is longer, or the longest.
        level: where in the noise range the sample's t lies, in [0, 1).
    """
    answer = example.answer
    longest = max(settings.gen_lengths.values)
    length = settings.gen_lengths.draw(rng, allowed=lambda length: length > len(answer) or length == longest)
    canvas = torch.tensor([*example.prompt, *answer, *[tokens.eos] * (length - len(answer))])
    start = len(example.prompt)
    t = settings.noise_min + (settings.noise_max - settings.noise_min) * level

    # The EOS padding behind the first EOS has a weight of its own.
    importance = torch.ones(len(canvas))
    importance[start + len(answer) + 1 :] = settings.eos_weight
    importance[:start] = 0

    generator = Generator().manual_seed(rng.getrandbits(63))
    if settings.objective == "full":
        noise = torch.rand(length, generator=generator)
        return mask_block(canvas, start, start + length, torch.arange(0), noise < t, t, importance, tokens)

    block_length = settings.block_lengths.draw(rng)
    last = min(len(answer), length - 1) // block_length
    begin = start + block_length * rng.randrange(last + 1)
    end = begin + block_length
    # The noise before the suffix: so that runs which differ in the suffix alone mask the same tokens.
    noise = torch.rand(block_length, generator=generator)
    kept_suffix = draw_suffix(settings.suffix.draw(rng, length, block_length), end, len(canvas), generator)
    return mask_block(canvas, begin, end, kept_suffix, noise < t, t, importance, tokens)


def mask_block(canvas: Tensor, begin: int, end: int, kept_suffix: Tensor, masked: Tensor, t: float, importance: Tensor,
               tokens: TokenIds) -> View:
    """The sample that masks some tokens of [begin, end) of a canvas, and shows a part of what lies behind as masks.

    Args:
        canvas: int64 [P + G], the prompt and the padded answer.
        kept_suffix: int64, positions from `end` on that are shown.
        masked: bool [end - begin].
        t: the probability with which each was masked.
        importance: float [P + G], the weight of each token in the loss, before 1/t.
    """
    columns = visible_columns(end, kept_suffix)
    hidden = torch.zeros(len(canvas), dtype=torch.bool)
    hidden[begin:end] = masked
    weights = torch.where(hidden, importance, 0.0) / (t * importance[begin:end].sum().clamp(min=1e-9))
    hidden[end:] = True
    return View(
        ids=torch.where(hidden, tokens.mask, canvas)[columns],
        positions=columns,
        targets=canvas[columns],
        weights=weights[columns],
    )


def levels(count: int, rng: random.Random) -> list[float]:
    """Where in the noise range the samples of a step lie: one in each of `count` equal parts of [0, 1), shuffled.

    Each alone is drawn evenly; together their mean varies less than that of independent draws.
    """
    values = [(place + rng.random()) / count for place in range(count)]
    rng.shuffle(values)
    return values


def grouped(views: Iterable[View], max_tokens: int) -> list[list[View]]:
    """The samples in groups, each for one forward of at most `max_tokens` tokens with padding; like lengths together.

    A sample that is longer than that is a group of its own.
    """
    groups: list[list[View]] = []
    for view in sorted(views, key=lambda view: len(view.ids)):
        if groups and (len(groups[-1]) + 1) * len(view.ids) <= max_tokens:
            groups[-1].append(view)
        else:
            groups.append([view])
    return groups


def collate(views: Sequence[View]) -> Batch:
    """Samples as one batch."""
    rows, width = len(views), max(len(view.ids) for view in views)
    ids, positions, targets = (torch.zeros(rows, width, dtype=torch.long) for _ in range(3))
    weights = torch.zeros(rows, width)
    key_mask = torch.zeros(rows, width, dtype=torch.bool)
    for row, view in enumerate(views):
        first = width - len(view.ids)
        ids[row, first:] = view.ids
        positions[row, first:] = view.positions
        targets[row, first:] = view.targets
        weights[row, first:] = view.weights
        key_mask[row, first:] = True
    return Batch(ids, positions, targets, weights, None if key_mask.all() else key_mask)
