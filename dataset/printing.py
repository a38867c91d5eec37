"""The command line that the programs of this folder share which generate problems: JSON lines to a file or a terminal.

    python dataset/countdown.py --count 3 --split test

Imported by them, never run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from dpad.engine.command_line import Parser
from dpad.results import files, outputs


def parser_of(prog: str, description: str, examples: str, splits: str) -> Parser:
    """The flags --count, --seed, --split and --output. splits: how the problems of the two splits differ."""
    parser = Parser(
        prog=prog,
        description=f"{description}, one JSON object a line. The same flags always give the same lines.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=50, help="how many problems, at least 1 (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="which stream of problems, at least 0 (default: 0)")
    parser.add_argument("--split", default="train", help=f"train or test (default: train). {splits}")
    parser.add_argument("--output", metavar="FILE", help="the file to write (default: print to standard output)")
    return parser


def write_problems(parser: Parser, arguments: Sequence[str] | None, take: Callable[..., list[dict]],
                   columns: Sequence[str]) -> None:
    """Parse the command line and write what `take` gives for its flags, or end with one line that says what is wrong.

    take: gets count, seed, split and, by name, the flags beyond those. columns: what is written of each problem.
    """
    options = vars(parser.parse_args(arguments))
    output = options.pop("output")
    try:
        if output is not None:
            outputs.check("output", output, outputs.PROBLEMS)
        problems = take(options.pop("count"), options.pop("seed"), options.pop("split"), **options)
    except ValueError as error:
        parser.error(f"--{error}")
    lines = [json.dumps({column: problem[column] for column in columns}) + "\n" for problem in problems]
    if output is None:
        try:
            sys.stdout.writelines(lines)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        files.write_text(output, "".join(lines))
    except OSError as error:
        parser.error(f"--output {output}: {error.strerror}")
