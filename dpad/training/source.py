"""From examples to the samples of each step, and to the samples that the loss is measured on.

    examples = fitting(examples, longest=256, positions=4096, too_long="refuse", note=print)
    source = ExampleViews(examples, settings, loaded)
    views = source.step(0)                                  # settings.batch_size samples
    held_out = held_out_views(others, settings, loaded)     # the same ones at every measurement

Imported by command.py and scratch.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from dpad.engine.loading import LoadedModel
from dpad.engine.settings import TokenIds
from dpad.training.examples import Example
from dpad.training.settings import TrainingSettings
from dpad.training.views import ExampleLike, View, draw_view, levels


class Examples(Protocol):
    """A set of examples (examples.py): `size` of them, or endlessly many (None), each found by its index alone."""

    size: int | None
    fingerprint: str

    def get(self, index: int) -> ExampleLike: ...


class Chosen:
    """Some examples of a finite set, by their indices there; answers are cut to `longest` tokens."""

    def __init__(self, examples: Examples, indices: Sequence[int], longest: int) -> None:
        self.examples = examples
        self.indices = indices
        self.longest = longest
        self.size = len(indices)
        own = hashlib.sha256(repr((examples.fingerprint, list(indices), longest)).encode()).hexdigest()
        self.fingerprint = own

    def get(self, index: int) -> Example:
        example = self.examples.get(self.indices[index])
        return Example(example.prompt, example.answer[: self.longest])

    def split(self, count: int, seed: int) -> tuple[Chosen, Chosen]:
        """All but `count` of the examples, and these."""
        order = list(self.indices)
        random.Random(f"{seed} split").shuffle(order)
        return (Chosen(self.examples, sorted(order[count:]), self.longest),
                Chosen(self.examples, sorted(order[:count]), self.longest))


def fitting(examples: Examples, longest: int, positions: int, too_long: str, note: Callable[[str], None]) -> Examples:
    """The examples that can be trained on.

    Args:
        longest: the longest canvas.
        positions: how many the model has, for prompt and canvas.
        too_long: "refuse", "cut" or "skip" answers that are longer than `longest`; prompts that leave no room for it are
            skipped if it says so, and refused otherwise.
        note: told how many were cut or skipped.

    Raises:
        ValueError: there are such answers or prompts, and they are to be refused; or nothing is left. Of endlessly many
            examples, the first thousand are looked at, and none may be too long.
    """
    count = examples.size or 1000
    kept, answers, prompts, most = [], 0, 0, 0
    for index in range(count):
        example = examples.get(index)
        is_long = len(example.answer) > longest
        has_no_room = len(example.prompt) + longest > positions
        answers += is_long
        prompts += has_no_room
        most = max(most, len(example.answer))
        if not has_no_room and not (is_long and too_long == "skip"):
            kept.append(index)
    if answers and (too_long == "refuse" or examples.size is None):
        raise ValueError(f"{answers} of {count} responses are longer than the longest canvas, gen_length {longest}: the "
                         f"longest has {most} tokens. Give a longer canvas, or too_long cut or skip")
    if prompts and (too_long != "skip" or examples.size is None):
        raise ValueError(f"{prompts} of {count} prompts leave no room for gen_length {longest}: the model holds "
                         f"{positions} tokens. Give a shorter canvas, or too_long skip")
    if examples.size is None:
        return examples
    if not kept:
        raise ValueError(f"none of the {count} examples is left: all are too long for gen_length {longest}")
    if answers and too_long == "cut":
        note(f"{answers} of {count} responses were cut to {longest} tokens")
    if count > len(kept):
        note(f"{count - len(kept)} of {count} examples were skipped, because they are too long")
    return Chosen(examples, kept, longest)


class ExampleViews:
    """The samples of each step: `batch_size` examples, in an order that is drawn anew for every pass through them."""

    def __init__(self, examples: Examples, settings: TrainingSettings, loaded: LoadedModel) -> None:
        self.examples = examples
        self.settings = settings
        self.tokens = TokenIds.of(loaded.model)
        self.fingerprint = examples.fingerprint

    def step(self, number: int) -> list[View]:
        """The samples of one optimizer step, a function of its number alone."""
        count, seed = self.settings.batch_size, self.settings.seed
        rng = random.Random(f"{seed} levels {number}")
        return [
            draw_view(self.examples.get(self.index(number * count + row)), self.settings, self.tokens,
                      random.Random(f"{seed} sample {number} {row}"), level)
            for row, level in enumerate(levels(count, rng))
        ]

    def index(self, number: int) -> int:
        """Which example the sample `number` of the run shows."""
        if self.examples.size is None:
            return number
        one_pass, place = divmod(number, self.examples.size)
        return _order(self.settings.seed, one_pass, self.examples.size)[place]


@lru_cache(maxsize=2)
def _order(seed: int, one_pass: int, size: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed} pass {one_pass}").shuffle(order)
    return order


def held_out_views(examples: Examples, settings: TrainingSettings, loaded: LoadedModel) -> list[View]:
    """One sample of each of the first `held_out` examples, drawn as in training."""
    count = settings.held_out if examples.size is None else min(settings.held_out, examples.size)
    tokens = TokenIds.of(loaded.model)
    rng = random.Random(f"{settings.seed} held out")
    return [draw_view(examples.get(index), settings, tokens, rng, level)
            for index, level in enumerate(levels(count, rng))]
