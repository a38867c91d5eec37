"""The generators of answer-first stories and of Countdown puzzles, and how the harness scores them.

    python -m pytest tests/test_puzzles.py
"""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dataset import answer_first, arithmetic, countdown
from dpad import ROOT
from dpad.evaluation import tasks

GENERATORS = {"arithmetic": arithmetic, "answer-first": answer_first, "countdown": countdown}
SEEDS = st.integers(0, 2**40)
INDICES = st.integers(0, 2**40)
EMBEDDED = ("llada-tiny", "dream-tiny")


def puzzles(count=3, **options):
    return st.builds(countdown.problem, SEEDS, INDICES, st.sampled_from(arithmetic.SPLITS),
                     st.integers(3, 6) if count is None else st.just(count), **options)


# --- Every generator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_a_problem_needs_none_before_it(generator):
    """Guards resuming: problem i is a function of seed, split and i, and changes with each of them."""
    row = [generator.problem(3, index) for index in range(50)]
    assert generator.problem(3, 49) == row[49]
    assert len({problem["question"] for problem in row}) > 45
    assert generator.problem(4, 49) != row[49] != generator.problem(3, 49, "test")


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_every_answer_is_right_and_no_other_number_is(generator):
    """Guards the scoring functions and the data at once: the right answer counts, one with another result does not."""
    for index in range(300):
        problem = generator.problem(5, index)
        assert generator.is_right(problem, problem["answer"])
        result = problem.get("target", problem.get("result"))
        wrong = re.sub(rf"(=|#### ){result}\b(?=$|\n#|\n[A-Z])", rf"\g<1>{result + 1}", problem["answer"])
        assert wrong != problem["answer"] and not generator.is_right(problem, wrong)
        assert not generator.is_right(problem, "") and not generator.is_right(problem, str(result))


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_numbers_are_single_tokens(generator, name):
    """Guards what makes the tasks learnable for the embedded models: a number is one token, and answers are short."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / name)
    for index in range(60):
        problem = generator.problem(0, index)
        text = f"{problem['question']}\n{problem['answer']}"
        tokens = [tokenizer.decode([token]) for token in tokenizer(text, add_special_tokens=False).input_ids]
        assert "".join(tokens) == text
        assert [token for token in tokens if token.isdigit()] == re.findall(r"\d+", text)
        assert len(tokens) < (50 if generator is countdown else 250)
    assert len(tokenizer(answer_first.HINT, add_special_tokens=False).input_ids) == 3


@pytest.mark.parametrize("call, message", [
    (lambda: arithmetic.problem(-1, 0), "seed is -1; it must be an integer of at least 0"),
    (lambda: answer_first.problem(0, -1), "index is -1; it must be an integer of at least 0"),
    (lambda: countdown.problem(0, 0, "dev"), "split is 'dev'; it must be one of train, test"),
    (lambda: countdown.problem(0, 0, numbers=2), "numbers is 2; it must be an integer of at least 3|from 3 to 6"),
    (lambda: countdown.take(0, 0), "count is 0; it must be an integer of at least 1"),
    (lambda: countdown.take(5000, 0, "test"), "count is 5000; there are about ... different problems of this kind"),
])
def test_bad_values_raise(call, message, monkeypatch):
    """Guards against endless loops and silent nonsense: an argument that cannot be served is named at once."""
    monkeypatch.setattr(arithmetic, "MAX_REPEATS", 200)
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("generator", [answer_first, countdown])
def test_the_command_prints_json_lines(generator, capsys):
    """Guards the commands in the two files' first lines."""
    generator.main(["--count", "3", "--seed", "5", "--split", "test"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["question"] for line in lines] == [p["question"] for p in generator.take(3, 5, "test")]
    assert all(generator.is_right(line, line["answer"]) for line in lines)
    with pytest.raises(SystemExit) as end:
        generator.main(["--count", "0"])
    assert end.value.code == 2 and "--count is 0; it must be" in capsys.readouterr().err


# --- Answer first -----------------------------------------------------------------------------------------------------


def test_the_result_stands_before_its_working():
    """Guards the task: the ordinary answer in another order, the hint in the question; the ordinary answer is wrong."""
    for ordinary, problem in zip(arithmetic.take(50, 1, "test"), answer_first.take(50, 1, "test")):
        *working, result = ordinary["answer"].split("\n")
        assert problem["answer"].split("\n") == [result, *working]
        assert problem["question"] == f"{ordinary['question']} Answer first."
        assert not answer_first.is_right(problem, ordinary["answer"])
        assert answer_first.is_right(problem, f"\n{result}")


def test_ordinary_and_answer_first_problems_are_others():
    """Guards a mixture of the two against telling each story twice."""
    for index in range(50):
        assert arithmetic.problem(1, index)["question"] not in answer_first.problem(1, index)["question"]


# --- Countdown --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(puzzles(None))
def test_solutions_keep_the_rules(puzzle):
    """Guards the generator: numbers, results and target are in their bounds, and every solution is right."""
    assert all(1 <= number <= 20 for number in puzzle["numbers"]) and 2 <= puzzle["target"] <= 99
    lines = puzzle["answer"].split("\n")
    assert len(lines) == len(puzzle["numbers"]) - 1
    assert all(re.fullmatch(r"\d+[-+*/]\d+=\d+", line) and 1 <= int(line.split("=")[1]) <= 99 for line in lines)
    assert re.findall(r"\d+", puzzle["question"]) == [str(n) for n in (puzzle["target"], *puzzle["numbers"])]
    assert countdown.is_right(puzzle, puzzle["answer"])


@settings(max_examples=200, deadline=None)
@given(puzzles(), st.data())
def test_a_changed_solution_is_wrong(puzzle, data):
    """Guards the scoring: another digit, a missing or a repeated line is not a solution."""
    lines = puzzle["answer"].split("\n")
    place = data.draw(st.integers(0, len(lines) - 1))
    left, _, result = lines[place].partition("=")
    other = data.draw(st.integers(0, 120).filter(lambda number: number != int(result)))
    assert not countdown.is_right(puzzle, "\n".join([*lines[:place], f"{left}={other}", *lines[place + 1 :]]))
    assert not countdown.is_right(puzzle, "\n".join(lines[:place] + lines[place + 1 :]))
    assert not countdown.is_right(puzzle, puzzle["answer"] + "\n" + lines[place])
    assert not countdown.is_right(puzzle | {"target": puzzle["target"] + 1}, puzzle["answer"])


@pytest.mark.parametrize("answer, is_right", [
    ("3*7=21\n21+4=25", True), ("7*3=21\n4+21=25", True), ("  7 * 3 = 21 \n\n21 + 4 = 25\n", True),
    ("7*3=21\r\n21+4=25", True),
    ("21+4=25", False), ("25", False), ("7*3=21\n21+5=26", False), ("7*3=21\n21+4=26", False),
    ("7*4=28\n28-3=26", False),
    ("7*4=28\n28-7=21\n21+4=25", False), ("7*3=21\n7*3=21\n21+4=25", False), ("7*3=21\n21+4=25\nDone", False),
    ("7*3=21, 21+4=25", False), ("3-7=-4\n-4+4=0", False), ("7*3=21\n21+4=25\n25*1=25", False),
    ("7^3=21\n21+4=25", False),
    ("٧*٣=٢١\n٢١+٤=٢٥", False), ("9" * 5000, False), ("7*3=21\n21+4=25=25", False), ("", False),
])
def test_any_solution_counts_and_nothing_else(answer, is_right):
    """Guards the scoring against an answer that only looks right, and against refusing another order or spaces."""
    assert countdown.is_right({"numbers": [3, 7, 4], "target": 25}, answer) is is_right


def test_other_solutions_than_the_own_one_count():
    """Guards `any solution`: all that a search over every order and sign finds are right, and solve what they say."""
    puzzle = {"numbers": [2, 6, 3], "target": 4}
    found = set()
    for a, b, c in itertools.permutations(puzzle["numbers"]):
        for first, second in itertools.product("+-*/", repeat=2):
            middle = countdown.calculate(a, first, b)
            for left, right in ((middle, c), (c, middle)):
                if middle and countdown.calculate(left, second, right) == 4:
                    found.add(f"{a}{first}{b}={middle}\n{left}{second}{right}=4")
    assert {"2*6=12\n12/3=4", "6/3=2\n2+2=4", "6/3=2\n2*2=4"} <= found
    assert all(countdown.is_right(puzzle, answer) for answer in found)


@pytest.mark.parametrize("left, sign, right, result", [
    (98, "+", 1, 99), (98, "+", 2, None), (3, "-", 2, 1), (2, "-", 2, None), (9, "*", 11, 99), (10, "*", 10, None),
    (8, "/", 2, 4), (8, "/", 3, None), (2, "/", 8, None), (8, "/", 0, None), (0, "/", 8, None), (0, "*", 8, None),
])
def test_the_rules_of_a_step(left, sign, right, result):
    """Guards the rules at their edges: exact division, results from 1 to 99."""
    assert countdown.calculate(left, sign, right) == result


def test_splits_share_no_puzzle():
    """Guards the test split: none of its puzzles is a training puzzle, not even with its numbers in another order."""
    signatures = {split: {(tuple(sorted(p["numbers"])), p["target"])
                          for p in (countdown.problem(1, index, split) for index in range(2000))}
                  for split in arithmetic.SPLITS}
    assert len(signatures["test"]) > 500 and not signatures["train"] & signatures["test"]
    tests = countdown.take(500, 2024, "test")
    assert len({(tuple(sorted(p["numbers"])), p["target"]) for p in tests}) == 500


# --- In the harness ---------------------------------------------------------------------------------------------------


def harness_score(task, document, answer):
    """What lm-eval gives for one answer: the filters of the task, then its metric."""
    instance = SimpleNamespace(resps=[answer], filtered_resps={}, doc=document)
    for ensemble in task._filters:
        ensemble.apply([instance])
    [score] = task.process_results(document, [instance.filtered_resps["strict-match"]]).values()
    return bool(score)


@pytest.mark.parametrize("name, generator", [("arithmetic-500", arithmetic), *list(GENERATORS.items())[1:]])
def test_the_harness_scores_as_is_right(name, generator):
    """Guards two scores of one answer against each other: the harness's strict match is is_right."""
    task = tasks.load_tasks(name)["tasks"][name]
    documents = list(task.eval_docs)
    assert len(documents) == 500
    assert task.doc_to_text(documents[0]) == f"Question: {documents[0]['question']}\nAnswer:"
    right = 0
    for document, other in zip(documents[:12], documents[1:]):
        answer = document["answer"]
        for text in (answer, other["answer"], answer.replace("####", "#"), answer.replace("\n", ".\n") + ".", "",
                     answer.replace("#### ", "#### 0"), answer.replace("#### ", "#### -"), f"#### 1,2\n{answer}",
                     re.sub(r"#### (\d)", r"#### \1,", answer), f"{answer}\n#### 5", f"So:\n{answer}", "#### ,",
                     "#### .", re.sub(r"(#### \d+)", r"\1.0", answer),
                     answer.replace("#### ", "#### $"), f" {answer} "):
            score = harness_score(task, document, text)
            assert score == generator.is_right(document, text), text
            right += score
    assert right >= 36


@pytest.mark.parametrize("name", ["answer-first", "countdown"])
def test_worked_examples_show_the_answer(name):
    """Guards -s: an example's answer is the whole answer, and comes from the train split."""
    task = tasks.load_tasks(name, 2)["tasks"][name]
    task.build_all_requests(limit=1)
    prompt = task.instances[0].args[0]
    training = {problem["answer"] for problem in GENERATORS[name].take(64, 2024, "train")}
    assert sum(answer in prompt for answer in training) >= 2
