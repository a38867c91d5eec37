"""Generate short arithmetic word problems with worked answers in GSM8K's format.

Run it from the repository root:

    python dataset/arithmetic.py --count 50 --seed 0 --split test --output dataset/arithmetic-50.jsonl

Every problem is a small story: an opening that sets an amount, a chain of events that each change the amount by one
or two calculations, and a closing question. The answer has one short sentence per calculation, each with a calculator
annotation such as `3*4=<<3*4=12>>12`, and ends in a line `#### 12`. The stories are plain enough to be learned by a
model of a few million parameters, and no number in them ever exceeds MAX_NUMBER.

Whether a problem belongs to the test split or to the train split depends on its story and its numbers alone, not on its
names and things. So a training problem never repeats a test problem under other names.
"""

import random
import re
import zlib
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

from dataset import printing
from dpad.engine.checks import check_choice, check_integer

# Difficulty. Every number in a problem, intermediate and final results included, lies in MIN_NUMBER..MAX_NUMBER.
MAX_NUMBER = 99
MIN_NUMBER = 2  # not 1, so that every number is followed by a plural
MAX_FACTOR = 9  # one factor of every product is at most this
MAX_GROUPS = 12  # how many groups a story splits or builds
MAX_GROUP_SIZE = 24  # how many things a story puts into one group
MAX_START = 70  # largest amount that a story starts from
SKEW = 1.4  # draws are low + span * u**SKEW: above 1 prefers smaller numbers

STEP_COUNTS = (1, 2, 3, 4)
STEP_WEIGHTS = (30, 30, 25, 15)  # percent of the problems with 1, 2, 3 and 4 steps

SPLITS = ("train", "test")
TEST_SHARE = 20  # one signature in 20 belongs to the test split
MAX_REPEATS = 2000  # known problems in a row, after which there are no new ones

GIRLS = (
    "Mia", "Anna", "Emma", "Lucy", "Sara", "Nina", "Lily", "Ella", "Kate", "Rosa", "Zoe", "Ruth",
)
BOYS = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Paul", "Adam", "Noah", "Luke", "Omar", "Finn",
)


# --- Numbers: each kind of sentence draws its numbers and says how the running amount changes ---------------------


class Move(NamedTuple):
    """The numbers one sentence names, its calculations (left, sign, right, result) and the new running amount."""

    numbers: tuple[int, ...]
    calculations: tuple[tuple[int, str, int, int], ...]
    amount: int


class Misfit(Exception):
    """No allowed numbers for a sentence fit the running amount; the story is thrown away."""


DIVISORS = {
    amount: [k for k in range(2, MAX_GROUPS + 1) if amount % k == 0 and amount // k >= MIN_NUMBER]
    for amount in range(MAX_NUMBER + 1)
}


def _draw(rng: random.Random, low: int, high: int) -> int:
    """An integer in low..high, smaller ones more often."""
    if high < low:
        raise Misfit
    return low + int((high - low + 1) * rng.random() ** SKEW)


def _groups(rng: random.Random, max_product: int = MAX_NUMBER) -> tuple[int, int]:
    """A number of groups and a group size."""
    if rng.random() < 0.8:
        groups = _draw(rng, 2, min(MAX_FACTOR, max_product // 2))
        return groups, _draw(rng, 2, min(MAX_GROUP_SIZE, max_product // groups))
    size = _draw(rng, 2, min(MAX_FACTOR, max_product // 2))
    return _draw(rng, 2, min(MAX_GROUPS, max_product // size)), size


def _divisor(rng: random.Random, amount: int) -> int:
    choices = DIVISORS[amount]
    if not choices:
        raise Misfit
    return choices[int(len(choices) * rng.random())]


def _add(left: int, right: int) -> tuple[int, str, int, int]:
    if left + right > MAX_NUMBER:
        raise Misfit
    return left, "+", right, left + right


def _subtract(left: int, right: int) -> tuple[int, str, int, int]:
    if left - right < MIN_NUMBER:
        raise Misfit
    return left, "-", right, left - right


def _multiply(left: int, right: int) -> tuple[int, str, int, int]:
    if left * right > MAX_NUMBER:
        raise Misfit
    return left, "*", right, left * right


def _divide(left: int, right: int) -> tuple[int, str, int, int]:
    if left % right or left // right < MIN_NUMBER:
        raise Misfit
    return left, "/", right, left // right


def _one(numbers: tuple[int, ...], calculation: tuple[int, str, int, int]) -> Move:
    return Move(numbers, (calculation,), calculation[3])


def _two(numbers: tuple[int, ...], first: tuple[int, str, int, int], second: tuple[int, str, int, int]) -> Move:
    return Move(numbers, (first, second), second[3])


# Every function below takes the random numbers and the running amount, and returns a Move or raises Misfit.
# First the kinds of sentences that open a story. There is no running amount yet, so they ignore it.


def start_count(rng, amount):
    start = _draw(rng, 5, MAX_START)
    return Move((start,), (), start)


def start_groups(rng, amount):
    many, size = _groups(rng)
    return _one((many, size), _multiply(many, size))


def start_sum(rng, amount):
    left = _draw(rng, 3, 60)
    right = _draw(rng, 3, min(60, MAX_NUMBER - left))
    return _one((left, right), _add(left, right))


def start_more(rng, amount):
    start = _draw(rng, 3, 60)
    more = _draw(rng, 2, min(40, MAX_NUMBER - start))
    return _one((start, more), _add(start, more))


def start_times(rng, amount):
    factor = _draw(rng, 2, MAX_FACTOR)
    start = _draw(rng, 2, min(30, MAX_NUMBER // factor))
    return _one((start, factor), _multiply(start, factor))


def start_half(rng, amount):
    start = 2 * _draw(rng, 2, MAX_NUMBER // 2)
    return _one((start,), _divide(start, 2))


def start_split(rng, amount):
    parts = _draw(rng, 2, MAX_FACTOR)
    start = parts * _draw(rng, 2, MAX_NUMBER // parts)
    return _one((start, parts), _divide(start, parts))


def sum_more(rng, amount):
    start = _draw(rng, 3, 45)
    more = _draw(rng, 2, min(40, MAX_NUMBER - 2 * start))
    return _two((start, more), _add(start, more), _add(start, start + more))


def sum_fewer(rng, amount):
    start = _draw(rng, 5, 50)
    fewer = _draw(rng, 2, start - MIN_NUMBER)
    return _two((start, fewer), _subtract(start, fewer), _add(start, start - fewer))


def sum_twice(rng, amount):
    start = _draw(rng, 2, MAX_NUMBER // 3)
    return _two((start,), _multiply(start, 2), _add(start, start * 2))


def sum_times(rng, amount):
    factor = _draw(rng, 3, MAX_FACTOR - 1)
    start = _draw(rng, 2, MAX_NUMBER // (factor + 1))
    return _two((start, factor), _multiply(start, factor), _add(start, start * factor))


def sum_half(rng, amount):
    start = 2 * _draw(rng, 2, MAX_NUMBER // 3)
    return _two((start,), _divide(start, 2), _add(start, start // 2))


# The kinds of sentences that change the running amount, or ask for something that follows from it.


def gain(rng, amount):
    more = _draw(rng, 2, min(60, MAX_NUMBER - amount))
    return _one((more,), _add(amount, more))


def lose(rng, amount):
    fewer = _draw(rng, 2, amount - MIN_NUMBER)
    return _one((fewer,), _subtract(amount, fewer))


def gain_groups(rng, amount):
    many, size = _groups(rng, min(60, MAX_NUMBER - amount))
    return _two((many, size), _multiply(many, size), _add(amount, many * size))


def lose_groups(rng, amount):
    many, size = _groups(rng, amount - MIN_NUMBER)
    return _two((many, size), _multiply(many, size), _subtract(amount, many * size))


def twice(rng, amount):
    return _one((), _multiply(amount, 2))


def half(rng, amount):
    return _one((), _divide(amount, 2))


def times(rng, amount):
    factor = _draw(rng, 2, min(MAX_FACTOR, MAX_NUMBER // amount))
    return _one((factor,), _multiply(amount, factor))


def share(rng, amount):
    parts = _divisor(rng, amount)
    return _one((parts,), _divide(amount, parts))


def goal(rng, amount):
    aim = _draw(rng, amount + MIN_NUMBER, MAX_NUMBER)
    return _one((aim,), _subtract(aim, amount))


def more_both(rng, amount):
    more = _draw(rng, 2, min(40, MAX_NUMBER - 2 * amount))
    return _two((more,), _add(amount, more), _add(amount, amount + more))


def twice_both(rng, amount):
    return _two((), _multiply(amount, 2), _add(amount, amount * 2))


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

WORLDS: dict[str, dict] = {
    "collecting": {
        "words": {
            "t": "marbles stamps coins cards shells buttons pencils",
            "jar/jars": "jar/jars drawer/drawers tin/tins",
        },
        "openings": [
            (start_count, "{N} has {0} {t}."),
            (start_groups, "{N} has {0} bags with {1} {t} in each bag.", "The bags hold {0} {t}."),
            (start_sum, "{N} has {0} old {t} and {1} new {t}.", "Old and new make {0} {t}."),
            (start_times, "{G} has {0} {t}. {N} has {1} times as many {t} as {G}.", "{N} has {0} {t}."),
            (start_more, "{G} has {0} {t}. {N} has {1} more {t} than {G}.", "{N} has {0} {t}."),
            (start_half, "{G} has {0} {t}. {N} has half as many {t} as {G}.", "{N} has {0} {t}."),
        ],
        "events": [
            (gain, "{He} finds {0} more {t}.", "Finding more makes {0} {t}."),
            (gain, "{His} {sib} brings {him} {0} more {t}.", "Bringing more makes {0} {t}."),
            (lose, "{He} loses {0} {t}.", "Losing some leaves {0} {t}."),
            (lose, "{He} sells {0} {t}.", "Selling some leaves {0} {t}."),
            (gain_groups, "{He} buys {0} boxes with {1} {t} each.", "The boxes hold {0} {t}.",
             "Buying them makes {1} {t}."),
            (lose_groups, "{He} gives {0} friends {1} {t} each.", "The friends get {0} {t}.",
             "Giving them leaves {1} {t}."),
            (twice, "A year later {he} has twice as many {t}.", "A year later there are {0} {t}."),
            (half, "{He} drops half of {his} {t}.", "Dropping half leaves {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} have?"),
            (share, "{He} puts all {his} {t} equally into {0} {jars}. How many {t} are in each {jar}?",
             "Each {jar} has {0} {t}."),
            (gain, "{F} has {0} more {t} than {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (lose, "{F} has {0} fewer {t} than {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (twice, "{F} has twice as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (gain, "{F} has {0} {t}. How many {t} do {N} and {F} have together?", "Together they have {0} {t}."),
            (goal, "{He} wants to have {0} {t}. How many more {t} does {he} need?", "{N} needs {0} more {t}."),
        ],
    },
    "sweets": {
        "words": {"t": "candies cookies nuts"},
        "openings": [
            (start_count, "{N} gets {0} {t} at a party."),
            (start_groups, "{N} gets {0} bags with {1} {t} in each bag.", "The bags hold {0} {t}."),
            (start_sum, "{N} gets {0} {t} from {G} and {1} {t} from {his} {aunt}.", "Both give {0} {t}."),
            (start_split, "{G} shares {0} {t} equally among {1} children. {N} is one of the children.",
             "{N} gets {0} {t}."),
        ],
        "events": [
            (lose, "{He} eats {0} {t}.", "Eating some leaves {0} {t}."),
            (lose, "{He} drops {0} {t}.", "Dropping some leaves {0} {t}."),
            (gain, "{His} {aunt} brings {him} {0} more {t}.", "Bringing more makes {0} {t}."),
            (gain_groups, "{He} buys {0} boxes with {1} {t} each.", "The boxes hold {0} {t}.",
             "Buying them makes {1} {t}."),
            (lose_groups, "{He} gives {0} friends {1} {t} each.", "The friends get {0} {t}.",
             "Giving them leaves {1} {t}."),
            (half, "{He} loses half of {his} {t}.", "Losing half leaves {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} get?"),
            (share, "{He} shares all {his} {t} equally among {0} friends. How many {t} does each friend get?",
             "Each friend gets {0} {t}."),
            (times, "{F} has {0} times as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (half, "{F} has half as many {t} as {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
            (twice_both, "{F} has twice as many {t} as {N}. How many {t} do {N} and {F} have together?",
             "{F} has {0} {t}.", "Together they have {1} {t}."),
        ],
    },
    "eggs": {
        "words": {},
        "openings": [
            (start_count, "{N} collects {0} eggs on the farm."),
            (start_groups, "{N} has {0} hens. Each hen lays {1} eggs.", "The hens lay {0} eggs."),
            (start_sum, "{N} collects {0} white eggs and {1} brown eggs.", "White and brown make {0} eggs."),
        ],
        "events": [
            (gain, "{He} finds {0} more eggs.", "Finding more makes {0} eggs."),
            (lose, "{He} breaks {0} eggs.", "Breaking some leaves {0} eggs."),
            (lose, "{He} uses {0} eggs for a cake.", "Using some leaves {0} eggs."),
            (gain_groups, "Then {0} ducks lay {1} eggs each.", "The ducks lay {0} eggs.",
             "Laying them makes {1} eggs."),
            (lose_groups, "{He} sells {0} boxes with {1} eggs each.", "The boxes hold {0} eggs.",
             "Selling them leaves {1} eggs."),
            (half, "{He} cooks half of {his} eggs.", "Cooking half leaves {0} eggs."),
        ],
        "closings": [
            (ask, "How many eggs does {N} have now?"),
            (ask_start, "How many eggs does {N} have?"),
            (share, "{He} puts all {his} eggs equally into {0} baskets. How many eggs are in each basket?",
             "Each basket has {0} eggs."),
            (times, "{He} sells all {his} eggs for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
            (goal, "{He} wants to have {0} eggs. How many more eggs does {he} need?", "{N} needs {0} more eggs."),
        ],
    },
    "library": {
        "words": {},
        "openings": [
            (start_count, "A small library has {0} books."),
            (start_groups, "A small library has {0} shelves with {1} books on each shelf.",
             "The shelves hold {0} books."),
            (start_sum, "A small library has {0} old books and {1} new books.", "Old and new make {0} books."),
        ],
        "events": [
            (gain, "The library buys {0} more books.", "Buying more makes {0} books."),
            (gain, "People bring back {0} books.", "Bringing more makes {0} books."),
            (lose, "People take {0} books home.", "Taking some leaves {0} books."),
            (lose_groups, "Then {0} people borrow {1} books each.", "The people borrow {0} books.",
             "Borrowing them leaves {1} books."),
            (gain_groups, "Then {0} boxes with {1} books each arrive.", "The boxes hold {0} books.",
             "Arriving they make {1} books."),
            (half, "The library sells half of the books.", "Selling half leaves {0} books."),
        ],
        "closings": [
            (ask, "How many books does the library have now?"),
            (ask_start, "How many books does the library have?"),
            (share, "All the books are put equally on {0} new shelves. How many books are on each new shelf?",
             "Each new shelf has {0} books."),
            (twice, "The town library has twice as many books. How many books does the town library have?",
             "The town library has {0} books."),
            (gain, "The town library has {0} more books. How many books does the town library have?",
             "The town library has {0} books."),
        ],
    },
    "bakery": {
        "words": {"t": "muffins rolls pies cakes buns"},
        "openings": [
            (start_count, "{N} bakes {0} {t}."),
            (start_groups, "{N} bakes {0} trays with {1} {t} on each tray.", "The trays hold {0} {t}."),
            (start_sum, "{N} bakes {0} large {t} and {1} small {t}.", "Large and small make {0} {t}."),
            (sum_half, "{N} bakes {0} large {t} and half as many small {t}.", "There are {0} small {t}.",
             "Large and small make {1} {t}."),
            (sum_more, "{N} bakes {0} large {t} and {1} more small {t} than large {t}.", "There are {0} small {t}.",
             "Large and small make {1} {t}."),
        ],
        "events": [
            (gain, "{He} bakes {0} more {t}.", "Baking more makes {0} {t}."),
            (lose, "{He} sells {0} {t}.", "Selling some leaves {0} {t}."),
            (lose, "{He} burns {0} {t}.", "Burning some leaves {0} {t}."),
            (lose_groups, "Then {0} people buy {1} {t} each.", "The people buy {0} {t}.",
             "Buying them leaves {1} {t}."),
            (gain_groups, "{He} finds {0} boxes with {1} {t} each.", "The boxes hold {0} {t}.",
             "Finding them makes {1} {t}."),
            (half, "{He} eats half of {his} {t}.", "Eating half leaves {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} bake?"),
            (times, "{He} sells all {his} {t} for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
            (share, "{He} puts all {his} {t} equally on {0} plates. How many {t} are on each plate?",
             "Each plate has {0} {t}."),
            (goal, "{He} wants to have {0} {t}. How many more {t} does {he} need?", "{N} needs {0} more {t}."),
        ],
    },
    "bus": {
        "words": {"v": "bus train boat"},
        "openings": [
            (start_count, "There are {0} people on a {v}."),
            (start_sum, "There are {0} children and {1} parents on a {v}.", "Children and parents make {0} people."),
            (start_groups, "A {v} has {0} rows. There are {1} people in each row.", "The rows hold {0} people."),
            (sum_times, "There are {0} parents on a {v} and {1} times as many children.", "There are {0} children.",
             "Children and parents make {1} people."),
        ],
        "events": [
            (gain, "At the bridge {0} people get on.", "After the bridge there are {0} people."),
            (gain, "At the market {0} people get on.", "After the market there are {0} people."),
            (lose, "At the school {0} people get off.", "After the school there are {0} people."),
            (lose, "At the park {0} people get off.", "After the park there are {0} people."),
            (half, "At the beach half of the people get off.", "After the beach there are {0} people."),
            (gain_groups, "At the zoo {0} groups of {1} people get on.", "The groups have {0} people.",
             "After the zoo there are {1} people."),
            (lose_groups, "At the lake {0} groups of {1} people get off.", "The groups have {0} people.",
             "After the lake there are {1} people."),
        ],
        "closings": [
            (ask, "How many people are on the {v} now?"),
            (ask_start, "How many people are on the {v}?"),
            (times, "Each person pays {0} dollars. How many dollars do they pay in all?", "They pay {0} dollars."),
            (gain, "A second {v} has {0} more people. How many people are on the second {v}?",
             "The second {v} has {0} people."),
            (share, "They make {0} equal teams. How many people are in each team?", "Each team has {0} people."),
        ],
    },
    "savings": {
        "words": {"x": "book ball game hat toy", "y": "bike tent coat lamp clock"},
        "openings": [
            (start_count, "{N} has {0} dollars."),
            (start_groups, "For {0} weeks {N} saves {1} dollars a week.", "The weeks bring {0} dollars."),
            (start_groups, "{N} works {0} hours and earns {1} dollars an hour.", "The hours bring {0} dollars."),
            (start_sum, "{N} gets {0} dollars from {G} and {1} dollars from {his} {aunt}.", "Both give {0} dollars."),
            (start_times, "{G} saves {0} dollars. {N} saves {1} times as many dollars as {G}.",
             "{N} saves {0} dollars."),
        ],
        "events": [
            (gain, "{He} earns {0} more dollars.", "Earning more makes {0} dollars."),
            (gain, "{His} {sib} brings {him} {0} more dollars.", "Bringing more makes {0} dollars."),
            (lose, "{He} spends {0} dollars on a {x}.", "Spending some leaves {0} dollars."),
            (lose_groups, "{He} buys {0} pens for {1} dollars each.", "The pens cost {0} dollars.",
             "Buying them leaves {1} dollars."),
            (gain_groups, "{He} washes {0} cars for {1} dollars each.", "The cars bring {0} dollars.",
             "Washing them makes {1} dollars."),
            (half, "{He} loses half of {his} money.", "Losing half leaves {0} dollars."),
        ],
        "closings": [
            (ask, "How many dollars does {N} have now?"),
            (ask_start, "How many dollars does {N} have?"),
            (goal, "{He} wants to buy a {y} for {0} dollars. How many more dollars does {he} need?",
             "{N} needs {0} more dollars."),
            (share, "A ticket costs {0} dollars. How many tickets can {he} buy with all {his} money?",
             "{N} can buy {0} tickets."),
            (lose, "{F} has {0} fewer dollars than {N}. How many dollars does {F} have?", "{F} has {0} dollars."),
        ],
    },
    "garden": {
        "words": {"t": "tulips roses flowers daisies lilies"},
        "openings": [
            (start_count, "{N} has {0} {t} in {his} garden."),
            (start_groups, "{N} plants {0} rows with {1} {t} in each row.", "The rows hold {0} {t}."),
            (start_sum, "{N} plants {0} red {t} and {1} white {t}.", "Red and white make {0} {t}."),
            (sum_twice, "{N} plants {0} red {t} and twice as many white {t}.", "There are {0} white {t}.",
             "Red and white make {1} {t}."),
            (sum_fewer, "{N} plants {0} red {t} and {1} fewer white {t} than red {t}.", "There are {0} white {t}.",
             "Red and white make {1} {t}."),
        ],
        "events": [
            (gain, "{He} plants {0} more {t}.", "Planting more makes {0} {t}."),
            (lose, "A storm breaks {0} {t}.", "Breaking some leaves {0} {t}."),
            (lose, "Rabbits eat {0} {t}.", "Eating some leaves {0} {t}."),
            (gain_groups, "{He} buys {0} boxes with {1} {t} each.", "The boxes hold {0} {t}.",
             "Buying them makes {1} {t}."),
            (lose_groups, "{He} gives {0} friends {1} {t} each.", "The friends get {0} {t}.",
             "Giving them leaves {1} {t}."),
            (half, "{He} sells half of {his} {t}.", "Selling half leaves {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} are in the garden now?"),
            (ask_start, "How many {t} are in the garden?"),
            (share, "{He} puts all {his} {t} equally into {0} vases. How many {t} are in each vase?",
             "Each vase has {0} {t}."),
            (times, "Each plant needs {0} cups of water. How many cups of water do all the {t} need?",
             "The {t} need {0} cups."),
            (gain, "{F} has {0} more {t} than {N}. How many {t} does {F} have?", "{F} has {0} {t}."),
        ],
    },
    "running": {
        "words": {"run/runs": "run/runs walk/walks ride/rides", "mile/miles": "mile/miles lap/laps"},
        "openings": [
            (start_count, "{N} {runs} {0} {miles} in the first week."),
            (start_groups, "For {0} days {N} {runs} {1} {miles} a day.", "The days bring {0} {miles}."),
            (start_sum, "{N} {runs} {0} {miles} on Monday and {1} {miles} on Tuesday.", "Both days bring {0} {miles}."),
            (sum_times, "{N} {runs} {0} {miles} on Monday and {1} times as many {miles} on Tuesday.",
             "On Tuesday there are {0} {miles}.", "Both days bring {1} {miles}."),
            (sum_fewer, "{N} {runs} {0} {miles} on Monday and {1} fewer {miles} on Tuesday.",
             "On Tuesday there are {0} {miles}.", "Both days bring {1} {miles}."),
        ],
        "events": [
            (gain, "On Friday {he} {runs} {0} more {miles}.", "After Friday there are {0} {miles}."),
            (gain, "On Sunday {he} {runs} {0} more {miles}.", "After Sunday there are {0} {miles}."),
            (gain_groups, "In May {he} {runs} {1} {miles} a day for {0} days.", "The days bring {0} {miles}.",
             "After May there are {1} {miles}."),
            (gain_groups, "In June {he} {runs} {1} {miles} a day for {0} days.", "The days bring {0} {miles}.",
             "After June there are {1} {miles}."),
        ],
        "closings": [
            (ask, "How many {miles} does {N} {run} in all?"),
            (ask_start, "How many {miles} does {N} {run} in all?"),
            (goal, "{He} wants to {run} {0} {miles} in all. How many more {miles} does {he} have to {run}?",
             "{N} has to {run} {0} more {miles}."),
            (times, "{F} {runs} {0} times as many {miles} as {N}. How many {miles} does {F} {run}?",
             "{F} {runs} {0} {miles}."),
            (half, "{F} {runs} half as many {miles} as {N}. How many {miles} does {F} {run}?",
             "{F} {runs} {0} {miles}."),
            (more_both, "{F} {runs} {0} more {miles} than {N}. How many {miles} do {N} and {F} {run} together?",
             "{F} {runs} {0} {miles}.", "Together they {run} {1} {miles}."),
        ],
    },
    "fruit": {
        "words": {"t": "apples pears plums oranges lemons peaches"},
        "openings": [
            (start_count, "{N} picks {0} {t}."),
            (start_groups, "{N} picks {1} {t} from each of {0} trees.", "The trees bring {0} {t}."),
            (start_sum, "{N} picks {0} green {t} and {1} red {t}.", "Green and red make {0} {t}."),
            (start_more, "{G} picks {0} {t}. {N} picks {1} more {t} than {G}.", "{N} picks {0} {t}."),
            (start_half, "{G} picks {0} {t}. {N} picks half as many {t} as {G}.", "{N} picks {0} {t}."),
        ],
        "events": [
            (gain, "{He} finds {0} more {t}.", "Finding more makes {0} {t}."),
            (lose, "{He} eats {0} {t}.", "Eating some leaves {0} {t}."),
            (lose, "{He} drops {0} {t}.", "Dropping some leaves {0} {t}."),
            (lose_groups, "{He} sells {0} boxes with {1} {t} each.", "The boxes hold {0} {t}.",
             "Selling them leaves {1} {t}."),
            (gain_groups, "Then {0} friends bring {him} {1} {t} each.", "The friends bring {0} {t}.",
             "Bringing them makes {1} {t}."),
            (half, "{He} cooks half of {his} {t}.", "Cooking half leaves {0} {t}."),
        ],
        "closings": [
            (ask, "How many {t} does {N} have now?"),
            (ask_start, "How many {t} does {N} pick?"),
            (share, "{He} puts all {his} {t} equally into {0} baskets. How many {t} are in each basket?",
             "Each basket has {0} {t}."),
            (times, "{He} sells all {his} {t} for {0} dollars each. How many dollars does {he} get for them?",
             "{N} gets {0} dollars."),
            (gain, "{F} has {0} {t}. How many {t} do {N} and {F} have together?", "Together they have {0} {t}."),
        ],
    },
}

# How many times as often a kind of sentence is drawn as others in the same place. Bare questions are the most natural
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
    events: dict[int, list[Sentence]] = {1: [], 2: []}
    for sentence in _sentences(world, "event", lines["events"]):
        events[len(sentence.answers)] += [sentence] * WEIGHTS.get(sentence.kind, 1)
    openings = _sentences(world, "opening", lines["openings"])
    closings = _sentences(world, "closing", lines["closings"])
    plans: dict[int, list[Plan]] = {steps: [] for steps in STEP_COUNTS}
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
    """Draw the sentences and numbers of a story with `steps` calculations; raises Misfit when no numbers fit."""
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
    """The sentences and the numbers of a story as text, without its names and things."""
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
            annotated = [f"{x}{sign}{y}=<<{x}{sign}{y}={z}>>{z}" for x, sign, y, z in move.calculations]
            answer += [text.format(*annotated, **slots) for text in sentence.answers]
    result = moves[-1][1].amount
    steps = len(answer)
    answer.append(f"#### {result}")
    return {"question": " ".join(question), "answer": "\n".join(answer), "steps": steps, "result": result}


BOUNDS = [sum(STEP_WEIGHTS[: i + 1]) / sum(STEP_WEIGHTS) for i in range(len(STEP_WEIGHTS))]


def _draw_problem(rng: random.Random, split: str) -> tuple[str, dict]:
    """The next problem of a split, with its signature."""
    point = rng.random()
    steps = next(number for number, bound in zip(STEP_COUNTS, BOUNDS) if point < bound)
    # Long stories fail more often. Trying again with the same number of steps keeps the shares of STEP_WEIGHTS.
    while True:
        try:
            setting, moves = _draft(rng, steps)
        except Misfit:
            continue
        signature = _signature(moves)
        if split_of(signature) == split:
            return signature, _write(rng, setting, moves)


def _stream(seed: int, split: str) -> Iterator[tuple[str, dict]]:
    rng = random.Random(seed)
    while True:
        yield _draw_problem(rng, split)


def signed_problems(seed: int, split: str = "train") -> Iterator[tuple[str, dict]]:
    """Like problems(), but each problem comes with its signature: (signature, problem)."""
    check_integer("seed", seed, 0)
    check_choice("split", split, SPLITS)
    return _stream(seed, split)


def problems(seed: int, split: str = "train") -> Iterator[dict]:
    """An endless stream of problems, the same for the same seed and split.

    Each is a dict of `question`, `answer` (both text), `steps` (1 to 4, the calculations in the answer) and `result`
    (the final number). Problems can repeat; take() leaves repeated questions out. Raises ValueError for a bad argument.
    """
    return (problem for _, problem in signed_problems(seed, split))


def problem(seed: int, index: int, split: str = "train", task: str = "arithmetic") -> dict:
    """Problem `index` of an endless row, in the form of problems(); it can be had without those before it.

    Another row than problems(): the random numbers depend on the arguments alone. task: whatever a task is called whose
    problems shall be others. ValueError for a bad argument.
    """
    return _draw_problem(generator(seed, index, split, task), split)[1]


def generator(seed: int, index: int, split: str, task: str) -> random.Random:
    """The random numbers of one problem of a task. Raises ValueError for a bad argument."""
    check_integer("seed", seed, 0)
    check_integer("index", index, 0)
    check_choice("split", split, SPLITS)
    return random.Random(f"{task}-{seed}-{split}-{index}")


def take(count: int, seed: int, split: str = "train") -> list[dict]:
    """The first `count` problems with distinct questions of the stream problems(seed, split)."""
    return take_distinct(count, problems(seed, split), lambda problem: problem["question"])


def take_distinct(count: int, stream: Iterator[dict], key: Callable[[dict], Hashable]) -> list[dict]:
    """The first `count` problems of a stream whose keys differ. Raises ValueError when it has not that many."""
    check_integer("count", count, 1)
    distinct: dict[Hashable, dict] = {}
    repeats = 0
    while len(distinct) < count:
        problem = next(stream)
        known = len(distinct)
        distinct.setdefault(key(problem), problem)
        repeats = repeats + 1 if len(distinct) == known else 0
        if repeats == MAX_REPEATS:
            raise ValueError(f"count is {count}; there are about {known} different problems of this kind")
    return list(distinct.values())


# --- Scoring ------------------------------------------------------------------------------------------------------

MARKED = re.compile(r"#### (-?[0-9.,]+)")


def is_right(problem: dict, answer: str) -> bool:
    """Whether the first number after #### in an answer is the one in the problem's own; commas and a last dot are left
    out. The same as the harness's strict match."""
    given, right = (MARKED.search(text) for text in (answer, problem["answer"]))
    if not given or not right:
        return False
    return given[1].replace(",", "").removesuffix(".") == right[1].replace(",", "").removesuffix(".")


# --- Command line -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Write problems as JSON lines; the module docstring shows the command."""
    parser = printing.parser_of(
        "arithmetic.py",
        "Write short arithmetic word problems with worked answers in GSM8K's format",
        "  python dataset/arithmetic.py --count 3\n"
        "      prints 3 training problems\n"
        "  python dataset/arithmetic.py --count 50 --seed 0 --split test --output dataset/arithmetic-50.jsonl\n"
        "      writes the 50 test problems that are part of the repository",
        f"The two share no problem, not even under other names: one in {TEST_SHARE} of all stories with their numbers"
        " belongs to test",
    )
    printing.write_problems(parser, arguments, lambda *flags: take(*flags), ("question", "answer"))


if __name__ == "__main__":
    main()
