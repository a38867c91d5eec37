"""This project beside the authors' code: the same weights and prompt in turn, equal tokens, and how many times as fast.

    git clone https://github.com/Crys-Chen/DPad ../DPad
    python benchmarks/against_authors.py ../DPad --their_python ../theirs/bin/python     # both families, on the CPU
    python -m benchmarks.against_authors ../DPad --family llada --device cuda --output FILE

Their files stay as they are. Their code runs in a process of its own, with as many threads, and where it needs other
versions (transformers 4.49, einops) with another Python; docs/speed.md says how to make one. The weights are random, of
the shape `small` of `run.py bench`, the rows those of its table. Beside the ratio of the two times stands what the
roofline of matrix products would allow: their time over it. A second number is what it would allow by the library that
torch multiplies with on its own.

The exit status is 1 where tokens differ, and 2 where their code cannot be run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # the file was run, not the module: only its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workload import ROWS, Workload, choose_rows
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser, say
from dpad.engine.fields import add_flags, read_flags, settings_of

SHAPES = {"small": {"llada": "small", "dream": "small-dream"}, "full": {"llada": "8b", "dream": "7b"}}
SETTINGS = [entry for entry in settings_of(Workload) if entry.name not in ("threshold", "blocks")]  # every row's work
REPEATS = 3


def parser() -> Parser:
    result = Parser(prog="against_authors.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("clone", metavar="CLONE", help="folder of https://github.com/Crys-Chen/DPad")
    result.add_argument("--their_python", default=sys.executable, metavar="PATH",
                        help="the Python that runs their code (default: this one)")
    result.add_argument("--family", choices=("llada", "dream", "both"), default="both", help="(default: %(default)s)")
    result.add_argument("-m", "--model", choices=tuple(SHAPES), default="small", help="shape of the random weights; "
                        "full: of the 8B and 7B models (default: %(default)s)")
    result.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    result.add_argument("--dtype", default="float32", help="(default: %(default)s, in which rounding decides least)")
    add_flags(result.add_argument_group("work"), SETTINGS)
    group = result.add_argument_group("measurement")
    group.add_argument("--only", metavar="ROW,...", help=f"only these of {', '.join(ROWS['caches'])}")
    group.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="timed runs of each row "
                       "(default: %(default)s)")
    group.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        return run(options, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        say("against_authors.py", "interrupted")
        return 130
    except ValueError as error:
        say("against_authors.py", error)
        return 2


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Measure what the flags ask for, print it, and write the record.

    Raises:
        ValueError: on flags that cannot be used.
    """
    work = Workload(**read_flags(options, SETTINGS))
    rows = choose_rows("caches", None if options.only is None else options.only.split(","))
    check_integer("--repeats", options.repeats, 1)
    clone = Path(options.clone).resolve()
    if not clone.is_dir():
        raise ValueError(f"CLONE is {options.clone!r}; it must be a folder with the authors' code")

    from benchmarks import authors
    from benchmarks.progress import Progress
    from dpad.engine import loading
    from dpad.results import files, outputs, records, tables

    python = authors.find_python(options.their_python)
    device, dtype = loading.placement(options.device, options.dtype)
    if options.output is not None:
        outputs.check("--output", options.output, outputs.AUTHORS)

    record: dict[str, Any] = {
        "kind": "authors", "model": options.model,
        "command": shlex.join(["python", "benchmarks/against_authors.py", *arguments]),
        "settings": work.to_json() | {"device": str(device), "dtype": str(dtype).removeprefix("torch.")},
        "repeats": options.repeats, "theirs": {"commit": records.commit(clone), "files": {}}, "rows": [],
        "environment": records.environment(),
    }
    families = ("llada", "dream") if options.family == "both" else (options.family,)
    failed = False
    with Progress(len(families) * len(rows) * (1 + options.repeats), "run") as progress:
        for family in families:
            try:
                measured, versions = authors.compare(clone, python, SHAPES[options.model][family], str(device),
                                                     options.dtype, rows, work, options.repeats, progress)
            except (authors.AuthorsError, ValueError) as error:
                say("against_authors.py", error)
                failed = True
                continue
            record["rows"] += measured
            record["theirs"] |= versions | {"files": record["theirs"]["files"] | versions["files"]}
            if options.output is not None:  # the other family may fail, or be interrupted
                files.write_json(options.output, record)
    if record["rows"]:
        print(f"{tables.terminal_table([record])}\n\n{tables.caption([record])}")
    different = [row for row in record["rows"] if row["first_difference"] is not None]
    for row in different:
        say("against_authors.py", f"{row['name']} of {row['family']}: the tokens differ, first at position "
            f"{row['first_difference']} of the answer (from 0)")
    return 2 if failed else int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
