"""Fetch the first problems of GSM8K's test set from the Hugging Face hub into one small Arrow file.

Run it from the repository root; `MODEL=1.5 TASK=gsm8k-split bash demo/demo.sh` then works offline:

    python dataset/gsm8k.py                                                # 50 problems, dataset/gsm8k-50.arrow
    python dataset/gsm8k.py --count 200 --output dataset/gsm8k-200.arrow

The file is in Arrow's IPC file format. Its columns are `question` and `answer`, word for word as on the hub, and
`ans`, the number after `####`. GSM8K: Cobbe et al. 2021, arXiv 2110.14168, MIT licence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow

from dataset import GSM8K, fetch_rows
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser, say
from dpad.results import outputs
from dpad.results.files import write_whole

SPLIT = "test"
OUTPUT = Path(__file__).resolve().parent / "gsm8k-50.arrow"
SCHEMA = pyarrow.schema([("question", pyarrow.string()), ("answer", pyarrow.string()), ("ans", pyarrow.float64())])


def fetch(count: int) -> list[dict]:
    """The first `count` rows (`question`, `answer`) of GSM8K's test set, from the hub or the hub's local cache.

    Raises:
        ValueError: the hub is out of reach and the cache does not hold the data set; in one sentence.
    """
    rows = fetch_rows(*GSM8K, SPLIT)
    return [{"question": row["question"], "answer": row["answer"]} for row in rows.select(range(min(count, len(rows))))]


def table(rows: Iterable[dict]) -> pyarrow.Table:
    """The rows as an Arrow table in SCHEMA.

    Raises:
        ValueError: an answer does not end in `#### number`.
    """
    complete = []
    for number, row in enumerate(rows, start=1):
        try:
            result = float(row["answer"].rpartition("####")[2].replace(",", ""))
        except ValueError:
            raise ValueError(f"the answer of problem {number} does not end in '#### number'") from None
        complete.append({"question": row["question"], "answer": row["answer"], "ans": result})
    return pyarrow.Table.from_pylist(complete, schema=SCHEMA)


def write(problems: pyarrow.Table, path: str | Path) -> None:
    """Write an Arrow IPC file, whole or not at all. Raises OSError when it cannot be written."""
    with write_whole(path) as temporary:
        with pyarrow.OSFile(str(temporary), "wb") as file, pyarrow.ipc.new_file(file, problems.schema) as writer:
            writer.write_table(problems)


def read(path: str | Path | None = None) -> list[dict]:
    """The problems in a file that this program wrote (by default OUTPUT), dicts with `question`, `answer` and `ans`.

    Raises:
        ValueError: the file is missing (the message names the command that makes it), is not an Arrow file or has
            other columns.
    """
    path = Path(path or OUTPUT)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it with: python dataset/gsm8k.py")
    try:
        with pyarrow.OSFile(str(path)) as file:
            problems = pyarrow.ipc.open_file(file).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not an Arrow file; make it anew with: python dataset/gsm8k.py") from error
    missing = [name for name in SCHEMA.names if name not in problems.column_names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; make it anew with: python dataset/gsm8k.py")
    return problems.select(SCHEMA.names).to_pylist()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = Parser(prog="gsm8k.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="how many problems, at least 1 (default: 50)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE",
                        help="the file to write (default: dataset/gsm8k-50.arrow in the repository)")
    options = parser.parse_args(arguments)
    try:
        check_integer("--count", options.count, 1)
        outputs.check("--output", options.output, outputs.ARROW)
        print(f"fetching {GSM8K[0]} …", file=sys.stderr)
        problems = table(fetch(options.count))
        write(problems, options.output)
    except (ValueError, OSError) as error:
        say("gsm8k.py", error)
        return 1
    print(f"wrote {problems.num_rows} problems to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
