"""Clean and score the code that a model wrote for HumanEval or MBPP: pass@1 of the raw and of the cleaned replies.

    python postprocess_code.py results/humaneval-.../samples.jsonl        # prints pass@1, writes samples.jsonl.cleaned

A reply often holds more than the function that the problem asks for: a Markdown fence, an explanation, a second attempt
that was cut off. Cleaning finds the function and keeps what it needs (dpad/evaluation/code_cleaning.py). The programs
run in isolation (dpad/evaluation/sandbox.py).

Each line of the input is a JSON object with `doc` (the problem: `task_id`, `prompt`, `test` and `entry_point` in
HumanEval; `task_id` and `test_list` in MBPP) and `answer`. lm-eval's own sample files, which have `resps` instead, work
too. Each line of the output has `task_id`, `completion` (the cleaned code) and `pass`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dpad.engine.checks import check_integer, check_number
from dpad.engine.command_line import Parser
from dpad.evaluation import sandbox
from dpad.evaluation.code_cleaning import before, clean
from dpad.results.files import read_lines, write_text
from dpad.results.records import cores

# --- Scoring ----------------------------------------------------------------------------------------------------------


def program(code: str, problem: dict) -> str:
    """A solution and the problem's tests, ready to run.

    `from __future__` stays at the top; MBPP's setup may use what the solution defines.
    """
    if "entry_point" in problem:
        return f"{code}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    lines = code.split("\n")
    future = list(itertools.takewhile(lambda line: line.startswith("from __future__ "), lines))
    setup = problem.get("test_setup_code") or ""
    imports = problem.get("test_imports") or ()
    return "\n".join([*future, *imports, *lines[len(future):], setup, *problem["test_list"], ""])


def raw_program(reply: str, problem: dict) -> str:
    """The program of a reply as the model wrote it."""
    return program(before(problem) + reply, problem)


def score(samples: Sequence[dict], timeout: float = sandbox.TIMEOUT, workers: int = 1) -> dict:
    """Run the raw and the cleaned program of every sample.

    Args:
        samples: from `read_samples`.
        timeout: seconds per program.
        workers: programs that run at the same time.

    Returns:
        `raw` and `cleaned`: see `pass_at_1`. `timeouts`: how many cleaned programs timed out. `isolation`: what the
        programs were prevented from. `results`: the `task_id`, `completion` and `pass` of each sample.
    """
    names = [sample["doc"]["task_id"] for sample in samples]
    completions = [clean(sample["answer"], sample["doc"]) for sample in samples]
    cleaned = [program(code, sample["doc"]) for code, sample in zip(completions, samples)]
    raw = [raw_program(sample["answer"], sample["doc"]) for sample in samples]

    distinct = list(dict.fromkeys(cleaned + raw))
    with ThreadPoolExecutor(workers) as pool:
        running = pool.map(lambda text: sandbox.run_program(text, timeout), distinct)
        outcomes = dict(zip(distinct, tqdm(running, total=len(distinct), unit="program", disable=None, leave=False)))

    passed = [outcomes[text] == "passed" for text in cleaned]
    return {
        "raw": pass_at_1(names, [outcomes[text] == "passed" for text in raw]),
        "cleaned": pass_at_1(names, passed),
        "timeouts": sum(outcomes[text] == "timed out" for text in cleaned),
        "isolation": sandbox.isolation().describe(),
        "results": [
            {"task_id": name, "completion": code, "pass": success}
            for name, code, success in zip(names, completions, passed)
        ],
    }


def pass_at_1(names: Sequence[object], passed: Sequence[bool]) -> dict:
    """`value`, the mean over problems of the share of their samples that pass, and `stderr`, its standard error."""
    by_problem: dict[object, list[bool]] = {}
    for name, success in zip(names, passed):
        by_problem.setdefault(name, []).append(success)
    shares = [statistics.fmean(successes) for successes in by_problem.values()]

    value = statistics.fmean(shares) if shares else None
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else None
    return {"value": value, "stderr": error}


# --- Command line -----------------------------------------------------------------------------------------------------


def read_samples(path: str | Path) -> list[dict]:
    """The samples of a file, each with `doc` and `answer`.

    Raises:
        ValueError: the file or a line cannot be used; the message has the line's number.
    """
    samples = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = json.loads(line)
            problem = entry["doc"]
            answer = entry["answer"] if "answer" in entry else entry["resps"][0][0]
            usable = isinstance(answer, str) and is_coding_problem(problem)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            usable = False
        if not usable:
            raise ValueError(f"{path}, line {number}: not a sample of a coding task: it needs answer (or resps) and a "
                             "doc with task_id and HumanEval's prompt, test, entry_point or MBPP's test_list")
        samples.append({"doc": problem, "answer": answer})

    if not samples:
        raise ValueError(f"{path} holds no samples")
    return samples


def is_coding_problem(problem: dict) -> bool:
    """Whether this is a problem in the form of HumanEval or MBPP."""
    is_humaneval = {"prompt", "test", "entry_point"} <= problem.keys()
    return "task_id" in problem and (is_humaneval or "test_list" in problem)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = Parser(
        prog="postprocess_code.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", metavar="SAMPLES.jsonl", help="the samples of a run")
    parser.add_argument(
        "--timeout", type=float, default=sandbox.TIMEOUT, help="seconds per program (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=cores(), help="programs that run at the same time (default: "
                        "one per core)")
    parser.add_argument("--isolation", choices=sandbox.LEVELS, help="the least isolation of programs to accept; none "
                        f"accepts any risk (default: {sandbox.DEFAULT_LEVEL})")
    options = parser.parse_args(arguments)

    try:
        check_number("timeout", options.timeout, above=0)
        check_integer("workers", options.workers, 1)
        samples = read_samples(options.samples)
        sandbox.require_level(options.isolation)
        if holes := sandbox.check_level().holes():
            print(f"WARNING: code that a model wrote runs on this machine, where it could {', '.join(holes)}. Install "
                  "bubblewrap to prevent that.", file=sys.stderr)
        scores = score(samples, options.timeout, options.workers)
    except ValueError as error:
        print(f"postprocess_code.py: {error}", file=sys.stderr)
        return 2

    output = f"{options.samples}.cleaned"
    write_text(output, "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in scores["results"]))

    for name in ("raw", "cleaned"):
        value = scores[name]["value"]
        deviation = scores[name]["stderr"]
        print(f"pass@1 {name:<8} {value:6.1%}" + ("" if deviation is None else f" ± {deviation:.1%}"))
    print(f"{len(samples)} samples, {scores['timeouts']} timed out; isolation: {scores['isolation']}")
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
