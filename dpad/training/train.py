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
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from checkpoints import card, make
from dpad.engine.checks import check_integer, check_number, one_line
from dpad.engine.command_line import MAX_MESSAGE, Parser
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


LASTING = ("family", "tokens_per_step", "rate", "seed")  # settings that a run keeps when it is resumed
STATE_PARTS = {"model", "optimizers", "step", "seconds", "settings"}

# --- State and log ----------------------------------------------------------------------------------------------------


class State:
    """train-state.pt: everything that a resumed run needs to be the run that was interrupted.

    The state before it is kept beside it, in case the last one turns out to be damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "train-state.pt"
        self.before = folder / "train-state-before.pt"

    @property
    def exists(self) -> bool:
        return self.path.exists() or self.before.exists()

    def save(self, content: dict[str, Any]) -> None:
        with files.write_whole(self.path) as temporary:
            with open(temporary, "wb") as file:
                torch.save(content, file)
            if self.path.exists():
                os.replace(self.path, self.before)

    def load(self) -> dict[str, Any]:
        """What was saved last.

        Raises:
            ValueError: the file is damaged; the message says how to go on.
        """
        path = self.path if self.path.exists() else self.before  # killed between the two renamings of `save`
        try:
            content = torch.load(path, weights_only=True)
            if not (STATE_PARTS <= content.keys() and content["settings"].keys() == set(LASTING)):
                raise ValueError("parts are missing")
            check_integer("step", content["step"], 1)
            check_number("seconds", content["seconds"], minimum=0)
        except Exception as error:  # torch has no error of its own for a file that is cut off or of another kind
            way_out = "name another folder"
            if path == self.path and self.before.exists():
                way_out = f"delete it, and --resume continues from the state before it, {self.before.name}"
            raise ValueError(f"{path} is damaged and cannot be continued from: {way_out}") from error
        return content

    def remove(self) -> None:
        self.before.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class Log:
    """train.jsonl: one line for each start of the run, with its command, and one for each point of the curve."""

    def __init__(self, path: Path, first_step: int) -> None:
        """first_step: the step that the run starts or resumes at; entries of later steps are dropped.

        Raises:
            ValueError: a line is not what this class writes.
        """
        self.path = path
        entries = card.read_log(path) if first_step else []
        self.entries = [entry for entry in entries if entry.get("step", entry.get("from_step", 0)) <= first_step]

    def add(self, entry: dict) -> None:
        self.entries.append(entry)
        files.write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries))


# --- The run ----------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    """Train as the flags of `main` say.

    Raises:
        ValueError: the output folder is another trainer's, holds a finished checkpoint, or holds an unfinished run that
            is not to be resumed, or not with these settings.
    """
    processes = Processes()
    leads = processes.rank == 0  # this process writes the files
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    disable_progress_bar()  # transformers draws one for every file that it writes

    folder = Path(options.output)
    state = State(folder)
    saved = None
    if options.resume and not folder.is_dir():
        raise ValueError(f"--output is {str(folder)!r}, where there is no run to resume")
    with claim(folder) if leads else nullcontext():
        if leads:
            saved = find_start(options, folder, state)
        processes.wait()  # the others find what the first one has checked, and nothing is said twice
        if not leads and options.resume:
            saved = state.load()
        run(options, processes, folder, state, saved)


def run(options: argparse.Namespace, processes: Processes, folder: Path, state: State, saved: dict | None) -> None:
    """All steps from the saved state on, or from random weights where there is none; then the card."""
    leads = processes.rank == 0
    model, tokenizer = make.make_model(options.family, options.seed)
    optimizers = make_optimizers(model, options.rate)
    stream = Stream(tokenizer, options.tokens_per_step, options.seed, "train",
                    easy_steps=int(EASY_SHARE * options.steps), lesson_steps=int(LESSONS_UNTIL * options.steps))
    test_stream = Stream(tokenizer, 16_384, options.seed, "test")

    first_step, seconds = 0, 0.0
    if saved:
        first_step, seconds = saved["step"], saved["seconds"]
        try:
            model.load_state_dict(saved["model"])
            for optimizer, content in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(content)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{state.path} is of a model of another shape: the code has changed since") from error
    if leads:
        log = Log(folder / "train.jsonl", first_step)
        make.save_tokenizer(tokenizer, folder)
        if first_step < options.steps:
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
            state.save({
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": done,
                "seconds": time.monotonic() - started,
                "settings": {name: getattr(options, name) for name in LASTING},
            })
            model.save_pretrained(folder)
            loss = 0.0
            samples = 0

    processes.leave()
    if leads:
        model.bfloat16().save_pretrained(folder)  # as the hub's checkpoints are, and half the size
        card.write_card(folder)
        state.remove()  # last: whatever interrupts the lines above, --resume finishes the run
        print(f"{folder}: {options.steps} steps; README.md and curve.png in it describe the run")


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; ValueError when another one trains in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.samefile(f"/dev/fd/{file.fileno()}"):
                raise FileNotFoundError  # its holder has just ended, and a third process may have the new one
        except (BlockingIOError, FileNotFoundError):
            raise ValueError(f"--output {str(folder)!r} is in use by another run: name another folder") from None
        try:
            yield
        finally:
            path.unlink()


def find_start(options: argparse.Namespace, folder: Path, state: State) -> dict[str, Any] | None:
    """The saved state to continue from, checked; None for a run from random weights.

    Raises:
        ValueError: see `train`.
    """
    name = f"--output {str(folder)!r}"
    has_weights = (folder / "model.safetensors").exists()
    if not state.exists and has_weights:
        if (folder / "README.md").exists():
            raise ValueError(f"{name} holds a finished checkpoint: name another folder")
        raise ValueError(f"{name} holds a checkpoint without its card: `python -m checkpoints.card {folder}` writes "
                         "it; or name another folder")
    if state.exists and not options.resume:
        raise ValueError(f"{name} holds an unfinished run: add --resume to continue it, or name another folder")
    if not options.resume:
        return None
    if not state.exists:
        raise ValueError(f"{name} holds no state to continue from: leave out --resume")

    saved = state.load()
    for setting, value in saved["settings"].items():
        if getattr(options, setting) != value:
            raise ValueError(f"--{setting} is {getattr(options, setting)}, but the run to continue has {value}; give "
                             "the same, or name another folder")
    if saved["step"] > options.steps:
        raise ValueError(f"--steps is {options.steps}, but the run to continue has {saved['step']} behind it")
    return saved


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
    parser = Parser(
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
        check_integer("seed", options.seed, 0)
        check_number("rate", options.rate, above=0)
        train(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"train.py: {one_line(error, MAX_MESSAGE)}") from error
    except KeyboardInterrupt:
        print("train.py: interrupted: the same command with --resume continues from the last saved state",
              file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
