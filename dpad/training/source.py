"""From examples to the samples of each step, and to the samples that the loss is measured on.

    examples = fitting(examples, longest=256, positions=4096, too_long="refuse", note=print)
    source = ExampleViews(examples, settings, loaded)
    views = source.step(0)                                  # settings.batch_size samples
    held_out = held_out_views(others, settings, loaded)     # the same ones at every measurement

Imported by command.py and scratch.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from dpad.engine.loading import LoadedModel
from dpad.engine.settings import TokenIds
from dpad.training.examples import Example, ExampleSet, Subset, count_too_long, shuffled
from dpad.training.settings import TrainingSettings
from dpad.training.views import View, draw_view, levels


class Cut(ExampleSet):
    """Examples whose answers are cut to so many tokens: they fill their canvas, and no EOS follows."""

    def __init__(self, whole: ExampleSet, longest: int) -> None:
        self.whole = whole
        self.longest = longest
        self.name, self.size = whole.name, whole.size
        self.fingerprint = f"{whole.fingerprint}, cut to {longest}"

    def get(self, index: int) -> Example:
        example = self.whole.get(index)
        return Example(example.prompt, example.answer[: self.longest])

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        kept, held_out = self.whole.split(count)
        return Cut(kept, self.longest), Cut(held_out, self.longest)


def fitting(examples: ExampleSet, longest: int, positions: int, too_long: str,
            note: Callable[[str], None]) -> ExampleSet:
    """The examples that can be trained on.

    Args:
        longest: the longest canvas, which must hold an answer and one EOS.
        positions: how many tokens the model holds, prompt and canvas together.
        too_long: "refuse", "cut" or "skip" answers that are longer; prompts that leave no room are skipped if it says
            so, and refused otherwise.
        note: told how many were cut or skipped.

    Raises:
        ValueError: there are such answers or prompts, and they are to be refused, as those of endless sets always are;
            or nothing is left.
    """
    endless = examples.size is None
    if endless and too_long != "refuse":
        raise ValueError(f"too_long is {too_long!r}, but {examples.name} has no end, and what is too long in it is "
                         "refused; leave it out")
    found = count_too_long(examples, longest, positions)
    if found.answers and (too_long == "refuse" or endless):
        raise ValueError(f"{found.answers} of {found.checked} responses of {examples.name} are longer than every "
                         f"canvas (the longest gen_length is {longest}, one EOS included); give a longer one"
                         + ("" if endless else ", or say with too_long to cut or skip them"))
    if found.prompts and (too_long != "skip" or endless):
        raise ValueError(f"{found.prompts} of {found.checked} prompts of {examples.name} leave no room for gen_length "
                         f"{longest}: the model holds {positions} tokens; give a shorter one"
                         + ("" if endless else ", or say with too_long to skip them"))
    if too_long == "cut" and found.answers:
        note(f"{found.answers} of {found.checked} responses are cut to {longest} tokens")
        return Cut(examples, longest)
    if not found.answers and not found.prompts:
        return examples
    kept = [index for index, (prompt, answer) in enumerate(examples.lengths())
            if answer < longest and prompt + longest <= positions]
    if not kept:
        raise ValueError(f"none of the {found.checked} examples of {examples.name} is left: all are too long for "
                         f"gen_length {longest}")
    note(f"{found.checked - len(kept)} of {found.checked} examples are skipped, because they are too long")
    return Subset(examples, kept)


class ExampleViews:
    """The samples of each step: `batch_size` examples, in an order that is drawn anew for every pass through them."""

    def __init__(self, examples: ExampleSet, settings: TrainingSettings, loaded: LoadedModel) -> None:
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
        return shuffled(self.examples.size, self.settings.seed, one_pass)[place]


def held_out_views(examples: ExampleSet, settings: TrainingSettings, loaded: LoadedModel) -> list[View]:
    """One sample of each of these examples, drawn as in training."""
    tokens = TokenIds.of(loaded.model)
    rng = random.Random(f"{settings.seed} held out")
    return [draw_view(examples.get(index), settings, tokens, rng, level)
            for index, level in enumerate(levels(len(examples), rng))]
