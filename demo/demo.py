"""Evaluate a model in the paper's decoding configurations and show them side by side: table, records, bar chart.

    bash demo/demo.sh                                            # sets everything up, then runs this file
    python demo/demo.py --model tiny --task arithmetic-50        # the same where the repository is installed
    python demo/demo.py --model 1.5 --task gsm8k-split           # the first 50 problems of GSM8K's test set

There are six configurations, and for answers of 1024 tokens and more a seventh, as in the paper's long-sequence figure:
vanilla decoding with early termination. dpad/engine/configurations.py says what each of them is, with the settings that
the paper reports (arXiv 2508.14148).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpad import ROOT
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser, say, waiting_for
from dpad.engine.configurations import BLOCK_LENGTH, CONFIGURATIONS, THRESHOLD, dpad_parameters, names_for
from dpad.results import charts, files, outputs, tables

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel
    from dpad.engine.settings import DecodingSettings

WARM_UP_PROMPT = "Question: Tom has 3 bags with 4 apples each. How many apples does Tom have?\nAnswer:"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    options = parse(arguments)
    records: list[dict] = []
    try:
        from dpad.engine import loading

        with waiting_for(f"the task {options.task} and the model {options.model}"):
            settings = prepare(options)
            loaded = loading.load(options.model, device=options.device, dtype=options.dtype,
                                  adapter=options.adapter)
        print(f"{len(settings)} configurations of {loaded.name} on {options.task}, G = {options.gen_length}. "
              "Each row appears when it is measured.\n", flush=True)
        for record in measure(loaded, settings, options):
            records.append(record)
            lines = growing_table(records, list(settings)).splitlines()
            print("\n".join(lines if len(records) == 1 else lines[-1:]), flush=True)
    except KeyboardInterrupt as interruption:
        if records:
            finish(records, results_folder(options, records[0]["model"]))
        print(f"\ndemo.py: {interruption or 'interrupted: the same command continues from here'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        say("demo.py", error)
        return 1
    finish(records, results_folder(options, records[0]["model"]))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="demo.sh also takes the first four from the environment: MODEL, TASK, LIMIT, GEN_LENGTH.",
    )
    parser.add_argument("-m", "--model", default="tiny",
                        help="tiny, dream-tiny, instruct, 1.5, base, dream-instruct, dream-base, a checkpoint "
                        "folder or a hub id (default: tiny)")
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter to be merged into its weights, or its hub "
                        "id")
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
    parser.add_argument("--from_scratch", action="store_true", help="ignore the answers of an earlier run")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> dict[str, DecodingSettings]:
    """The settings of each configuration; they and the task are checked before a model is loaded.

    Raises:
        ValueError: a setting or the task cannot be used, in one sentence.
    """
    from dpad.engine import loading
    from dpad.evaluation.tasks import load_tasks, quiet

    if options.limit is not None:
        check_integer("--limit", options.limit, 1)
    outputs.check_folder("--output", options.output)
    if options.adapter is not None:
        loading.find_adapter(options.adapter)
    family = loading.family_of(options.model)
    parameters = dpad_parameters(options.model)
    settings = {
        name: family.settings.from_choices(CONFIGURATIONS[name].choices(options.gen_length, **parameters))
        for name in names_for(options.gen_length)
    }
    with quiet():
        load_tasks(options.task)
    return settings


def measure(
    loaded: LoadedModel, settings: dict[str, DecodingSettings], options: argparse.Namespace,
) -> Iterator[dict]:
    """Evaluate the configurations one after the other; yields each record as soon as it is complete.

    Raises:
        ValueError: see `runs.evaluate`.
        KeyboardInterrupt: finished answers are on disk.
    """
    from dpad.engine.completion import complete
    from dpad.evaluation import runs

    # The first call of a process allocates memory and loads libraries: a cost that no configuration should bear.
    one_block = loaded.family.settings(gen_length=BLOCK_LENGTH, block_length=BLOCK_LENGTH, threshold=THRESHOLD)
    complete(loaded, [WARM_UP_PROMPT], one_block)

    command = ["python", "demo/demo.py", "--model", options.model, "--task", options.task,
               "--gen_length", str(options.gen_length)]
    if options.limit is not None:
        command += ["--limit", str(options.limit)]
    if options.adapter is not None:
        command += ["--adapter", options.adapter]

    for number, (name, decoding) in enumerate(settings.items(), start=1):
        record = runs.evaluate(
            loaded, options.task, decoding, batch_size=options.batch_size, limit=options.limit, output=options.output,
            name=name, from_scratch=options.from_scratch, command=shlex.join(command),
            progress=f"{number}/{len(settings)} {name}",
        )
        assert record is not None  # this process is the only one
        record.pop("folder")
        yield record


def results_folder(options: argparse.Namespace, model: str) -> Path:
    """Where the table's records and the chart go; the answers are beside it, in one folder for each configuration.

    model: as the records call it, with its adapter.
    """
    parts = [Path(options.task).stem, Path(model).name, str(options.gen_length)]
    if options.limit is not None:
        parts.append(f"first-{options.limit}")
    return Path(options.output) / "-".join(parts)


def growing_table(records: list[dict], names: Sequence[str]) -> str:
    """The table of the rows measured so far, without columns that later rows may add."""
    return tables.terminal_table([record | {"other_metrics": None} for record in records], names)


def finish(records: list[dict], folder: Path) -> None:
    """Write records.json and chart.png; print what the table was measured with and where everything is.

    Where text after EOS would change a score, the whole table is printed with both scores.
    """
    files.write_json(folder / "records.json", records)
    charts.bar_chart(records, folder / "chart.png")

    whole = tables.terminal_table(records)
    if whole != growing_table(records, ()):
        print(f"\nThe same, and what would be scored with the text after EOS, as the authors scored LLaDA:\n\n{whole}")
    print(f"\n{tables.caption(records)}")
    reused = sum(record.get("reused") or 0 for record in records)
    if reused:
        print(f"{reused} answers, and the seconds they took, are from an earlier run (--from_scratch makes new ones).")
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    print(f"\nrecords  {folder / 'records.json'}\nchart    {folder / 'chart.png'}\n"
          f"answers  {folder.parent}/*/samples.jsonl")


if __name__ == "__main__":
    sys.exit(main())
