"""Train a small masked diffusion model from random weights. (Those in checkpoints/ have cards that say how they began.)

    python -m dpad.training.scratch --output results/llada
    python -m dpad.training.scratch --family dream --output results/dream
    python -m dpad.training.scratch --output results/llada --resume       # continue an interrupted run
    torchrun --nproc_per_node 2 -m dpad.training.scratch --output ...     # the same run, shared by two processes

Most of the run follows curriculum.py, which teaches the problems. The rest trains on what decoding meets (views.py,
objective blockwise): canvases up to 1024 tokens, and the suffix that dropout leaves. The output folder becomes a
checkpoint in the layout of those on the hub, with its tokenizer and its card (checkpoints/card.py).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from checkpoints import card, make
from dpad.engine.checks import check_choice, check_integer, one_line
from dpad.engine.command_line import MAX_MESSAGE, Parser
from dpad.engine.loading import FAMILIES, LoadedModel, placement
from dpad.evaluation import processes
from dpad.training.curriculum import Curriculum
from dpad.training.examples import GENERATORS, load_examples
from dpad.training.output import write_checkpoint
from dpad.training.settings import Mixture, SuffixMixture, TrainingSettings
from dpad.training.source import ExampleViews, held_out_views
from dpad.training.trainer import Job, check_folder, make_accelerator, train
from dpad.training.views import View

CANVASES = Mixture((128, 256, 512, 1024), (0.3, 0.55, 0.1, 0.05))
SUFFIX = {  # of the last part, by the value of -d
    "null": SuffixMixture(),
    "gaussian": SuffixMixture(Mixture(("gaussian", "null"), (3.0, 1.0)), {
        "window": Mixture((64, 128, 256)), "k_sigma": Mixture((3.0, 4.0)), "scale": Mixture((1.6, 2.3)),
    }),
}
CURRICULUM_SHARE = 0.85  # of the steps
EXAMPLES_PER_STEP = 32  # of the rest: about as many tokens as a step of the curriculum
HELD_OUT = 128


class TwoParts:
    """The samples of the curriculum, then those that decoding meets."""

    def __init__(self, curriculum: Curriculum, views: ExampleViews, first_steps: int) -> None:
        self.curriculum = curriculum
        self.views = views
        self.first_steps = first_steps
        parts = (curriculum.tasks, curriculum.tokens_per_step, curriculum.blocks, first_steps, views.fingerprint)
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()

    def step(self, number: int) -> list[View]:
        if number < self.first_steps:
            return self.curriculum.step(number)
        return self.views.step(number - self.first_steps)


def run(options: argparse.Namespace) -> None:
    """Train as the flags of `main` say.

    Raises:
        ValueError: naming the flag, its value and what is allowed; see also `trainer.train`.
    """
    tasks = options.tasks.split(",")
    for task in tasks:
        check_choice("tasks", task, GENERATORS)
    device, _ = placement(options.device, None)
    accelerator = make_accelerator(device)
    if accelerator.num_processes > 1 and device.type == "cuda":
        device = accelerator.device
    torch.set_num_threads(options.threads)
    disable_progress_bar()  # transformers draws one for every file that it writes

    folder = Path(options.output)
    if accelerator.is_main_process:
        check_folder(folder, options.resume)
    settings = TrainingSettings(
        steps=options.steps, batch_size=EXAMPLES_PER_STEP, rate=options.rate, warmup=0.03, decay=0.4,
        weight_decay=0.05, optimizer="muon", noise_min=0.02, seed=options.seed, gen_lengths=CANVASES,
        suffix=SUFFIX[options.dropout_strategy],
        block_lengths=Mixture(tuple(options.blocks)), held_out=HELD_OUT,
        microbatch_tokens=2048 if device.type == "cpu" else 16384,
        log_every=options.log_every, eval_every=options.save_every, save_every=options.save_every,
    )
    torch.manual_seed(options.seed)
    model, tokenizer = make.make_model(options.family, options.seed)
    torch.nn.Module.to(model, device).train()
    if device.type == "cuda":
        model.set_attn_implementation("sdpa")  # make_model's choice is the faster one on a CPU
    loaded = LoadedModel(name=options.family, checkpoint="", family=FAMILIES[options.family], model=model,
                         tokenizer=tokenizer, chat_template=True)
    examples, held_out = load_examples(options.tasks, loaded, seed=options.seed).split(HELD_OUT)
    first_steps = round(CURRICULUM_SHARE * options.steps)
    curriculum = Curriculum(tokenizer, tasks, options.tokens_per_step, options.seed, first_steps, options.blocks)

    def save(weights: dict[str, torch.Tensor]) -> None:
        make.save_tokenizer(tokenizer, folder)
        write_checkpoint(model, folder, torch.bfloat16, weights)

    job = Job(
        model=model,
        source=TwoParts(curriculum, ExampleViews(examples, settings, loaded), first_steps),
        settings=settings,
        folder=folder,
        save=save,
        eos=tokenizer.eos_token_id,
        held_out=held_out_views(held_out, settings, loaded),
        identity={"family": options.family, "tasks": options.tasks, "tokens_per_step": options.tokens_per_step,
                  "device": device.type},
        command=shlex.join(["python", "-m", "dpad.training.scratch", *sys.argv[1:]]),
    )
    train(job, accelerator, options.resume)
    if accelerator.is_main_process:
        card.write_card(folder)
        print(f"{folder}: {options.steps} steps; README.md and curve.png in it describe the run")


def integers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = Parser(
        prog="python -m dpad.training.scratch", description=str(__doc__).partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, default=argparse.SUPPRESS, metavar="FOLDER",
                        help="where the checkpoint is written")
    parser.add_argument("--family", choices=sorted(make.FAMILIES), default="llada", help="which model to train")
    parser.add_argument("--tasks", default="arithmetic", help=f"problems to train on: {', '.join(GENERATORS)}")
    parser.add_argument("--blocks", type=integers, default=[32], metavar="N,...", help="lengths of blocks")
    parser.add_argument("-d", "--dropout_strategy", choices=SUFFIX, default="gaussian",
                        help="the suffix in the last part: gaussian, a mixture of what DPad leaves and, for a quarter, "
                        "all of it; or null, all of it")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in --output")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--tokens_per_step", type=int, default=8_000, help="tokens of one optimizer step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1234, help="seed of weights, problems and noise")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each process")
    parser.add_argument("--log_every", type=int, default=50, help="steps between lines of the log")
    parser.add_argument("--save_every", type=int, default=200, help="steps between saved states and measurements")
    options = parser.parse_args()
    try:
        for name in ("tokens_per_step", "threads"):
            check_integer(name, getattr(options, name), 1)
        run(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"scratch.py: {one_line(error, MAX_MESSAGE)}") from error
    except KeyboardInterrupt:
        print("scratch.py: interrupted: the same command with --resume continues from the last saved state",
              file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        processes.leave()


if __name__ == "__main__":
    main()
