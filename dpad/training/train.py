"""Train a small masked diffusion model on arithmetic word problems; made checkpoints/llada-tiny and dream-tiny.

    python -m dpad.training.train --output checkpoints/llada-tiny            # from random weights
    python -m dpad.training.train --family dream --output checkpoints/dream-tiny
    python -m dpad.training.train --output checkpoints/llada-tiny --resume   # continue an interrupted run

    torchrun --nproc_per_node 2 -m dpad.training.train --threads 1 --output …   # the same run, shared by two processes

The loss is that of masked-diffusion fine-tuning (LLaDA, arXiv 2502.09992, eq. 5; DPad's without the dropout): answer
tokens are masked with probability t ~ U(0, 1), and loss = sum over masked tokens of cross-entropy / t, over the number
of answer tokens. data.py says which problems and which noise a step gets.

The output folder becomes a checkpoint in the layout of those on the hub, with its tokenizer and its card
(checkpoints/card.py); `train.jsonl` in it holds the curve: loss and accuracy on held-out problems.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from checkpoints import card, make
from dpad.engine.checks import check_integer, check_number
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results import files
from dpad.results.records import environment
from dpad.training.data import EASY_SHARE, LESSONS_UNTIL, Batch, Stream
from dpad.training.parallel import Processes

# --- Loss and optimizers ----------------------------------------------------------------------------------------------


def masked_loss(model: MaskedDiffusionModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum over rows of the weighted loss, and which masked tokens of positive weight were predicted right (bool)."""
    noisy, target, weight = batch
    positions = torch.arange(noisy.shape[1]).expand(noisy.shape)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden_states(noisy, positions)
        rows, places = weight.nonzero(as_tuple=True)
        logits = model.head(hidden[rows, places - model.prediction_offset]).float()  # [masked, V]
    labels = target[rows, places]
    loss = (F.cross_entropy(logits, labels, reduction="none") * weight[rows, places]).sum()
    return loss, logits.detach().argmax(-1) == labels


@torch.no_grad()
def held_out(model: MaskedDiffusionModel, stream: Stream, steps: int) -> dict[str, float]:
    """Loss and accuracy on masked tokens of test problems; the accuracy leaves out EOS, which is frequent and easy."""
    loss = 0.0
    rows = 0
    correct = 0
    count = 0
    for batch in (batch for number in range(steps) for batch in stream.step(number)):
        batch_loss, is_right = masked_loss(model, batch)
        is_text = (batch.target != stream.eos_id)[batch.weight > 0]
        loss += batch_loss.item()
        rows += len(batch.noisy)
        correct += int(is_right[is_text].sum())
        count += int(is_text.sum())
    return {"held_out_loss": loss / rows, "held_out_accuracy": correct / count}


def make_optimizers(model: MaskedDiffusionModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head and norms (the split that Muon's authors advise)."""
    matrices = [p for layer in model.layers for p in layer.parameters() if p.ndim == 2]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Learning rate over its peak: warm-up over 200 steps, constant, down to 2% over the last two fifths of the run."""
    return min(1.0, (step + 1) / 200, max(0.02, (steps - step) / (0.4 * steps)))


# --- State and log ----------------------------------------------------------------------------------------------------


class State:
    """train-state.pt: everything that a resumed run needs to be the run that was interrupted."""

    def __init__(self, path: Path, model: MaskedDiffusionModel, optimizers: list[torch.optim.Optimizer]) -> None:
        self.path = path
        self.model = model
        self.optimizers = optimizers

    def save(self, step: int, seconds: float) -> None:
        """Write the state after `step` steps, which took `seconds` in all."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
            "seconds": seconds,
        }
        with files.write_whole(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> tuple[int, float]:
        """Restore model and optimizers; returns the steps and seconds that are behind them."""
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"], state["seconds"]


class Log:
    """train.jsonl: one line for each start of the run, with its command, and one for each point of the curve."""

    def __init__(self, path: Path, first_step: int) -> None:
        """first_step: the step that the run starts or resumes at; entries of later steps are dropped."""
        self.path = path
        entries = map(json.loads, files.read_lines(path)) if first_step else ()
        self.entries = [entry for entry in entries if entry.get("step", 0) <= first_step]

    def add(self, entry: dict) -> None:
        self.entries.append(entry)
        files.write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries))


# --- The run ----------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    """Train as the flags of `main` say.

    Raises:
        ValueError: the output folder holds a finished checkpoint, or an unfinished run that is not to be resumed.
    """
    processes = Processes()
    leads = processes.rank == 0  # this process writes the files
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    disable_progress_bar()  # transformers draws one for every file that it writes

    folder = Path(options.output)
    state_file = folder / "train-state.pt"
    check_folder(folder, state_file, options.resume)
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = make.make_model(options.family, options.seed)
    optimizers = make_optimizers(model, options.rate)
    stream = Stream(tokenizer, options.tokens_per_step, options.seed, "train",
                    easy_steps=int(EASY_SHARE * options.steps), lesson_steps=int(LESSONS_UNTIL * options.steps))
    test_stream = Stream(tokenizer, 16_384, options.seed, "test")

    state = State(state_file, model, optimizers)
    first_step, seconds = state.load() if options.resume and state_file.exists() else (0, 0.0)
    if leads:
        make.save_tokenizer(tokenizer, folder)
        log = Log(folder / "train.jsonl", first_step)
        log.add(describe_start(options, model, first_step, processes.count))

    started = time.monotonic() - seconds
    loss = 0.0  # over the samples since the last line of the log
    samples = 0
    bar = tqdm(range(first_step, options.steps), initial=first_step, total=options.steps, unit="step",
               disable=not leads)
    for step in bar:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = options.rate * rate_factor(step, options.steps)

        batches = stream.step(step)
        rows = sum(len(batch.noisy) for batch in batches)
        my_loss = 0.0
        for batch in processes.share(batches):
            batch_loss, _ = masked_loss(model, batch)
            (batch_loss / rows).backward()
            my_loss += batch_loss.item()
        loss += processes.sum(model, my_loss)
        samples += rows

        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        done = step + 1
        if leads and (done % options.log_every == 0 or done == options.steps):
            entry = {"step": done, "seconds": round(time.monotonic() - started), "loss": round(loss / samples, 4)}
            entry |= {name: round(value, 4) for name, value in held_out(model, test_stream, 2).items()}
            log.add(entry)
            bar.set_postfix(loss=entry["loss"], accuracy=entry["held_out_accuracy"])
            state.save(done, time.monotonic() - started)
            model.save_pretrained(folder)
            loss = 0.0
            samples = 0

    processes.leave()
    if leads:
        model.bfloat16().save_pretrained(folder)  # as the hub's checkpoints are, and half the size
        state_file.unlink(missing_ok=True)
        card.write_card(folder)
        print(f"{folder}: {options.steps} steps; README.md and curve.png in it describe the run")


def check_folder(folder: Path, state_file: Path, resume: bool) -> None:
    """Raise ValueError when a run would overwrite another one's results."""
    if state_file.exists() and not resume:
        raise ValueError(f"--output {str(folder)!r} holds an unfinished run: add --resume to continue it, or name "
                         "another folder")
    if (folder / "model.safetensors").exists() and not state_file.exists():
        raise ValueError(f"--output {str(folder)!r} holds a finished checkpoint: name another folder")


def describe_start(options: argparse.Namespace, model: MaskedDiffusionModel, first_step: int, processes: int) -> dict:
    """The log's entry for the start of a run, or for its continuation."""
    return {
        "command": shlex.join(["python", "-m", "dpad.training.train", *sys.argv[1:]]),
        "from_step": first_step,
        "processes": processes,
        "settings": vars(options),
        "parameters": sum(p.numel() for p in model.parameters()),
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m dpad.training.train", description=str(__doc__).partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, default=argparse.SUPPRESS, metavar="FOLDER",
                        help="where the checkpoint is written")
    parser.add_argument("--family", choices=sorted(make.FAMILIES), default="llada", help="which model to train")
    parser.add_argument("--resume", action="store_true", help="continue the unfinished run in --output")
    parser.add_argument("--steps", type=int, default=6500, help="optimizer steps")
    parser.add_argument("--tokens_per_step", type=int, default=6_000, help="tokens of one optimizer step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1234, help="seed of weights, problems and noise")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each process")
    parser.add_argument("--log_every", type=int, default=200, help="steps between points of the curve and saved states")
    options = parser.parse_args()
    try:
        for name in ("steps", "tokens_per_step", "threads", "log_every"):
            check_integer(name, getattr(options, name), 1)
        check_number("rate", options.rate, above=0)
        train(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    main()
