"""The networks of Dream and iLLaDA: the hub's names of weights over the layers of dpad/engine/transformer.py.

Imported, never run. modeling.py makes them models of transformers.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from dpad.engine.products import Linear
from dpad.engine.transformer import Attention, Layer, MaskedDiffusionModel, RMSNorm
from dream.configuration import DreamConfig, ILLaDAConfig


class DreamAttention(nn.Module):
    """Grouped-query attention with biases on q, k and v alone, or (iLLaDA) without any."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        width = config.hidden_size
        self.head_size = config.hidden_size // config.num_attention_heads
        kv_width = config.num_key_value_heads * self.head_size
        self.q_proj = Linear(width, width, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv_width, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv_width, bias=config.qkv_bias)
        self.o_proj = Linear(width, width, bias=False)

    def forward(self, x: Tensor, attention: Attention, index: int) -> Tensor:
        """x [R, Q, E] -> [R, Q, E]; `index` is the layer's."""
        queries, keys, values = (
            project(x).unflatten(-1, (-1, self.head_size)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(attention.attend(index, queries, keys, values))


class DreamMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        return self.down_proj(attention.steps.gate(self.gate_proj(x), self.up_proj(x)))


class DreamDecoderLayer(Layer):
    """One layer: attention and SwiGLU, each after an RMSNorm and added to its input."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DreamAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DreamMLP(config)

    def compute(self, x: Tensor, attention: Attention, index: int) -> Tensor:
        steps = attention.steps
        mixed = self.self_attn(steps.normalise(self.input_layernorm, x), attention, index)
        x, normed = steps.add_and_normalise(self.post_attention_layernorm, x, mixed)
        return x + self.mlp(normed, attention)


class DreamBaseModel(nn.Module):
    """Holds the modules under the names of the checkpoint: model.{embed_tokens, layers, norm}."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DreamDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DreamNetwork(MaskedDiffusionModel):
    """Dream (arXiv 2508.15487): logits at a position predict the token of the next one."""

    config_class: Any = DreamConfig
    head_name = "lm_head.weight"
    prediction_offset = 1

    def __init__(self, config: DreamConfig):
        super().__init__(config)
        self.model = DreamBaseModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.norm

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = cast(nn.Embedding, value)


class ILLaDANetwork(DreamNetwork):
    """iLLaDA (arXiv 2606.25331): logits at a position predict the token of that position.

    That its checkpoints have these names of weights is inferred from programs that use them; others would be an error.
    """

    config_class: Any = ILLaDAConfig
    prediction_offset = 0
