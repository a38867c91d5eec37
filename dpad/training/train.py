"""Train a small masked diffusion model on arithmetic word problems; made checkpoints/llada-tiny and dream-tiny.

    python -m dpad.training.train --output checkpoints/llada-tiny            # from nothing
    python -m dpad.training.train --family dream --output checkpoints/dream-tiny
    python -m dpad.training.train --output checkpoints/llada-tiny --resume   # go on where an interrupted run stopped
    python -m dpad.training.train --output checkpoints/llada-tiny --card     # renew the folder's README.md and curve.png from its log

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
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from checkpoints import tiny
from dataset import arithmetic
from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results.records import environment

# Total lengths (prompt and canvas). Most samples get the shortest that fits, the others room for a canvas of 256, 512
# or 1024 answer tokens, so that the model knows what a long tail of EOS, or of masks, looks like.
TIGHT_LENGTHS = (96, 128, 160, 192, 256, 320)
LONG_LENGTHS = {384: 0.05, 640: 0.01, 1152: 0.006}
BLOCK = 32
NEXT = 8
# Where the noise of a sample lies, and how often, before and after LESSONS_UNTIL of the run: all over the answer; in
# one block, after a clean prefix and before masks alone, as decoding meets it; on the NEXT tokens from a result on,
# between the same; on results; on the names of people. The last two are lessons: the words around never
# give away a sum, or a name that is one of many, and both are too little of an answer's loss to be learned from it.
NOISE_SHAPES = {"everywhere": (0.2, 0.15), "block": (0.4, 0.75), "next": (0.2, 0.1), "results": (0.05, 0.0),
                "names": (0.15, 0.0)}
LESSONS_UNTIL = 0.35
BARE_SUMS = (0.5, 0.05)  # the share of samples that are bare sums, before and after: stories teach words, not sums
MIN_NOISE = 0.02  # smallest t: bounds the loss weight 1/t
MICROBATCH_TOKENS = 2048
EASY_SHARE = 0.25  # of the run, at its start, has problems of one and two steps alone: copying and sums come first


class Stream:
    """The training data as a function of the step: the same seed gives step i the same batches after any restart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_per_step: int, seed: int, split: str,
                 easy_steps: int = 0, lesson_steps: int = 0):
        self.tokenizer, self.tokens_per_step, self.seed, self.split = tokenizer, tokens_per_step, seed, split
        self.easy_steps, self.lesson_steps = easy_steps, lesson_steps
        self.eos_id, self.mask_id = tokenizer.eos_token_id, tokenizer.mask_token_id
        self.numbers = {token for text, token in tokenizer.get_vocab().items() if text.isdecimal()}
        self.equals = tokenizer.convert_tokens_to_ids("=")
        self.close = tokenizer.convert_tokens_to_ids(">>")
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids([*arithmetic.GIRLS, *arithmetic.BOYS]))

    def step(self, number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Microbatches of one optimizer step: (noisy input [R, T], target [R, T], loss weight [R, T]), T ascending."""
        rng = random.Random(f"{self.seed}-{self.split}-{number}")
        by_length: dict[int, list[tuple[list[int], list[int], bool]]] = {}
        tokens, late = 0, number >= self.lesson_steps
        for problem in arithmetic.problems(rng.getrandbits(48), self.split):
            if number < self.easy_steps and problem["steps"] > 2:
                continue
            bare = self.split == "train" and rng.random() < BARE_SUMS[late]
            if bare:
                problem = drill(rng)
            prompt, answer = self.encode(problem, rng)
            length = self.total_length(len(prompt) + len(answer), rng, number >= self.easy_steps)
            by_length.setdefault(length, []).append((prompt, answer, bare))
            tokens += length
            if tokens >= self.tokens_per_step:
                break
        batches = []
        for length, samples in sorted(by_length.items()):
            rows = max(1, MICROBATCH_TOKENS // length)
            for first in range(0, len(samples), rows):
                batches.append(self.collate(samples[first : first + rows], length, rng, late))
        return batches

    def encode(self, problem: dict, rng: random.Random) -> tuple[list[int], list[int]]:
        """Prompt and answer ids: half of the questions as they are, half in the words of lm-eval's GSM8K prompt."""
        question = problem["question"]
        content = question if rng.random() < 0.5 else f"Question: {question}\nAnswer:"
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        encode = self.tokenizer.backend_tokenizer.encode
        return encode(chat).ids, encode(problem["answer"]).ids

    @staticmethod
    def total_length(used: int, rng: random.Random, long: bool) -> int:
        draw = rng.random() if long else 1.0
        for length, share in LONG_LENGTHS.items():
            if draw < share:
                return length
            draw -= share
        return next((length for length in TIGHT_LENGTHS if length > used), max(LONG_LENGTHS))

    def collate(self, samples: list, length: int, rng: random.Random, late: bool) -> tuple[Tensor, Tensor, Tensor]:
        shares = [share[late] for share in NOISE_SHAPES.values()]
        target = torch.full((len(samples), length), self.eos_id)
        noisy, weight = target.clone(), torch.zeros(len(samples), length)
        for row, (prompt, answer, bare) in enumerate(samples):
            start, end = len(prompt), len(prompt) + len(answer)
            target[row, :end] = torch.tensor(prompt + answer)
            # Spread t evenly over the rows: the same distribution as independent draws, with less variance.
            t = MIN_NOISE + (1 - MIN_NOISE) * (row + rng.random()) / len(samples)
            shape = "results" if bare else rng.choices(list(NOISE_SHAPES), shares)[0]
            result = self.results(target[row], start)
            name = torch.isin(target[row], self.names) & (torch.arange(length) >= start)
            if shape == "names" and not name.any():
                shape = "everywhere"
            first, last = start, length  # the tokens that the loss is over
            if shape == "block":
                first += BLOCK * rng.randrange((end - start) // BLOCK + 1)  # up to the block of the first EOS
                last = min(first + BLOCK, length)
            elif shape == "next":
                behind = result[1:] & (target[row, :-1] == self.equals)
                first = 1 + rng.choice(behind.nonzero().flatten().tolist())
                last, t = min(first + NEXT, length), 1.0
            noise = torch.rand(length, generator=torch.Generator().manual_seed(rng.getrandbits(48)))
            masked = self.tie_results(noise, prompt + answer) < t
            masked[:first], masked[last:] = False, True
            tokens = last - first
            if shape in ("results", "names"):
                only = result if shape == "results" else name
                masked, tokens = masked & only, int(only.sum())
            noisy[row] = torch.where(masked, self.mask_id, target[row])
            weight[row, first:last] = masked[first:last] / (t * tokens)
        return noisy, target, weight

    def results(self, ids: Tensor, start: int) -> Tensor:
        """Which tokens from `start` on are a result or its repetition: bool [T]; they follow = or >>."""
        results, inside = torch.zeros(len(ids), dtype=torch.bool), False
        for place, token in enumerate(ids[start:].tolist(), start):
            inside = token in (self.equals, self.close) or inside and token in self.numbers
            results[place] = inside and token in self.numbers
        return results

    def tie_results(self, noise: Tensor, ids: list[int]) -> Tensor:
        """Give a result that follows `>>` the noise that it has before, in place."""
        for place in (place for place, token in enumerate(ids) if token == self.close):
            start = place
            while ids[start - 1] in self.numbers:
                start -= 1
            size = place - start
            if ids[place + 1 : place + 1 + size] == ids[start:place]:
                noise[place + 1 : place + 1 + size] = noise[start:place]
        return noise


def drill(rng: random.Random, count: int = 16) -> dict:
    """Bare sums, `12+5=17`, in the form of a problem: the numbers and operations that the stories use.

    The question does not name them: `Stream.collate` leaves all but the results in sight.
    """
    sums = []
    for sign in rng.choices("+-*/", (7, 7, 3, 3), k=count):
        small = rng.randint(2, arithmetic.MAX_FACTOR)
        large = rng.randint(2, arithmetic.LIMIT // small)
        total = rng.randint(4, arithmetic.LIMIT)
        part = rng.randint(2, total - 2)
        part = rng.choice((part, total - part)) if sign == "+" else part
        sums.append({
            "+": (f"{part}+{total - part}", total), "-": (f"{total}-{part}", total - part),
            "*": rng.choice([(f"{small}*{large}", small * large), (f"{large}*{small}", small * large)]),
            "/": rng.choice([(f"{small * large}/{small}", large), (f"{small * large}/{large}", small)]),
        }[sign])
    lines = [f"{text}={result}" for text, result in sums]
    return {"question": "What are these sums?", "answer": "\n".join(lines)}


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
    model, tokenizer = tiny.make(options.family, options.seed)
    if rank == 0:
        tiny.save_tokenizer(tokenizer, folder)
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
        tiny.write_card(folder)
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
    parser.add_argument("--family", choices=sorted(tiny.FAMILIES), default="llada", help="which model to train")
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
            tiny.write_card(Path(options.output))
        else:
            train(options)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"train.py: {error}") from error


if __name__ == "__main__":
    main()
