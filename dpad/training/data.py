"""The training data of the embedded models. Imported by train.py."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dataset import arithmetic

# Total lengths (prompt and canvas). Most samples get the shortest that fits, the others room for a canvas of 256, 512
# or 1024 answer tokens, so that the model knows what a long tail of EOS, or of masks, looks like.
TIGHT_LENGTHS = (96, 128, 160, 192, 256, 320)
LONG_LENGTHS = {384: 0.05, 640: 0.01, 1152: 0.006}
BLOCK = 32
NEXT = 8
# Where the noise of a sample lies, and how often, before and after LESSONS_UNTIL of the run: all over the answer; in
# one block, after a clean prefix and before masks alone, as decoding meets it; on the NEXT tokens from a result on,
# between the same; on results; on the names of people. The last two are lessons: the words around never
# give away a sum, or a name that is one of many, and both are too little of an answer's loss to be learned from it.
NOISE_SHAPES = {"everywhere": (0.2, 0.15), "block": (0.4, 0.75), "next": (0.2, 0.1), "results": (0.05, 0.0),
                "names": (0.15, 0.0)}
LESSONS_UNTIL = 0.35
BARE_SUMS = (0.5, 0.05)  # the share of samples that are bare sums, before and after: stories teach words, not sums
MIN_NOISE = 0.02  # smallest t: bounds the loss weight 1/t
MICROBATCH_TOKENS = 2048
EASY_SHARE = 0.25  # of the run, at its start, has problems of one and two steps alone: copying and sums come first


class Stream:
    """The training data as a function of the step: the same seed gives step i the same batches after any restart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_per_step: int, seed: int, split: str,
                 easy_steps: int = 0, lesson_steps: int = 0):
        self.tokenizer, self.tokens_per_step, self.seed, self.split = tokenizer, tokens_per_step, seed, split
        self.easy_steps, self.lesson_steps = easy_steps, lesson_steps
        self.eos_id, self.mask_id = tokenizer.eos_token_id, tokenizer.mask_token_id
        self.numbers = {token for text, token in tokenizer.get_vocab().items() if text.isdecimal()}
        self.equals = tokenizer.convert_tokens_to_ids("=")
        self.close = tokenizer.convert_tokens_to_ids(">>")
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids([*arithmetic.GIRLS, *arithmetic.BOYS]))

    def step(self, number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Microbatches of one optimizer step: (noisy input [R, T], target [R, T], loss weight [R, T]), T ascending."""
        rng = random.Random(f"{self.seed}-{self.split}-{number}")
        by_length: dict[int, list[tuple[list[int], list[int], bool]]] = {}
        tokens, late = 0, number >= self.lesson_steps
        for problem in arithmetic.problems(rng.getrandbits(48), self.split):
            if number < self.easy_steps and problem["steps"] > 2:
                continue
            bare = self.split == "train" and rng.random() < BARE_SUMS[late]
            if bare:
                problem = drill(rng)
            prompt, answer = self.encode(problem, rng)
            length = self.total_length(len(prompt) + len(answer), rng, number >= self.easy_steps)
            by_length.setdefault(length, []).append((prompt, answer, bare))
            tokens += length
            if tokens >= self.tokens_per_step:
                break
        batches = []
        for length, samples in sorted(by_length.items()):
            rows = max(1, MICROBATCH_TOKENS // length)
            for first in range(0, len(samples), rows):
                batches.append(self.collate(samples[first : first + rows], length, rng, late))
        return batches

    def encode(self, problem: dict, rng: random.Random) -> tuple[list[int], list[int]]:
        """Prompt and answer ids: half of the questions as they are, half in the words of lm-eval's GSM8K prompt."""
        question = problem["question"]
        content = question if rng.random() < 0.5 else f"Question: {question}\nAnswer:"
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        encode = self.tokenizer.backend_tokenizer.encode
        return encode(chat).ids, encode(problem["answer"]).ids

    @staticmethod
    def total_length(used: int, rng: random.Random, long: bool) -> int:
        draw = rng.random() if long else 1.0
        for length, share in LONG_LENGTHS.items():
            if draw < share:
                return length
            draw -= share
        return next((length for length in TIGHT_LENGTHS if length > used), max(LONG_LENGTHS))

    def collate(self, samples: list, length: int, rng: random.Random, late: bool) -> tuple[Tensor, Tensor, Tensor]:
        shares = [share[late] for share in NOISE_SHAPES.values()]
        target = torch.full((len(samples), length), self.eos_id)
        noisy, weight = target.clone(), torch.zeros(len(samples), length)
        for row, (prompt, answer, bare) in enumerate(samples):
            start, end = len(prompt), len(prompt) + len(answer)
            target[row, :end] = torch.tensor(prompt + answer)
            # Spread t evenly over the rows: the same distribution as independent draws, with less variance.
            t = MIN_NOISE + (1 - MIN_NOISE) * (row + rng.random()) / len(samples)
            shape = "results" if bare else rng.choices(list(NOISE_SHAPES), shares)[0]
            result = self.results(target[row], start)
            name = torch.isin(target[row], self.names) & (torch.arange(length) >= start)
            if shape == "names" and not name.any():
                shape = "everywhere"
            first, last = start, length  # the tokens that the loss is over
            if shape == "block":
                first += BLOCK * rng.randrange((end - start) // BLOCK + 1)  # up to the block of the first EOS
                last = min(first + BLOCK, length)
            elif shape == "next":
                behind = result[1:] & (target[row, :-1] == self.equals)
                first = 1 + rng.choice(behind.nonzero().flatten().tolist())
                last, t = min(first + NEXT, length), 1.0
            noise = torch.rand(length, generator=torch.Generator().manual_seed(rng.getrandbits(48)))
            masked = self.tie_results(noise, prompt + answer) < t
            masked[:first], masked[last:] = False, True
            tokens = last - first
            if shape in ("results", "names"):
                only = result if shape == "results" else name
                masked, tokens = masked & only, int(only.sum())
            noisy[row] = torch.where(masked, self.mask_id, target[row])
            weight[row, first:last] = masked[first:last] / (t * tokens)
        return noisy, target, weight

    def results(self, ids: Tensor, start: int) -> Tensor:
        """Which tokens from `start` on are a result or its repetition: bool [T]; they follow = or >>."""
        results, inside = torch.zeros(len(ids), dtype=torch.bool), False
        for place, token in enumerate(ids[start:].tolist(), start):
            inside = token in (self.equals, self.close) or inside and token in self.numbers
            results[place] = inside and token in self.numbers
        return results

    def tie_results(self, noise: Tensor, ids: list[int]) -> Tensor:
        """Give a result that follows `>>` the noise that it has before, in place."""
        for place in (place for place, token in enumerate(ids) if token == self.close):
            start = place
            while ids[start - 1] in self.numbers:
                start -= 1
            size = place - start
            if ids[place + 1 : place + 1 + size] == ids[start:place]:
                noise[place + 1 : place + 1 + size] = noise[start:place]
        return noise


def drill(rng: random.Random, count: int = 16) -> dict:
    """Bare sums, `12+5=17`, in the form of a problem: the numbers and operations that the stories use.

    The question does not name them: `Stream.collate` leaves all but the results in sight.
    """
    sums = []
    for sign in rng.choices("+-*/", (7, 7, 3, 3), k=count):
        small = rng.randint(2, arithmetic.MAX_FACTOR)
        large = rng.randint(2, arithmetic.LIMIT // small)
        total = rng.randint(4, arithmetic.LIMIT)
        part = rng.randint(2, total - 2)
        part = rng.choice((part, total - part)) if sign == "+" else part
        sums.append({
            "+": (f"{part}+{total - part}", total), "-": (f"{total}-{part}", total - part),
            "*": rng.choice([(f"{small}*{large}", small * large), (f"{large}*{small}", small * large)]),
            "/": rng.choice([(f"{small * large}/{small}", large), (f"{small * large}/{large}", small)]),
        }[sign])
    lines = [f"{text}={result}" for text, result in sums]
    return {"question": "What are these sums?", "answer": "\n".join(lines)}
