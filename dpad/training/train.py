"""Train a small masked diffusion model on arithmetic word problems; made checkpoints/llada-tiny and dream-tiny.

    python -m dpad.training.train --output checkpoints/llada-tiny            # from nothing
    python -m dpad.training.train --family dream --output checkpoints/dream-tiny
    python -m dpad.training.train --output checkpoints/llada-tiny --resume   # go on where an interrupted run stopped
    python -m dpad.training.train --output checkpoints/llada-tiny --card    # renew README.md and curve.png from the log

    torchrun --nproc_per_node 2 -m dpad.training.train --threads 1 --output …   # the same run, shared by two processes

The loss is masked-diffusion fine-tuning (LLaDA, arXiv 2502.09992, eq. 5; DPad's without the dropout): every answer
token is masked with probability t ~ U(0, 1) and loss = sum over masked tokens of cross-entropy / t, over the answer's
length. Some samples are masked that way all over. The others are masked as decoding meets them (a clean prefix, one
block masked with probability t, everything after it masked; the loss over the block), or where there is most to learn
(the results of sums, the names of people; see NOISE_SHAPES). A result and its repetition behind the annotation
(`=12>>12`) share their noise: or else most sums could be copied instead of worked out. Answers are padded with EOS, as
LLaDA's are, to canvases of mixed lengths up to 1024. The folder ends as a checkpoint in the layout of the hub's, with
its tokenizer, and `train.jsonl` holds the curve: loss and accuracy on held-out problems.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from checkpoints import card, make
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results.records import environment
from dpad.training.data import EASY_SHARE, LESSONS_UNTIL, Stream


def masked_loss(model: MaskedDiffusionModel, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum over rows of the weighted loss, and which masked tokens of positive weight were predicted right (bool)."""
    noisy, target, weight = batch
    positions = torch.arange(noisy.shape[1]).expand(noisy.shape)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden_states(noisy, positions)
        rows, places = weight.nonzero(as_tuple=True)
        logits = model.head(hidden[rows, places - model.prediction_offset]).float()  # [masked, V]
    wanted = target[rows, places]
    loss = (F.cross_entropy(logits, wanted, reduction="none") * weight[rows, places]).sum()
    return loss, logits.detach().argmax(-1) == wanted


@torch.no_grad()
def held_out(model: MaskedDiffusionModel, stream: Stream, steps: int) -> dict[str, float]:
    """Loss and accuracy on masked tokens of test problems, EOS left out of the accuracy (it is easy and most)."""
    loss, rows, right, count = 0.0, 0, 0, 0
    for batch in (batch for number in range(steps) for batch in stream.step(number)):
        batch_loss, correct = masked_loss(model, batch)
        real = (batch[1] != stream.eos_id)[batch[2] > 0]
        loss, rows = loss + batch_loss.item(), rows + len(batch[0])
        right, count = right + int(correct[real].sum()), count + int(real.sum())
    return {"held_out_loss": loss / rows, "held_out_accuracy": right / count}


def make_optimizers(model: MaskedDiffusionModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head and norms (the split that Muon's authors advise)."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate_at(step: int, steps: int) -> float:
    """Warm-up over 200 steps, constant, then down to 2% over the last two fifths of the run."""
    return min(1.0, (step + 1) / 200, max(0.02, (steps - step) / (0.4 * steps)))


def train(options: argparse.Namespace) -> None:
    rank, ranks = processes()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    folder = Path(options.output)
    state_file, log_file = folder / "train-state.pt", folder / "train.jsonl"
    if state_file.exists() and not options.resume:
        raise ValueError(f"--output {str(folder)!r} holds an unfinished run: add --resume to go on with it, or name "
                         "another folder")
    if (folder / "model.safetensors").exists() and not state_file.exists():
        raise ValueError(f"--output {str(folder)!r} holds a finished checkpoint: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # transformers draws one for every file that it writes
    model, tokenizer = make.make(options.family, options.seed)
    if rank == 0:
        make.save_tokenizer(tokenizer, folder)
    optimizers = make_optimizers(model, options.rate)
    stream = Stream(tokenizer, options.tokens_per_step, options.seed, "train",
                    easy_steps=int(EASY_SHARE * options.steps), lesson_steps=int(LESSONS_UNTIL * options.steps))
    test_stream = Stream(tokenizer, 16_384, options.seed, "test")
    first, seconds = 0, 0.0
    if options.resume and state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    if rank == 0:
        kept = log_file.read_text().splitlines() if first else []
        log_file.write_text("".join(f"{line}\n" for line in kept if json.loads(line).get("step", 0) <= first))
        write_line(log_file, {
            "command": "python " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "from_step": first,
            "processes": ranks, "settings": vars(options), "parameters": sum(p.numel() for p in model.parameters()),
            "environment": environment(),
        })
    started, loss_sum, samples = time.monotonic() - seconds, 0.0, 0
    bar = tqdm(range(first, options.steps), initial=first, total=options.steps, unit="step", disable=rank > 0)
    for step in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rate_at(step, options.steps)
        batches = stream.step(step)
        rows = sum(len(batch[0]) for batch in batches)
        step_loss = 0.0
        for batch in share(batches, rank, ranks):
            loss, _ = masked_loss(model, batch)
            (loss / rows).backward()
            step_loss += loss.item()
        loss_sum, samples = loss_sum + sum_over_processes(model, step_loss, ranks), samples + rows
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if rank == 0 and (done % options.log_every == 0 or done == options.steps):
            entry = {"step": done, "seconds": round(time.monotonic() - started), "loss": round(loss_sum / samples, 4)}
            entry |= {name: round(value, 4) for name, value in held_out(model, test_stream, 2).items()}
            write_line(log_file, entry)
            bar.set_postfix(loss=entry["loss"], accuracy=entry["held_out_accuracy"])
            save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": done,
                  "seconds": time.monotonic() - started}, state_file)
            model.save_pretrained(folder)
            loss_sum, samples = 0.0, 0
    if ranks > 1:
        torch.distributed.destroy_process_group()
    if rank == 0:
        model.bfloat16().save_pretrained(folder)  # as the hub's checkpoints are; half the size of a clone
        state_file.unlink(missing_ok=True)
        card.write_card(folder)
        print(f"{folder}: {options.steps} steps; README.md and curve.png tell how it went")


def processes() -> tuple[int, int]:
    """This process's rank and the number of processes; torchrun sets both."""
    if "RANK" not in os.environ:
        return 0, 1
    torch.distributed.init_process_group("gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def share(batches: list, rank: int, ranks: int) -> list:
    """The microbatches that one of `ranks` processes computes: the largest first, each to whoever has the least."""
    loads, mine = [0] * ranks, []
    for batch in sorted(batches, key=lambda batch: -batch[0].numel()):
        receiver = loads.index(min(loads))
        loads[receiver] += batch[0].numel()
        if receiver == rank:
            mine.append(batch)
    return mine


def sum_over_processes(model: MaskedDiffusionModel, loss: float, ranks: int) -> float:
    """Add up the gradients in place, and return the sum of the losses."""
    if ranks == 1:
        return loss
    weights = list(model.parameters())
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights] + [torch.tensor([loss])]
    flat = torch.cat([part.flatten() for part in parts])
    torch.distributed.all_reduce(flat)
    for weight, part in zip(weights, flat.split([part.numel() for part in parts])):
        weight.grad = part.view_as(weight).clone()
    return flat[-1].item()


def save(state: dict, file: Path) -> None:
    """Write by a temporary file, so that a stop at any moment leaves a whole one."""
    temporary = file.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, file)


def write_line(file: Path, entry: dict) -> None:
    with file.open("a") as handle:
        handle.write(json.dumps(entry) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of the checkpoint")
    parser.add_argument("--family", choices=sorted(make.FAMILIES), default="llada", help="which model to train")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --output")
    parser.add_argument("--card", action="store_true", help="train nothing; renew README.md and curve.png in --output")
    parser.add_argument("--steps", type=int, default=6500, help="optimizer steps")
    parser.add_argument("--tokens_per_step", type=int, default=6_000, help="tokens of one optimizer step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--log_every", type=int, default=200, help="steps between lines of the curve and saved states")
    options = parser.parse_args()
    try:
        for name in ("steps", "tokens_per_step", "threads", "log_every"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name} is {getattr(options, name)}; it must be at least 1")
        if options.card:
            card.write_card(Path(options.output))
        else:
            train(options)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    main()
