"""Clean and score the code that a model wrote for HumanEval or MBPP: pass@1 of the replies as they are, and cleaned.

    python postprocess_code.py results/humaneval-.../samples.jsonl        # prints pass@1, writes samples.jsonl.cleaned

A reply often has more in it than the function asked for: a fence, an explanation, a second attempt cut off in the
middle. Cleaning takes the code out of its fence, puts the problem's prompt before it, keeps the longest run of lines
that parses, and of that the imports and whatever the entry point reaches. The programs are run by sandbox.py.

A line of the input has `doc` (the problem: `task_id`, `prompt`, `test` and `entry_point` in HumanEval; `task_id` and
`test_list` in MBPP) and `answer`; lm-eval's own sample files, with `resps`, are understood too. A line of the output
has `task_id`, `completion` (the cleaned code) and `pass`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from dpad.evaluation import sandbox
from dpad.results.files import read_lines
from dpad.results.records import cores

LINE_END = re.compile(r"\r\n?|\n")  # Python's: a string may hold others, such as U+2028
FENCE = re.compile(r"```[ \t]*(?:python|py|Python)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


# --- Cleaning ---------------------------------------------------------------------------------------------------------


def clean(reply: str, problem: dict) -> str:
    """The part of a reply that answers the problem; empty when nothing in it parses."""
    code = longest_code(before(problem) + without_fence(reply))
    return reached(code, entry_points(problem, code))


def without_fence(reply: str) -> str:
    """The code inside the first fence of a reply, to the reply's end if it is not closed; else the reply."""
    found = FENCE.search(reply)
    return found[1] if found else reply


def before(problem: dict) -> str:
    """What stands before a reply in the program: HumanEval's prompt is the head of the function that is asked for."""
    return problem["prompt"] if "entry_point" in problem else ""


def longest_code(text: str) -> str:
    """The longest run of lines that parses as Python; of equally long ones the first. Blank lines do not count."""
    lines = LINE_END.split(text.expandtabs(4))
    filled = [bool(line.strip()) for line in lines]
    best, most = "", 0
    for first in range(len(lines)):
        if not filled[first]:
            continue
        for last in range(len(lines), first, -1):
            length = sum(filled[first:last])
            if length <= most:
                break
            if parses(candidate := "\n".join(lines[first:last])):
                best, most = candidate, length
                break
    return best


def parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def entry_points(problem: dict, code: str) -> set[str]:
    """The names that the problem's tests start from: HumanEval names one, MBPP's tests call what the code defines."""
    if "entry_point" in problem:
        return {problem["entry_point"]}
    defined = {name for node in ast.parse(code).body for name in defines(node)}
    tests = ast.parse("\n".join(problem["test_list"]))
    return {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)} & defined


def defines(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a program gives a meaning to."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()


def reached(code: str, names: set[str]) -> str:
    """The imports of a program and the definitions that are used, directly or not, from the names."""
    body = ast.parse(code).body
    wanted, open_names = set(), set(names)
    while open_names:
        wanted |= open_names
        open_names = {
            used.id for node in body if defines(node) & open_names for used in ast.walk(node)
            if isinstance(used, ast.Name)
        } - wanted
    lines = LINE_END.split(code)
    kept = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) or defines(node) & wanted:
            first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", ()))])
            kept += lines[first - 1 : node.end_lineno]
    return "\n".join(kept)


# --- Scoring ----------------------------------------------------------------------------------------------------------


def program(code: str, problem: dict) -> str:
    """A solution and the problem's tests, ready to run."""
    if "entry_point" in problem:
        return f"{code}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    setup = [problem.get("test_setup_code") or "", *(problem.get("test_imports") or ())]
    return "\n".join([*setup, code, *problem["test_list"], ""])


def score(samples: Sequence[dict], timeout: float = sandbox.TIMEOUT, workers: int | None = None) -> dict:
    """Run every sample's program, as it was written and cleaned.

    Args:
        samples: as `read_samples` gives them.
        timeout: seconds for each program.
        workers: programs at a time (None: as many as cores).

    Returns:
        `raw` and `cleaned`, each with `value` (pass@1, the mean over problems of the share of their samples that pass)
        and `stderr`; `timeouts`; `isolation`; and `results`, for each sample its `task_id`, `completion` and `pass`.
    """
    cleaned = [clean(sample["answer"], sample["doc"]) for sample in samples]
    programs = [program(code, sample["doc"]) for code, sample in zip(cleaned, samples)]
    programs += [program(before(sample["doc"]) + sample["answer"], sample["doc"]) for sample in samples]
    distinct = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(workers or cores()) as pool:
        running = pool.map(lambda text: sandbox.run_program(text, timeout), distinct)
        outcomes = dict(zip(distinct, tqdm(running, total=len(distinct), unit="program", disable=None, leave=False)))
    passed = [outcomes[text] == "passed" for text in programs]
    names = [sample["doc"]["task_id"] for sample in samples]
    return {
        "raw": pass_at_1(names, passed[len(samples) :]), "cleaned": pass_at_1(names, passed[: len(samples)]),
        "timeouts": sum(outcomes[text] == "timed out" for text in programs[: len(samples)]),
        "isolation": sandbox.isolation().describe(),
        "results": [{"task_id": name, "completion": code, "pass": ok}
                    for name, code, ok in zip(names, cleaned, passed)],
    }


def pass_at_1(names: Sequence[object], passed: Sequence[bool]) -> dict:
    """The mean over problems of the share of their samples that pass, and its standard error."""
    shares: dict[object, list[bool]] = {}
    for name, ok in zip(names, passed):
        shares.setdefault(name, []).append(ok)
    means = [statistics.fmean(oks) for oks in shares.values()]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
    return {"value": statistics.fmean(means) if means else None, "stderr": error}


# --- Files ------------------------------------------------------------------------------------------------------------


def read_samples(path: str | Path) -> list[dict]:
    """The samples of a file, each with `doc` and `answer`.

    Raises:
        ValueError: the file or a line cannot be used, with the line's number.
    """
    samples = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = json.loads(line)
            answer = entry["answer"] if "answer" in entry else entry["resps"][0][0]
            problem = entry["doc"]
            known = "task_id" in problem and ({"prompt", "test", "entry_point"} <= problem.keys()
                                              or "test_list" in problem)
        except (ValueError, KeyError, TypeError, IndexError):
            known = False
        if not known or not isinstance(answer, str):
            raise ValueError(f"{path}, line {number}: not a sample of a coding task: it needs answer (or resps) and a "
                             "doc with task_id and HumanEval's prompt, test, entry_point or MBPP's test_list")
        samples.append({"doc": problem, "answer": answer})
    if not samples:
        raise ValueError(f"{path} holds no samples")
    return samples


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="postprocess_code.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", metavar="SAMPLES.jsonl", help="the samples of a run")
    parser.add_argument("--timeout", type=float, default=sandbox.TIMEOUT,
                        help="seconds a program (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="programs at a time (default: one a core)")
    options = parser.parse_args(arguments)
    try:
        if options.timeout <= 0 or (options.workers is not None and options.workers < 1):
            raise ValueError(f"--timeout is {options.timeout} and --workers {options.workers}; both must be positive")
        samples = read_samples(options.samples)
        holes = sandbox.isolation().holes()
        if holes:
            print(f"WARNING: code that a model wrote runs on this machine, where it could {', '.join(holes)}. Install "
                  "bubblewrap to prevent that.", file=sys.stderr)
        scores = score(samples, options.timeout, options.workers)
    except (ValueError, RuntimeError) as error:
        print(f"postprocess_code.py: {error}", file=sys.stderr)
        return 2
    output = Path(f"{options.samples}.cleaned")
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in scores["results"]),
                         encoding="utf-8")
    os.replace(temporary, output)
    for name in ("raw", "cleaned"):
        error = scores[name]["stderr"]
        print(f"pass@1 {name:<8} {scores[name]['value']:6.1%}" + (f" ± {error:.1%}" if error is not None else ""))
    print(f"{len(samples)} samples, {scores['timeouts']} timed out; isolation: {scores['isolation']}\n"
          f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
