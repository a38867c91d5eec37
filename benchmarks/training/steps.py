"""Time training steps at the shape of a large model, with random weights: tokens/s, memory, and what dropout saves.

    python -m benchmarks.training.steps -m 8b --device cuda --lora 64 --output benchmarks/<GPU>-train-8b.json
    python -m benchmarks.training.steps -m small --steps 3        # tries the script on a CPU

The same examples (random tokens) are trained on twice: with the full suffix, and with DPad's. Weights are random, so
nothing is downloaded, and the loss means nothing; that it stays finite does. Part of benchmarks/gpu.sh.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import SHAPES, make_subject, peak_memory, reset_peak_memory
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser
from dpad.engine.configurations import DPAD
from dpad.engine.loading import LoadedModel
from dpad.results import files, outputs
from dpad.results.records import environment
from dpad.training.adapters import add_lora
from dpad.training.examples import Example, ExampleSet
from dpad.training.settings import Mixture, SuffixMixture, TrainingSettings
from dpad.training.source import ExampleViews
from dpad.training.state import read_log
from dpad.training.trainer import Job, make_accelerator, train

WARM_UP = 2  # steps that are not counted
SUFFIXES = {
    "full suffix": SuffixMixture(),
    "suffix dropout": SuffixMixture(Mixture(("gaussian",)), {name: Mixture((value,)) for name, value in DPAD.items()}),
}


class RandomExamples(ExampleSet):
    """Endless prompts and answers of random tokens, all of one length each."""

    name = "random tokens"
    size = None
    fingerprint = "random tokens"

    def __init__(self, vocabulary: int, prompt: int, answer: int) -> None:
        self.vocabulary, self.prompt, self.answer = vocabulary, prompt, answer

    def get(self, index: int) -> Example:
        rng = random.Random(index)
        ids = [rng.randrange(3, self.vocabulary) for _ in range(self.prompt + self.answer)]
        return Example(ids[: self.prompt], ids[self.prompt :])


def measure(subject: Any, model: torch.nn.Module, suffix: SuffixMixture, options: argparse.Namespace) -> dict[str, Any]:
    """Train for some steps, and say what they cost."""
    settings = TrainingSettings(
        steps=WARM_UP + options.steps, batch_size=options.batch_size, microbatch_tokens=options.microbatch_tokens,
        gradient_checkpointing=not options.no_checkpointing, lora=options.lora, rate=1e-5, held_out=0, log_every=1,
        save_every=10**6, eval_every=10**6, gen_lengths=Mixture((options.gen_length,)), suffix=suffix,
        precision="bfloat16",
    )
    loaded = LoadedModel(subject.name, "", subject.family, subject.model, None, False)
    examples = RandomExamples(min(50_000, subject.model.vocabulary_size), options.prompt_length, options.answer_length)
    reset_peak_memory(subject.model.device)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model=model, source=ExampleViews(examples, settings, loaded), settings=settings,
                  folder=Path(folder) / "run", save=lambda weights: None, eos=subject.model.config.eos_token_id)
        train(job, make_accelerator(subject.model.device))
        steps = [entry for entry in read_log(Path(folder) / "run" / "train.jsonl") if "loss" in entry]
    counted = steps[WARM_UP:]
    return {
        "steps": len(counted),
        "seconds": [entry["step_seconds"] for entry in counted],
        "tokens": [entry["tokens"] for entry in counted],
        "tokens_per_second": statistics.median(entry["tokens_per_second"] for entry in counted),
        "losses": [entry["loss"] for entry in steps],
        "loss_is_finite": all(math.isfinite(entry["loss"]) for entry in steps),
        "peak_memory": peak_memory(subject.model.device),
    }


def main() -> int:
    parser = Parser(prog="python -m benchmarks.training.steps", description=str(__doc__).partition("\n")[0],
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-m", "--model", default="small", choices=sorted(SHAPES), help="shape of the random weights")
    parser.add_argument("--device", help="cpu, cuda, ... (the first GPU if there is one)")
    parser.add_argument("--lora", type=int, default=64, metavar="N", help="rank of the adapter that is trained")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to time")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="examples of a step")
    parser.add_argument("--microbatch_tokens", type=int, default=8192, metavar="N", help="most tokens of a forward")
    parser.add_argument("--prompt_length", type=int, default=200, metavar="N", help="tokens of a prompt")
    parser.add_argument("--answer_length", type=int, default=300, metavar="N", help="tokens of an answer")
    parser.add_argument("-l", "--gen_length", type=int, default=1024, metavar="N", help="tokens of the canvas")
    parser.add_argument("--no_checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    options = parser.parse_args()
    try:
        for name in ("steps", "prompt_length", "answer_length"):  # the others are training's own settings
            check_integer(name, getattr(options, name), 1)
        if options.output is not None:
            outputs.check("--output", options.output, outputs.TRAINING_STEPS)
        subject = make_subject(options.model, options.device, "bfloat16")
        if not options.no_checkpointing:
            subject.model.recompute_layers()
        model = add_lora(subject.model, options.lora).train()
        rows = [{"name": name} | measure(subject, model, suffix, options) for name, suffix in SUFFIXES.items()]
    except ValueError as error:
        print(f"steps.py: {error}", file=sys.stderr)
        return 2
    for row in rows:
        memory = f"{row['peak_memory'] / 2**30:.1f} GB" if row["peak_memory"] else "memory unknown"
        print(f"{row['name']}: {statistics.median(row['seconds']):.3f} s a step of "
              f"{statistics.median(row['tokens']):.0f} tokens, {row['tokens_per_second']:,.0f} tokens/s, {memory}, "
              f"loss {'finite' if row['loss_is_finite'] else 'NOT FINITE'}")
    if options.output is not None:
        files.write_json(options.output, {
            "kind": "training steps", "model": options.model,
            "command": shlex.join(["python", "-m", "benchmarks.training.steps", *sys.argv[1:]]),
            "settings": {name: value for name, value in vars(options).items() if name != "output"} | {
                "device": str(subject.model.device), "dtype": "bfloat16"},
            "rows": rows, "environment": environment(),
        })
    return 0


if __name__ == "__main__":
    sys.exit(main())
