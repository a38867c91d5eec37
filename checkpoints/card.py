"""The card of an embedded model: README.md and curve.png, from the log of its training and its records.

    python -m dpad.training.train --output checkpoints/llada-tiny --card
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig

from dpad.results import report

CARD = """\
# {name}: a small {family} for machines without a GPU

{parameters:.2f} million parameters ({shape};
bfloat16), a byte-level BPE vocabulary of {vocabulary} tokens in which every number up to 99 is a token and so is every
name, and {family}'s chat template. It solves the word problems that `dataset/arithmetic.py` writes, one to four steps
in whole numbers up to 99, and nothing else. It is here so that everything in this repository runs, and can be tested,
offline.

    python run.py generate -m {short} --prompt "Tom has 3 bags with 4 apples each. How many apples does Tom have?"

## Training

Random initial weights; problems of the train split, generated as they are needed (those of the test split share no
story with the same numbers). {steps} steps of about {tokens} tokens, {hours:.1f} hours in all, on {hardware}.
{restarts}

{commands}

![curve](curve.png)

| step | minutes | loss | held-out loss | held-out accuracy of masked tokens |
| ---: | ---: | ---: | ---: | ---: |
{rows}

The accuracy counts every masked token but EOS, under all levels of noise; with most of an answer masked, much of it can
not be known.

## Accuracy on fresh problems

Test problems that are not in the training data.

{table}
"""


ONE_RUN = "Data, loss and schedule: see `train.py`. One command:"
RESUMED_RUN = """\
Data, loss and schedule: see `train.py`. The run was interrupted and went on from its saved state, which changes nothing
(a resumed run has the losses of one without a break), nor does the number of processes. The parts:"""
SEVERAL_RUNS = """\
Data, loss and schedule: see `train.py`. The run was interrupted, and went on with other settings or code, so no single
command repeats it: each part began with the weights and optimizer state of the one before, at the commit named behind
it. The parts:"""


def write_card(folder: Path) -> None:
    """README.md and curve.png of a checkpoint, from its train.jsonl, config.json and records.json alone."""
    entries = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    runs = [entry for entry in entries if "command" in entry]
    curve = [entry for entry in entries if "loss" in entry]
    config = AutoConfig.from_pretrained(folder)  # both families answer to the standard names
    machine = runs[-1]["environment"]["hardware"]
    cores = runs[-1]["processes"] * machine["threads"]
    shown = curve[:: max(1, len(curve) // 12)]
    shown += [] if shown[-1] is curve[-1] else [curve[-1]]
    records_file = folder / "records.json"
    table = accuracy_table(report.load([records_file])) if records_file.exists() else "Not measured yet."
    (folder / "README.md").write_text(CARD.format(
        name=folder.name, family={"llada": "LLaDA", "Dream": "Dream"}[config.model_type],
        short={"llada": "tiny", "Dream": "dream-tiny"}[config.model_type],
        parameters=runs[0]["parameters"] / 1e6, vocabulary=config.vocab_size,
        shape=f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads on "
              f"{config.num_key_value_heads} keys and values, SwiGLU of {config.intermediate_size}",
        steps=curve[-1]["step"], tokens=runs[0]["settings"]["tokens_per_step"], hours=curve[-1]["seconds"] / 3600,
        hardware=f"{cores} core{'s' * (cores > 1)} of an {machine['processor']}", table=table,
        restarts=ONE_RUN if len(runs) == 1 else RESUMED_RUN if one_recipe(runs) else SEVERAL_RUNS,
        commands="\n".join(f"    {run['command']}    # from step {run['from_step']}, commit "
                           f"{run['environment']['commit']}" for run in runs),
        rows="\n".join(f"| {e['step']} | {e['seconds'] / 60:.0f} | {e['loss']:.3f} | {e['held_out_loss']:.3f} | "
                       f"{100 * e['held_out_accuracy']:.1f} % |" for e in shown),
    ))
    draw_curve(curve, folder / "curve.png")


def accuracy_table(records: list[dict]) -> str:
    """Accuracy alone, by answer length: several evaluations shared the machine, so their times would mislead."""
    lines = ["| G | decoding | problems | flexible | strict |", "| ---: | --- | ---: | ---: | ---: |"]
    for record in records:
        cells = [f"{100 * score['value']:.1f} % ± {100 * score['stderr']:.1f}"
                 for score in (record["metrics"][name] for name in ("flexible-extract", "strict-match"))]
        lines.append(f"| {record['settings']['gen_length']} | {record['name']} | {record['samples']} | "
                     f"{' | '.join(cells)} |")
    return "\n".join([*lines, "", "± is the standard error. " + ", ".join(
        f"`{record['command']}`" for record in records) + f" at commit {records[0]['environment']['commit']}."])


def one_recipe(runs: list[dict]) -> bool:
    """Whether all parts of a run had the same settings and code, so that its first command alone repeats it."""
    recipes = [
        ({name: value for name, value in run["settings"].items() if name not in ("resume", "threads")},
         run["environment"]["commit"]) for run in runs
    ]
    return all(recipe == recipes[0] for recipe in recipes)


def draw_curve(curve: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no window system, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in curve]
    left.plot(steps, [entry["loss"] for entry in curve], color="#E69F00", label="training")
    left.plot(steps, [entry["held_out_loss"] for entry in curve], color="#0072B2", label="held out")
    left.set(xlabel="step", ylabel="masked-diffusion loss", yscale="log")
    left.legend(frameon=False)
    right.plot(steps, [100 * entry["held_out_accuracy"] for entry in curve], color="#0072B2")
    right.set(xlabel="step", ylabel="held-out masked tokens right (%)", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


