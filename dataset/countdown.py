"""Generate Countdown puzzles: reach a target with some numbers, each used once, by + - * and exact /.

    python dataset/countdown.py --count 3 --seed 0 --split test

The first line of a solution already depends on the last one, so this is a task in which a model has to plan:

    Make 25 from 3, 4 and 7.

    7*3=21
    21+4=25

A problem has many solutions, and is_right accepts each of them. All results lie in 1..MAX_RESULT, which are single
tokens of the embedded models. Whether a puzzle belongs to the test split or to the train split depends on its target
and its numbers, in whatever order.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

from dataset import printing
from dataset.arithmetic import TEST_SHARE, generator, split_of, take_distinct
from dpad.engine.checks import check_integer

NUMBERS = 3  # how many numbers a puzzle has, unless asked otherwise
MIN_NUMBERS, MAX_NUMBERS = 3, 6
MAX_NUMBER = 20  # the largest of them; the least is 1
MAX_RESULT = 99  # of every step and of the whole
MIN_TARGET = 2

NUMBER = r"([0-9]{1,3})"
LINE = re.compile(rf"{NUMBER} ?([-+*/]) ?{NUMBER} ?= ?{NUMBER}")


def problem(seed: int, index: int, split: str = "train", numbers: int = NUMBERS) -> dict:
    """Puzzle `index` of an endless row: a function of its arguments alone.

    Args:
        numbers: how many numbers it has, MIN_NUMBERS to MAX_NUMBERS.

    Returns:
        `question`, `answer` (both text; the answer is one of the solutions), `numbers` (in the question's order) and
        `target`.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    rng = generator(seed, index, split, "countdown")
    check_integer("numbers", numbers, MIN_NUMBERS, MAX_NUMBERS)
    while True:
        given = [1 + int(MAX_NUMBER * rng.random()) for _ in range(numbers)]
        steps = _combine(rng, given)
        target = int(steps[-1].rpartition("=")[2])
        if target >= MIN_TARGET and split_of(_signature(given, target)) == split:
            break
    listed = ", ".join(map(str, given[:-1]))
    return {"question": f"Make {target} from {listed} and {given[-1]}.", "answer": "\n".join(steps), "numbers": given,
            "target": target}


def _combine(rng: random.Random, numbers: list[int]) -> list[str]:
    """Combine numbers, two at a time, until one is left: the lines of a solution, the larger number first in each."""
    left = list(numbers)
    steps = []
    while len(left) > 1:
        high, low = (left.pop(int(len(left) * rng.random())) for _ in range(2))
        if high < low:
            high, low = low, high
        choices = [  # at least one: of different numbers the difference, of equal ones the quotient
            (sign, result) for sign in "+-*/" if (result := calculate(high, sign, low)) is not None
        ]
        sign, result = choices[int(len(choices) * rng.random())]
        steps.append(f"{high}{sign}{low}={result}")
        left.append(result)
    return steps


def calculate(left: int, sign: str, right: int) -> int | None:
    """The result of a step, or None where the rules forbid it."""
    if sign == "/":
        result = left // right if right and left % right == 0 else 0
    else:
        result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return result if 1 <= result <= MAX_RESULT else None


def _signature(numbers: list[int], target: int) -> str:
    return f"{target}: {' '.join(map(str, sorted(numbers)))}"


def take(count: int, seed: int, split: str = "train", numbers: int = NUMBERS) -> list[dict]:
    """The first `count` puzzles that differ in target or numbers; ValueError as in `problem`, or if there are fewer."""
    stream = (problem(seed, index, split, numbers) for index in itertools.count())
    return take_distinct(count, stream, lambda puzzle: _signature(puzzle["numbers"], puzzle["target"]))


def is_right(problem: dict, answer: str) -> bool:
    """Whether an answer solves a puzzle: one line per step, each a true calculation within the rules whose two numbers
    are there and not yet used, and the last result is the target. Spaces around signs and empty lines do not matter."""
    left = Counter(problem["numbers"])
    result = None
    for line in filter(None, map(str.strip, answer.split("\n"))):
        match = LINE.fullmatch(line)
        if not match:
            return False
        first, second, result = int(match[1]), int(match[3]), int(match[4])
        left.subtract((first, second))
        if min(left.values()) < 0 or calculate(first, match[2], second) != result:
            return False
        left[result] += 1
    return result == problem["target"] and left.total() == 1


def main(arguments: list[str] | None = None) -> None:
    """Write puzzles as JSON lines; the module docstring shows the command."""
    parser = printing.parser_of(
        "countdown.py",
        "Write Countdown puzzles with one solution each",
        "  python dataset/countdown.py --count 3 --numbers 4\n      prints 3 training puzzles of four numbers",
        f"The two share no puzzle, not even with its numbers in another order: one in {TEST_SHARE} belongs to test",
    )
    parser.add_argument("--numbers", type=int, default=NUMBERS,
                        help=f"how many numbers a puzzle has, {MIN_NUMBERS} to {MAX_NUMBERS} (default: {NUMBERS})")
    printing.write_problems(parser, arguments, take, ("question", "answer", "numbers", "target"))


if __name__ == "__main__":
    main()
