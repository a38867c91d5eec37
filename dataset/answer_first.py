"""The stories of arithmetic.py with the result before its working: whoever writes it down must have worked it out.

    python dataset/answer_first.py --count 3 --seed 0 --split test

In arithmetic.py an answer's last line follows from the lines before it. Here the result stands first, so a model that
writes from left to right has no room to work it out, while a diffusion model may use what comes later as a scratchpad.
The question ends in HINT. The answer is `#### 12`, then one sentence per calculation:

    Ben bakes 4 trays with 6 muffins each. How many muffins does Ben bake? Answer first.

    #### 24
    The trays hold 4*6=<<4*6=24>>24 muffins.
"""

from dataset import arithmetic, printing

HINT = "Answer first."  # three tokens of the embedded models


def reverse(problem: dict) -> dict:
    """One of arithmetic.py's problems with the hint in its question, and the result before the working."""
    working, _, result = problem["answer"].rpartition("\n")
    return problem | {"question": f"{problem['question']} {HINT}", "answer": f"{result}\n{working}"}


def problem(seed: int, index: int, split: str = "train") -> dict:
    """As arithmetic.problem, with other stories."""
    return reverse(arithmetic.problem(seed, index, split, "answer-first"))


def take(count: int, seed: int, split: str = "train") -> list[dict]:
    """arithmetic.take, reversed: the same stories, so that the two tasks can be compared problem by problem."""
    return [reverse(problem) for problem in arithmetic.take(count, seed, split)]


def is_right(problem: dict, answer: str) -> bool:
    """Whether an answer begins with #### and the right number; working before the result is another task."""
    return answer.lstrip().startswith("#### ") and arithmetic.is_right(problem, answer)


def main(arguments: list[str] | None = None) -> None:
    """Write problems as JSON lines; the module docstring shows the command."""
    parser = printing.parser_of(
        "answer_first.py",
        "Write arithmetic word problems whose answers begin with the result",
        "  python dataset/answer_first.py --count 3\n      prints 3 training problems",
        "The stories are those of arithmetic.py for the same flags",
    )
    printing.write_problems(parser, arguments, take, ("question", "answer"))


if __name__ == "__main__":
    main()
