"""What a block attends to: watches on one forward (transformer.py), which average the weights as the layers make them.

Weights of every layer, head, query and slot at once would not fit for long sequences, so each watch keeps averages
alone. Imported, never run; `python run.py attention -m tiny --prompt "..."` draws them.

Shapes: R rows of a batch, H heads, W watched queries, S slots attended to.
"""

from __future__ import annotations

from torch import Tensor

from dpad.engine.transformer import Watch


class MeanAttention(Watch):
    """What the watched queries pay to each slot on average, over layers, heads and queries of one forward.

    queries: which of the forward's queries to watch; at least one. It may watch forward after forward: the first layer
    begins anew.
    """

    def __init__(self, queries: slice):
        self.queries = queries
        self.layers = 0
        self.total: Tensor | None = None  # [R, S], summed over the layers

    def __call__(self, layer: int, weights: Tensor) -> None:
        mean = weights.mean(dim=(1, 2))  # [R, H, W, S] -> [R, S]
        self.layers = layer + 1
        if layer == 0 or self.total is None:
            self.total = mean
        else:
            self.total = self.total + mean.to(self.total.device)  # a layer may be on another device

    def scores(self) -> Tensor:
        """float32 [R, S]; a row's sum is 1, and what may not be attended to (padding) has 0."""
        assert self.total is not None, "no forward has been watched"
        return self.total / self.layers
