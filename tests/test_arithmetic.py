"""Tests of dataset/arithmetic.py, the generator of the word problems that the tiny model is trained and tested on."""

import itertools
import json
import operator
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dataset import arithmetic

ROOT = Path(__file__).resolve().parent.parent

ANNOTATION = re.compile(r"(\d+)([-+*/])(\d+)=<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
# Words that stand for a number in a calculation although the question shows no digit.
NUMBER_WORDS = {"twice": 2, "half": 2}
TEMPLATES = 160  # fewest sentence templates in use


@pytest.fixture(scope="module")
def signed():
    """(signature, problem) pairs of both splits."""
    train = itertools.islice(arithmetic.signed_problems(1, "train"), 12000)
    test = itertools.islice(arithmetic.signed_problems(1, "test"), 1500)
    return {"train": list(train), "test": list(test)}


@pytest.fixture(scope="module")
def problems(signed):
    """The problems of both splits in one list."""
    return [problem for pairs in signed.values() for _, problem in pairs]


def calculations(problem):
    """(left, sign, right, result) of every line of the answer but the last; each such line must have exactly one."""
    found = []
    for line in problem["answer"].split("\n")[:-1]:
        matches = ANNOTATION.findall(line)
        assert len(matches) == 1, line
        left, sign, right, *inside, result = matches[0]
        assert inside == [left, sign, right, result], line
        assert re.findall(r"\d+", ANNOTATION.sub("", line)) == [], line
        found.append((int(left), sign, int(right), int(result)))
    return found


def test_every_calculation_is_right(problems):
    """A wrong or inexact sum in the training data would teach the model wrong arithmetic."""
    for problem in problems:
        for left, sign, right, result in calculations(problem):
            assert OPERATIONS[sign](left, right) == result, problem
            assert sign != "/" or left % right == 0, problem


def test_answer_ends_in_the_last_result(problems):
    """Scoring reads the number after ####, so it must be the last calculation's result and the `result` field."""
    for problem in problems:
        steps = calculations(problem)
        assert problem["answer"].split("\n")[-1] == f"#### {problem['result']}"
        assert steps[-1][3] == problem["result"]
        assert len(steps) == problem["steps"]
        assert set(problem) == {"question", "answer", "steps", "result"}


def test_operands_are_visible(problems):
    """A calculation may only use what a reader has: numbers of the question, number words and earlier results."""
    for problem in problems:
        words = re.findall(r"[a-z]+", problem["question"].lower())
        known = {int(number) for number in re.findall(r"\d+", problem["question"])}
        known |= {NUMBER_WORDS[word] for word in words if word in NUMBER_WORDS}
        for left, _, right, result in calculations(problem):
            assert {left, right} <= known, problem
            known.add(result)


def test_every_number_of_the_question_is_used(problems):
    """Numbers that play no role would be distractors, which these problems leave out."""
    for problem in problems:
        given = Counter(re.findall(r"\d+", problem["question"]))
        used = Counter(str(n) for left, _, right, _ in calculations(problem) for n in (left, right))
        assert given <= used, problem


def test_numbers_keep_to_the_bounds(problems):
    """The difficulty is set by constants; a number outside of them would be a problem of another kind."""
    for problem in problems:
        numbers = [int(n) for n in re.findall(r"\d+", problem["question"] + " " + problem["answer"])]
        assert arithmetic.MIN_NUMBER <= min(numbers), problem
        assert max(numbers) <= arithmetic.MAX_NUMBER, problem
        for left, sign, right, _ in calculations(problem):
            assert sign != "*" or min(left, right) <= arithmetic.MAX_FACTOR, problem


def test_numbers_cover_the_range(problems):
    """Every number from MIN_NUMBER to MAX_NUMBER occurs as a result, so that no part of the range goes untrained."""
    assert {p["result"] for p in problems} == set(range(arithmetic.MIN_NUMBER, arithmetic.MAX_NUMBER + 1))


def test_splits_share_no_story_with_the_same_numbers(signed):
    """A test problem must not occur in training, not even under other names and things."""
    signatures = {split: {signature for signature, _ in pairs} for split, pairs in signed.items()}
    assert not signatures["train"] & signatures["test"]
    for split, found in signatures.items():
        assert {arithmetic.split_of(signature) for signature in found} == {split}
    questions = {split: {problem["question"] for _, problem in pairs} for split, pairs in signed.items()}
    assert not questions["train"] & questions["test"]


def test_signature_leaves_out_names_and_things():
    """Two tellings of one story have one signature, and a story with another number has another signature."""
    rng = random.Random(4)
    setting, moves = next(  # the first one-step story about a person
        draft for draft in iter(lambda: arithmetic._draft(rng, 1), None) if "{N}" in draft[1][0][0].question
    )
    tellings = {arithmetic._write(rng, setting, moves)["question"] for _ in range(20)}
    assert len(tellings) > 1
    signature = arithmetic._signature(moves)
    assert not any(name in signature for name in arithmetic.GIRLS + arithmetic.BOYS)
    sentence, move = moves[0]
    changed = move._replace(numbers=tuple(n + 1 for n in move.numbers))
    assert arithmetic._signature([(sentence, changed), *moves[1:]]) != signature


def test_splitting_is_stable():
    """The split must not change between machines and Python versions; these two were worked out with zlib.crc32."""
    assert arithmetic.split_of("a story:5") == "train"
    assert arithmetic.split_of("a story:45") == "test"


def test_same_seed_same_problems():
    """A run can only be repeated if a seed always gives the same problems, and other seeds give others."""
    for split in arithmetic.SPLITS:
        first = arithmetic.take(100, 7, split)
        assert first == arithmetic.take(100, 7, split)
        assert first[:10] == arithmetic.take(10, 7, split)
        assert first != arithmetic.take(100, 8, split)


def test_take_gives_distinct_questions():
    """A repeated question would count twice in an evaluation."""
    questions = [problem["question"] for problem in arithmetic.take(3000, 0)]
    assert len(set(questions)) == 3000


def test_steps_and_operations_are_mixed(problems):
    """All step counts come in about the promised shares, and no operation is rare."""
    steps = Counter(problem["steps"] for problem in problems)
    for number, percent in zip(arithmetic.STEP_COUNTS, arithmetic.STEP_WEIGHTS, strict=True):
        assert abs(100 * steps[number] / len(problems) - percent) < 3
    signs = Counter(sign for problem in problems for _, sign, _, _ in calculations(problem))
    assert set(signs) == set(OPERATIONS)
    assert min(signs.values()) > 0.1 * signs.total()


def test_every_template_is_used(signed):
    """A sentence that no story can reach would be dead, and few sentences would make a dull data set."""
    used = {part.split(":")[0] for pairs in signed.values() for signature, _ in pairs for part in signature.split()}
    written = {
        f"{world}.{part[:-1]}.{number}"
        for world, lines in arithmetic.WORLDS.items()
        for part in ("openings", "events", "closings")
        for number in range(len(lines[part]))
    }
    assert used == written
    assert len(used) >= TEMPLATES
    assert len(arithmetic.WORLDS) >= 10
    assert len(arithmetic.GIRLS + arithmetic.BOYS) >= 24


def test_text_is_clean(problems):
    """No singular number before a plural, no double or stray space, no unfilled word, a question at the end."""
    for problem in problems:
        text = problem["question"] + "\n" + problem["answer"]
        assert not re.search(r"\b1 [a-z]", text), problem
        assert not re.search(r"  | \n|\n | [.?,]|[{}]", text), problem
        assert text.isascii()
        assert problem["question"].endswith("?")
        assert problem["question"].count("?") == 1
        for sentence in re.findall(r"[^.?]+[.?]", problem["question"]):
            assert sentence.strip()[0].isupper(), problem
        for line in problem["answer"].split("\n")[:-1]:
            assert line[0].isupper(), problem
            assert line.endswith("."), problem


def test_text_is_short(problems):
    """The tiny model has a short window: questions and answers must fit in it."""
    for problem in problems:
        assert len(problem["question"].split()) <= 75, problem
        assert len(problem["answer"].split()) <= 70, problem
        for line in problem["answer"].split("\n")[:-1]:
            assert len(line.split()) <= 10, line
    assert 20 <= sum(len(p["question"].split()) for p in problems) / len(problems) <= 60


def test_vocabulary_is_small(problems):
    """Few distinct words keep the problems learnable by a model of a few million parameters."""
    words = set()
    for problem in problems:
        words.update(re.findall(r"[a-z]+", (problem["question"] + " " + problem["answer"]).lower()))
    assert 200 <= len(words) <= 400


def test_committed_file_is_what_the_command_writes(tmp_path):
    """The kept test problems must be reproducible by the command in the module docstring."""
    written = tmp_path / "problems.jsonl"
    command = re.search(r"python (dataset/arithmetic.py .* --output) (\S+)", arithmetic.__doc__)
    subprocess.run([sys.executable, *command[1].split(), str(written)], cwd=ROOT, check=True)
    assert written.read_bytes() == (ROOT / command[2]).read_bytes()
    rows = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    assert len({row["question"] for row in rows}) == 50
    assert all(set(row) == {"question", "answer"} for row in rows)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: arithmetic.problems(0, "dev"), ["split", "'dev'", "train, test"]),
        (lambda: arithmetic.problems(-1), ["seed", "-1", "at least 0"]),
        (lambda: arithmetic.problems("zero"), ["seed", "'zero'", "integer"]),
        (lambda: arithmetic.take(0, 0), ["count", "0", "at least 1"]),
        (lambda: arithmetic.take(2.5, 0), ["count", "2.5", "integer"]),
        (lambda: arithmetic.take(1, 0, "valid"), ["split", "'valid'", "train, test"]),
    ],
)
def test_bad_values_raise(call, named):
    """A bad argument is refused at once, in words that name the argument, its value and what is allowed."""
    with pytest.raises(ValueError) as caught:
        call()
    for words in named:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "options", [["--count", "0"], ["--count", "many"], ["--split", "dev"], ["--seed", "-1"], ["--output", "no/such/f"]]
)
def test_bad_options_end_in_one_line(options, capsys):
    """A mistake on the command line ends in one clear line and a failing exit status, not in a traceback."""
    with pytest.raises(SystemExit) as caught:
        arithmetic.main(options)
    assert caught.value.code != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert options[0] in captured.err


def test_prints_without_output(capsys):
    """Without --output the lines go to standard output."""
    arithmetic.main(["--count", "3", "--seed", "5"])
    lines = capsys.readouterr().out.splitlines()
    expected = [{"question": p["question"], "answer": p["answer"]} for p in arithmetic.take(3, 5)]
    assert [json.loads(line) for line in lines] == expected
