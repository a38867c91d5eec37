"""LLaDA's network: the weight names of the hub's checkpoints over the layers of dpad/engine/transformer.py.

Imported, never run. modeling.py makes it a model of transformers.
"""

from __future__ import annotations

import math
from typing import Any, cast

from torch import Tensor, nn

from dpad.engine.products import Linear
from dpad.engine.transformer import Attention, Layer, MaskedDiffusionModel, RMSNorm
from llada.configuration import LLaDAConfig


class LLaDABlock(Layer):
    """One layer: attention and SwiGLU, each after an RMSNorm and added to its input."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        width = config.d_model
        head_size = config.d_model // config.n_heads
        bias = config.include_bias
        qkv_bias = config.include_qkv_bias
        self.heads = config.n_heads
        self.kv_heads = config.n_kv_heads
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = Linear(width, width, bias=qkv_bias)
        self.k_proj = Linear(width, self.kv_heads * head_size, bias=qkv_bias)
        self.v_proj = Linear(width, self.kv_heads * head_size, bias=qkv_bias)
        self.attn_out = Linear(width, width, bias=bias)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = Linear(width, config.mlp_hidden_size, bias=bias)
        self.up_proj = Linear(width, config.mlp_hidden_size, bias=bias)
        self.ff_out = Linear(config.mlp_hidden_size, width, bias=bias)

    def compute(self, x: Tensor, attention: Attention, index: int) -> Tensor:
        steps = attention.steps
        normed = steps.normalise(self.attn_norm, x)
        queries = self.q_proj(normed).unflatten(-1, (self.heads, -1))
        keys = self.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
        values = self.v_proj(normed).unflatten(-1, (self.kv_heads, -1))
        mixed = self.attn_out(attention.attend(index, queries, keys, values))
        x, normed = steps.add_and_normalise(self.ff_norm, x, mixed)
        return x + self.ff_out(steps.gate(self.ff_proj(normed), self.up_proj(normed)))


class LLaDAModel(nn.Module):
    """Holds the modules under the names of the checkpoint: model.transformer.{wte, blocks, ln_f, ff_out}."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        modules: dict[str, nn.Module] = {
            "wte": nn.Embedding(config.embedding_size, config.d_model),
            "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            modules["ff_out"] = Linear(config.d_model, config.embedding_size, bias=config.include_bias)
        self.transformer = nn.ModuleDict(modules)


class LLaDANetwork(MaskedDiffusionModel):
    """LLaDA (arXiv 2502.09992): logits at a position predict the token of that position."""

    config_class: Any = LLaDAConfig
    head_name = "model.transformer.ff_out.weight"

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.transformer["blocks"])

    @property
    def final_norm(self) -> nn.Module:
        return self.model.transformer["ln_f"]

    def embed(self, input_ids: Tensor) -> Tensor:
        x = self.model.transformer["wte"](input_ids)
        return x * math.sqrt(self.config.d_model) if self.config.input_emb_norm else x

    def head(self, hidden: Tensor) -> Tensor:
        logits = super().head(hidden)
        return logits / math.sqrt(self.config.d_model) if self.config.scale_logits else logits

    def get_input_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.transformer["wte"])

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["wte"] = value
