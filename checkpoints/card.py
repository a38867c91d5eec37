"""Write the card of an embedded model: README.md and curve.png, from its training log, configuration and records.

    python -m checkpoints.card checkpoints/llada-tiny checkpoints/dream-tiny

dpad/training/scratch.py writes the first card of a model; this renews it, for instance after new evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpad.engine.checks import one_line
from dpad.engine.command_line import MAX_MESSAGE, Parser
from dpad.engine.loading import family_of
from dpad.results import charts, files, formatting, records
from dpad.results.evaluations import METRIC_LABELS
from dpad.training.state import read_log

CARD = """\
# {name}: a small {family} for machines without a GPU

{parameters:.2f} million parameters ({shape}; bfloat16),
a byte-level BPE vocabulary of {vocabulary} tokens, and {family}'s chat template. Every number up to 99 is one token,
and so is every name. The model solves the word problems that `dataset/arithmetic.py` generates, with one to four steps
in whole numbers up to 99, and nothing else. It is here so that everything in this repository runs, and can be tested,
offline.

    python run.py generate -m {short} --prompt "Tom has 3 bags with 4 apples each. How many apples does Tom have?"

## Training

The run started from random weights. Its problems are those of the train split, generated as they are needed; no problem
of the test split tells the same story with the same numbers. {steps} steps of about {tokens} tokens took {minutes:.0f}
minutes on {hardware}. `dpad/training/scratch.py` has the recipe: a curriculum, then the objective
that `run.py train` has by default, with suffix dropout.

{history}

{commands}

![curve](curve.png)

{curve}

The accuracy counts every masked token except EOS, at all levels of noise. Where most of a block is masked, many of
its tokens cannot be known.

## Accuracy on fresh problems

These problems are of the test split, so the model has not seen them in training.

{accuracy}
"""

ONE_RUN = "This command repeats the run (at the commit behind it):"
RESUMED_RUN = """\
The run was interrupted and resumed from its saved state. Neither this nor the number of processes changes the result: a
resumed run has the same losses as one without a break. Its parts:"""
CHANGED_RUN = """\
The run was interrupted and resumed with other settings or code, so no single command repeats it. Each part started from
the weights and the optimizer state of the one before, at the commit named after its command:"""

MAX_CURVE_ROWS = 24


def write_card(folder: Path) -> None:
    """Write README.md and curve.png of a checkpoint, from its config.json, train.jsonl and records.json.

    Raises:
        ValueError: train.jsonl or records.json cannot be read.
    """
    entries = read_log(folder / "train.jsonl")
    starts = [entry for entry in entries if "command" in entry]
    losses = [entry for entry in entries if "loss" in entry]
    curve = [entry | {"loss": mean_loss(losses, before, entry["step"])} for before, entry in measured(entries)]
    if not starts or not curve:
        raise ValueError(f"{folder / 'train.jsonl'} has no curve to draw")
    family = family_of(str(folder))
    config: Any = family.network.config_class.from_pretrained(folder)
    start = starts[-1]
    hardware = start["environment"]["hardware"]
    cores = start["processes"] * hardware["threads"]
    on_gpu = start["identity"].get("device") == "cuda"
    records_file = folder / "records.json"

    text = CARD.format(
        name=folder.name,
        family=family.settings.family,
        short=next(iter(family.names)),  # the embedded model comes first
        parameters=starts[0]["parameters"] / 1e6,
        vocabulary=config.vocab_size,
        shape=f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads on "
              f"{config.num_key_value_heads} keys and values, SwiGLU of {config.intermediate_size}",
        steps=curve[-1]["step"],
        tokens=start["identity"]["tokens_per_step"],
        minutes=curve[-1]["seconds"] / 60,
        hardware=f"an {hardware['gpus'][0]['name']}" if on_gpu else
                 f"{cores} core{'s' * (cores > 1)} of an {hardware['processor']}",
        history=ONE_RUN if len(starts) == 1 else RESUMED_RUN if have_one_recipe(starts) else CHANGED_RUN,
        commands="\n".join(f"    {start['command']}    # from step {start['from_step']}, commit "
                           f"{start['environment']['commit']}" for start in starts),
        curve=curve_table(curve),
        accuracy=accuracy_table(records.load([records_file])) if records_file.exists() else "Not measured yet.",
    )
    draw_curve(losses, curve, folder / "curve.png")
    files.write_text(folder / "README.md", text)


def measured(entries: list[dict]) -> Iterator[tuple[int, dict]]:
    """The measurements on held-out examples, each with the step of the one before."""
    before = 0
    for entry in entries:
        if "held_out_loss" in entry:
            yield before, entry
            before = entry["step"]


def mean_loss(losses: list[dict], after: int, until: int) -> float:
    """The mean training loss of the log's lines in (after, until]."""
    values = [entry["loss"] for entry in losses if after < entry["step"] <= until]
    return sum(values) / len(values) if values else float("nan")


def have_one_recipe(starts: list[dict]) -> bool:
    """Whether all parts of a run had the same settings and code, so that its first command alone repeats it."""
    recipes = [(start["settings"], start["identity"], start["environment"]["commit"]) for start in starts]
    return all(recipe == recipes[0] for recipe in recipes)


def curve_table(curve: list[dict]) -> str:
    """The curve as a markdown table: its last point, and before it evenly spaced ones that do not become too many."""
    points = curve[:: max(1, len(curve) // (MAX_CURVE_ROWS // 2))]
    if points[-1] is not curve[-1]:
        points.append(curve[-1])
    headings = ["step", "minutes", "loss", "held-out loss", "held-out accuracy of masked tokens"]
    return formatting.as_markdown(headings, [
        [str(point["step"]), f"{point['seconds'] / 60:.0f}", f"{point['loss']:.3f}", f"{point['held_out_loss']:.3f}",
         f"{100 * point['held_out_accuracy']:.1f}%"]
        for point in points
    ])


def accuracy_table(evaluations: list[dict]) -> str:
    """Accuracy alone, by answer length: several evaluations shared the machine, so their times would mislead."""
    cells = []
    for record in evaluations:
        scores = [record["metrics"][name] for name in METRIC_LABELS]
        cells.append([
            record["name"], str(record["settings"]["gen_length"]), str(record["samples"]),
            *(f"{100 * score['value']:.1f}% ± {100 * score['stderr']:.1f}" for score in scores),
        ])
    headings = ["decoding", "G", "problems", *METRIC_LABELS.values()]
    commands = "\n".join(
        f"    {record['command']}    # commit {record['environment']['commit']}" for record in evaluations)
    return (f"{formatting.as_markdown(headings, cells)}\n\n± is the standard error. These commands measured it, each "
            f"at the commit behind it:\n\n{commands}")


def draw_curve(losses: list[dict], curve: list[dict], path: Path) -> None:
    """Draw the losses, and beside them the accuracy, against the step."""
    charts.quiet_matplotlib()
    from matplotlib.figure import Figure  # here, so that training needs no matplotlib until its end

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [point["step"] for point in curve]
    left.plot([entry["step"] for entry in losses], [entry["loss"] for entry in losses], color=charts.ORANGE,
              label="training")
    left.plot(steps, [point["held_out_loss"] for point in curve], color=charts.BLUE, label="held out")
    left.set(xlabel="step", ylabel="masked-diffusion loss", yscale="log")
    left.legend(frameon=False)
    right.plot(steps, [100 * point["held_out_accuracy"] for point in curve], color=charts.BLUE)
    right.set(xlabel="step", ylabel="held-out masked tokens right (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    with files.write_whole(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    parser = Parser(prog="python -m checkpoints.card", description=str(__doc__).partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="checkpoints with a train.jsonl")
    try:
        for folder in parser.parse_args().folders:
            if (folder / "train-state.pt").exists():
                raise ValueError(f"the run in {folder} is unfinished: python -m dpad.training.scratch --resume ends "
                                 "it, with its card")
            write_card(folder)
    except ValueError as error:
        raise SystemExit(f"card.py: {one_line(error, MAX_MESSAGE)}") from error


if __name__ == "__main__":
    main()
