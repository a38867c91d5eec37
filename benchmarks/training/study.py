"""The study of training with suffix dropout: decode the test problems of three tasks with one model, in six ways.

    python -m benchmarks.training.study plan                     # the tasks, and what each way of decoding keeps
    python -m benchmarks.training.study evaluate --model results/study/dropout-1 --arm dropout --seed 1 \\
        --output results/study/records/dropout-1.json

study.sh beside this file trains the models and calls this for each. The record is written after every cell (a task
decoded in one way), and an interrupted evaluation continues when it is called again. `python run.py table FOLDER --plot
FILE` pools the records of a study and draws them.

Models of one seed answer the same problems with the same draws of the suffix, one for each batch; those of other seeds
have others.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.progress import Progress
from dataset import answer_first, arithmetic, countdown
from dpad.engine import loading
from dpad.engine.checks import check_integer, check_number
from dpad.engine.command_line import Parser, say
from dpad.engine.settings import DecodingSettings
from dpad.results import files, outputs, records
from dpad.results.formatting import as_columns
from dpad.results.studies import ARMS
from dpad.training.examples import HARNESS_PROMPT
from sampler import FullSuffix, GaussianSampler, NoSuffix, SuffixSampler, WindowSampler

SEED_STEP = 10_000  # between the seeds of problems and of draws of two models' seeds
K_SIGMA = 3.0
SCALES = {"DPad-1/2": 3.35, "DPad-1/4": 1.5, "DPad-1/8": 0.75}  # to keep about this share of the window


class Task(NamedTuple):
    """A module that generates problems and scores their answers; the lengths of an answer and of a block, in tokens."""

    generator: ModuleType
    gen_length: int
    block_length: int

    @property
    def suffix(self) -> int:
        """The tokens behind an answer's first block."""
        return self.gen_length - self.block_length

    def samplers(self) -> dict[str, SuffixSampler]:
        """The ways of decoding, by name. DPad's window is the suffix of the first block."""
        return {
            "full": FullSuffix(),
            **{name: GaussianSampler(self.suffix, K_SIGMA, scale) for name, scale in SCALES.items()},
            "window": WindowSampler(self.suffix // 4),  # as many tokens as DPad-1/4
            "none": NoSuffix(),
        }

    def expected_suffix(self, sampler: SuffixSampler) -> float:
        """How many tokens the first block sees behind it, on average over draws."""
        return sampler.retention(self.suffix).sum().item()


# The result of answer-first and the first step of countdown stand in the first of several short blocks.
TASKS = {
    "arithmetic": Task(arithmetic, 128, 32),
    "answer-first": Task(answer_first, 128, 8),
    "countdown": Task(countdown, 64, 8),
}


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decode_cell(loaded: loading.LoadedModel, task: Task, problems: list[dict], settings: dict[str, Any],
                batch_size: int) -> dict[str, Any]:
    """Answer problems in batches of similar lengths, and score the answers.

    Args:
        settings: keywords of `generate`; `seed` is that of the first batch's draws, the next batch adds one.

    Returns:
        For the record's row: `right` (0 or 1 for each problem, as text), `kept_suffix` (tokens, on average over the
        blocks of all batches), `nfe` (forwards per answer), `tokens_processed` (slots computed in all) and `seconds`.
    """
    right = ["0"] * len(problems)
    kept: list[int] = []
    forwards = slots = 0
    started = time.monotonic()
    order = sorted(range(len(problems)), key=lambda place: len(problems[place]["question"]))  # little padding
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        batch = loaded.encode([HARNESS_PROMPT.format(problems[place]["question"]) for place in places])
        output = loaded.generate(**batch, **settings | {"seed": settings["seed"] + first // batch_size})
        for place, text in zip(places, loaded.decode(output.sequences[:, batch.input_ids.shape[1] :])):
            right[place] = str(int(task.generator.is_right(problems[place], text)))
        kept += map(len, output.kept_suffix)
        forwards += int(output.forwards.sum())
        slots += output.tokens_processed
    return {
        "right": "".join(right), "kept_suffix": statistics.fmean(kept), "nfe": forwards / len(problems),
        "tokens_processed": slots, "seconds": round(time.monotonic() - started, 2),
    }


def evaluate(loaded: loading.LoadedModel, record: dict[str, Any], path: Path) -> None:
    """Decode what a record lacks, cell by cell, and write it after each; its settings say how.

    Raises:
        ValueError: an answer does not fit the model.
    """
    settings = record["settings"]
    done = {(row["task"], row["decoding"]) for row in record["rows"]}
    cells = [(name, task, *cell) for name, task in TASKS.items() for cell in task.samplers().items()]
    problems = {name: task.generator.take(settings["problems"], SEED_STEP * record["seed"], "test")
                for name, task in TASKS.items()}
    with Progress(len(cells), "cell") as progress:
        for name, task, decoding, sampler in cells:
            progress.announce(f"{record['model']}: {name}, {decoding}")
            if (name, decoding) not in done:
                chosen = {
                    "gen_length": task.gen_length, "block_length": task.block_length, "suffix_sampler": sampler,
                    "threshold": settings["threshold"], "early_termination": True, "seed": SEED_STEP * record["seed"],
                }
                result = decode_cell(loaded, task, problems[name], chosen, settings["batch_size"])
                record["rows"].append({
                    "task": name, "decoding": decoding, "gen_length": task.gen_length,
                    "block_length": task.block_length,
                    "suffix_sampler": DecodingSettings(**chosen).to_json()["suffix_sampler"],
                    "expected_suffix": round(task.expected_suffix(sampler), 1),
                    "correct": result["right"].count("1"), **result,
                })
                files.write_json(path, record)
            progress.advance()


def begin(options: argparse.Namespace, loaded: loading.LoadedModel) -> dict[str, Any]:
    """The record of an evaluation that begins or continues.

    Raises:
        ValueError: the file holds the record of another model or of other settings.
    """
    own = {
        "kind": "study", "model": Path(loaded.checkpoint).name, "weights": digest_of(loaded.checkpoint),
        "arm": options.arm, "seed": options.seed,
        "settings": {
            "problems": options.problems, "threshold": options.threshold or None, "batch_size": options.batch_size,
            "dtype": options.dtype, "device": loaded.model.device.type,
        },
    }
    path = Path(options.output)
    if not path.exists() or not path.stat().st_size:
        return own | {"training": training_of(loaded.checkpoint), "environment": records.environment(), "rows": []}
    [earlier] = records.load([path])
    before = earlier | earlier["settings"]
    for name, value in (own | own["settings"]).items():
        if name != "settings" and before.get(name) != value:
            raise ValueError(f"--output is {options.output!r}, a record with {name} {before.get(name)}, which is now "
                             f"{value}; it must be a new file, or the record of an evaluation to continue")
    return earlier


def digest_of(folder: str) -> str:
    """A hash of a checkpoint's weights."""
    with open(Path(folder) / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def training_of(folder: str) -> dict[str, Any] | None:
    """What the log of a checkpoint's training says about it, where there is one."""
    log = Path(folder) / "train.jsonl"
    if not log.exists():
        return None
    entries = [entry for _, entry in files.read_json_lines(log)]
    return {"settings": entries[0].get("settings", {}), "seconds": entries[-1].get("seconds")}


# --- Command line -----------------------------------------------------------------------------------------------------


def print_plan() -> None:
    """Print what each way of decoding keeps."""
    print(as_columns(["task", "decoded with", "tokens kept by the first block", "of", "sampler"], [
        [name, decoding, f"{task.expected_suffix(sampler):.1f}", str(task.suffix), str(sampler)]
        for name, task in TASKS.items() for decoding, sampler in task.samplers().items()
    ]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line shown at the top of this file; returns the exit status."""
    parser = Parser(prog="python -m benchmarks.training.study", description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="show the tasks and what each way of decoding keeps")
    flags = commands.add_parser("evaluate", help="decode the problems with one model and write its record")
    flags.add_argument("--model", required=True, metavar="FOLDER", help="the checkpoint")
    flags.add_argument("--arm", required=True, choices=tuple(ARMS), help="how it was trained")
    flags.add_argument("--seed", required=True, type=int, metavar="N", help="with which seed; it also chooses the "
                       "problems and the draws of the suffix")
    flags.add_argument("--output", required=True, metavar="FILE", help="the record, a .json file")
    flags.add_argument("--problems", type=int, default=500, metavar="N", help="of each task (default: %(default)s)")
    flags.add_argument("--threshold", type=float, default=0.9, metavar="X", help="of parallel decoding; 0: one token a "
                       "step (default: %(default)s)")
    flags.add_argument("--batch_size", type=int, default=100, metavar="N", help="problems decoded together, with one "
                       "draw of the suffix (default: %(default)s)")
    flags.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU, if there is one)")
    flags.add_argument("--dtype", choices=loading.DTYPES, default="float32", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.command == "plan":
        print_plan()
        return 0

    try:
        check_integer("--seed", options.seed, 0)
        check_integer("--problems", options.problems, 1)
        check_integer("--batch_size", options.batch_size, 1)
        check_number("--threshold", options.threshold, minimum=0, maximum=1)
        outputs.check("--output", options.output, outputs.STUDY)
        loaded = loading.load(options.model, options.device, options.dtype)
        evaluate(loaded, begin(options, loaded), Path(options.output))
    except (ValueError, OSError) as error:
        say("study.py", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
