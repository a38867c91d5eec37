"""Documents of this repository's arithmetic, Countdown, GSM8K and multiple-choice tasks, for lm-eval.

The task files beside this one name these functions. To see tasks at work:

    python run.py -t arithmetic-50 -m tiny --limit 5
    python run.py -t choices-local -m tiny --mc_samples 32
"""

from types import ModuleType

from datasets import Dataset

from dataset import answer_first, arithmetic, countdown, gsm8k, read_problems

FEWSHOT_PROBLEMS = 64  # training problems that few-shot examples are drawn from
FEWSHOT_SEED = 2024
COLUMNS = ("question", "answer")


def load(
    problem_file: str | None = None, problem_count: int = 500, problem_seed: int = 2024, **metadata: object
) -> dict[str, Dataset]:
    """Arithmetic problems: `question` and `answer` as in GSM8K, in the splits "train" (few-shot) and "test".

    problem_file: a .jsonl file in dataset/; without it `problem_count` test problems are generated from `problem_seed`.
    metadata: whatever else lm-eval passes on from the task file; it changes nothing.
    """
    if problem_file is None:
        test = arithmetic.take(problem_count, problem_seed, split="test")
    else:
        test = read_problems(problem_file)
    train = arithmetic.take(FEWSHOT_PROBLEMS, FEWSHOT_SEED, split="train")
    return {"train": _dataset(train), "test": _dataset(test)}


def load_answer_first(problem_count: int = 500, problem_seed: int = 2024, **metadata: object) -> dict[str, Dataset]:
    """The problems of `load` with the result before the working."""
    return _generated(answer_first, problem_count, problem_seed)


def load_countdown(
    problem_count: int = 500, problem_seed: int = 2024, number_count: int = countdown.NUMBERS, **metadata: object
) -> dict[str, Dataset]:
    """Countdown puzzles of `number_count` numbers, in the splits "train" (few-shot) and "test"."""
    return _generated(countdown, problem_count, problem_seed, numbers=number_count)


def _generated(generator: ModuleType, count: int, seed: int, **options: int) -> dict[str, Dataset]:
    return {"train": Dataset.from_list(generator.take(FEWSHOT_PROBLEMS, FEWSHOT_SEED, split="train", **options)),
            "test": Dataset.from_list(generator.take(count, seed, split="test", **options))}


def score_answer_first(problem: dict, answers: list[str]) -> dict[str, bool]:
    """lm-eval's metric for an answer that has to begin with #### and the result."""
    return {"exact_match": answer_first.is_right(problem, answers[0])}


def score_countdown(problem: dict, answers: list[str]) -> dict[str, bool]:
    """lm-eval's metric for a solution: any that is right counts."""
    return {"exact_match": countdown.is_right(problem, answers[0])}


def _dataset(problems: list[dict]) -> Dataset:
    return Dataset.from_list([{column: problem[column] for column in COLUMNS} for problem in problems])


def load_gsm8k(**metadata: object) -> dict[str, Dataset]:
    """The GSM8K problems that dataset/gsm8k.py fetched (`question`, `answer`, `ans`), as the split "test".

    Raises:
        ValueError: dataset/gsm8k-50.arrow is missing or unreadable; the message names the command that makes it.
    """
    return {"test": Dataset.from_list(gsm8k.read())}


def load_choices(**metadata: object) -> dict[str, Dataset]:
    """dataset/choices.jsonl: `question`, `choices` (texts) and `answer` (the index of the correct one)."""
    return {"test": Dataset.from_list(read_problems("choices.jsonl"))}
