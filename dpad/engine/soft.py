r"""The soft suffix of SSM (arXiv 2608.23167): suffix positions that enter as what they looked like a forward ago.

    python run.py generate -m tiny -d ssm --soft_suffix -th 0.9 -e --watch \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"

A kept suffix position normally enters as the embedding of the mask token. Once a forward has computed it, its
prediction is known: here the position then enters as a mixture of the mask's embedding and those of its likeliest
tokens. Ids stay masks, positions of RoPE stay. The mixture is kept for the rest of the request, also while a block's
sampler drops the position. Imported, never run.

Shapes: R rows, G answer columns, E model width, Q slots computed, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpad.engine.fields import check_settings, setting
from dpad.engine.lazy import lazy_module

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dpad.engine.transformer import MaskedDiffusionModel
else:
    torch = lazy_module("torch")

PIECE = 2**22  # logits that are looked at together, to bound the memory


@dataclass(frozen=True)
class SoftSuffix:
    """SSM's soft mask states. As the authors' code has them; their paper has the mixture alone.

    After a forward that computed the suffix, a kept suffix position gets the state
    (1 - alpha) E[mask] + alpha * sum of p_v E[v], with E the input embeddings and p the softmax over the raw logits of
    the `k` likeliest tokens (the mask among them, if it is one). At the next forwards it enters as its state. In a
    block's forwards before anything of it is decoded, its own positions enter as (1 - warm) E[mask] + warm * state,
    where they have one; afterwards as plain masks.
    """

    k: int = setting(5, "soft suffix: how many of a position's likeliest tokens are mixed", flags=("--soft_k",),
                     minimum=1, unit="tokens")
    alpha: float = setting(0.4, "soft suffix: the share of these tokens in the mixture with the mask",
                           flags=("--soft_alpha",), minimum=0, maximum=1)
    warm: float = setting(1.0, "soft suffix: how much of its state a position keeps in its block's first forward",
                          flags=("--soft_warm",), minimum=0, maximum=1)

    def __post_init__(self) -> None:
        check_settings(self)


class SoftStates:
    """The states of one request: embeddings [R, G, E] of the answer's positions, and which are known, bool [R, G]."""

    def __init__(self, settings: SoftSuffix, model: MaskedDiffusionModel, rows: int, length: int, mask_id: int):
        self.settings = settings
        self.model = model
        self.mask = model.embed(torch.tensor(mask_id, device=model.device))  # [E]
        self.states = self.mask.expand(rows, length, -1).clone()
        self.known = torch.zeros(rows, length, dtype=torch.bool, device=model.device)

    def inputs(self, ids: Tensor, rows: Tensor, columns: Tensor, block: slice, opening: bool) -> Tensor:
        """The embeddings [R, Q, E] of tokens `ids` [R, Q], with states where positions have them.

        Args:
            rows: int64 [R], rows of the request.
            columns: int64 [Q], the answer column of each slot; negative in the prompt.
            block: which of the slots are the block's; those after them are the suffix.
            opening: nothing of the block is decoded yet, so that its positions enter as warm as the settings say.
        """
        embeddings = self.model.embed(ids)
        self._enter(embeddings[:, block.stop :], rows, columns[block.stop :], 1.0)
        if opening:
            self._enter(embeddings[:, block], rows, columns[block], self.settings.warm)
        return embeddings

    def _enter(self, embeddings: Tensor, rows: Tensor, columns: Tensor, share: float) -> None:
        """Put states, mixed with the mask by their `share`, in place of the embeddings [R, n, E] of their positions."""
        places = rows[:, None], columns
        states = torch.lerp(self.mask, self.states[places], share)
        embeddings.copy_(torch.where(self.known[places][..., None], states, embeddings))

    def update(self, hidden: Tensor, rows: Tensor, columns: Tensor, kept: Tensor | None = None) -> None:
        """Take the states of suffix positions from the hidden states [R, n, E] that predict them.

        Args:
            rows: int64 [R], rows of the request.
            columns: int64 [n], answer columns.
            kept: bool [R, n], which positions each row keeps: the states of others stay; None: all.
        """
        flat = hidden.flatten(0, 1)
        count = max(1, PIECE // self.model.vocabulary_size)
        mixed = torch.cat([self._mix(self.model.head(piece)) for piece in flat.split(count)])
        mixed = mixed.unflatten(0, (len(rows), len(columns)))
        places = rows[:, None], columns
        if kept is not None:
            mixed = torch.where(kept[..., None], mixed, self.states[places])
        self.states[places] = mixed
        self.known[places] |= True if kept is None else kept

    def _mix(self, logits: Tensor) -> Tensor:
        """The mixture of the mask's embedding and those of the likeliest tokens: logits [M, V] -> [M, E]."""
        best = logits.topk(min(self.settings.k, logits.shape[-1]), dim=-1)
        shares = best.values.float().softmax(-1).to(self.mask.dtype)
        tokens = (shares[..., None] * self.model.embed(best.indices)).sum(dim=1)
        return torch.lerp(self.mask, tokens, self.settings.alpha)
