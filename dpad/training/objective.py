"""The loss of masked diffusion: what a batch of samples costs, and how many of its masked tokens were right.

    loss, right = MaskedLoss(model, bfloat16=True)(batch)

LLaDA (arXiv 2502.09992), equation 5: the sum over masked tokens of cross-entropy / t, over the number of tokens that
the loss covers; views.py makes these factors the samples' weights. Imported by trainer.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpad.engine.transformer import MaskedDiffusionModel
from dpad.training.views import Batch


def base_of(model: nn.Module) -> MaskedDiffusionModel:
    """The model itself, or the one inside a PeftModel, in whose layers the adapter is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[return-value,operator]


class MaskedLoss(nn.Module):
    """A model with its loss, as one module: what accelerate wraps for several processes.

    model: as it was loaded, or inside a PeftModel; its layers are the same objects in both. bfloat16: compute forwards
    in this type (autocast); the loss is in float32.
    """

    def __init__(self, model: nn.Module, bfloat16: bool) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = base_of(model)._no_split_modules  # FSDP gathers the weights of one of these at a time
        self.autocast = bfloat16

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum over the rows of their losses (float32), and which of the tokens that it covers were predicted right.

        Returns:
            The loss; bool [M], in the order of `batch.weights.nonzero()`.
        """
        model = base_of(self.model)
        rows, places = batch.weights.nonzero(as_tuple=True)
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=self.autocast):
            hidden = model.hidden_states(batch.ids, batch.positions, batch.key_mask)
            logits = model.head(hidden[rows, places - model.prediction_offset]).float()  # [M, V]
        labels = batch.targets[rows, places]
        loss = (F.cross_entropy(logits, labels, reduction="none") * batch.weights[rows, places]).sum()
        return loss, logits.detach().argmax(-1) == labels
