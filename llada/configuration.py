"""LLaDA's configuration, with the field names of the config.json on the hub (GSAI-ML/LLaDA-8B-Instruct and kin).

Imported, never run. `LLaDAConfig.from_pretrained(folder)` reads one; `llada` is its name in AutoConfig.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dpad.engine.checks import check_config, check_plain, check_token_ids, plain_rope

# Options of OLMo, whose configuration LLaDA's comes from, that every LLaDA checkpoint leaves at these values.
FIXED: dict[str, tuple[tuple[object, ...], str]] = {
    "activation_type": (("silu",), "only LLaDA's SwiGLU is implemented"),
    "clip_qkv": ((None,), "clipped queries, keys and values are not implemented"),
    "alibi": ((None, False), "positions are RoPE's; ALiBi is not implemented"),
    "rope": ((True,), "positions are RoPE's alone"),
    "rope_full_precision": ((True,), "RoPE is computed in float32"),
    "attention_layer_norm": ((None, False), "norms of queries and keys are not implemented"),
    "layer_norm_type": (("rms",), "only RMSNorm is implemented"),
    "layer_norm_with_affine": ((True,), "norms have weights"),
    "bias_for_layer_norm": ((None, False), "norms with biases are not implemented"),
    "block_type": (("llama",), "only LLaMA's layers are implemented"),
    "block_group_size": ((1,), "layers in groups are not implemented"),
}
MASK_ID = 126336  # <|mdm_mask|> of LLaDA's vocabulary
EOT_ID = 126348  # <|eot_id|> of LLaDA's vocabulary; the hub's files leave it out


class LLaDAConfig(PretrainedConfig):
    """What a LLaDA checkpoint is made of (LLaDA, arXiv 2502.09992, table 5). The defaults are LLaDA-8B's.

    d_model: width. n_layers, n_heads, n_kv_heads (None: n_heads). mlp_hidden_size: width of the SwiGLU (None:
    mlp_ratio * d_model). vocab_size: of the tokenizer; embedding_size: rows of the embedding and the head (None:
    vocab_size). max_sequence_length: prompt and answer together. include_bias: on every projection;
    include_qkv_bias: on q, k, v at least. weight_tying: the head is the embedding. scale_logits: divide logits by
    sqrt(d_model). input_emb_norm: multiply embeddings by sqrt(d_model). eot_id: ends a turn of the chat template
    (None: EOT_ID where the vocabulary is LLaDA's). pad_token_id: None means EOS.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    model_type = "llada"
    attribute_map = {
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads", "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "mlp_hidden_size", "tie_word_embeddings": "weight_tying",
    }

    def __init__(
        self, d_model: int = 4096, n_layers: int = 32, n_heads: int = 32, n_kv_heads: int | None = None,
        mlp_hidden_size: int | None = 12288, mlp_ratio: int = 4, vocab_size: int = 126464,
        embedding_size: int | None = None, max_sequence_length: int = 4096, rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5, include_bias: bool = False, include_qkv_bias: bool = False,
        weight_tying: bool = False, scale_logits: bool = False, input_emb_norm: bool = False,
        init_std: float = 0.02, mask_token_id: int = MASK_ID, eos_token_id: int = 126081,
        eot_id: int | None = None, pad_token_id: int | None = None, **others: Any,
    ):
        if others.get("multi_query_attention"):
            raise ValueError("config field multi_query_attention is on; set n_kv_heads to 1 instead")
        check_plain(others, FIXED)
        rope_theta = plain_rope(rope_theta, others)  # type: ignore[assignment]  # checked below
        check_config(
            {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "vocab_size": vocab_size,
             "mlp_ratio": mlp_ratio, "max_sequence_length": max_sequence_length},
            {"n_kv_heads": n_kv_heads, "mlp_hidden_size": mlp_hidden_size, "embedding_size": embedding_size},
            {"rope_theta": rope_theta, "rms_norm_eps": rms_norm_eps, "init_std": init_std},
            {"include_bias": include_bias, "include_qkv_bias": include_qkv_bias, "weight_tying": weight_tying,
             "scale_logits": scale_logits, "input_emb_norm": input_emb_norm},
            others,
        )
        for alias, name in self.attribute_map.items():
            if alias in others:
                raise ValueError(f"config field {alias} is not one of LLaDA's, which calls it {name}")
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model % n_heads or (d_model // n_heads) % 2:
            raise ValueError(f"config field n_heads is {n_heads}; it must divide d_model ({d_model}) into heads of "
                             "even size")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"config field n_kv_heads is {n_kv_heads}; it must divide n_heads ({n_heads})")
        embedding_size = vocab_size if embedding_size is None else embedding_size
        if embedding_size < vocab_size:
            raise ValueError(f"config field embedding_size is {embedding_size}; it must be at least vocab_size "
                             f"({vocab_size})")
        if eot_id is None and mask_token_id == MASK_ID and EOT_ID < vocab_size:
            eot_id = EOT_ID
        check_token_ids(vocab_size, {"mask_token_id": mask_token_id, "eos_token_id": eos_token_id},
                        {"pad_token_id": pad_token_id, "bos_token_id": others.get("bos_token_id"), "eot_id": eot_id})
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.mlp_hidden_size = mlp_ratio * d_model if mlp_hidden_size is None else mlp_hidden_size
        self.mlp_ratio = mlp_ratio
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.include_bias = include_bias
        self.include_qkv_bias = bool(include_bias or include_qkv_bias)
        self.weight_tying = weight_tying
        self.scale_logits = scale_logits
        self.input_emb_norm = input_emb_norm
        self.init_std = init_std
        self.initializer_range = init_std
        self.mask_token_id = mask_token_id
        self.eot_id = eot_id
        others["eos_token_id"] = eos_token_id
        others["pad_token_id"] = eos_token_id if pad_token_id is None else pad_token_id
        super().__init__(**others)


AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig)
