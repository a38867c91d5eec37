"""Dream's configuration, with the field names of the config.json on the hub (Dream-org/Dream-v0-Instruct-7B and kin).

Imported, never run. `DreamConfig.from_pretrained(folder)` reads one; `Dream` is its name in AutoConfig. iLLaDA, whose
layers are of the same make, is `illada` there.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dpad.engine.checks import check_config, check_plain, check_token_ids, plain_rope, short

# What every Dream checkpoint has.
FIXED: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": (("silu",), "only the SwiGLU is implemented"),
}
ILLADA_MASK_ID = 5  # <[MASK]> of its vocabulary


class DreamConfig(PretrainedConfig):
    """What a Dream checkpoint is made of (Dream 7B, arXiv 2508.15487; Qwen2 layers). The defaults are Dream-7B's.

    hidden_size: width. num_hidden_layers, num_attention_heads, num_key_value_heads. intermediate_size: width of the
    SwiGLU. vocab_size: rows of the embedding and the head. max_position_embeddings: prompt and answer together.
    tie_word_embeddings: the head is the embedding.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    model_type = "Dream"
    qkv_bias = True  # on the projections to queries, keys and values

    def __init__(
        self, hidden_size: int = 3584, num_hidden_layers: int = 28, num_attention_heads: int = 28,
        num_key_value_heads: int = 4, intermediate_size: int = 18944, vocab_size: int = 152064,
        max_position_embeddings: int = 131072, rope_theta: float = 1_000_000.0, rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02, tie_word_embeddings: bool = False, mask_token_id: int = 151666,
        bos_token_id: int | None = 151643, eos_token_id: int = 151643, pad_token_id: int | None = 151643, **others: Any,
    ):
        bias = ((None, self.qkv_bias), f"queries, keys and values have {'' if self.qkv_bias else 'no '}biases here")
        check_plain(others, FIXED | {"attention_bias": bias})
        for name in (*FIXED, "use_sliding_window"):
            others.pop(name, None)
        rope_theta = plain_rope(rope_theta, others)  # type: ignore[assignment]  # checked below
        check_config(
            {"hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers, "vocab_size": vocab_size,
             "num_attention_heads": num_attention_heads, "num_key_value_heads": num_key_value_heads,
             "intermediate_size": intermediate_size, "max_position_embeddings": max_position_embeddings}, {},
            {"rope_theta": rope_theta, "rms_norm_eps": rms_norm_eps, "initializer_range": initializer_range},
            {"tie_word_embeddings": tie_word_embeddings},
            others,
        )
        if hidden_size % num_attention_heads or (hidden_size // num_attention_heads) % 2:
            raise ValueError(f"config field num_attention_heads is {num_attention_heads}; it must divide hidden_size "
                             f"({hidden_size}) into heads of even size")
        if num_attention_heads % num_key_value_heads:
            raise ValueError(f"config field num_key_value_heads is {num_key_value_heads}; it must divide "
                             f"num_attention_heads ({num_attention_heads})")
        check_token_ids(vocab_size, {"mask_token_id": mask_token_id, "eos_token_id": eos_token_id},
                        {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id})
        head_dim = others.get("head_dim")
        if head_dim not in (None, hidden_size // num_attention_heads):
            raise ValueError(f"config field head_dim is {short(head_dim)}; it must be hidden_size / "
                             f"num_attention_heads ({hidden_size // num_attention_heads}), or left out")
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        others |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id,
                   "tie_word_embeddings": tie_word_embeddings}
        super().__init__(**others)


class ILLaDAConfig(DreamConfig):
    """What an iLLaDA checkpoint is made of (arXiv 2606.25331): Dream's layers without biases, under the same names.

    The fields are Dream's. The defaults are iLLaDA-8B's, from its card, since its files were not at hand; there is none
    for EOS. The mask is missing in the hub's config.json (None: ILLADA_MASK_ID).

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """

    model_type = "illada"
    qkv_bias = False

    def __init__(
        self, hidden_size: int = 4096, num_hidden_layers: int = 32, num_attention_heads: int = 32,
        num_key_value_heads: int = 8, intermediate_size: int = 14336, vocab_size: int = 155136,
        max_position_embeddings: int = 8192, tie_word_embeddings: bool = True, mask_token_id: int | None = None,
        bos_token_id: int | None = None, eos_token_id: int | None = None, pad_token_id: int | None = None,
        **others: Any,
    ):
        super().__init__(
            hidden_size=hidden_size, num_hidden_layers=num_hidden_layers, num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads, intermediate_size=intermediate_size, vocab_size=vocab_size,
            max_position_embeddings=max_position_embeddings, tie_word_embeddings=tie_word_embeddings,
            mask_token_id=ILLADA_MASK_ID if mask_token_id is None else mask_token_id, bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,  # type: ignore[arg-type]  # None is refused there
            pad_token_id=pad_token_id, **others,
        )


for config_class in (DreamConfig, ILLaDAConfig):
    AutoConfig.register(config_class.model_type, config_class)
