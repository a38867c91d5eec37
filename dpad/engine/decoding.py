"""The one block loop: slots, cache modes, early termination, batches and statistics, for every model and sampler.

An answer of G masks is decoded block by block. Before a block starts, a sampler chooses which positions after it (the
suffix) the model may see. What the model then computes is a list of *slots*: everything up to the block's end, then the
kept suffix, each at its original position. A cache mode is only "which slots are recomputed at a step":

    none     every slot, at every step
    prefix   every slot at the block's first step, later the block and the kept suffix
    dual     every slot at the block's first step, later the block alone

A model adds two things (`UnmaskingRule`): which positions compete at a step, and which of them are decoded. Imported,
never run: `llada.generate.generate(model, input_ids, ...)` is the way in.

Shapes: R rows, P prompt columns, G answer columns, L block length, V vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from transformers.utils import ModelOutput

from dpad.engine.cuda_graphs import slot_cache
from dpad.engine.transformer import MaskedDiffusionModel, SlotCache
from sampler import FullSuffix, SuffixSampler

CACHE_MODES = ("none", "prefix", "dual")
# How many logits are turned into float64 at a time (see `in_pieces`): 2 MiB of them, which fit a core's cache; 128 MiB.
PIECE_ON_CPU, PIECE_ON_GPU = 2**18, 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """What the block loop needs to know; checks itself.

    gen_length: answer tokens. block_length: divides gen_length. steps: forwards of a fixed schedule in all, a multiple
    of the number of blocks (None: one token a forward). cache: one of CACHE_MODES. suffix_sampler: None keeps the whole
    suffix. early_termination: stop after a block that holds EOS. seed: of every draw.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    gen_length: int
    block_length: int
    mask_id: int
    eos_id: int
    steps: int | None = None
    cache: str = "none"
    suffix_sampler: SuffixSampler = field(default_factory=FullSuffix)
    early_termination: bool = False
    seed: int = 1234

    def __post_init__(self):
        for name in ("gen_length", "block_length", "steps"):
            value = getattr(self, name)
            if not (name == "steps" and value is None):
                check_integer(name, value, 1)
        for name in ("mask_id", "eos_id", "seed"):
            check_integer(name, getattr(self, name), 0)
        if self.gen_length % self.block_length:
            raise ValueError(f"block_length is {self.block_length}; it must divide gen_length ({self.gen_length})")
        if self.steps is None:
            object.__setattr__(self, "steps", self.gen_length)
        if self.steps % self.blocks or self.steps > self.gen_length:
            raise ValueError(f"steps is {self.steps}; it must be a multiple of the number of blocks ({self.blocks}) "
                             f"and at most one a token ({self.gen_length})")
        if self.cache not in CACHE_MODES:
            raise ValueError(f"cache is {self.cache!r}; it must be one of {', '.join(CACHE_MODES)}")
        if self.suffix_sampler is None:
            object.__setattr__(self, "suffix_sampler", FullSuffix())
        if not isinstance(self.suffix_sampler, SuffixSampler):
            raise ValueError(f"suffix_sampler is {self.suffix_sampler!r}; it must be a SuffixSampler (sampler.py) or "
                             "None for the whole suffix")
        self.suffix_sampler.check(self.gen_length)
        if self.mask_id == self.eos_id:
            raise ValueError(f"mask_id is {self.mask_id}; it must differ from eos_id")

    @classmethod
    def for_model(
        cls, model: MaskedDiffusionModel, mask_id: int | None, eos_id: int | None, **shared
    ) -> DecodingSettings:
        """Settings whose token ids are the model's own where None is given."""
        return cls(
            mask_id=model.config.mask_token_id if mask_id is None else mask_id,
            eos_id=model.config.eos_token_id if eos_id is None else eos_id, **shared,
        )

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.blocks


@dataclass
class DecodingOutput(ModelOutput):
    """What a generate call returns.

    sequences: int64 [R, P + G], prompt and answer. forwards: int64 [R], the forwards each row took part in (NFE).
    decided_at: int64 [R, G], the row's own 0-based forward that decoded each token; -1 where early termination filled
    in EOS. kept_suffix: for each block that was entered, the suffix positions kept, as in a row without padding.
    tokens_processed: slots computed in all, over rows and forwards; padding is not counted.
    """

    sequences: Tensor | None = None
    forwards: Tensor | None = None
    decided_at: Tensor | None = None
    kept_suffix: list[list[int]] | None = None
    tokens_processed: int | None = None


class UnmaskingRule(ABC):
    """Which masked positions of a block are decoded at a step, and to what. One subclass a model, in its generate.py.

    Steps count from 0 in each block. The loop stops a block when nothing in it is masked.
    """

    def opens(self, step: int) -> bool:
        """Whether the block's first position, still masked, competes alone at this step; else all masked ones do."""
        return False

    @abstractmethod
    def quota(self, step: int, left: int) -> int | None:
        """How many of a row's `left` masks this step decodes; None when the confidences decide it.

        A step with a quota of 0 needs no forward and gets none.
        """

    @abstractmethod
    def candidates(self, logits: Tensor, columns: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """The token that each competing position would become, int64 [M], and its confidence, float64 [M].

        Args:
            logits: [M, V] of the competing positions of all rows.
            columns: int64 [M], each one's place in its block, in [0, L).
            generator: a CPU generator that depends on seed, block and step alone. Draw for a whole block and index by
                `columns`, so that a row gets the same noise in any batch.
        """

    @abstractmethod
    def choose(self, confidence: Tensor, quota: int | None, generator: Generator) -> Tensor:
        """Which positions to decode: bool [R, L], given confidences float64 [R, L] (-inf where nothing competes).

        generator: the one that `candidates` of this step drew from; draws for a block are shared by the rows.
        """


# --- Selection rules that models share -------------------------------------------------------------------------------


def in_pieces(logits: Tensor) -> list[slice]:
    """Slices of the rows of logits [M, V], small enough for work in float64 to stay in the processor's cache.

    On a GPU they only bound the memory: the vocabulary in float64 for every masked position of a batch is gigabytes.
    """
    most = PIECE_ON_GPU if logits.is_cuda else PIECE_ON_CPU
    rows = max(1, most // logits.shape[-1])
    return [slice(first, first + rows) for first in range(0, len(logits), rows)]


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[tokens] in float64 over the whole vocabulary: logits [M, V], tokens [M] -> [M]."""
    totals = [logits[piece].double().logsumexp(-1) for piece in in_pieces(logits)]
    return logits.gather(-1, tokens[:, None]).squeeze(-1).double() - torch.cat(totals)


def best_but_mask(logits: Tensor, mask_id: int) -> Tensor:
    """The likeliest token that is not the mask, int64 [M] of logits [M, V], which are as before when it returns."""
    of_mask = logits[:, mask_id].clone()
    logits[:, mask_id] = float("-inf")  # in place: a copy of the logits costs as much as looking for the largest
    tokens = logits.argmax(-1)
    logits[:, mask_id] = of_mask
    return tokens


def without_mask(logits: Tensor, mask_id: int) -> Tensor:
    """A copy of the logits in which the mask token can not be chosen (confidence stays that of the originals)."""
    allowed = logits.clone()
    allowed[:, mask_id] = float("-inf")
    return allowed


def gumbel_noise(*shape: int, generator: Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise in float64: argmax(log p + noise) draws from p (Maddison et al. 2014)."""
    drawn = torch.rand(*shape, dtype=torch.float64, generator=generator).to(device)  # the same on every device
    return -torch.log(-torch.log(drawn))


def choose_most_confident(confidence: Tensor, count: int) -> Tensor:
    """The `count` most confident positions of each row, the leftmost first among equals: bool [R, L]."""
    order = confidence.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, order[:, :count], True)


def choose_above(confidence: Tensor, threshold: float) -> Tensor:
    """Every position with confidence >= threshold, and always the most confident one (Fast-dLLM, algorithm 1)."""
    return (confidence >= threshold) | choose_most_confident(confidence, 1)


# --- Checks ----------------------------------------------------------------------------------------------------------


def check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least} that fits 64 bits")


def check_number(name: str, value: object, above: float, most: float, *, or_equal: bool = False) -> None:
    """Raise ValueError unless above < value <= most (above <= value with `or_equal`)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    allowed = number and math.isfinite(value) and above <= value <= most
    if not allowed or (value == above and not or_equal):
        bounds = f"{'at least' if or_equal else 'above'} {above:g}" + (f" and at most {most:g}" if most < 1e9 else "")
        raise ValueError(f"{name} is {value!r}; it must be a number {bounds}")


def check_prompt(model: MaskedDiffusionModel, input_ids: Tensor, attention_mask: Tensor | None,
                 settings: DecodingSettings) -> Tensor:
    """How many padding columns each row has on its left, int64 [R]; ValueError when the prompt can not be used."""
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(f"input_ids is a {input_ids.dtype} tensor of shape {list(input_ids.shape)}; it must hold "
                         "integers and be [rows, tokens]")
    rows, columns = input_ids.shape
    if not rows or not columns:
        raise ValueError(f"input_ids has shape {list(input_ids.shape)}: the prompt is empty; it must have a token "
                         "at least")
    for name, token in (("mask_id", settings.mask_id), ("eos_id", settings.eos_id)):
        if token >= model.vocabulary_size:
            raise ValueError(f"{name} is {token}; it must be below the vocabulary's size ({model.vocabulary_size})")
    least, most = input_ids.min().item(), input_ids.max().item()
    if least < 0 or most >= model.vocabulary_size:
        wrong = least if least < 0 else most
        raise ValueError(f"input_ids holds {wrong}; every id must lie in [0, {model.vocabulary_size})")
    if attention_mask is None:
        padding = torch.zeros(rows, dtype=torch.long, device=input_ids.device)
    else:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask has shape {list(attention_mask.shape)}; it must have input_ids' shape, "
                             f"{list(input_ids.shape)}")
        mask = attention_mask.to(input_ids.device).bool()
        if (mask[:, :-1] & ~mask[:, 1:]).any() or not torch.equal(mask, attention_mask.to(mask.device) == 1):
            raise ValueError("attention_mask is not a left padding: every row must be zeros, then ones up to its end")
        padding = (~mask).sum(1)
        if (padding == columns).any():
            empty = int((padding == columns).nonzero()[0])
            raise ValueError(f"attention_mask has no token in row {empty}: the prompt is empty; it must have a token "
                             "at least")
    longest = columns - padding.min().item()
    if longest + settings.gen_length > model.max_positions:
        raise ValueError(f"gen_length is {settings.gen_length}; with a prompt of {longest} tokens it must be at most "
                         f"{max(0, model.max_positions - longest)}: the model has {model.max_positions} positions")
    return padding


# --- The loop --------------------------------------------------------------------------------------------------------


class _Canvas:
    """The sequences being written, and what is counted about each row."""

    def __init__(self, input_ids: Tensor, padding: Tensor, settings: DecodingSettings):
        rows, self.prompt = input_ids.shape
        device = input_ids.device
        self.tokens = torch.full((rows, self.prompt + settings.gen_length), settings.mask_id, device=device)
        self.tokens[:, : self.prompt] = input_ids
        self.padding = padding
        self.padded = padding.tolist() if padding.any() else None
        self.forwards = torch.zeros(rows, dtype=torch.long, device=device)
        self.decided_at = torch.full((rows, settings.gen_length), -1, device=device)
        self.kept_suffix: list[list[int]] = []
        self.processed = 0
        self.active = torch.arange(rows, device=device)  # rows that have not terminated

    def write(self, slots: _Slots, chosen: Tensor, candidates: Tensor) -> None:
        """Put the candidates [R, L] that were chosen (bool [R, L]) into the block, and count the forward."""
        rows, block = slots.rows, slice(slots.begin, slots.end)
        answer = slice(slots.begin - self.prompt, slots.end - self.prompt)
        self.tokens[rows, block] = torch.where(chosen, candidates, self.tokens[rows, block])
        self.decided_at[rows, answer] = torch.where(chosen, self.forwards[rows, None], self.decided_at[rows, answer])
        self.forwards[rows] += 1


@dataclass
class _Slots:
    """What the rows of a block compute: `columns` [S] of the canvas, their `positions` [R, S], `key_mask` [R, S].

    rows: which rows of the canvas, on its device; host_rows: the same numbers, where they cost no synchronisation.
    """

    rows: Tensor
    host_rows: list[int]
    columns: Tensor
    positions: Tensor
    key_mask: Tensor | None
    begin: int  # of the block, as a slot and as a column
    end: int

    @classmethod
    def of_block(cls, canvas: _Canvas, block: int, settings: DecodingSettings, kept: Tensor) -> _Slots:
        begin = canvas.prompt + block * settings.block_length
        end = begin + settings.block_length
        columns = torch.cat((torch.arange(end), kept)).to(canvas.tokens.device)
        positions = columns - canvas.padding[canvas.active, None]
        key_mask = positions >= 0 if canvas.padded else None
        return cls(canvas.active, canvas.active.tolist(), columns, positions.clamp(min=0), key_mask, begin, end)

    def recomputed(self, first: bool, cache: str) -> slice:
        """The slots that a step computes (SPEC of the cache modes: this file's first lines)."""
        if first or cache == "none":
            return slice(0, len(self.columns))
        return slice(self.begin, len(self.columns) if cache == "prefix" else self.end)

    def keep(self, which: list[int]) -> None:
        """Go on with the rows at these places only, in this order."""
        self.rows, self.positions = self.rows[which], self.positions[which]
        self.host_rows = [self.host_rows[place] for place in which]
        self.key_mask = None if self.key_mask is None else self.key_mask[which]


def step_generator(seed: int, block: int, step: int) -> Generator:
    """The noise of one step, the same for a row in any batch: a CPU generator seeded by these three numbers alone."""
    digest = hashlib.blake2b(f"{seed} {block} {step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def decode(
    model: MaskedDiffusionModel, rule: UnmaskingRule, input_ids: Tensor, attention_mask: Tensor | None,
    settings: DecodingSettings, streamer=None,
) -> DecodingOutput:
    """Decode an answer for every row of `input_ids` [R, P] (left-padded where `attention_mask` is 0).

    The rows share one draw of the suffix a block, which is the draw that each would get alone with the same seed; a row
    leaves the batch when it terminates, and sits out the rest of a block that it has completed. Each gets the tokens
    that it gets alone.

    streamer: transformers' `put`, `end` and, if it has one, `put_draft`. Where it also has `put_step`, that gets every
    forward: the number of the block, the columns computed [Q], and of the rows still in it which positions were decoded
    (bool [R, L]), the candidates [R, L] and their confidence (float64 [R, L], -inf where a position did not compete).

    Raises:
        ValueError: on a prompt that does not fit (see `check_prompt`), and when the model's logits are not finite.
    """
    padding = check_prompt(model, input_ids, attention_mask, settings)
    common = int(padding.min())  # columns of padding that every row has: they are put back at the end
    prompts = input_ids.to(model.device)
    canvas = _Canvas(prompts[:, common:], padding.to(model.device) - common, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    with cache_for(model, canvas, settings) as cache:
        for block in range(settings.blocks):
            suffix = torch.arange(canvas.prompt + (block + 1) * settings.block_length, canvas.tokens.shape[1])
            kept = settings.suffix_sampler.sample(suffix, generator)
            canvas.kept_suffix.append(kept.tolist())
            slots = _Slots.of_block(canvas, block, settings, kept)
            _decode_block(model, rule, canvas, slots, cache, settings, block, streamer)
            if streamer is not None:
                streamer.put(canvas.tokens[:, slots.begin : slots.end].cpu())
            if settings.early_termination:
                _retire(canvas, slots, settings)
                if not len(canvas.active):
                    break
    if streamer is not None:
        streamer.end()
    sequences = torch.cat((prompts[:, :common], canvas.tokens), dim=1)
    return DecodingOutput(sequences, canvas.forwards, canvas.decided_at, canvas.kept_suffix, canvas.processed)


def cache_for(model: MaskedDiffusionModel, canvas: _Canvas, settings: DecodingSettings):
    """A context manager that lends the cache of a generate call; None where every step computes every slot."""
    if settings.cache == "none":
        return nullcontext()
    return slot_cache(model, *canvas.tokens.shape)


def _decode_block(model, rule, canvas: _Canvas, slots: _Slots, cache: SlotCache | None, settings: DecodingSettings,
                  block: int, streamer) -> None:
    """Unmask the block of `slots` in all of its rows."""
    length, offset = settings.block_length, model.prediction_offset
    if cache is not None:
        cache.begin(len(slots.rows), len(slots.columns))
    masked = torch.ones(len(slots.rows), length, dtype=torch.bool, device=canvas.tokens.device)
    masks = [length] * len(masked)  # in each row, known here so that the device need not be asked
    left, first, finite = length, True, torch.ones((), dtype=torch.bool, device=masked.device)
    for step in itertools.count():
        quota = rule.quota(step, left)
        if quota == 0:
            continue
        # Compute the slots of this step.
        computed = slots.recomputed(first, settings.cache)
        first = False
        ids = canvas.tokens[slots.rows[:, None], slots.columns[computed]]  # [R, Q]
        inputs = ids, slots.positions[:, computed], slots.key_mask
        hidden = cache.forward(model, *inputs, computed.start) if cache else model.hidden_states(*inputs)
        # Ask the head about the positions that compete, and choose among them.
        if rule.opens(step):
            rows, columns = torch.arange(len(masked), device=masked.device), torch.zeros_like(slots.rows)
        else:
            rows, columns = masked.nonzero_static(size=sum(masks)).unbind(1)
        logits = model.head(hidden[rows, (columns + slots.begin - computed.start - offset).clamp(min=0)])  # [M, V]
        noise = step_generator(settings.seed, block, step)
        tokens, scores = rule.candidates(logits, columns, step, noise)
        candidates = torch.zeros_like(masked, dtype=torch.long)
        candidates[rows, columns] = tokens
        confidence = torch.full(masked.shape, float("-inf"), dtype=torch.float64, device=masked.device)
        confidence[rows, columns] = scores
        finite &= ~scores.isnan().any()
        chosen = rule.choose(confidence, quota, noise)
        # Write what was chosen.
        canvas.write(slots, chosen, candidates)
        canvas.processed += _slots_computed(canvas, slots, computed)
        masked &= ~chosen
        if streamer is not None:
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(canvas.tokens[:, slots.begin : slots.end].cpu())
            if hasattr(streamer, "put_step"):
                streamer.put_step(block, slots.columns[computed].cpu(), *(
                    tensor.cpu() for tensor in (chosen, candidates, confidence)))
        # Leave when nothing is masked; rows that are complete sit the rest of the block out.
        if quota is not None:
            left -= quota
            masks = [left] * len(masks)
        else:
            masks = masked.sum(dim=1).tolist()  # the one place where a step waits for the device
            left = sum(count > 0 for count in masks)
            if 0 < left < len(masks):
                keep = _without_holes([place for place, count in enumerate(masks) if count])
                masks, masked = [masks[place] for place in keep], masked[keep]
                slots.keep(keep)
                if cache is not None:
                    cache.keep(keep)
        if left == 0:
            break
    if not finite:
        raise ValueError(f"the model's logits are NaN or infinite in block {block}: check its weights and its dtype "
                         f"({model.dtype})")


def _without_holes(places: list[int]) -> list[int]:
    """The ascending places in an order in which as many as can be stay where they are: the last fill the holes."""
    count, movers = len(places), [place for place in places if place >= len(places)]
    staying = set(places)
    return [place if place in staying else movers.pop() for place in range(count)]


def _slots_computed(canvas: _Canvas, slots: _Slots, computed: slice) -> int:
    """How many slots a forward over `computed` stands for: all of them, but for padding."""
    count = len(slots.rows) * (computed.stop - computed.start)
    if canvas.padded and computed.start == 0:
        count -= sum(canvas.padded[row] for row in slots.host_rows)
    return count


def _retire(canvas: _Canvas, slots: _Slots, settings: DecodingSettings) -> None:
    """Early termination: rows with EOS in this block are EOS after it, and leave the batch."""
    ended = (canvas.tokens[canvas.active, slots.begin : slots.end] == settings.eos_id).any(dim=1)
    canvas.tokens[canvas.active[ended], slots.end :] = settings.eos_id
    canvas.active = canvas.active[~ended]
