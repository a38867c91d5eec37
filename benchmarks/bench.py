"""The command `run.py bench`: its flags, what they ask for, and what it prints and writes.

    python run.py bench                                            # `small` on the CPU: six rows
    python run.py bench -m 8b --prompt_length 200 -l 1024 --steps_per_block 10 --rows figure --blocks 5      # on a GPU
    python run.py bench --gen_lengths 256,512,1024,2048            # how the cost of a block grows with the answer
    python run.py bench -m tiny --batch_size 1,8                   # what batches gain
    python run.py bench --profile +DPad                            # where the time goes

Rows and workloads are in workload.py, the timing in measurement.py, the rooflines in rooflines.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from benchmarks.workload import ROWS, Workload, choose_rows
from dpad.engine.checks import check_integer
from dpad.engine.configurations import Configuration
from dpad.engine.fields import add_flags as add_setting_flags
from dpad.engine.fields import read_flags, settings_of

GROWTH_ROWS = ("Vanilla", "+DPad")
GROWTH_BLOCKS = 4
REPEATS = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's flags. Those for the model (--model, --adapter, --device, --dtype) are in run.py."""
    group = parser.add_argument_group("work")
    add_setting_flags(group, settings_of(Workload))
    group.add_argument("--batch_size", default="1", metavar="N,...", help="rows decoded together; several sizes are "
                       "compared (default: %(default)s)")
    group = parser.add_argument_group("measurement")
    group.add_argument("--rows", choices=tuple(ROWS), default="caches",
                       help="vanilla and DPad with each cache, or the paper's long-sequence figure "
                       "(default: %(default)s)")
    group.add_argument("--only", metavar="ROW,...", help="only the rows of these names")
    group.add_argument("--graphs", choices=("auto", "on", "off"), default="auto", help="replay cached steps as CUDA "
                       "graphs; auto: on a GPU (default: %(default)s)")
    group.add_argument("--fused", choices=("auto", "on", "off"), default="auto", help="in recorded forwards, compile "
                       "the steps between the weight products; auto: of a large model on a GPU, as decoding does after "
                       "a while (default: %(default)s)")
    group.add_argument("--repeats", type=int, metavar="N", help=f"timed runs of every row (default: {REPEATS})")
    group.add_argument("--gen_lengths", metavar="G,...", help="instead: the cost of the first --blocks blocks "
                       f"({GROWTH_BLOCKS}) of {' and '.join(GROWTH_ROWS)} at these answer lengths")
    group.add_argument("--profile", metavar="ROW", help="instead: where the time of this row goes")
    group.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    group.add_argument("--plot", metavar="FILE", help="draw the record into this .png or .svg file")


def plan(args: argparse.Namespace) -> tuple[dict[str, Configuration], list[Workload]]:
    """The rows and the workloads that the flags ask for.

    Raises:
        ValueError: on flags that cannot be used, or not together.
    """
    values = read_flags(args, settings_of(Workload))
    check_flags(args, values)
    names = [args.profile] if args.profile else GROWTH_ROWS if args.gen_lengths else None
    if names is None and args.only:
        names = args.only.split(",")
    rows = choose_rows(args.rows, names)

    batch_sizes = parse_integers("--batch_size", args.batch_size)
    if len(batch_sizes) > 1 and (args.gen_lengths or args.profile):
        other = "--gen_lengths" if args.gen_lengths else "--profile"
        raise ValueError(f"--batch_size is {args.batch_size!r}; it must be one number with {other}")

    if args.gen_lengths:
        values.setdefault("blocks", GROWTH_BLOCKS)
        lengths = parse_integers("--gen_lengths", args.gen_lengths)
        workloads = [Workload(**values | {"gen_length": length}, batch_size=batch_sizes[0]) for length in lengths]
        compared = len(lengths)
    else:
        workloads = [Workload(**values, batch_size=size) for size in batch_sizes]
        compared = len(rows) * len(batch_sizes)
        if values.get("blocks") and not any(row.early_termination for row in rows.values()):
            raise ValueError(f"--blocks is {values['blocks']}, but no row that is timed ends early; leave it out, or "
                             "take --rows figure")
    if args.plot is not None and compared < 2:
        raise ValueError(f"--plot is {args.plot!r}, but there is nothing to compare in a chart of one "
                         f"{'length' if args.gen_lengths else 'row'}")
    return rows, workloads


def check_flags(args: argparse.Namespace, values: Mapping[str, Any]) -> None:
    """Raise ValueError where a flag would be ignored beside another one."""
    typed = {
        "--only": args.only, "--profile": args.profile, "--gen_lengths": args.gen_lengths, "--repeats": args.repeats,
        "--output": args.output, "--plot": args.plot, "--gen_length": values.get("gen_length"),
        "--steps_per_block": values.get("steps_per_block"), "--threshold": values.get("threshold"),
    }
    unused = {
        "--profile": ("--only", "--gen_lengths", "--repeats", "--output", "--plot"),
        "--gen_lengths": ("--only", "--gen_length"),
        "--threshold": ("--steps_per_block",),
    }
    for flag, others in unused.items():
        for other in others if typed[flag] is not None else ():
            if typed[other] is not None:
                raise ValueError(f"{other} is {typed[other]!r}, which {flag} does not use; leave one of them out")


def parse_integers(flag: str, text: str) -> list[int]:
    """The numbers in `1,8`; ValueError where there are others, or one of them twice."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} is {text!r}; it must be whole numbers with commas between them") from None
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{flag} is {text!r}; it must be different numbers")
    return numbers


def run(args: argparse.Namespace, command: str) -> None:
    """Run the benchmark that the flags ask for and print its table; the last line is a summary as JSON.

    Args:
        args: the flags of `add_flags`, with `model`, `adapter`, `device` and `dtype`.
        command: the whole command line, for the record.

    Raises:
        ValueError: on flags that cannot be used.
    """
    rows, workloads = plan(args)
    repeats = REPEATS if args.repeats is None else args.repeats
    check_integer("repeats", repeats, 1)

    from dpad.results import charts, files, outputs, tables
    from dpad.results.benchmarks import summarize

    if args.output is not None:
        outputs.check("--output", args.output, outputs.BENCHMARK)
    if args.plot is not None:
        outputs.check("--plot", args.plot, outputs.PICTURE)

    from benchmarks import measurement
    from dpad.engine import cuda_graphs, fused

    subject = measurement.make_subject(args.model, args.device, args.dtype, args.adapter)
    compiled = args.fused
    if compiled == "auto":  # not in the middle of a timed run
        compiled = "on" if fused.pays(subject.model) else "off"
    with cuda_graphs.use(args.graphs), fused.use(compiled):
        if args.fused == "on" and not cuda_graphs.is_on(subject.model.device):
            raise ValueError("--fused is 'on', but without a GPU nothing is recorded; add --graphs on, or leave it out"
                             if args.graphs == "auto" else "--fused is 'on', but --graphs is 'off'; leave one out")
        if args.profile:
            print(measurement.profile(subject, args.profile, rows[args.profile], workloads[0]))
            return
        measure = measurement.growth if args.gen_lengths else measurement.measure
        record = measure(subject, rows, workloads, repeats, command)

    if args.output is not None:
        files.write_json(args.output, record)
    print(f"{tables.terminal_table([record])}\n\n{tables.caption([record])}")
    if args.output is not None:
        print(f"written to {args.output}")
    if args.plot is not None:
        charts.draw([record], args.plot)
        print(f"drawn in {args.plot}")
    print(json.dumps(summarize(record)))
