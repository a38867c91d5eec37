"""Generate short arithmetic word problems with worked answers in GSM8K's format.

Run it from the repository root:

    python dataset/arithmetic.py --count 50 --seed 0 --split test --output dataset/arithmetic-50.jsonl

Every problem is a small story: an opening that sets an amount, a chain of events that each change the amount by one
or two calculations, and a closing question. The answer has one short sentence per calculation, each with a calculator
annotation such as `3*4=<<3*4=12>>12`, and ends in a line `#### 12`. The stories are plain enough to be learned by a
model of a few million parameters, and no number in them ever exceeds LIMIT.

A problem belongs to the test split or to the train split by its content (its story and its numbers, whatever the names
and the things are), so a training problem never repeats a test problem under other names.
"""

import argparse
import json
import os
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Difficulty. Every number in a problem, intermediate and final results included, lies in LEAST..LIMIT.
LIMIT = 99
LEAST = 2  # not 1, so that a plural word is right behind every number
MAX_FACTOR = 9  # one factor of every product is at most this
MAX_GROUPS = 12  # how many groups a story splits or builds
MAX_GROUP_SIZE = 24  # how many things a story puts into one group
START_MAX = 70  # largest amount that a story starts from
SKEW = 1.4  # draws are low + span * u**SKEW: above 1 prefers smaller numbers

STEP_COUNTS = (1, 2, 3, 4)
STEP_WEIGHTS = (20, 30, 30, 20)  # percent of the problems with 1, 2, 3 and 4 steps

SPLITS = ("train", "test")
TEST_SHARE = 20  # one signature in so many belongs to the test split

GIRLS = (
    "Mia", "Anna", "Emma", "Lucy", "Sara", "Nina", "Lily", "Ella", "Kate", "Rosa",
    "Zoe", "Ruth", "Maya", "Clara", "Alice", "Julia", "Nora", "Ida", "Eva", "Grace",
)
BOYS = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Paul", "Adam", "Noah", "Luke",
    "Omar", "Finn", "Carl", "Eric", "Hugo", "Ivan", "Dan", "Peter", "Mark", "Oscar",
)


# --- Numbers: each kind of sentence draws its numbers and says how the running amount changes ---------------------


class Move(NamedTuple):
    """The numbers one sentence names, its calculations (left, sign, right, result) and the new running amount."""

    numbers: tuple[int, ...]
    calculations: tuple[tuple[int, str, int, int], ...]
    amount: int


class Misfit(Exception):
    """The running amount leaves no allowed numbers for a sentence; the draft is thrown away."""


DIVISORS = {
    amount: [k for k in range(2, MAX_GROUPS + 1) if amount % k == 0 and amount // k >= LEAST]
    for amount in range(LIMIT + 1)
}


def _draw(rng: random.Random, low: int, high: int) -> int:
    """An integer in low..high, smaller ones more often."""
    if high < low:
        raise Misfit
    return low + int((high - low + 1) * rng.random() ** SKEW)


def _groups(rng: random.Random, most: int = LIMIT) -> tuple[int, int]:
    """A number of groups and a group size with a product of at most `most`."""
    if rng.random() < 0.8:
        groups = _draw(rng, 2, min(MAX_FACTOR, most // 2))
        return groups, _draw(rng, 2, min(MAX_GROUP_SIZE, most // groups))
    size = _draw(rng, 2, min(MAX_FACTOR, most // 2))
    return _draw(rng, 2, min(MAX_GROUPS, most // size)), size


def _divisor(rng: random.Random, amount: int) -> int:
    choices = DIVISORS[amount]
    if not choices:
        raise Misfit
    return choices[int(len(choices) * rng.random())]


def _add(left: int, right: int) -> tuple[int, str, int, int]:
    if left + right > LIMIT:
        raise Misfit
    return left, "+", right, left + right


def _subtract(left: int, right: int) -> tuple[int, str, int, int]:
    if left - right < LEAST:
        raise Misfit
    return left, "-", right, left - right


def _multiply(left: int, right: int) -> tuple[int, str, int, int]:
    if left * right > LIMIT:
        raise Misfit
    return left, "*", right, left * right


def _divide(left: int, right: int) -> tuple[int, str, int, int]:
    if left % right or left // right < LEAST:
        raise Misfit
    return left, "/", right, left // right


def _one(numbers: tuple[int, ...], calculation: tuple[int, str, int, int]) -> Move:
    return Move(numbers, (calculation,), calculation[3])


def _two(numbers: tuple[int, ...], first: tuple[int, str, int, int], second: tuple[int, str, int, int]) -> Move:
    return Move(numbers, (first, second), second[3])


# Every function below takes the random numbers and the running amount, and returns a Move or raises Misfit.
# First the kinds of sentences that open a story. They ignore the running amount, which is not there yet.


def start_count(rng, amount):
    start = _draw(rng, 5, START_MAX)
    return Move((start,), (), start)


def start_groups(rng, amount):
    many, size = _groups(rng)
    return _one((many, size), _multiply(many, size))


def start_sum(rng, amount):
    left = _draw(rng, 3, 60)
    right = _draw(rng, 3, min(60, LIMIT - left))
    return _one((left, right), _add(left, right))


def groups_and_more(rng, amount):
    many, size = _groups(rng, 80)
    more = _draw(rng, 2, min(40, LIMIT - many * size))
    return _two((many, size, more), _multiply(many, size), _add(many * size, more))


def two_groups(rng, amount):
    many, size = _groups(rng, 60)
    others, other_size = _groups(rng, min(60, LIMIT - many * size))
    first, second = _multiply(many, size), _multiply(others, other_size)
    last = _add(first[3], second[3])
    return Move((many, size, others, other_size), (first, second, last), last[3])


def start_more(rng, amount):
    start = _draw(rng, 3, 60)
    more = _draw(rng, 2, min(40, LIMIT - start))
    return _one((start, more), _add(start, more))


def start_fewer(rng, amount):
    start = _draw(rng, 6, LIMIT)
    fewer = _draw(rng, 2, start - LEAST)
    return _one((start, fewer), _subtract(start, fewer))


def start_times(rng, amount):
    factor = _draw(rng, 2, MAX_FACTOR)
    start = _draw(rng, 2, min(30, LIMIT // factor))
    return _one((start, factor), _multiply(start, factor))


def start_half(rng, amount):
    start = 2 * _draw(rng, 2, LIMIT // 2)
    return _one((start,), _divide(start, 2))


def start_split(rng, amount):
    parts = _draw(rng, 2, MAX_FACTOR)
    start = parts * _draw(rng, 2, LIMIT // parts)
    return _one((start, parts), _divide(start, parts))


def sum_more(rng, amount):
    start = _draw(rng, 3, 45)
    more = _draw(rng, 2, min(40, LIMIT - 2 * start))
    return _two((start, more), _add(start, more), _add(start, start + more))


def sum_fewer(rng, amount):
    start = _draw(rng, 5, 50)
    fewer = _draw(rng, 2, start - LEAST)
    return _two((start, fewer), _subtract(start, fewer), _add(start, start - fewer))


def sum_twice(rng, amount):
    start = _draw(rng, 2, LIMIT // 3)
    return _two((start,), _multiply(start, 2), _add(start, start * 2))


def sum_times(rng, amount):
    factor = _draw(rng, 3, MAX_FACTOR - 1)
    start = _draw(rng, 2, LIMIT // (factor + 1))
    return _two((start, factor), _multiply(start, factor), _add(start, start * factor))


def sum_half(rng, amount):
    start = 2 * _draw(rng, 2, LIMIT // 3)
    return _two((start,), _divide(start, 2), _add(start, start // 2))


# The kinds of sentences that change the running amount, or ask for something that follows from it.


def gain(rng, amount):
    more = _draw(rng, 2, min(60, LIMIT - amount))
    return _one((more,), _add(amount, more))


def lose(rng, amount):
    fewer = _draw(rng, 2, amount - LEAST)
    return _one((fewer,), _subtract(amount, fewer))


def gain_groups(rng, amount):
    many, size = _groups(rng, min(60, LIMIT - amount))
    return _two((many, size), _multiply(many, size), _add(amount, many * size))


def lose_groups(rng, amount):
    many, size = _groups(rng, amount - LEAST)
    return _two((many, size), _multiply(many, size), _subtract(amount, many * size))


def twice(rng, amount):
    return _one((), _multiply(amount, 2))


def thrice(rng, amount):
    return _one((), _multiply(amount, 3))


def half(rng, amount):
    return _one((), _divide(amount, 2))


def times(rng, amount):
    factor = _draw(rng, 2, min(MAX_FACTOR, LIMIT // amount))
    return _one((factor,), _multiply(amount, factor))


def share(rng, amount):
    parts = _divisor(rng, amount)
    return _one((parts,), _divide(amount, parts))


def goal(rng, amount):
    aim = _draw(rng, amount + LEAST, LIMIT)
    return _one((aim,), _subtract(aim, amount))


def more_both(rng, amount):
    more = _draw(rng, 2, min(40, LIMIT - 2 * amount))
    return _two((more,), _add(amount, more), _add(amount, amount + more))


def fewer_both(rng, amount):
    fewer = _draw(rng, 2, amount - LEAST)
    return _two((fewer,), _subtract(amount, fewer), _add(amount, amount - fewer))


def twice_both(rng, amount):
    return _two((), _multiply(amount, 2), _add(amount, amount * 2))


def times_both(rng, amount):
    factor = _draw(rng, 3, min(MAX_FACTOR - 1, LIMIT // amount - 1))
    return _two((factor,), _multiply(amount, factor), _add(amount, amount * factor))


def half_both(rng, amount):
    return _two((), _divide(amount, 2), _add(amount, amount // 2))


def ask(rng, amount):
    """A bare question after at least one event."""
    return Move((), (), amount)


def ask_start(rng, amount):
    """A bare question right after the opening, where words such as "now" would sound odd."""
    return Move((), (), amount)


# --- Words: the settings and their sentences ---------------------------------------------------------------------


class Sentence(NamedTuple):
    """One template: question text ({0}, {1} are its numbers) and one answer text per calculation ({0}, {1})."""

    name: str
    kind: Callable[[random.Random, int], Move]
    question: str
    answers: tuple[str, ...]


class Plan(NamedTuple):
    """An opening and a closing sentence of one setting, and the steps that events between them have to fill."""

    opening: Sentence
    closing: Sentence
    between: int


class Setting(NamedTuple):
    """A story world: choices for its words, its events by number of steps, its plans by number of steps in all."""

    words: tuple[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], ...]
    events: dict[int, tuple[Sentence, ...]]
    plans: dict[int, tuple[Plan, ...]]


# In the texts, {N} is the person the story is about. {F} and {G} are two others of the other sex, so that a pronoun
# ({He}, {he}, {his}, {His}, {him}) can only mean {N}; {sib} and {aunt} are relatives of the other sex as well.
# The remaining names in braces are the words of the setting: "bag/bags" fills {bag} and {bags} from one choice.

WORLDS = {
    "collecting": {
        "words": {
            "t": "marbles stamps coins cards stickers shells buttons beads pencils crayons",
            "bag/bags": "bag/bags box/boxes pack/packs",
            "jar/jars": "jar/jars drawer/drawers tin/tins",
        },
        "openings": [
            (start_count, "{N} has {0} {t}."),
            (start_groups, "{N} has {0} {bags} with {1} {t} in each {bag}.", "{N} has {0} {t}."),
            (start_sum, "{N} has {0} old {t} and {1} new {t}.", "{N} has {0} {t}."),
            (start_times, "{G} has {0} {t}. {N} has {1} times as many {t} as {G}.", "{N} has {0} {t}."),
            (start_more, "{G} has {0} {t}. {N} has {1} more {t} than {G}.", "{N} has {0} {t}."),
            (start_fewer, "{G} has {0} {t}. {N} has {1} fewer {t} than {G}.", "{N} has {0} {t}."),
            (start_half, "{G} has {0} {t}. {N} has half as many {t} as {G}.", "{N} has {0} {t}."),
        ],
        "events": [
            (gain, "{He} finds {0} more {t}.", "Now {N} has {0} {t}."),
            (gain, "{His} {sib} gives {him} {0} more {t}.", "Now {N} has {0} {t}."),
            (lose, "{He} loses {0} {t}.", "Then {N} has {0} {t} left."),
            (lose, "{He} gives {0} {t} to {his} {sib}.", "Then {N} has {0} {t} left."),
            (gain_groups, "{He} buys {0} {bags} with {1} {t} each.", "The new {bags} hold {0} {t}.",
             "Now {N} has {1} {t}."),
            (lose_groups, "{He} gives {0} friends {1} {t} each.", "The friends get {0} {t}.",
             "Then {N} has {1} {t} left."),
            (twice, "A month later {N} has twice as many {t}.", "A month later {N} has {0} {t}."),
            (thrice, "A year later {N} has three times as many {t}.", "A year later {N} has {0} {t}."),
            (half, "{He} sells half of {his} {t}.", "Then {N} has {0} {t} left."),
            (share, "{He} puts {his} {t} into {0} equal piles and keeps only one pile.", "One pile has {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} have?"),
            (share, "{He} puts all {his} {t} equally into {0} {jars}. How many {t} are in each {jar}?",
             "Each {jar} has {0} {t}."),
            (share, "{He} puts {0} {t} into each {jar}. How many {jars} does {he} need for all {his} {t}?",
             "{N} needs {0} {jars}."),
            (gain, "{F} has {0} more {t} than {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (lose, "{F} has {0} fewer {t} than {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (twice, "{F} has twice as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (half, "{F} has half as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (gain, "{F} has {0} {t}. How many {t} do {N} and {F} have together?", "Together they have {0} {t}."),
            (lose, "{F} has {0} {t}. How many more {t} does {N} have than {F}?", "{N} has {0} more {t}."),
            (goal, "{He} wants to have {0} {t}. How many more {t} does {he} need?", "{N} needs {0} more {t}."),
            (more_both, "{F} has {0} more {t} than {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
            (fewer_both, "{F} has {0} fewer {t} than {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
            (twice_both, "{F} has twice as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
            (times_both, "{F} has {0} times as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
        ],
    },
    "sweets": {
        "words": {"t": "candies cookies nuts sweets", "bag/bags": "bag/bags box/boxes"},
        "openings": [
            (start_count, "{N} gets {0} {t} at a party."),
            (start_groups, "{N} gets {0} {bags} with {1} {t} in each {bag}.", "{N} gets {0} {t}."),
            (start_sum, "{N} gets {0} {t} from {G} and {1} {t} from {his} {aunt}.", "{N} gets {0} {t}."),
            (start_split, "{G} shares {0} {t} equally among {1} children. {N} is one of the children.",
             "{N} gets {0} {t}."),
        ],
        "events": [
            (lose, "{He} eats {0} {t}.", "Then {N} has {0} {t} left."),
            (lose, "{He} drops {0} {t} in the mud and throws them away.", "Then {N} has {0} {t} left."),
            (gain, "{His} {aunt} gives {him} {0} more {t}.", "Now {N} has {0} {t}."),
            (gain_groups, "{His} {aunt} gives {him} {0} {bags} with {1} {t} each.", "The {aunt} gives {him} {0} {t}.",
             "Now {N} has {1} {t}."),
            (lose_groups, "For {0} days {he} eats {1} {t} a day.", "On these days {N} eats {0} {t}.",
             "Then {N} has {1} {t} left."),
            (lose_groups, "{He} gives {0} friends {1} {t} each.", "The friends get {0} {t}.",
             "Then {N} has {1} {t} left."),
            (half, "{He} gives half of {his} {t} to {his} {sib}.", "Then {N} has {0} {t} left."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} get?"),
            (share, "{He} shares all {his} {t} equally among {0} friends. How many {t} does each friend get?",
             "Each friend gets {0} {t}."),
            (share, "{He} eats {0} {t} a day. After how many days are all {his} {t} gone?",
             "The {t} are gone after {0} days."),
            (times, "{F} has {0} times as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (half, "{F} has half as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (twice_both, "{F} has twice as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
            (half_both, "{F} has half as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
        ],
    },
    "eggs": {
        "words": {},
        "openings": [
            (start_count, "{N} collects {0} eggs on the farm."),
            (start_groups, "{N} has {0} hens. Each hen lays {1} eggs.", "The hens lay {0} eggs."),
            (start_sum, "{N} collects {0} eggs in the morning and {1} eggs in the evening.", "{N} collects {0} eggs."),
            (sum_twice, "{N} collects {0} eggs on Monday and twice as many eggs on Tuesday.",
             "On Tuesday {N} collects {0} eggs.", "{N} collects {1} eggs on both days."),
        ],
        "events": [
            (gain, "{He} finds {0} more eggs in the barn.", "Now {N} has {0} eggs."),
            (lose, "{He} breaks {0} eggs.", "Then {N} has {0} eggs left."),
            (lose, "{He} uses {0} eggs for a cake.", "Then {N} has {0} eggs left."),
            (gain_groups, "{His} {0} ducks lay {1} eggs each.", "The ducks lay {0} eggs.",
             "Now {N} has {1} eggs."),
            (lose_groups, "{He} sells {0} boxes with {1} eggs each.", "The boxes hold {0} eggs.",
             "Then {N} has {1} eggs left."),
            (half, "{He} sells half of {his} eggs.", "Then {N} has {0} eggs left."),
        ],
        "closings": [
            (ask, "How many eggs does {N} have now?"),
            (ask_start, "How many eggs does {N} have?"),
            (share, "{He} puts {0} eggs into each basket. How many baskets does {he} need for all {his} eggs?",
             "{N} needs {0} baskets."),
            (share, "{He} puts all {his} eggs equally into {0} baskets. How many eggs are in each basket?",
             "Each basket has {0} eggs."),
            (times, "{He} sells all {his} eggs for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
        ],
    },
    "animals": {
        "words": {"c/d": "cows/goats sheep/pigs hens/ducks horses/cows goats/sheep ducks/hens pigs/horses"},
        "openings": [
            (start_count, "There are {0} animals on a farm."),
            (start_sum, "A farmer has {0} {c} and {1} {d}.", "The farmer has {0} animals."),
            (sum_twice, "A farmer has {0} {c} and twice as many {d}.", "There are {0} {d}.",
             "The farmer has {1} animals."),
            (sum_times, "A farmer has {0} {c} and {1} times as many {d}.", "There are {0} {d}.",
             "The farmer has {1} animals."),
            (sum_more, "A farmer has {0} {c}. There are {1} more {d} than {c}.", "There are {0} {d}.",
             "The farmer has {1} animals."),
            (sum_fewer, "A farmer has {0} {c}. There are {1} fewer {d} than {c}.", "There are {0} {d}.",
             "The farmer has {1} animals."),
            (sum_half, "A farmer has {0} {c} and half as many {d}.", "There are {0} {d}.",
             "The farmer has {1} animals."),
        ],
        "events": [
            (gain, "The farmer buys {0} more animals.", "Now the farmer has {0} animals."),
            (lose, "The farmer sells {0} animals.", "Then the farmer has {0} animals left."),
            (half, "Half of the animals go to another farm.", "Then the farmer has {0} animals left."),
            (gain_groups, "Then {0} trucks bring {1} more animals each.", "The trucks bring {0} animals.",
             "Now the farmer has {1} animals."),
            (lose_groups, "Then {0} people buy {1} animals each.", "The people buy {0} animals.",
             "Then the farmer has {1} animals left."),
        ],
        "closings": [
            (ask, "How many animals are on the farm now?"),
            (ask_start, "How many animals are on the farm?"),
            (share, ("All the animals go into {0} barns, with the same number in each barn."
                     " How many animals are in each barn?"), "Each barn has {0} animals."),
            (times, "Each animal eats {0} pounds of food a day. How many pounds of food do all the animals eat a day?",
             "The animals eat {0} pounds a day."),
        ],
    },
    "library": {
        "words": {},
        "openings": [
            (start_count, "A small library has {0} books."),
            (start_groups, "A small library has {0} shelves with {1} books on each shelf.",
             "The shelves hold {0} books."),
            (start_sum, "A small library has {0} old books and {1} new books.", "The library has {0} books."),
            (groups_and_more, "A small library has {0} shelves with {1} books each and {2} books on a table.",
             "The shelves hold {0} books.", "The library has {1} books."),
        ],
        "events": [
            (gain, "The library buys {0} more books.", "Now the library has {0} books."),
            (gain, "People bring back {0} books.", "Now the library has {0} books."),
            (lose, "People take {0} books home.", "Then the library has {0} books left."),
            (lose_groups, "Then {0} people borrow {1} books each.", "The people borrow {0} books.",
             "Then the library has {1} books left."),
            (gain_groups, "Then {0} boxes with {1} books each arrive.", "The boxes hold {0} books.",
             "Now the library has {1} books."),
            (half, "Half of the books go to a school.", "Then the library has {0} books left."),
        ],
        "closings": [
            (ask, "How many books does the library have now?"),
            (ask_start, "How many books does the library have?"),
            (share, "All the books are put equally on {0} new shelves. How many books are on each new shelf?",
             "Each new shelf has {0} books."),
            (share, "A new shelf holds {0} books. How many new shelves do all the books need?",
             "The books need {0} new shelves."),
            (twice, "The town library has twice as many books. How many books does the town library have?",
             "The town library has {0} books."),
            (more_both, ("The town library has {0} more books than the small library."
                     " How many books do both have together?"), "The town library has {0} books.",
             "Together they have {1} books."),
        ],
    },
    "bakery": {
        "words": {"t": "muffins rolls pies cakes buns"},
        "openings": [
            (start_count, "{N} bakes {0} {t}."),
            (start_groups, "{N} bakes {0} trays with {1} {t} on each tray.", "{N} bakes {0} {t}."),
            (start_sum, "{N} bakes {0} large {t} and {1} small {t}.", "{N} bakes {0} {t}."),
            (sum_half, "{N} bakes {0} large {t} and half as many small {t}.", "{N} bakes {0} small {t}.",
             "{N} bakes {1} {t} in all."),
            (sum_more, "{N} bakes {0} large {t} and {1} more small {t} than large {t}.", "{N} bakes {0} small {t}.",
             "{N} bakes {1} {t} in all."),
        ],
        "events": [
            (gain, "{He} bakes {0} more {t}.", "Now {N} has {0} {t}."),
            (lose, "{He} sells {0} {t} in the morning.", "Then {N} has {0} {t} left."),
            (lose, "{He} burns {0} {t} and throws them away.", "Then {N} has {0} {t} left."),
            (lose_groups, "Then {0} people buy {1} {t} each.", "The people buy {0} {t}.",
             "Then {N} has {1} {t} left."),
            (gain_groups, "{He} bakes {0} more trays with {1} {t} each.", "The new trays hold {0} {t}.",
             "Now {N} has {1} {t}."),
            (half, "{He} sells half of {his} {t}.", "Then {N} has {0} {t} left."),
            (twice, "{He} bakes until {he} has twice as many {t}.", "Now {N} has {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} bake?"),
            (times, "{He} sells all {his} {t} for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
            (share, "{He} puts {0} {t} into each box. How many boxes does {he} need for all {his} {t}?",
             "{N} needs {0} boxes."),
            (share, "{He} puts all {his} {t} equally on {0} plates. How many {t} are on each plate?",
             "Each plate has {0} {t}."),
        ],
    },
    "bus": {
        "words": {"v/vs": "bus/buses train/trains boat/boats"},
        "openings": [
            (start_count, "There are {0} people on a {v}."),
            (start_sum, "There are {0} children and {1} parents on a {v}.", "There are {0} people on the {v}."),
            (start_groups, "A {v} has {0} rows. There are {1} people in each row.", "There are {0} people on the {v}."),
            (sum_times, "There are {0} parents on a {v} and {1} times as many children.", "There are {0} children.",
             "There are {1} people on the {v}."),
        ],
        "events": [
            (gain, "At the next stop {0} people get on.", "Now there are {0} people on the {v}."),
            (lose, "At the next stop {0} people get off.", "Then there are {0} people on the {v}."),
            (half, "At the park half of the people get off.", "Then there are {0} people on the {v}."),
            (gain_groups, "At the school {0} groups of {1} people get on.", "At the school {0} people get on.",
             "Now there are {1} people on the {v}."),
            (lose_groups, "At the market {0} groups of {1} people get off.", "At the market {0} people get off.",
             "Then there are {1} people on the {v}."),
            (twice, "At the bridge so many people get on that there are twice as many people on the {v}.",
             "Now there are {0} people on the {v}."),
        ],
        "closings": [
            (ask, "How many people are on the {v} now?"),
            (ask_start, "How many people are on the {v}?"),
            (times, "Each person on the {v} pays {0} dollars. How many dollars do they pay in all?",
             "They pay {0} dollars."),
            (goal, "Then more people get on until there are {0} people on the {v}. How many more people get on?",
             "Then {0} more people get on."),
            (gain, ("A second {v} has {0} more people than the first {v} has now."
                    " How many people are on the second {v}?"),
             "The second {v} has {0} people."),
            (fewer_both, ("A second {v} has {0} fewer people than the first {v} has now."
                          " How many people are on both {vs}?"),
             "The second {v} has {0} people.", "Both {vs} have {1} people."),
        ],
    },
    "savings": {
        "words": {"x/xs": "book/books ball/balls game/games hat/hats toy/toys", "y": "bike tent coat lamp clock"},
        "openings": [
            (start_count, "{N} has {0} dollars."),
            (start_groups, "For {0} weeks {N} saves {1} dollars a week.", "{N} saves {0} dollars."),
            (start_groups, "{N} works {0} hours and earns {1} dollars an hour.", "{N} earns {0} dollars."),
            (start_sum, "{N} gets {0} dollars from {G} and {1} dollars from {his} {aunt}.", "{N} gets {0} dollars."),
            (start_times, "{G} saves {0} dollars. {N} saves {1} times as many dollars as {G}.",
             "{N} saves {0} dollars."),
            (sum_twice, "{N} saves {0} dollars in May and twice as many dollars in June.",
             "In June {N} saves {0} dollars.", "{N} saves {1} dollars in both months."),
        ],
        "events": [
            (gain, "{He} earns {0} more dollars.", "Now {N} has {0} dollars."),
            (gain, "{His} {aunt} gives {him} {0} more dollars.", "Now {N} has {0} dollars."),
            (lose, "{He} spends {0} dollars on a {x}.", "Then {N} has {0} dollars left."),
            (lose_groups, "{He} buys {0} {xs} for {1} dollars each.", "The {xs} cost {0} dollars.",
             "Then {N} has {1} dollars left."),
            (gain_groups, "{He} washes {0} cars for {1} dollars each.", "For the cars {N} gets {0} dollars.",
             "Now {N} has {1} dollars."),
            (half, "{He} gives half of {his} money to {his} {sib}.", "Then {N} has {0} dollars left."),
            (twice, "{His} {aunt} doubles {his} money.", "Now {N} has {0} dollars."),
        ],
        "closings": [
            (ask, "How many dollars does {N} have now?"),
            (ask_start, "How many dollars does {N} have?"),
            (goal, "{He} wants to buy a {y} for {0} dollars. How many more dollars does {he} need?",
             "{N} needs {0} more dollars."),
            (share, "A ticket costs {0} dollars. How many tickets can {he} buy with all {his} money?",
             "{N} can buy {0} tickets."),
            (share, "{He} shares all {his} money equally among {0} friends. How many dollars does each friend get?",
             "Each friend gets {0} dollars."),
            (lose, "{He} buys a {y} for {0} dollars. How many dollars does {he} have left?",
             "{N} has {0} dollars left."),
            (more_both, "{F} has {0} more dollars than {N}. How many dollars do {N} and {F} have together?",
             "{F} has {0} dollars.", "Together they have {1} dollars."),
        ],
    },
    "shopping": {
        "words": {
            "x": "pens cups plates bowls",
            "y": "shirts towels brushes baskets",
            "z": "lamp coat clock chair",
            "w": "hat book ball kite",
        },
        "openings": [
            (start_count, "{N} buys a {z} for {0} dollars."),
            (start_groups, "{N} buys {0} {x} for {1} dollars each.", "The {x} cost {0} dollars."),
            (start_sum, "{N} buys a {z} for {0} dollars and a bag for {1} dollars.", "{N} pays {0} dollars for both."),
            (groups_and_more, "{N} buys {0} {x} for {1} dollars each and a {z} for {2} dollars.",
             "The {x} cost {0} dollars.", "With the {z} that is {1} dollars."),
            (two_groups, "{N} buys {0} {x} for {1} dollars each and {2} spoons for {3} dollars each.",
             "The {x} cost {0} dollars.", "The spoons cost {1} dollars.", "Together they cost {2} dollars."),
        ],
        "events": [
            (gain, "{He} also buys a {w} for {0} dollars.", "With the {w} that is {0} dollars."),
            (gain, "Then {he} finds a cake for {0} dollars and buys it.", "With the cake that is {0} dollars."),
            (gain_groups, "{He} also buys {0} {y} for {1} dollars each.", "The {y} cost {0} dollars.",
             "With the {y} that is {1} dollars."),
        ],
        "closings": [
            (ask, "How many dollars does {he} pay in all?"),
            (ask_start, "How many dollars does {he} pay?"),
            (goal, "{He} gives the seller {0} dollars. How many dollars does {he} get back?",
             "{N} gets {0} dollars back."),
            (half, "Today {he} only pays half of the price. How many dollars does {he} pay?",
             "Today {N} pays {0} dollars."),
            (lose, "Today {he} pays {0} dollars less for everything. How many dollars does {he} pay?",
             "Today {N} pays {0} dollars."),
            (share, "The cost is shared equally by {0} friends. How many dollars does each friend pay?",
             "Each friend pays {0} dollars."),
        ],
    },
    "garden": {
        "words": {"t": "tulips roses flowers daisies lilies"},
        "openings": [
            (start_count, "{N} has {0} {t} in {his} garden."),
            (start_groups, "{N} plants {0} rows with {1} {t} in each row.", "{N} plants {0} {t}."),
            (start_sum, "{N} plants {0} red {t} and {1} white {t}.", "{N} plants {0} {t}."),
            (sum_twice, "{N} plants {0} red {t} and twice as many white {t}.", "{N} plants {0} white {t}.",
             "{N} plants {1} {t} in all."),
            (sum_fewer, "{N} plants {0} red {t} and {1} fewer white {t} than red {t}.", "{N} plants {0} white {t}.",
             "{N} plants {1} {t} in all."),
        ],
        "events": [
            (gain, "{He} plants {0} more {t}.", "Now the garden has {0} {t}."),
            (lose, "A storm breaks {0} {t}.", "Then the garden has {0} {t} left."),
            (lose, "Rabbits eat {0} {t}.", "Then the garden has {0} {t} left."),
            (gain_groups, "{He} plants {0} more rows with {1} {t} each.", "The new rows have {0} {t}.",
             "Now the garden has {1} {t}."),
            (lose_groups, "{He} picks {1} {t} for each of {0} friends.", "{N} picks {0} {t}.",
             "Then the garden has {1} {t} left."),
            (half, "Half of the {t} dry out in the sun and {he} throws them away.",
             "Then the garden has {0} {t} left."),
        ],
        "closings": [
            (ask, "How many {t} are in the garden now?"),
            (ask_start, "How many {t} are in the garden?"),
            (share, "{He} picks all the {t} and puts them equally into {0} vases. How many {t} are in each vase?",
             "Each vase has {0} {t}."),
            (share, "{He} picks all the {t} and puts {0} {t} into each vase. How many vases does {he} need?",
             "{N} needs {0} vases."),
            (times, "Each plant needs {0} cups of water. How many cups of water do all the {t} need?",
             "The {t} need {0} cups of water."),
        ],
    },
    "school": {
        "words": {"p": "pencils books pens crayons", "team/teams": "team/teams group/groups"},
        "openings": [
            (start_count, "There are {0} students in a school."),
            (start_groups, "A school has {0} rooms with {1} students in each room.", "There are {0} students."),
            (start_sum, "There are {0} girls and {1} boys in a school.", "There are {0} students."),
            (sum_more, "There are {0} girls in a school. There are {1} more boys than girls.", "There are {0} boys.",
             "There are {1} students."),
            (sum_fewer, "There are {0} girls in a school. There are {1} fewer boys than girls.", "There are {0} boys.",
             "There are {1} students."),
        ],
        "events": [
            (gain, "Then {0} new students come.", "Now there are {0} students."),
            (lose, "Then {0} students go home.", "Then there are {0} students left."),
            (half, "Half of the students go to the park.", "Then there are {0} students left."),
            (gain_groups, "Then {0} buses bring {1} more students each.", "The buses bring {0} students.",
             "Now there are {1} students."),
            (lose_groups, "Then {0} cars take {1} students home each.", "The cars take {0} students.",
             "Then there are {1} students left."),
        ],
        "closings": [
            (ask, "How many students are in the school now?"),
            (ask_start, "How many students are in the school?"),
            (share, ("The teacher makes {0} equal {teams} from all the students there."
                     " How many students are in each {team}?"),
             "Each {team} has {0} students."),
            (share, "The teacher puts {0} students into each {team}. How many {teams} are there?",
             "There are {0} {teams}."),
            (times, "Each student gets {0} {p}. How many {p} do all the students get?",
             "The students get {0} {p}."),
        ],
    },
    "reading": {
        "words": {},
        "openings": [
            (start_count, "{N} reads {0} pages of a book."),
            (start_sum, "{N} reads {0} pages of a book on Monday and {1} pages on Tuesday.",
             "On both days {N} reads {0} pages."),
            (start_groups, "{N} has a new book. For {0} days {he} reads {1} pages a day.", "{N} reads {0} pages."),
            (sum_twice, "{N} reads {0} pages of a book on Monday and twice as many pages on Tuesday.",
             "On Tuesday {N} reads {0} pages.", "On both days {N} reads {1} pages."),
            (sum_more, "{N} reads {0} pages of a book on Monday. On Tuesday {he} reads {1} more pages than on Monday.",
             "On Tuesday {N} reads {0} pages.", "On both days {N} reads {1} pages."),
            (sum_half, "{N} reads {0} pages of a book on Monday and half as many pages on Tuesday.",
             "On Tuesday {N} reads {0} pages.", "On both days {N} reads {1} pages."),
        ],
        "events": [
            (gain, "The next day {he} reads {0} more pages.", "So far {N} has read {0} pages."),
            (gain, "In the evening {he} reads {0} more pages.", "So far {N} has read {0} pages."),
            (gain_groups, "Then {he} reads {1} pages a day for {0} days.", "On these days {N} reads {0} pages.",
             "So far {N} has read {1} pages."),
        ],
        "closings": [
            (ask, "How many pages has {N} read now?"),
            (ask_start, "How many pages has {N} read?"),
            (goal, "The book has {0} pages. How many pages does {he} still have to read?",
             "{N} still has to read {0} pages."),
            (share, ("{F} reads just as many pages in {0} days, with the same number of pages each day."
                     " How many pages does {F} read each day?"), "Each day {F} reads {0} pages."),
            (half, "{F} reads half as many pages as {N}. How many pages does {F} read?", "{F} reads {0} pages."),
            (lose, "{F} reads {0} fewer pages than {N}. How many pages does {F} read?", "{F} reads {0} pages."),
            (twice_both, "{F} reads twice as many pages as {N}. How many pages do {N} and {F} read together?",
             "{F} reads {0} pages.", "Together they read {1} pages."),
        ],
    },
    "running": {
        "words": {"run/runs": "run/runs walk/walks ride/rides", "mile/miles": "mile/miles lap/laps"},
        "openings": [
            (start_count, "{N} {runs} {0} {miles} in the first week."),
            (start_groups, "For {0} days {N} {runs} {1} {miles} a day.", "{N} {runs} {0} {miles}."),
            (start_sum, "{N} {runs} {0} {miles} on Monday and {1} {miles} on Tuesday.",
             "On both days {N} {runs} {0} {miles}."),
            (sum_times, "{N} {runs} {0} {miles} on Monday and {1} times as many {miles} on Tuesday.",
             "On Tuesday {N} {runs} {0} {miles}.", "On both days {N} {runs} {1} {miles}."),
            (sum_fewer, "{N} {runs} {0} {miles} on Monday and {1} fewer {miles} on Tuesday.",
             "On Tuesday {N} {runs} {0} {miles}.", "On both days {N} {runs} {1} {miles}."),
        ],
        "events": [
            (gain, "Then {he} {runs} {0} more {miles}.", "That makes {0} {miles}."),
            (gain, "The next day {he} {runs} {0} more {miles}.", "That makes {0} {miles}."),
            (gain_groups, "Then {he} {runs} {1} {miles} a day for {0} days.", "On these days {N} {runs} {0} {miles}.",
             "That makes {1} {miles}."),
        ],
        "closings": [
            (ask, "How many {miles} does {N} {run} in all?"),
            (ask_start, "How many {miles} does {N} {run} in all?"),
            (goal, "{He} wants to {run} {0} {miles} in all. How many more {miles} does {he} have to {run}?",
             "{N} has to {run} {0} more {miles}."),
            (share, ("{F} {runs} just as many {miles} in {0} days, with the same number of {miles} each day."
                     " How many {miles} does {F} {run} each day?"), "Each day {F} {runs} {0} {miles}."),
            (times, "{F} {runs} {0} times as many {miles} as {N}. How many {miles} does {F} {run}?",
             "{F} {runs} {0} {miles}."),
            (half, "{F} {runs} half as many {miles} as {N}. How many {miles} does {F} {run}?",
             "{F} {runs} {0} {miles}."),
            (more_both, "{F} {runs} {0} more {miles} than {N}. How many {miles} do {N} and {F} {run} together?",
             "{F} {runs} {0} {miles}.", "Together they {run} {1} {miles}."),
        ],
    },
    "building": {
        "words": {"t": "bricks blocks stones", "w": "wall tower house bridge"},
        "openings": [
            (start_count, "{N} builds a {w} with {0} {t}."),
            (start_groups, "{N} builds a {w} with {0} rows of {1} {t} each.", "The {w} has {0} {t}."),
            (start_sum, "{N} builds a {w} with {0} red {t} and {1} white {t}.", "The {w} has {0} {t}."),
        ],
        "events": [
            (gain, "{He} adds {0} more {t}.", "Now the {w} has {0} {t}."),
            (lose, "{He} takes {0} {t} away.", "Then the {w} has {0} {t} left."),
            (lose, "In a storm {0} {t} fall off.", "Then the {w} has {0} {t} left."),
            (gain_groups, "{He} adds {0} more rows of {1} {t} each.", "The new rows have {0} {t}.",
             "Now the {w} has {1} {t}."),
            (lose_groups, "{He} takes away {0} rows of {1} {t} each.", "These rows have {0} {t}.",
             "Then the {w} has {1} {t} left."),
            (twice, "{He} builds on until the {w} has twice as many {t}.", "Now the {w} has {0} {t}."),
            (half, "Half of the {t} fall off.", "Then the {w} has {0} {t} left."),
        ],
        "closings": [
            (ask, "How many {t} does {N}'s {w} have now?"),
            (ask_start, "How many {t} does {N}'s {w} have?"),
            (goal, "{He} wants the {w} to have {0} {t}. How many more {t} does {he} need?", "{N} needs {0} more {t}."),
            (times, "{F}'s {w} has {0} times as many {t} as {N}'s {w}. How many {t} does {F}'s {w} have?",
             "{F}'s {w} has {0} {t}."),
            (half, "{F}'s {w} has half as many {t} as {N}'s {w}. How many {t} does {F}'s {w} have?",
             "{F}'s {w} has {0} {t}."),
            (share, "{F}'s {w} has just as many {t} as {N}'s {w}, in {0} equal rows. How many {t} are in each row?",
             "Each row has {0} {t}."),
            (fewer_both, "{F}'s {w} has {0} fewer {t} than {N}'s {w}. How many {t} do both have together?",
             "{F}'s {w} has {0} {t}.", "Together they have {1} {t}."),
        ],
    },
    "recipe": {
        "words": {"u": "cups pounds", "f": "flour sugar rice", "cakes": "cakes pies"},
        "openings": [
            (start_count, "{N} has {0} {u} of {f}."),
            (start_groups, "{N} buys {0} bags with {1} {u} of {f} in each bag.", "{N} buys {0} {u} of {f}."),
            (start_sum, "{N} has {0} {u} of {f} and gets {1} more {u} from {G}.", "{N} has {0} {u} of {f}."),
        ],
        "events": [
            (lose, "{He} uses {0} {u} for dinner.", "Then {N} has {0} {u} left."),
            (lose, "{He} gives {0} {u} to {his} {sib}.", "Then {N} has {0} {u} left."),
            (gain, "{He} buys {0} more {u} of {f}.", "Now {N} has {0} {u}."),
            (lose_groups, "{He} makes {0} {cakes} with {1} {u} of {f} each.", "The {cakes} need {0} {u}.",
             "Then {N} has {1} {u} left."),
            (half, "{He} uses half of {his} {f} for a party.", "Then {N} has {0} {u} left."),
        ],
        "closings": [
            (ask, "How many {u} of {f} does {N} have now?"),
            (ask_start, "How many {u} of {f} does {N} have?"),
            (share, "One tray of rolls needs {0} {u}. How many trays of rolls can {he} make with all {his} {f}?",
             "{N} can make {0} trays."),
            (share, "{He} puts all {his} {f} equally into {0} jars. How many {u} are in each jar?",
             "Each jar has {0} {u}."),
            (goal, "{He} needs {0} {u} for a big meal. How many more {u} does {he} need?", "{N} needs {0} more {u}."),
        ],
    },
    "parking": {
        "words": {},
        "openings": [
            (start_count, "There are {0} cars in a parking lot."),
            (start_groups, "A parking lot has {0} rows with {1} cars in each row.", "There are {0} cars."),
            (start_sum, "There are {0} red cars and {1} white cars in a parking lot.", "There are {0} cars."),
            (sum_half, "There are {0} red cars in a parking lot and half as many white cars.",
             "There are {0} white cars.", "There are {1} cars."),
            (sum_more, "There are {0} red cars in a parking lot. There are {1} more white cars than red cars.",
             "There are {0} white cars.", "There are {1} cars."),
        ],
        "events": [
            (gain, "Then {0} more cars come.", "Now there are {0} cars."),
            (lose, "Then {0} cars drive away.", "Then there are {0} cars left."),
            (half, "In the evening half of the cars drive away.", "Then there are {0} cars left."),
            (gain_groups, "For {0} hours {1} more cars come each hour.", "In these hours {0} cars come.",
             "Now there are {1} cars."),
            (lose_groups, "For {0} hours {1} cars drive away each hour.", "In these hours {0} cars drive away.",
             "Then there are {1} cars left."),
            (thrice, "A day later there are three times as many cars.", "A day later there are {0} cars."),
        ],
        "closings": [
            (ask, "How many cars are in the parking lot now?"),
            (ask_start, "How many cars are in the parking lot?"),
            (goal, "Then more cars come until there are {0} cars. How many more cars come?",
             "Then {0} more cars come."),
            (times, "Each car in the lot pays {0} dollars. How many dollars do they pay in all?",
             "They pay {0} dollars."),
            (share, "All the cars drive to a new lot with {0} equal rows. How many cars are in each new row?",
             "Each new row has {0} cars."),
        ],
    },
    "fruit": {
        "words": {
            "t": "apples pears plums oranges lemons melons peaches",
            "bag/bags": "bag/bags basket/baskets box/boxes",
        },
        "openings": [
            (start_count, "{N} picks {0} {t}."),
            (start_groups, "{N} picks {1} {t} from each of {0} trees.", "{N} picks {0} {t}."),
            (start_sum, "{N} picks {0} {t} from one tree and {1} {t} from another tree.", "{N} picks {0} {t}."),
            (start_more, "{G} picks {0} {t}. {N} picks {1} more {t} than {G}.", "{N} picks {0} {t}."),
            (start_half, "{G} picks {0} {t}. {N} picks half as many {t} as {G}.", "{N} picks {0} {t}."),
            (groups_and_more, "{N} picks {0} {bags} of {1} {t} each and then {2} more {t}.",
             "The {bags} hold {0} {t}.", "{N} picks {1} {t} in all."),
        ],
        "events": [
            (gain, "{He} finds {0} more {t} in the grass.", "Now {N} has {0} {t}."),
            (lose, "{He} eats {0} {t}.", "Then {N} has {0} {t} left."),
            (lose, "{He} throws {0} bad {t} away.", "Then {N} has {0} {t} left."),
            (lose_groups, "{He} sells {0} {bags} of {1} {t} each.", "The {bags} hold {0} {t}.",
             "Then {N} has {1} {t} left."),
            (gain_groups, "Then {0} friends bring {him} {1} {t} each.", "The friends bring {0} {t}.",
             "Now {N} has {1} {t}."),
            (half, "{He} gives half of {his} {t} to {his} {aunt}.", "Then {N} has {0} {t} left."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} pick?"),
            (share, "{He} uses {0} {t} for each glass of juice. How many glasses can {he} make with all {his} {t}?",
             "{N} can make {0} glasses."),
            (share, "{He} shares all {his} {t} equally among {0} friends. How many {t} does each friend get?",
             "Each friend gets {0} {t}."),
            (times, "{He} sells all {his} {t} for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
            (times_both, "{F} has {0} times as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
        ],
    },
    "aquarium": {
        "words": {"t": "fish frogs turtles", "k/l": "red/blue green/white blue/green"},
        "openings": [
            (start_count, "{N} has {0} {t}."),
            (start_groups, "{N} has {0} tanks with {1} {t} in each tank.", "{N} has {0} {t}."),
            (start_sum, "{N} has {0} {k} {t} and {1} {l} {t}.", "{N} has {0} {t}."),
            (sum_times, "{N} has {0} {k} {t} and {1} times as many {l} {t}.", "{N} has {0} {l} {t}.",
             "{N} has {1} {t}."),
            (sum_half, "{N} has {0} {k} {t} and half as many {l} {t}.", "{N} has {0} {l} {t}.",
             "{N} has {1} {t}."),
        ],
        "events": [
            (gain, "{He} buys {0} more {t}.", "Now {N} has {0} {t}."),
            (lose, "{He} gives {0} {t} to {his} {sib}.", "Then {N} has {0} {t} left."),
            (gain_groups, "{He} buys {0} tanks with {1} {t} each.", "The new tanks hold {0} {t}.",
             "Now {N} has {1} {t}."),
            (lose_groups, "{He} sells {1} {t} to each of {0} people.", "The people get {0} {t}.",
             "Then {N} has {1} {t} left."),
            (thrice, "A year later {N} has three times as many {t}.", "A year later {N} has {0} {t}."),
            (half, "{He} gives half of {his} {t} to a school.", "Then {N} has {0} {t} left."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} have?"),
            (share, "{He} puts all {his} {t} equally into {0} new tanks. How many {t} are in each new tank?",
             "Each new tank has {0} {t}."),
            (times, "{He} feeds {0} worms to each of {his} {t}. How many worms does {he} need?",
             "{N} needs {0} worms."),
            (gain, "The zoo has {0} more {t} than {N}. How many {t} does the zoo have?", "The zoo has {0} {t}."),
        ],
    },
    "rope": {
        "words": {"r": "rope ribbon wire"},
        "openings": [
            (start_count, "{N} has a {r} that is {0} feet long."),
            (start_sum, "{N} makes one {r} from a piece of {0} feet and a piece of {1} feet.",
             "The {r} is {0} feet long."),
            (start_groups, "{N} makes one {r} from {0} pieces of {1} feet each.", "The {r} is {0} feet long."),
        ],
        "events": [
            (lose, "{He} cuts off {0} feet.", "Then the {r} has {0} feet left."),
            (lose, "{He} gives {0} feet of it to {his} {sib}.", "Then the {r} has {0} feet left."),
            (gain, "{He} adds a piece of {0} feet.", "Now the {r} is {0} feet long."),
            (gain_groups, "{He} adds {0} pieces of {1} feet each.", "The new pieces have {0} feet.",
             "Now the {r} is {1} feet long."),
            (lose_groups, "{He} cuts off {0} pieces of {1} feet each.", "These pieces have {0} feet.",
             "Then the {r} has {1} feet left."),
            (half, "{He} cuts off half of the {r}.", "Then the {r} has {0} feet left."),
        ],
        "closings": [
            (ask, "How many feet long is {his} {r} now?"),
            (ask_start, "How many feet long is {his} {r}?"),
            (share, "{He} cuts the whole {r} into {0} equal parts. How many feet long is each part?",
             "Each part is {0} feet long."),
            (share, "{He} cuts the whole {r} into parts of {0} feet. How many parts does {he} get?",
             "{N} gets {0} parts."),
            (times, "{He} sells the whole {r} for {0} dollars a foot. How many dollars does {he} get for it?",
             "{N} gets {0} dollars."),
            (goal, "{He} needs {0} feet of {r}. How many more feet does {he} need?", "{N} needs {0} more feet."),
        ],
    },
    "ages": {
        "words": {},
        "openings": [
            (start_count, "{N} is {0} years old."),
            (start_times, "{G} is {0} years old. {N} is {1} times as old as {G}.", "{N} is {0} years old."),
            (start_more, "{G} is {0} years old. {N} is {1} years older than {G}.", "{N} is {0} years old."),
            (start_fewer, "{G} is {0} years old. {N} is {1} years younger than {G}.", "{N} is {0} years old."),
            (start_half, "{G} is {0} years old. {N} is half as old as {G}.", "{N} is {0} years old."),
        ],
        "events": [],
        "closings": [
            (ask_start, "How old is {N}?"),
            (gain, "How old will {N} be in {0} years?", "Then {N} will be {0} years old."),
            (lose, "How old was {N} {0} years ago?", "Then {N} was {0} years old."),
            (gain, "{F} is {0} years older than {N}. How old is {F}?", "{F} is {0} years old."),
            (share, "{N} is {0} times as old as {F}. How old is {F}?", "{F} is {0} years old."),
            (more_both, "{F} is {0} years older than {N}. How many years old are {N} and {F} together?",
             "{F} is {0} years old.", "Together they are {1} years old."),
            (twice_both, "{F} is twice as old as {N}. How many years old are {N} and {F} together?",
             "{F} is {0} years old.", "Together they are {1} years old."),
        ],
    },
    "party": {
        "words": {"t": "balloons cups hats plates spoons"},
        "openings": [
            (start_count, "{N} has {0} {t} for a party."),
            (start_groups, "{N} buys {0} packs with {1} {t} in each pack for a party.", "{N} buys {0} {t}."),
            (start_groups, "There are {0} tables at a party. {N} buys {1} {t} for each table.", "{N} buys {0} {t}."),
            (start_sum, "{N} buys {0} blue {t} and {1} green {t} for a party.", "{N} buys {0} {t}."),
        ],
        "events": [
            (gain, "{His} {sib} brings {him} {0} more {t}.", "Now {N} has {0} {t}."),
            (lose, "{He} loses {0} {t}.", "Then {N} has {0} {t} left."),
            (gain_groups, "Then {0} friends bring {him} {1} more {t} each.", "The friends bring {0} {t}.",
             "Now {N} has {1} {t}."),
            (lose_groups, "{He} gives {0} children {1} {t} each.", "The children get {0} {t}.",
             "Then {N} has {1} {t} left."),
            (half, "{He} brings half of {his} {t} back to the store.", "Then {N} has {0} {t} left."),
            (twice, "{He} buys more until {he} has twice as many {t}.", "Now {N} has {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} have?"),
            (share, "{He} puts all {his} {t} equally into {0} rooms. How many {t} are in each room?",
             "Each room has {0} {t}."),
            (share, "Each child gets {0} {t}. For how many children does {N} have {t}?",
             "{N} has {t} for {0} children."),
            (goal, "There are {0} people at the party and each of them needs one. How many more {t} does {he} need?",
             "{N} needs {0} more {t}."),
        ],
    },
}

# How many times as frequent a kind of sentence is as others in the same place. Bare questions are the most natural
# closing, and divisions have fewer sentences than the other operations.
WEIGHTS = {ask: 4, ask_start: 4, share: 2, half: 2}


def _sentences(world: str, part: str, lines: list) -> tuple[Sentence, ...]:
    return tuple(
        Sentence(f"{world}.{part}.{number}", kind, question, tuple(answers))
        for number, (kind, question, *answers) in enumerate(lines)
    )


def _setting(world: str, lines: dict) -> Setting:
    """Compile one world: parse its words, and list which openings and closings make which number of steps."""
    words = tuple(
        (tuple(slot.split("/")), tuple(tuple(choice.split("/")) for choice in choices.split()))
        for slot, choices in lines["words"].items()
    )
    events = {1: [], 2: []}
    for sentence in _sentences(world, "event", lines["events"]):
        events[len(sentence.answers)] += [sentence] * WEIGHTS.get(sentence.kind, 1)
    openings = _sentences(world, "opening", lines["openings"])
    closings = _sentences(world, "closing", lines["closings"])
    plans = {steps: [] for steps in STEP_COUNTS}
    for steps in STEP_COUNTS:
        for opening in openings:
            for closing in closings:
                # One-step events alone must be able to fill the gap, so that drawing events always comes to an end.
                between = steps - len(opening.answers) - len(closing.answers)
                fillable = between == 0 or (between > 0 and len(set(events[1])) >= between)
                if not fillable or (closing.kind is ask and not between) or (closing.kind is ask_start and between):
                    continue
                plans[steps] += [Plan(opening, closing, between)] * WEIGHTS.get(closing.kind, 1)
    return Setting(
        words,
        {steps: tuple(choices) for steps, choices in events.items()},
        {steps: tuple(choices) for steps, choices in plans.items()},
    )


SETTINGS = tuple(_setting(world, lines) for world, lines in WORLDS.items())
SETTINGS_BY_STEPS = {steps: tuple(s for s in SETTINGS if s.plans[steps]) for steps in STEP_COUNTS}

HE = {"He": "He", "he": "he", "His": "His", "his": "his", "him": "him", "sib": "sister", "aunt": "aunt"}
SHE = {"He": "She", "he": "she", "His": "Her", "his": "her", "him": "her", "sib": "brother", "aunt": "uncle"}


# --- Problems -----------------------------------------------------------------------------------------------------


def _choice(rng: random.Random, choices):
    return choices[int(len(choices) * rng.random())]  # several times faster than rng.choice


def _draft(rng: random.Random, steps: int) -> tuple[Setting, list[tuple[Sentence, Move]]]:
    """Sentences and numbers of one story with so many steps; raises Misfit where the numbers do not work out."""
    setting = _choice(rng, SETTINGS_BY_STEPS[steps])
    opening, closing, between = _choice(rng, setting.plans[steps])
    story = [opening]
    while between:
        size = 2 if between >= 2 and setting.events[2] and rng.random() < 0.4 else 1
        event = _choice(rng, setting.events[size])
        if event not in story:
            story.append(event)
            between -= size
    story.append(closing)
    amount = 0
    moves = []
    for sentence in story:
        move = sentence.kind(rng, amount)
        amount = move.amount
        moves.append((sentence, move))
    return setting, moves


def _signature(moves: list[tuple[Sentence, Move]]) -> str:
    """Which sentences and which numbers a story has, without its names and things."""
    return " ".join([f"{sentence.name}:{','.join(map(str, move.numbers))}" for sentence, move in moves])


def split_of(signature: str) -> str:
    """The split that a signature belongs to, the same on every machine and in every run."""
    return "test" if zlib.crc32(signature.encode()) % TEST_SHARE == 0 else "train"


def _write(rng: random.Random, setting: Setting, moves: list[tuple[Sentence, Move]]) -> dict:
    """Choose names and things for a story and put it into words."""
    if rng.random() < 0.5:
        heroes, others, slots = GIRLS, BOYS, dict(SHE)
    else:
        heroes, others, slots = BOYS, GIRLS, dict(HE)
    slots["N"] = _choice(rng, heroes)
    first = int(len(others) * rng.random())
    slots["F"] = others[first]
    slots["G"] = others[(first + 1 + int((len(others) - 1) * rng.random())) % len(others)]
    for names, choices in setting.words:
        slots.update(zip(names, _choice(rng, choices)))
    question, answer = [], []
    for sentence, move in moves:
        question.append(sentence.question.format(*move.numbers, **slots))
        if move.calculations:
            shown = [f"{x}{sign}{y}=<<{x}{sign}{y}={z}>>{z}" for x, sign, y, z in move.calculations]
            answer += [text.format(*shown, **slots) for text in sentence.answers]
    result = moves[-1][1].amount
    steps = len(answer)
    answer.append(f"#### {result}")
    return {"question": " ".join(question), "answer": "\n".join(answer), "steps": steps, "result": result}


def _stream(seed: int, split: str) -> Iterator[tuple[str, dict]]:
    rng = random.Random(seed)
    bounds = [sum(STEP_WEIGHTS[: i + 1]) / sum(STEP_WEIGHTS) for i in range(len(STEP_WEIGHTS))]
    while True:
        point = rng.random()
        steps = next(number for number, bound in zip(STEP_COUNTS, bounds) if point < bound)
        # Retrying with the same number of steps keeps STEP_WEIGHTS exact although long stories fail more often.
        while True:
            try:
                setting, moves = _draft(rng, steps)
            except Misfit:
                continue
            signature = _signature(moves)
            if split_of(signature) == split:
                break
        yield signature, _write(rng, setting, moves)


def _check(seed: int, split: str) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, but it must be an integer of at least 0")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but it must be one of {', '.join(SPLITS)}")


def signed_problems(seed: int, split: str = "train") -> Iterator[tuple[str, dict]]:
    """Like problems(), but each problem comes with its signature: (signature, problem)."""
    _check(seed, split)
    return _stream(seed, split)


def problems(seed: int, split: str = "train") -> Iterator[dict]:
    """An endless stream of problems, the same for the same seed and split.

    Each is a dict of `question`, `answer` (both text), `steps` (1 to 4, the calculations in the answer) and `result`
    (the final number). Problems can repeat; take() leaves repeated questions out. Raises ValueError for a bad argument.
    """
    return (problem for _, problem in signed_problems(seed, split))


def take(count: int, seed: int, split: str = "train") -> list[dict]:
    """The first `count` problems with distinct questions of the stream problems(seed, split)."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count is {count!r}, but it must be an integer of at least 1")
    distinct = {}
    for problem in problems(seed, split):
        distinct.setdefault(problem["question"], problem)
        if len(distinct) == count:
            return list(distinct.values())


# --- Command line -------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """End with one line; argparse would print the usage before it."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> None:
    """Write problems as JSON lines; the module docstring shows the command."""
    parser = _Parser(
        description="Write short arithmetic word problems with worked answers in GSM8K's format, one JSON object"
        ' {"question": ..., "answer": ...} a line. The same count, seed and split always give the same lines.',
        epilog="examples:\n"
        "  python dataset/arithmetic.py --count 3\n"
        "      prints 3 training problems\n"
        "  python dataset/arithmetic.py --count 50 --seed 0 --split test --output dataset/arithmetic-50.jsonl\n"
        "      writes the 50 test problems that are kept in the repository",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=50, help="how many problems, at least 1 (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="which stream of problems, at least 0 (default: 0)")
    parser.add_argument(
        "--split",
        default="train",
        help="train or test (default: train); the two share no problem: one story with one set of numbers"
        f" in {TEST_SHARE} belongs to test, whatever its names and things",
    )
    parser.add_argument("--output", metavar="FILE", help="the file to write (default: print to standard output)")
    options = parser.parse_args(arguments)
    try:
        chosen = take(options.count, options.seed, options.split)
    except ValueError as error:
        parser.error(f"--{error}")
    lines = [json.dumps({"question": p["question"], "answer": p["answer"]}) + "\n" for p in chosen]
    if options.output is None:
        try:
            sys.stdout.writelines(lines)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        with open(options.output, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        parser.error(f"--output {options.output}: {error.strerror}")


if __name__ == "__main__":
    main()
