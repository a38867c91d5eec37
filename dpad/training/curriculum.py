"""How the embedded models learn from random weights: which problems a step shows, and which of their tokens it masks.

    curriculum = Curriculum(tokenizer, ("arithmetic",), tokens_per_step=6000, seed=1234)
    for view in curriculum.step(0): ...

Problems are generated as they are needed (dataset/). Every answer token is masked with probability t ~ U(0, 1), as in
LLaDA (arXiv 2502.09992, eq. 5), but the noise of most samples covers only a part of the answer: what decoding meets (a
clean prefix, one noisy block, only masks after it) or what is hard to learn (see NOISE_SHAPES). Answers are padded with
EOS, as LLaDA's are, to canvases of mixed lengths. Imported by scratch.py, whose second part trains on what decoding
meets alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dataset import arithmetic
from dpad.training.examples import GENERATORS, HARNESS_PROMPT
from dpad.training.views import View, levels

# Total lengths, prompt and canvas. Most samples get the shortest that fits. These shares of the samples get room for a
# canvas of 256, 512 or 1024 answer tokens, so that the model knows what a long tail of EOS, or of masks, looks like.
TIGHT_LENGTHS = (96, 128, 160, 192, 256, 320)
LONG_LENGTHS = {384: 0.05, 640: 0.01, 1152: 0.006}

NEXT = 8  # tokens that noise of the shape "next" covers

# Which tokens of an answer are noisy, and the share of the samples before and after LESSONS_UNTIL of the run. The words
# around a sum never give away its result, nor which of many names comes next, and both are a small part of an answer's
# loss. So the first part of the run has samples in which only results or only names are masked.
NOISE_SHAPES = {
    "everywhere": (0.2, 0.15),  # the whole answer
    "block": (0.4, 0.75),       # one block, with a clean prefix before it and only masks after it: what decoding meets
    "next": (0.2, 0.1),         # NEXT masked tokens from a result on, also between clean prefix and masks
    "results": (0.05, 0.0),     # results of calculations
    "names": (0.15, 0.0),       # names of people
}
LESSONS_UNTIL = 0.35
EASY_SHARE = 0.25  # of the run, at its start, has only problems of one and two steps, to learn copying and sums first
BARE_SUMS = (0.5, 0.05)  # share of samples that are `drill`s, before and after LESSONS_UNTIL
MIN_NOISE = 0.02  # smallest t: bounds the loss weight 1/t


class Sample(NamedTuple):
    """Token ids of a prompt and its answer; `drill`: whether the answer is bare sums."""

    prompt: list[int]
    answer: list[int]
    drill: bool


class Curriculum:
    """The training data as a function of the step: the same seed gives a step the same samples after any restart.

    Args:
        tasks: keys of examples.GENERATORS, which the samples are drawn from evenly.
        tokens_per_step: the least number of tokens in a step, with prompts and padding.
        steps: the length of this part of the run, which decides where EASY_SHARE and LESSONS_UNTIL end.
        blocks: lengths of the noisy block.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], tokens_per_step: int, seed: int,
                 steps: int = 1, blocks: Sequence[int] = (32,)) -> None:
        self.tokenizer = tokenizer
        self.tasks = tuple(tasks)
        self.tokens_per_step = tokens_per_step
        self.seed = seed
        self.easy_steps = int(EASY_SHARE * steps)
        self.lesson_steps = int(LESSONS_UNTIL * steps)
        self.blocks = tuple(blocks)

        self.eos_id = tokenizer.eos_token_id
        self.mask_id = tokenizer.mask_token_id
        self.numbers = {token for text, token in tokenizer.get_vocab().items() if text.isdecimal()}
        self.equals = tokenizer.convert_tokens_to_ids("=")
        self.close = tokenizer.convert_tokens_to_ids(">>")
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids([*arithmetic.GIRLS, *arithmetic.BOYS]))

    def step(self, number: int) -> list[View]:
        """The samples of one optimizer step."""
        rng = random.Random(f"{self.seed}-{number}")
        easy = number < self.easy_steps
        late = number >= self.lesson_steps
        first = rng.getrandbits(40)

        samples: list[tuple[Sample, int]] = []
        while not samples or sum(length for _, length in samples) < self.tokens_per_step:
            problem = GENERATORS[rng.choice(self.tasks)](first, len(samples), "train")
            while easy and problem.get("steps", 1) > 2:
                problem = GENERATORS[rng.choice(self.tasks)](rng.getrandbits(40), 0, "train")
            is_drill = rng.random() < BARE_SUMS[late]
            sample = self.encode(drill(rng) if is_drill else problem, rng, is_drill)
            used = len(sample.prompt) + len(sample.answer)
            samples.append((sample, self.total_length(used, rng, may_be_long=not easy)))
        return [self.view(sample, length, level, rng, late)
                for (sample, length), level in zip(samples, levels(len(samples), rng))]

    def encode(self, problem: dict, rng: random.Random, is_drill: bool) -> Sample:
        """Tokenize a problem: half of the questions as they are, half in the words of lm-eval's GSM8K prompt."""
        question = problem["question"]
        content = question if rng.random() < 0.5 else HARNESS_PROMPT.format(question)
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": problem["answer"]}]
        chat = str(self.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False))
        whole = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        encode = self.tokenizer.backend_tokenizer.encode
        return Sample(encode(chat).ids, encode(whole.removeprefix(chat).rstrip()).ids, is_drill)

    @staticmethod
    def total_length(used: int, rng: random.Random, may_be_long: bool) -> int:
        """Draw the total length of a sample with `used` tokens: see TIGHT_LENGTHS."""
        draw = rng.random() if may_be_long else 1.0
        for length, share in LONG_LENGTHS.items():
            if draw < share:
                return length
            draw -= share
        return next((length for length in TIGHT_LENGTHS if length > used), max(LONG_LENGTHS))

    def view(self, sample: Sample, length: int, level: float, rng: random.Random, late: bool) -> View:
        """Pad a sample with EOS to its length, and mask it."""
        ids = sample.prompt + sample.answer
        target = torch.full((length,), self.eos_id)
        target[: len(ids)] = torch.tensor(ids)
        shares = [share[late] for share in NOISE_SHAPES.values()]
        shape = "results" if sample.drill else rng.choices(list(NOISE_SHAPES), shares)[0]
        t = MIN_NOISE + (1 - MIN_NOISE) * level
        masked, weight = self.mask(target, len(sample.prompt), len(ids), t, shape, rng)
        return View(torch.where(masked, self.mask_id, target), torch.arange(length), target, weight)

    def mask(self, ids: Tensor, start: int, end: int, t: float, shape: str,
             rng: random.Random) -> tuple[Tensor, Tensor]:
        """Draw the noise of one sample: which tokens are masked, bool [T], and their weights in the loss, float [T].

        ids: int64 [T], with the answer at [start, end) and EOS after it. shape: a key of NOISE_SHAPES.
        """
        length = len(ids)
        results = self.find_results(ids, start)
        names = torch.isin(ids, self.names) & (torch.arange(length) >= start)
        if shape == "names" and not names.any():
            shape = "everywhere"

        # The loss is over the tokens [first, last): those before are clean, those after are masked.
        first = start
        last = length
        if shape == "block":
            block = rng.choice(self.blocks)
            first += block * rng.randrange((end - start) // block + 1)  # up to the block of the first EOS
            last = min(first + block, length)
        elif shape == "next":
            after_equals = results[1:] & (ids[:-1] == self.equals)
            first = 1 + rng.choice(after_equals.nonzero().flatten().tolist())
            last = min(first + NEXT, length)
            t = 1.0

        noise = torch.rand(length, generator=torch.Generator().manual_seed(rng.getrandbits(48)))
        masked = self.tie_results(noise, ids[:end].tolist()) < t
        masked[:first] = False
        masked[last:] = True
        tokens = last - first
        if shape in ("results", "names"):
            candidates = results if shape == "results" else names
            masked &= candidates
            tokens = int(candidates.sum())

        weight = torch.zeros(length)
        weight[first:last] = masked[first:last] / (t * tokens)
        return masked, weight

    def find_results(self, ids: Tensor, start: int) -> Tensor:
        """Which tokens from `start` on belong to a result or its repetition, bool [T]: numbers after `=` or `>>`."""
        results = torch.zeros(len(ids), dtype=torch.bool)
        inside = False
        for place, token in enumerate(ids[start:].tolist(), start):
            is_number = token in self.numbers
            results[place] = inside and is_number
            inside = token in (self.equals, self.close) or (inside and is_number)
        return results

    def tie_results(self, noise: Tensor, ids: list[int]) -> Tensor:
        """Give the repetition of a result after the annotation (`=12>>12`) the result's noise, in place.

        Otherwise one of the two would usually be in sight, and most sums could be copied instead of worked out.
        """
        for place in (place for place, token in enumerate(ids) if token == self.close):
            start = place
            while ids[start - 1] in self.numbers:
                start -= 1
            size = place - start
            if ids[place + 1 : place + 1 + size] == ids[start:place]:
                noise[place + 1 : place + 1 + size] = noise[start:place]
        return noise


def drill(rng: random.Random, count: int = 16) -> dict:
    """Make bare sums, such as `12+5=17`, in the form of a problem, with the numbers and operations of the stories.

    The stories teach words, these teach arithmetic. The question does not name the sums: only their results are masked.
    """
    sums = []
    for sign in rng.choices("+-*/", (7, 7, 3, 3), k=count):
        small = rng.randint(2, arithmetic.MAX_FACTOR)
        large = rng.randint(2, arithmetic.MAX_NUMBER // small)
        total = rng.randint(4, arithmetic.MAX_NUMBER)
        part = rng.randint(2, total - 2)
        part = rng.choice((part, total - part)) if sign == "+" else part
        sums.append({
            "+": (f"{part}+{total - part}", total),
            "-": (f"{total}-{part}", total - part),
            "*": rng.choice([(f"{small}*{large}", small * large), (f"{large}*{small}", small * large)]),
            "/": rng.choice([(f"{small * large}/{small}", large), (f"{small * large}/{large}", small)]),
        }[sign])
    lines = [f"{text}={result}" for text, result in sums]
    return {"question": "What are these sums?", "answer": "\n".join(lines)}
