"""The training loop: steps, gradients, optimizers, one process or several, saved states, measurements.

    train(Job(model, source, settings, folder, ...))

What a step trains on is a function of its number alone (see `Source`), so a run that was killed and resumed equals one
that was not, and the samples of a step can be dealt to any number of processes. Imported by command.py (`python run.py
train`) and scratch.py.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dpad.engine.transformer import MaskedDiffusionModel
from dpad.results import outputs
from dpad.results.records import cores, environment
from dpad.training.objective import MaskedLoss
from dpad.training.settings import TrainingSettings
from dpad.training.state import Log, State, claim, leftovers, read_log
from dpad.training.views import Batch, View, collate, grouped

MAX_WAIT = timedelta(days=7)  # how long processes wait for one that measures or saves
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


class Source(Protocol):
    """Where samples come from. fingerprint: of all that decides them, which a resumed run must have again."""

    fingerprint: str

    def step(self, number: int) -> list[View]:
        """The samples of one optimizer step, a function of its number alone."""
        ...


@dataclass(frozen=True)
class Job:
    """One training run.

    model: with the weights that are trained requiring gradients, on its device. held_out: samples to measure the loss
    on. save: writes the weights into the folder, given the trained ones by name (on the CPU); called by the first
    process alone. measure: called after a save with the number of steps done; what it returns goes into the log.
    identity: what a resumed run must have in common with this one, besides the settings and the source.
    """

    model: nn.Module
    source: Source
    settings: TrainingSettings
    folder: Path
    save: Callable[[dict[str, Tensor]], None]
    eos: int
    held_out: Sequence[View] = ()
    measure: Callable[[int], dict[str, Any]] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def full_identity(self) -> dict[str, Any]:
        """Everything that a resumed run must have again, in JSON's types."""
        kept = {name: value for name, value in self.settings.to_json().items()
                if name not in ("log_every", "eval_every", "save_every")}
        return kept | {"data": self.source.fingerprint} | self.identity


def make_accelerator(device: torch.device) -> Accelerator:
    """What connects the processes of a run; each has its own device. One process alone needs no launcher.

    Batches and models are on their devices already: `device` may be a GPU that accelerate would not choose.
    """
    accelerator = Accelerator(cpu=device.type == "cpu", device_placement=False,
                              kwargs_handlers=[InitProcessGroupKwargs(timeout=MAX_WAIT)])
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate would leave the weights of processes on a CPU whole, without a word.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # as the environment says
    return accelerator


def train(job: Job, accelerator: Accelerator, resume: bool = False) -> None:
    """Train to the end, from the saved state if `resume` says so.

    Raises:
        ValueError: the folder is another trainer's, holds something else, or an unfinished run that is not to be
            resumed, or not with these settings; there are more processes than samples in a step; or the loss is not
            finite, where the last saved state is kept.
    """
    if job.settings.batch_size < accelerator.num_processes:
        raise ValueError(f"batch_size is {job.settings.batch_size}; it must be at least the number of processes "
                         f"({accelerator.num_processes}), so that each has an example")
    state = State(job.folder)
    leads = accelerator.is_main_process
    with claim(job.folder) if leads else nullcontext():
        saved = find_start(job, state, resume) if leads else None
        accelerator.wait_for_everyone()  # the others find what the first one has checked
        if resume and not leads:
            saved = state.load()
        Run(job, accelerator, state, saved).go()


def check_folder(folder: Path, resume: bool) -> None:
    """Raise ValueError unless a run can be started or resumed in a folder; nothing that is finished is overwritten."""
    name = f"--output {str(folder)!r}"
    outputs.check_folder("--output", folder)
    state = State(folder)
    if state.exists and not resume:
        raise ValueError(f"{name} holds an unfinished run: add --resume to continue it, or name another folder")
    log = folder / "train.jsonl"
    if not state.exists and folder.exists():
        ours = {log, folder / "train.lock", *leftovers(folder)}
        others = sorted(path.name for path in folder.iterdir() if path not in ours)
        if log.exists():
            try:
                read_log(log)
            except ValueError:
                others.insert(0, log.name)  # somebody's data, and no log
            else:
                if others:
                    raise ValueError(f"{name} holds a finished run: name another folder")
        if others:
            raise ValueError(f"{name} holds other files, such as {others[0]}: name a new or an empty folder")
    if resume and not state.exists:
        raise ValueError(f"{name} holds no state to continue from: leave out --resume")


def find_start(job: Job, state: State, resume: bool) -> dict[str, Any] | None:
    """The saved state to continue from, checked; None for a new run.

    Raises:
        ValueError: see `train`.
    """
    check_folder(job.folder, resume)
    for path in leftovers(job.folder):
        path.unlink()
    if not resume:
        return None
    saved = state.load()
    wanted = job.full_identity()
    for key in {**wanted, **saved["identity"]}:
        here, there = wanted.get(key), saved["identity"].get(key)
        if here != there:
            raise ValueError(f"{key} is {here}, but the run to continue has {there}; give the same, or name another "
                             "folder")
    return saved


class Run:
    """A run under way: the prepared module and optimizers, the step, and what was measured since the last log line."""

    def __init__(self, job: Job, accelerator: Accelerator, state: State, saved: dict[str, Any] | None) -> None:
        self.job = job
        self.settings = job.settings
        self.accelerator = accelerator
        self.state = state
        self.leads = accelerator.is_main_process

        module = MaskedLoss(job.model, self.settings.precision == "bfloat16")
        self.module, *self.optimizers = accelerator.prepare(module, *make_optimizers(job.model, self.settings))
        self.device = next(self.module.parameters()).device  # FSDP has moved them
        self.first_step, seconds = 0, 0.0
        if saved:
            self.first_step, seconds = saved["step"], saved["seconds"]
            self._restore(saved)
            if self.leads and self.first_step == self.settings.steps:
                self._write(saved["model"])  # it was interrupted before or while they were written
        self.started = time.monotonic() - seconds
        if self.leads:
            self.log = Log(job.folder / "train.jsonl", self.first_step)
            self.log.add(self._start())

    def go(self) -> None:
        """All steps that are left, with their log lines, measurements and saved states; then the weights."""
        settings = self.settings
        loader = DataLoader(
            _Steps(self.job, self.accelerator.process_index, self.accelerator.num_processes), batch_size=None,
            sampler=range(self.first_step, settings.steps),
            num_workers=0 if self.device.type == "cpu" else min(8, cores() - 1),
        )
        bar = tqdm(loader, initial=self.first_step, total=settings.steps, unit="step", disable=not self.leads,
                   dynamic_ncols=True)
        losses: list[float] = []
        tokens = 0
        since = time.monotonic()
        if self.first_step and self._measures(self.first_step):
            self._measure(self.first_step)  # unless it was done before the run was interrupted
        for done, batches in enumerate(bar, start=self.first_step + 1):
            loss, norm = self._step(done - 1, batches)
            losses.append(loss)
            tokens += sum(batch.ids.numel() for batch in batches) * self.accelerator.num_processes
            is_last = done == settings.steps

            if done % settings.log_every == 0 or is_last:
                spent = time.monotonic() - since
                rate = tokens / spent
                self._note(done, loss=sum(losses) / len(losses), rate=settings.rate_at(done - 1), gradient=norm,
                           tokens=tokens, step_seconds=spent / len(losses), tokens_per_second=round(rate))
                bar.set_postfix_str(f"loss {sum(losses) / len(losses):.4f}, {rate:,.0f} tokens/s")
                losses, tokens, since = [], 0, time.monotonic()

            pause = time.monotonic()
            measures = self._measures(done)
            if measures and self.job.held_out:
                self._note(done, **self._held_out())
            if done % settings.save_every == 0 or is_last or (measures and self.job.measure):
                self._save(done)
            if measures and self.job.measure:
                self._measure(done)
            since += time.monotonic() - pause  # tokens/s are those of training alone
        if self.leads:
            self.state.remove()  # last: whatever interrupts the lines above, --resume finishes the run
        self.accelerator.wait_for_everyone()

    def _measures(self, done: int) -> bool:
        return done % self.settings.eval_every == 0 or done == self.settings.steps

    def _measure(self, done: int) -> None:
        """Call the job's `measure`, if it has one and the log lacks what it says of this step."""
        if self.job.measure is None:
            return
        if self.leads and not any("task" in entry and entry["step"] == done for entry in read_log(self.log.path)):
            self._note(done, **self.job.measure(done))
        self.accelerator.wait_for_everyone()

    def _step(self, step: int, batches: list[Batch]) -> tuple[float, float]:
        """One optimizer step; the mean loss of its samples, and the norm of its gradient before clipping."""
        count = self.accelerator.num_processes
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate_at(step)

        torch.manual_seed(random.Random(f"{self.settings.seed} dropout {step} {self.accelerator.process_index}")
                          .getrandbits(63))  # LoRA's dropout too is a function of the step
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            # Gradients are summed over the processes once a step, unless each keeps only a part of them.
            waits = number < len(batches) and not self.accelerator.is_fsdp2
            with self.accelerator.no_sync(self.module) if waits else nullcontext():
                loss, _ = self.module(_to(batch, self.device))
                self.accelerator.backward(loss * count)  # accelerate takes the mean over the processes
            total += loss.detach()
        norm = float(self.accelerator.clip_grad_norm_(self._trained(), self.settings.clip))
        loss = float(self.accelerator.reduce(total))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise ValueError(f"the loss is {loss:g} and the gradient's norm {norm:g} at step {step + 1}: a lower "
                             f"--rate, in another folder, may help. {self._what_is_kept()}")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss, norm

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        """Loss, and accuracy on masked tokens, of the held-out samples; the accuracy leaves out EOS, which is easy."""
        self.module.eval()
        sums = torch.zeros(3, device=self.device)
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        for batch in _share(self.job.held_out, self.settings, rank, count):
            loss, right = self.module(_to(batch, self.device))
            is_text = (batch.targets != self.job.eos)[batch.weights > 0].to(self.device)
            sums += torch.stack((loss, right[is_text].sum(), is_text.sum()))
        self.module.train()
        loss, correct, words = self.accelerator.reduce(sums).tolist()
        return {"held_out_loss": loss, "held_out_accuracy": correct / max(1, words)}

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    def _save(self, done: int) -> None:
        """Write the state and the weights, unless a weight is not finite."""
        mine = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in self._trained()]
        bad = sum((~weight.detach().isfinite()).any().long() for weight in mine)
        if int(self.accelerator.reduce(torch.as_tensor(bad, device=self.device))):
            raise ValueError(f"weights are NaN or infinite after step {done}: a lower --rate, in another "
                             f"folder, may help. "
                             f"{self._what_is_kept()}")
        raw = [optimizer.optimizer for optimizer in self.optimizers]
        weights, optimizers = get_state_dict(self.module, raw, options=FULL)
        if self.leads:
            # The state first: weights without one are those of a complete run.
            self.state.save({
                "model": weights, "optimizers": optimizers, "step": done,
                "seconds": time.monotonic() - self.started, "identity": self.job.full_identity(),
            })
            self._write(weights)
        self.accelerator.wait_for_everyone()

    def _write(self, weights: dict[str, Any]) -> None:
        self.job.save({name.removeprefix("model."): tensor for name, tensor in weights.items()})

    def _restore(self, saved: dict[str, Any]) -> None:
        raw = [optimizer.optimizer for optimizer in self.optimizers]
        try:
            set_state_dict(self.module, raw, model_state_dict=saved["model"], optim_state_dict=saved["optimizers"],
                           options=StateDictOptions(full_state_dict=True, strict=False))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.state.path} is of a model of another shape: the code has changed since") from error

    def _what_is_kept(self) -> str:
        if not self.state.exists:
            return "Nothing had been saved yet"
        return f"{self.job.folder} keeps the weights that were saved last"

    def _note(self, done: int, **values: Any) -> None:
        """Write a line of the log."""
        if self.leads:
            rounded = {name: float(f"{value:.5g}") if isinstance(value, float) else value
                       for name, value in values.items()}
            self.log.add({"step": done, "seconds": round(time.monotonic() - self.started, 1)} | rounded)

    def _start(self) -> dict[str, Any]:
        """The log's entry for the start of a run, or for its continuation."""
        return {
            "command": self.job.command,
            "from_step": self.first_step,
            "processes": self.accelerator.num_processes,
            "sharing": self.accelerator.distributed_type.value,
            "settings": self.settings.to_json(),
            "identity": self.job.full_identity(),
            "parameters": sum(weight.numel() for weight in self.job.model.parameters()),
            "trained_parameters": sum(weight.numel() for weight in self._trained()),
            "environment": environment(),
        }


class _Steps(Dataset):
    """The batches of each step for one process, by the step's number."""

    def __init__(self, job: Job, rank: int, count: int) -> None:
        self.job, self.rank, self.count = job, rank, count

    def __getitem__(self, number: int) -> list[Batch]:
        return list(_share(self.job.source.step(number), self.job.settings, self.rank, self.count))


def _share(views: Sequence[View], settings: TrainingSettings, rank: int, count: int) -> Iterator[Batch]:
    """The batches that one of `count` processes computes. All get the same number of them, since they work in step.

    Weights are divided by the number of samples, so that the losses of all batches add up to the samples' mean.
    """
    ordered = sorted(views, key=lambda view: len(view.ids))
    shares = [grouped(ordered[process::count], settings.microbatch_tokens) for process in range(count)]
    mine = [batch._replace(weights=batch.weights / len(views)) for batch in map(collate, shares[rank])]
    yield from mine
    for _ in range(max(map(len, shares)) - len(mine)):
        spare = collate(ordered[:1]) if not mine else mine[0]
        yield spare._replace(weights=torch.zeros_like(spare.weights))


def _to(batch: Batch, device: torch.device) -> Batch:
    parts: list[Any] = [None if part is None else part.to(device, non_blocking=True) for part in batch]
    return Batch(*parts)


def make_optimizers(model: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all trained weights; or Muon for the layers' matrices and AdamW for embedding, head and norms.

    The split is the one that Muon's authors advise (Jordan et al., 2024).
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if settings.optimizer == "adamw":
        return [torch.optim.AdamW(trained, lr=settings.rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay,
                                  fused=True)]
    assert isinstance(model, MaskedDiffusionModel)
    matrices = [weight for weight in model.layers.parameters() if weight.requires_grad and weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    return [
        torch.optim.Muon(matrices, lr=settings.rate, weight_decay=settings.weight_decay,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([weight for weight in trained if id(weight) not in chosen], betas=(0.9, 0.98),
                          lr=settings.rate, weight_decay=0.0, fused=True),
    ]
