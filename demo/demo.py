"""Evaluate six decoding configurations with one model and show them side by side: table, records, bar chart.

(Seven for answers of 1024 tokens and more: the paper's long-sequence figure has vanilla with early termination, too.)

    bash demo/demo.sh                                            # sets everything up, then runs this file
    python demo/demo.py --model tiny --task arithmetic-50        # the same where requirements.txt is installed
    python demo/demo.py --model 1.5 --task gsm8k-split           # the first 50 problems of GSM8K's test set

The settings are those that the DPad paper reports (arXiv 2508.14148): blocks of 32 tokens; +Parallel decodes all tokens
that are at least 0.9 sure; +DPad sees a Gaussian sample of the next 256 suffix positions. Rows with DPad stop after the
block in which the answer ends; Vanilla, +Parallel and +Parallel+PrefixCache decode all their tokens.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpad import ROOT
from dpad.results import charts, files, tables

BLOCK_LENGTH = 32
THRESHOLD = 0.9
WINDOW = 256
LONG = 1024
WARM_UP_PROMPT = "Question: Tom has 3 bags with 4 apples each. How many apples does Tom have?\nAnswer:"

# name -> decoding flags; "dpad" stands for the sampler and early termination together.
CONFIGURATIONS = {
    "Vanilla": {},
    "Vanilla+EarlyTermination": {"early_termination": True},  # for long answers alone, as in the paper's figure
    "+DPad": {"dpad": True},
    "+Parallel": {"threshold": THRESHOLD},
    "+Parallel+DPad": {"threshold": THRESHOLD, "dpad": True},
    "+Parallel+PrefixCache": {"threshold": THRESHOLD, "use_cache": True},
    "+Parallel+PrefixCache+DPad": {"threshold": THRESHOLD, "use_cache": True, "dpad": True},
}


def names(gen_length: int) -> list[str]:
    """The configurations of the paper's tables; from LONG tokens on those of its long-sequence figure."""
    return [name for name in CONFIGURATIONS if gen_length >= LONG or name != "Vanilla+EarlyTermination"]


def flags(name: str, model: str, gen_length: int) -> dict:
    """The decoding flags of a configuration, as `completion.decoding_options` takes them.

    LLaDA-Instruct has its own k and a (the paper's table of settings); every other model takes LLaDA-1.5's.
    """
    chosen = dict(CONFIGURATIONS[name])
    if chosen.pop("dpad", False):
        k_sigma, scale = (4, 2.0) if "instruct" in Path(model).name.lower() else (3, 1.6)
        chosen |= {"dropout_strategy": "gaussian", "k_sigma": k_sigma, "scale": scale, "early_termination": True,
                   "window": min(WINDOW, gen_length)}
    return chosen | {"gen_length": gen_length, "block_length": BLOCK_LENGTH}


def prepare(options: argparse.Namespace) -> dict[str, dict]:
    """The keyword arguments of `generate` by configuration; settings and task are checked before a model is loaded.

    Raises:
        ValueError: a setting or the task cannot be used, in one sentence.
    """
    from dpad.engine import loading
    from dpad.engine.completion import decoding_options
    from dpad.evaluation import harness

    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is {options.limit}; it must be at least 1")
    family = loading.family_of(options.model)
    prepared = {
        name: decoding_options(family, **flags(name, options.model, options.gen_length))
        for name in names(options.gen_length)
    }
    with harness.quiet():
        harness.load_tasks(options.task)
    return prepared


def measure(loaded, prepared: dict[str, dict], options: argparse.Namespace) -> Iterator[dict]:
    """Evaluate the configurations one after the other; yields each record as it is finished.

    Raises:
        ValueError: see harness.evaluate. KeyboardInterrupt: finished answers are on disk.
    """
    from dpad.engine.completion import complete, decoding_options
    from dpad.engine.loading import FAMILIES
    from dpad.evaluation.harness import evaluate

    # The first call of a process allocates memory and loads libraries: a cost that no configuration should bear.
    one_block = decoding_options(
        FAMILIES[loaded.family], gen_length=BLOCK_LENGTH, block_length=BLOCK_LENGTH, threshold=THRESHOLD
    )
    complete(loaded, [WARM_UP_PROMPT], one_block)
    command = ["python", "demo/demo.py", "--model", options.model, "--task", options.task,
               "--gen_length", str(options.gen_length)]
    command += [] if options.limit is None else ["--limit", str(options.limit)]
    for number, (name, decoding) in enumerate(prepared.items(), start=1):
        record = evaluate(
            loaded, options.task, batch_size=options.batch_size, limit=options.limit, output=options.output, name=name,
            from_scratch=options.from_scratch, command=shlex.join(command),
            progress=f"{number}/{len(prepared)} {name}", **decoding,
        )
        record.pop("folder")
        yield record


def results_folder(options: argparse.Namespace) -> Path:
    """Where the table's records and the chart go; the answers lie beside it, one folder a configuration."""
    parts = [Path(options.task).stem, Path(options.model).name, str(options.gen_length)]
    parts += [] if options.limit is None else [f"first-{options.limit}"]
    return Path(options.output) / "-".join(parts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="demo.sh takes the first four from the environment as well: MODEL, TASK, LIMIT, GEN_LENGTH.",
    )
    parser.add_argument("-m", "--model", default="tiny",
                        help="tiny, dream-tiny, instruct, 1.5, base, dream-instruct, dream-base, a checkpoint "
                        "folder or a hub id (default: tiny)")
    parser.add_argument("-t", "--task", default="arithmetic-50",
                        help="arithmetic-50, gsm8k-split or another generation task (default: arithmetic-50)")
    parser.add_argument("--limit", type=int, help="number of problems, the first ones (default: all)")
    parser.add_argument("-l", "--gen_length", type=int, default=256,
                        help="answer tokens, a multiple of 32 (default: 256)")
    parser.add_argument("--batch_size", type=int, default=1, help="problems per generate call (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the first GPU, or the CPU)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 (default: bfloat16 on a GPU, float32 on the CPU)")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "demo", metavar="FOLDER",
                        help="where results go (default: results/demo in the repository)")
    parser.add_argument("--from_scratch", action="store_true", help="generate anew what an earlier run has answered")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    options = parse(arguments)
    finished: list[dict] = []
    try:
        from dpad.engine import loading

        prepared = prepare(options)
        loaded = loading.load(options.model, device=options.device, dtype=options.dtype)
        print(f"{len(prepared)} configurations of {options.model} on {options.task}, G = {options.gen_length}. "
              "Each row appears when it is measured.\n", flush=True)
        for record in measure(loaded, prepared, options):
            finished.append(record)
            lines = tables.terminal_table(finished, list(prepared)).splitlines()
            print("\n".join(lines if len(finished) == 1 else lines[-1:]), flush=True)
    except KeyboardInterrupt as interruption:
        if finished:
            show(finished, results_folder(options))
        print(f"\ndemo.py: {interruption or 'interrupted: the same command goes on from here'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    show(finished, results_folder(options))
    return 0


def show(finished: list[dict], folder: Path) -> None:
    """Write records.json and chart.png, and say with what the table was measured and where everything is."""
    files.write_json(folder / "records.json", finished)
    charts.bar_chart(finished, folder / "chart.png")
    print(f"\n{tables.caption(finished)}")
    reused = sum(record.get("reused") or 0 for record in finished)
    if reused:
        print(f"{reused} answers, and the seconds they took, are from an earlier run (--from_scratch makes new ones).")
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    print(f"\nrecords  {folder / 'records.json'}\nchart    {folder / 'chart.png'}\n"
          f"answers  {folder.parent}/*/samples.jsonl")


if __name__ == "__main__":
    sys.exit(main())
