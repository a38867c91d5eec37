"""What a block attends to: watches on one forward (transformer.py), and the moments of decoding at which to look.

    moments = Moments(mask_id, gen_length=256, block_length=32, on_moment=look)      # look(moment) at every forward
    loaded.generate(input_ids, settings, streamer=moments)
    weights = heads_at(model, moment, moment.columns)                                # [layers, H, S]

Weights of every layer, head, query and slot at once would not fit for long sequences, so each watch keeps averages
alone. Imported, never run; `python run.py attention -m tiny --prompt "..."` draws them.

Shapes: R rows of a batch, H heads, W watched queries, S slots attended to, P prompt columns, G answer columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpad.engine.settings import DecodingSettings
from dpad.engine.transformer import MaskedDiffusionModel, SlotCache, SpreadCache, Watch

# --- Watches ----------------------------------------------------------------------------------------------------------


class MeanAttention(Watch):
    """What the watched queries pay to each slot on average, over layers, heads and queries of one forward.

    queries: which of the forward's queries to watch; at least one. It may watch forward after forward: the first layer
    begins anew.
    """

    def __init__(self, queries: slice):
        self.queries = queries
        self.layers = 0
        self.total: Tensor | None = None  # [R, S], summed over the layers

    def __call__(self, layer: int, weights: Tensor) -> None:
        mean = weights.mean(dim=(1, 2))  # [R, H, W, S] -> [R, S]
        self.layers = layer + 1
        if layer == 0 or self.total is None:
            self.total = mean
        else:
            self.total = self.total + mean.to(self.total.device)  # a layer may be on another device

    def scores(self) -> Tensor:
        """float32 [R, S]; a row's sum is 1, and what may not be attended to (padding) has 0."""
        assert self.total is not None, "no forward has been watched"
        return self.total / self.layers


class HeadAttention(Watch):
    """What the watched queries pay to each slot on average over the queries alone, for each layer and head."""

    def __init__(self, queries: slice):
        self.queries = queries
        self.layers: list[Tensor] = []

    def __call__(self, layer: int, weights: Tensor) -> None:
        self.layers.append(weights.mean(dim=2).cpu())  # [R, H, W, S] -> [R, H, S]

    def weights(self) -> Tensor:
        """float32 [layers, R, H, S], on the CPU; a head's sum is 1."""
        return torch.stack(self.layers)


# --- Moments ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A forward of a block, as the model was given it: of one sequence without padding.

    block: counted from 0. step: this forward's number in its block, from 0. begin, end: the block's columns. tokens:
    int64 [P + G], the sequence when this forward began. opened: the same when the block's first forward did. columns:
    int64 [S], what that one saw.
    """

    block: int
    step: int
    begin: int
    end: int
    tokens: Tensor
    opened: Tensor
    columns: Tensor


class Moments:
    """A streamer that follows the decoding of one sequence and tells of every forward.

    Args:
        mask_id: the mask token.
        gen_length, block_length: of the answer and its blocks, in tokens.
        on_moment: called after each forward; what it raises ends the decoding.

    Attributes:
        last: the latest forward.
    """

    def __init__(self, mask_id: int, gen_length: int, block_length: int,
                 on_moment: Callable[[Moment], None] | None = None):
        self.mask_id = mask_id
        self.gen_length = gen_length
        self.block_length = block_length
        self.on_moment = on_moment
        self.tokens: Tensor | None = None  # the sequence so far, int64 [P + G]
        self.last: Moment | None = None

    def put(self, value: Tensor) -> None:
        """Receive the prompt, int64 [1, P]; finished blocks are known already."""
        if self.tokens is None:
            self.tokens = torch.nn.functional.pad(value[0], (0, self.gen_length), value=self.mask_id)

    def put_step(self, block: int, columns: Tensor, chosen: Tensor, candidates: Tensor, confidence: Tensor) -> None:
        """Receive a forward: the columns that it computed [S], and of the block's positions [1, L] what was chosen."""
        assert self.tokens is not None
        begin = len(self.tokens) - self.gen_length + block * self.block_length
        end = begin + self.block_length
        now = self.tokens.clone()
        self.tokens[begin:end] = torch.where(chosen[0], candidates[0], self.tokens[begin:end])
        if self.last is not None and self.last.block == block:
            self.last = Moment(block, self.last.step + 1, begin, end, now, self.last.opened, self.last.columns)
        else:
            self.last = Moment(block, 0, begin, end, now, now, columns)
        if self.on_moment is not None:
            self.on_moment(self.last)

    def end(self) -> None:
        """Decoding is over."""


def check_plain(settings: DecodingSettings) -> None:
    """Raise ValueError where a forward has more than a `Moment` tells: other inputs than tokens, or older keys."""
    if settings.refresh != "always":
        raise ValueError(f"refresh is {settings.refresh}, but attention is shown for forwards that recompute the whole "
                         "prefix; leave one of them out")
    if settings.soft_suffix is not None:
        raise ValueError("soft_suffix is on, but attention is shown for a suffix of plain masks; leave one of them out")


@torch.no_grad()
def heads_at(model: MaskedDiffusionModel, moment: Moment, columns: Tensor, cache: str = "none") -> Tensor:
    """What the block pays to each of these columns at a moment: float32 [layers, H, S], the mean over its positions.

    Args:
        columns: int64 [S], ascending: what the block sees. With `moment.columns` this is what decoding computed.
        cache: the mode of decoding. After a block's first forward, a mode other than "none" attends to keys of that
            forward, which are computed here first.
    """
    device = model.device
    columns = columns.to(device)
    positions = columns[None]
    watch = HeadAttention(slice(moment.begin, moment.end))
    given = moment.tokens.to(device)[columns][None]
    if cache == "none" or moment.step == 0:
        model.hidden_states(given, positions, watch=watch)
        return watch.weights()[:, 0]

    slots = (SpreadCache if model.is_dispatched else SlotCache)(model, 1, len(columns))
    slots.begin([0], len(columns))
    model.hidden_states(moment.opened.to(device)[columns][None], positions, cache=slots)
    watch.queries = slice(0, moment.end - moment.begin)  # the block is what this forward computes first
    computed = slice(moment.begin, len(columns) if cache == "prefix" else moment.end)
    model.hidden_states(given[:, computed], positions[:, computed], cache=slots, start=moment.begin, watch=watch)
    return watch.weights()[:, 0]
