"""The one block loop: slots, cache modes, early termination, batches and statistics, for every model and sampler.

An answer of G masks is decoded block by block. Before a block starts, a sampler chooses which positions after it (the
suffix) the model may see. What the model then computes is a list of *slots*: everything up to the block's end, then the
kept suffix, each at its original position. A cache mode only says which slots are recomputed at a step:

    none     every slot, at every step
    prefix   every slot at the block's first step, later the block and the kept suffix
    dual     every slot at the block's first step, later the block alone

That a block's first step recomputes the whole prefix is what the setting `refresh` says by default. Otherwise it
recomputes, in blocks after the first, the slots from the block before on: that one was partly masked when its keys and
values were computed last. The slots of the prompt and of older blocks keep theirs; they are the same columns in every
block.

Two options go beyond that. A sampler may choose by attention (ScoredSampler): the block's first forward then sees the
whole suffix, and the steps after it what was chosen. With a soft suffix (soft.py) suffix positions enter as mixtures of
embeddings; before the first forward of a block in mode dual another one over all slots, which decodes nothing, takes
their states.

A model adds two things (unmasking.py): which positions compete at a step, and which of them are decoded. Imported,
never run; `llada.generate.generate(model, input_ids, ...)` calls it.

Shapes: R rows, P prompt columns, G answer columns, L block length, Q slots computed at a step, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from transformers.utils import ModelOutput

from dpad.engine.attention import MeanAttention
from dpad.engine.cuda_graphs import slot_cache
from dpad.engine.selection import deciding_device, send
from dpad.engine.settings import DecodingSettings, TokenIds
from dpad.engine.soft import SoftStates
from dpad.engine.transformer import MaskedDiffusionModel, SlotCache, Watch
from dpad.engine.unmasking import UnmaskingRule, noise_generator
from sampler import ScoredSampler, SuffixSampler


@dataclass
class DecodingOutput(ModelOutput):
    """What a generate call returns.

    sequences: int64 [R, P + G], prompt and answer. forwards: int64 [R], the forwards each row took part in (NFE).
    decided_at: int64 [R, G], the row's own 0-based forward that decoded each token; -1 where early termination filled
    in EOS. kept_suffix: for each block that was entered, the suffix positions kept, as in a row without padding (by any
    row, where the sampler chooses by attention). kept: int64 [R], how many each row kept, summed over its blocks.
    blocks: int64 [R], how many it entered. tokens_processed: slots computed in all, over rows and forwards; padding is
    not counted, and rows of the same prompt, which are decoded once, count once.
    """

    # ModelOutput wants defaults; every field is always set.
    sequences: Tensor = None  # type: ignore[assignment]
    forwards: Tensor = None  # type: ignore[assignment]
    decided_at: Tensor = None  # type: ignore[assignment]
    kept_suffix: list[list[int]] = None  # type: ignore[assignment]
    kept: Tensor = None  # type: ignore[assignment]
    blocks: Tensor = None  # type: ignore[assignment]
    tokens_processed: int = None  # type: ignore[assignment]


@torch.inference_mode()
def decode(
    model: MaskedDiffusionModel, rule: UnmaskingRule, input_ids: Tensor, attention_mask: Tensor | None = None,
    streamer: Any = None, on_forward: Callable[[int, bool], None] | None = None,
) -> DecodingOutput:
    """Decode an answer for every row of `input_ids` [R, P] (left-padded where `attention_mask` is 0).

    The rows share one draw of the suffix per block, which is the draw that each of them would get alone with the same
    seed. A row sits out the rest of a block that it has completed, and leaves the batch when it terminates. Each row
    gets the tokens that it gets alone. Rows of the same prompt would get the same ones, so one is decoded for all.

    Args:
        model: computes the logits.
        rule: decides which tokens are decoded, and carries the settings and the special tokens.
        streamer: has transformers' `put`, `end` and, optionally, `put_draft`, which gets the canvas of the block after
            every forward. If it also has `put_step`, that gets every forward: the block's number, the columns computed
            [Q], and for the rows still in the block (of equal prompts the first alone) which positions were decoded
            (bool [R, L]), the candidates [R, L] and their confidence (float64 [R, L], -inf where none competed).
            If it has `unwanted`, that is asked after each block for bool [R]: rows that leave the batch, whose later
            blocks stay masks; rows of the same prompt leave together, when none of them is wanted.
        on_forward: called before every forward with the block's number and whether the forward is its first one.

    Raises:
        ValueError: on a prompt that does not fit (see `check_prompt`), and when the model's logits are not finite.
    """
    settings = rule.settings
    padding = check_prompt(model, input_ids, attention_mask, settings)
    common = int(padding.min())  # padding columns that every row has: decoding leaves them out
    prompts = input_ids.to(model.device)
    originals, copies = (rows.to(model.device) for rows in find_copies(input_ids, padding))
    shifts = padding.to(model.device)[originals] - common
    canvas = _Canvas(prompts[originals, common:], shifts, settings, rule.tokens, copies)
    generator = torch.Generator().manual_seed(settings.seed)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    soft = None
    if settings.soft_suffix is not None:
        soft = SoftStates(settings.soft_suffix, model, len(originals), settings.gen_length, rule.tokens.mask)
    rows, columns = canvas.tokens.shape
    with slot_cache(model, rows, columns, stores=settings.cache != "none") as cache:
        for block in range(settings.blocks):
            end = canvas.prompt + (block + 1) * settings.block_length
            assert settings.suffix_sampler is not None  # the settings put FullSuffix in its place
            kept_suffix = draw_suffix(settings.suffix_sampler, end, canvas.tokens.shape[1], generator)
            canvas.kept_suffix.append(kept_suffix.tolist())
            slots = _Slots.of_block(canvas, block, settings, kept_suffix)
            _decode_block(model, rule, canvas, slots, cache, soft, block, streamer, on_forward)

            if streamer is not None:
                streamer.put(canvas.tokens[copies, slots.begin : slots.end].cpu())
            if settings.early_termination:
                canvas.terminate_rows(slots, rule.tokens.eos)
            if hasattr(streamer, "unwanted"):
                canvas.leave(streamer.unwanted())
            if not len(canvas.active):
                break

    if streamer is not None:
        streamer.end()
    with torch.inference_mode(False):  # the caller may write to what it gets
        sequences = torch.cat((prompts, canvas.tokens[copies, canvas.prompt :]), dim=1)
        return DecodingOutput(sequences, canvas.forwards[copies], canvas.decided_at[copies], canvas.kept_suffix,
                              canvas.kept[copies], canvas.blocks[copies], canvas.processed)


def find_copies(input_ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """The first rows of their prompts, int64 [D], and for every row the place of its prompt's among them, int64 [R]."""
    places: dict[tuple[int, ...], int] = {}
    originals: list[int] = []
    copies: list[int] = []
    for row, (ids, start) in enumerate(zip(input_ids.tolist(), padding.tolist())):
        place = places.setdefault(tuple(ids[start:]), len(originals))
        if place == len(originals):
            originals.append(row)
        copies.append(place)
    return torch.tensor(originals), torch.tensor(copies)


def draw_suffix(sampler: SuffixSampler, end: int, total: int, generator: Generator) -> Tensor:
    """The suffix positions that a block keeps which ends before `end` of `total` positions: int64, ascending."""
    return sampler.sample(torch.arange(end, total), generator)


def visible_columns(end: int, kept_suffix: Tensor) -> Tensor:
    """The positions that the model sees while it decodes the block that ends before `end`: int64, ascending.

    Training (dpad/training/views.py) shows the model the same ones.
    """
    return torch.cat((torch.arange(end), kept_suffix))


# --- A block ----------------------------------------------------------------------------------------------------------


def _decode_block(
    model: MaskedDiffusionModel, rule: UnmaskingRule, canvas: _Canvas, slots: _Slots, cache: SlotCache | None,
    soft: SoftStates | None, block: int, streamer: Any, on_forward: Callable[[int, bool], None] | None,
) -> None:
    """Unmask the block of `slots` in all of its rows: compute, choose, write, leave."""
    sampler = rule.settings.suffix_sampler
    has_suffix = len(slots.columns) > slots.end
    watch = None
    if isinstance(sampler, ScoredSampler) and has_suffix:
        watch = MeanAttention(slice(slots.begin - slots.opening, slots.end - slots.opening))
    canvas.enter(slots)
    deciding = deciding_device(canvas.tokens.device)  # everything that a rule sees is there
    rule.begin_block(block, slots.kept.to(deciding))
    if cache is not None:
        cache.begin(slots.host_rows, len(slots.columns), is_stale=rule.settings.refreshes(block),
                    is_lasting=not rule.settings.refreshes(block + 1))
    first = True
    finite = torch.ones((), dtype=torch.bool, device=deciding)

    if soft is not None and rule.settings.cache == "dual" and has_suffix:
        # The cached steps do not compute the suffix again: a forward of its own takes its states.
        if on_forward is not None:
            on_forward(block, True)
        computed = slots.computed_at(True, rule.settings.cache)
        _compute(model, canvas, slots, computed, cache, soft, opening=True)
        canvas.count(slots, computed)
        if streamer is not None:
            nothing = torch.zeros_like(slots.masked, device=deciding)
            _report(streamer, canvas, slots, block, computed, nothing, nothing.long(), nothing.double() - math.inf)

    for step in itertools.count():
        quota = rule.quota(step, slots.masks[0])
        if quota == 0:
            continue
        if on_forward is not None:
            on_forward(block, first)

        # Compute the slots of this step.
        computed = slots.computed_at(first, rule.settings.cache)
        hidden = _compute(model, canvas, slots, computed, cache, soft, watch if first else None, first)  # [R, Q, E]

        # Choose among the positions that compete.
        noise = noise_generator(rule.settings.seed, block, step)
        candidates, confidence, entropy = _candidates(model, rule, slots, computed, hidden, step, noise)  # [R, L] each
        finite &= ~confidence.isnan().any()
        choice = rule.choose(confidence, quota, noise, entropy).to(canvas.tokens.device)  # bool [R, L]
        candidates = candidates.to(canvas.tokens.device)

        # Write what was chosen.
        canvas.write(slots, choice, candidates, computed)
        slots.masked &= ~choice
        if streamer is not None:
            _report(streamer, canvas, slots, block, computed, choice, candidates, confidence)
        if watch is not None and first:
            assert isinstance(sampler, ScoredSampler)
            canvas.kept[slots.rows] -= slots.kept
            scores = watch.scores().to(canvas.tokens.device)
            slots.choose_suffix(sampler.select(scores[:, slots.end :]), cache)
            canvas.kept[slots.rows] += slots.kept
            canvas.kept_suffix[-1] = slots.columns[slots.end :].tolist()
            rule.change_suffix(slots.kept.to(deciding))
        first = False

        # Leave when nothing is masked. Rows that are complete sit out the rest of the block.
        if quota is not None:
            slots.masks = [count - quota for count in slots.masks]
        else:
            slots.masks = slots.masked.sum(dim=1).tolist()  # the one place where a step waits for the device
        if not any(slots.masks):
            break
        if not all(slots.masks):
            unfinished = _without_holes([row for row, count in enumerate(slots.masks) if count])
            slots.keep(unfinished)
            rule.keep(unfinished)
            if cache is not None:
                cache.keep(slots.host_rows)

    if not finite:
        raise ValueError(f"the model's logits are NaN or infinite in block {block}: check its weights and its dtype "
                         f"({model.dtype})")


def _compute(
    model: MaskedDiffusionModel, canvas: _Canvas, slots: _Slots, computed: slice, cache: SlotCache | None,
    soft: SoftStates | None = None, watch: Watch | None = None, opening: bool = False,
) -> Tensor:
    """The hidden states [R, Q, E] of the slots that a step computes.

    soft: takes the states of the suffix, if it is computed. watch: looks at the attention. opening: nothing of the
    block is decoded yet.
    """
    inputs = canvas.tokens[slots.rows[:, None], slots.columns[computed]]  # [R, Q]
    positions = slots.positions[:, computed]
    if soft is not None:
        block = slice(slots.begin - computed.start, slots.end - computed.start)
        inputs = soft.inputs(inputs, slots.rows, slots.columns[computed] - canvas.prompt, block, opening)
    if cache is None:
        hidden = model.hidden_states(inputs, positions, slots.key_mask, None, 0, watch)
    else:
        hidden = cache.forward(model, inputs, positions, slots.key_mask, computed.start, watch)
    if soft is not None and computed.stop > slots.end:
        places = slots.predicting_suffix(model.prediction_offset) - computed.start  # [R, n]
        predicting = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        soft.update(predicting, slots.rows, slots.columns[slots.end :] - canvas.prompt, slots.suffix_mask)
    return hidden


def _candidates(model: MaskedDiffusionModel, rule: UnmaskingRule, slots: _Slots, computed: slice, hidden: Tensor,
                step: int, noise: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """The token that each position would become, int64 [R, L], its confidence and its entropy, float64 [R, L].

    Only positions that compete at this step have one; the confidence of the others is -inf. Without a rule that needs
    entropies there are none. All of it is on the deciding device.
    """
    masked = slots.masked.to(deciding_device(slots.masked.device))
    if rule.opens(step) and not rule.observes:
        rows = torch.arange(len(masked), device=masked.device)
        columns = torch.zeros_like(rows)
    else:
        rows, columns = masked.nonzero_static(size=sum(slots.masks)).unbind(1)  # its size is known without a wait
    places = (columns + slots.begin - computed.start - model.prediction_offset).clamp(min=0)
    predicting = hidden[rows.to(hidden.device), places.to(hidden.device)]  # [M, E]
    logits = rule.adjust(model.head(predicting).to(masked.device), rows, columns)  # [M, V]
    if rule.opens(step) and rule.observes:
        opening = columns == 0
        rows, columns, logits = rows[opening], columns[opening], logits[opening]
    tokens, scores = rule.candidates(logits, columns, step, noise)
    candidates = torch.zeros_like(masked, dtype=torch.long)
    candidates[rows, columns] = tokens
    confidence = torch.full(masked.shape, float("-inf"), dtype=torch.float64, device=masked.device)
    confidence[rows, columns] = scores
    entropies = rule.entropy(logits)
    if entropies is None:
        return candidates, confidence, None
    entropy = torch.zeros_like(confidence)
    entropy[rows, columns] = entropies
    return candidates, confidence, entropy


def _report(streamer: Any, canvas: _Canvas, slots: _Slots, block: int, computed: slice, choice: Tensor,
            candidates: Tensor, confidence: Tensor) -> None:
    """Call those optional methods that a streamer has, after each forward."""
    if hasattr(streamer, "put_draft"):
        streamer.put_draft(canvas.tokens[canvas.copies, slots.begin : slots.end].cpu())
    if hasattr(streamer, "put_step"):
        streamer.put_step(block, slots.columns[computed].cpu(), choice.cpu(), candidates.cpu(), confidence.cpu())


def _without_holes(places: list[int]) -> list[int]:
    """The ascending places reordered so that few rows move: those below the count stay, the others fill the gaps."""
    count = len(places)
    movers = [place for place in places if place >= count]
    staying = set(places)
    return [place if place in staying else movers.pop() for place in range(count)]


# --- What is written and what is computed -----------------------------------------------------------------------------


class _Canvas:
    """The sequences being written, and what is counted about each row.

    tokens: int64 [R, P + G]. prompt: P. padding: int64 [R], padding columns of each row. copies: int64, for each row
    that was asked for the one here that it gets. active: the rows that have not terminated. processed: slots computed
    so far. forwards, decided_at, kept_suffix, kept, blocks: see DecodingOutput.
    """

    def __init__(self, input_ids: Tensor, padding: Tensor, settings: DecodingSettings, tokens: TokenIds,
                 copies: Tensor):
        rows, self.prompt = input_ids.shape
        device = input_ids.device
        self.tokens = torch.full((rows, self.prompt + settings.gen_length), tokens.mask, device=device)
        self.tokens[:, : self.prompt] = input_ids
        self.padding = padding
        self.copies = copies
        self.padding_of_row: list[int] | None = padding.tolist() if padding.any() else None  # on the host
        self.forwards = torch.zeros(rows, dtype=torch.long, device=device)
        self.decided_at = torch.full((rows, settings.gen_length), -1, device=device)
        self.kept_suffix: list[list[int]] = []
        self.kept = torch.zeros(rows, dtype=torch.long, device=device)
        self.blocks = torch.zeros(rows, dtype=torch.long, device=device)
        self.processed = 0
        self.active = torch.arange(rows, device=device)

    def write(self, slots: _Slots, choice: Tensor, candidates: Tensor, computed: slice) -> None:
        """Put the candidates [R, L] that were chosen (bool [R, L]) into the block, and count the forward."""
        rows = slots.rows
        block = slice(slots.begin, slots.end)
        answer = slice(slots.begin - self.prompt, slots.end - self.prompt)
        self.tokens[rows, block] = torch.where(choice, candidates, self.tokens[rows, block])
        self.decided_at[rows, answer] = torch.where(choice, self.forwards[rows, None], self.decided_at[rows, answer])
        self.count(slots, computed)

    def count(self, slots: _Slots, computed: slice) -> None:
        """Count a forward over the slots `computed`, padding and what is another row's suffix left out."""
        self.forwards[slots.rows] += 1
        self.processed += len(slots.rows) * (min(computed.stop, slots.end) - computed.start)
        if computed.stop > slots.end:
            self.processed += sum(slots.kept_of_row)
        if self.padding_of_row and computed.start == 0:
            self.processed -= sum(self.padding_of_row[row] for row in slots.host_rows)

    def enter(self, slots: _Slots) -> None:
        """Count a block, and the suffix that its rows keep."""
        self.blocks[slots.rows] += 1
        self.kept[slots.rows] += slots.kept

    def terminate_rows(self, slots: _Slots, eos_id: int) -> None:
        """Early termination: rows with EOS in this block become EOS after it, and leave the batch."""
        ended = (self.tokens[self.active, slots.begin : slots.end] == eos_id).any(dim=1)
        self.tokens[self.active[ended], slots.end :] = eos_id
        self.active = self.active[~ended]

    def leave(self, rows: Tensor) -> None:
        """Take out the rows for which only these (bool, one for each that was asked for) wait; they stay masked."""
        staying = self.copies[~rows.to(self.copies.device)]
        self.active = self.active[torch.isin(self.active, staying)]


@dataclass
class _Slots:
    """What the rows of a block compute, and which of its positions are still masked.

    rows: int64 [R], which rows of the canvas; host_rows: the same numbers, on the host. columns: int64 [S] of the
    canvas. positions: int64 [R, S] of RoPE. key_mask: bool [R, S], False at padding; None without padding. begin, end:
    of the block, both as slots and as columns. opening: the first slot that the block's first step computes. masked:
    bool [R, L]. masks: the masks left in each row, on the host. kept: int64 [R], how many suffix slots each row keeps;
    kept_of_row: the same numbers, on the host. suffix_mask: bool [R, S - end], which of them are the row's own, where
    rows keep different ones; None: all.
    """

    rows: Tensor
    host_rows: list[int]
    columns: Tensor
    positions: Tensor
    key_mask: Tensor | None
    begin: int
    end: int
    opening: int
    masked: Tensor
    masks: list[int]
    kept: Tensor
    kept_of_row: list[int]
    suffix_mask: Tensor | None = None

    @classmethod
    def of_block(cls, canvas: _Canvas, block: int, settings: DecodingSettings, kept_suffix: Tensor) -> _Slots:
        begin = canvas.prompt + block * settings.block_length
        end = begin + settings.block_length
        columns = visible_columns(end, kept_suffix).to(canvas.tokens.device)
        positions = columns - canvas.padding[canvas.active, None]
        rows = len(canvas.active)
        return cls(
            rows=canvas.active,
            host_rows=canvas.active.tolist(),
            columns=columns,
            positions=positions.clamp(min=0),
            key_mask=positions >= 0 if canvas.padding_of_row else None,
            begin=begin,
            end=end,
            opening=0 if settings.refreshes(block) else begin - settings.block_length,
            masked=torch.ones(rows, settings.block_length, dtype=torch.bool, device=canvas.tokens.device),
            masks=[settings.block_length] * rows,
            kept=torch.full((rows,), len(kept_suffix), device=columns.device),
            kept_of_row=[len(kept_suffix)] * rows,
        )

    def computed_at(self, first: bool, cache: str) -> slice:
        """The slots that a step computes, as the table at the top of this file says."""
        if first or cache == "none":
            return slice(self.opening, len(self.columns))
        return slice(self.begin, len(self.columns) if cache == "prefix" else self.end)

    def choose_suffix(self, chosen: Tensor, cache: SlotCache | None) -> None:
        """Go on with a part of the suffix: bool [R, n], what each row keeps of its n positions.

        Where rows keep different ones, the slots are those of all, and each row attends to its own alone.
        """
        left = torch.arange(self.end, device=chosen.device)
        union = chosen.any(dim=0)
        slots = torch.cat((left, self.end + union.nonzero().squeeze(1)))
        self.columns = self.columns[slots]
        self.positions = self.positions[:, slots]
        self.kept = chosen.sum(dim=1)
        self.kept_of_row = self.kept.tolist()
        if self.key_mask is not None:
            self.key_mask = self.key_mask[:, slots]
        if not chosen[:, union].all():
            self.suffix_mask = chosen[:, union]
            if self.key_mask is None:
                self.key_mask = torch.ones_like(self.positions, dtype=torch.bool)
            self.key_mask[:, self.end :] &= self.suffix_mask
        if cache is not None:
            cache.keep_slots(slots)

    def predicting_suffix(self, offset: int) -> Tensor:
        """The slots whose logits predict the suffix slots, int64 [R, n]: each itself, or with offset 1 the one before.

        The one before is the row's own: where the left neighbour of a position was dropped, what predicts another token
        takes its place, as in the authors' code.
        """
        suffix = torch.arange(self.end, len(self.columns), device=self.columns.device).expand(len(self.rows), -1)
        if not offset or not suffix.shape[1]:
            return suffix
        own = suffix if self.suffix_mask is None else suffix.where(self.suffix_mask, suffix.new_tensor(0))
        before = torch.nn.functional.pad(own[:, :-1], (1, 0), value=self.end - 1)
        return before.to(deciding_device(own.device)).cummax(dim=1).values.to(own.device)  # mps has no cummax either

    def keep(self, places: list[int]) -> None:
        """Keep only the rows at these places, in this order."""
        index = send(torch.tensor(places), self.rows.device)  # once: a list would be copied to the device each time
        self.rows = self.rows[index]
        self.host_rows = [self.host_rows[place] for place in places]
        self.positions = self.positions[index]
        self.key_mask = None if self.key_mask is None else self.key_mask[index]
        self.masked = self.masked[index]
        self.masks = [self.masks[place] for place in places]
        self.kept = self.kept[index]
        self.kept_of_row = [self.kept_of_row[place] for place in places]
        self.suffix_mask = None if self.suffix_mask is None else self.suffix_mask[index]


# --- Checks -----------------------------------------------------------------------------------------------------------


def check_prompt(model: MaskedDiffusionModel, input_ids: Tensor, attention_mask: Tensor | None,
                 settings: DecodingSettings) -> Tensor:
    """How many padding columns each row has on its left, int64 [R]; ValueError when the prompt cannot be used."""
    if not isinstance(input_ids, Tensor):
        raise ValueError(f"input_ids is a {type(input_ids).__name__}; it must be a tensor of token ids [rows, tokens], "
                         "as `encode` makes one of prompts")
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(f"input_ids is a {input_ids.dtype} tensor of shape {list(input_ids.shape)}; it must hold "
                         "integers and be [rows, tokens]")
    rows, columns = input_ids.shape
    if not rows or not columns:
        raise ValueError(f"input_ids has shape {list(input_ids.shape)}: the prompt is empty; it must have at least one "
                         "token")
    smallest = input_ids.min().item()
    largest = input_ids.max().item()
    if smallest < 0 or largest >= model.vocabulary_size:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(f"input_ids holds {wrong}; every id must lie in [0, {model.vocabulary_size})")
    padding = _left_padding(input_ids, attention_mask)
    longest = columns - int(padding.min())
    if longest + settings.gen_length > model.max_positions:
        raise ValueError(f"gen_length is {settings.gen_length}; with a prompt of {longest} tokens it must be at most "
                         f"{max(0, model.max_positions - longest)}: the model has {model.max_positions} positions")
    return padding


def _left_padding(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    rows, columns = input_ids.shape
    if attention_mask is None:
        return torch.zeros(rows, dtype=torch.long, device=input_ids.device)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {list(attention_mask.shape)}; it must have input_ids' shape, "
                         f"{list(input_ids.shape)}")
    mask = attention_mask.to(input_ids.device).bool()
    if (mask[:, :-1] & ~mask[:, 1:]).any() or not torch.equal(mask, attention_mask.to(mask.device) == 1):
        raise ValueError("attention_mask is not a left padding: every row must be zeros, then ones up to its end")
    padding = (~mask).sum(1)
    if (padding == columns).any():
        empty = int((padding == columns).nonzero()[0])
        raise ValueError(f"attention_mask has no token in row {empty}: the prompt is empty; it must have at least one "
                         "token")
    return padding
