"""Training shared by several processes on the CPU: who computes which microbatches, and the sum of the gradients.

    torchrun --nproc_per_node 2 -m dpad.training.train --threads 1 --output checkpoints/llada-tiny

Every process holds the whole model and takes the same optimizer steps. Imported by train.py.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from dpad.training.data import Batch


class Processes:
    """This process (`rank`, from 0) among the `count` that torchrun started, or alone."""

    def __init__(self) -> None:
        self.rank = 0
        self.count = 1
        if "RANK" in os.environ:  # set by torchrun
            torch.distributed.init_process_group("gloo")
            self.rank = torch.distributed.get_rank()
            self.count = torch.distributed.get_world_size()

    def share(self, batches: list[Batch]) -> list[Batch]:
        """The microbatches that this process computes; the largest are dealt first, each to whoever has the least."""
        loads = [0] * self.count
        mine = []
        for batch in sorted(batches, key=lambda batch: -batch.noisy.numel()):
            receiver = loads.index(min(loads))
            loads[receiver] += batch.noisy.numel()
            if receiver == self.rank:
                mine.append(batch)
        return mine

    def sum(self, model: nn.Module, loss: float) -> float:
        """Replace the model's gradients by their sums over the processes, and return the sum of their losses."""
        if self.count == 1:
            return loss
        weights = list(model.parameters())
        parts: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
        parts.append(torch.tensor([loss]))

        flat = torch.cat([part.flatten() for part in parts])
        torch.distributed.all_reduce(flat)
        for weight, part in zip(weights, flat.split([part.numel() for part in parts])):
            weight.grad = part.view_as(weight).clone()
        return flat[-1].item()

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.count > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        if self.count > 1:
            torch.distributed.destroy_process_group()
