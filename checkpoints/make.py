"""Make the embedded models as they are before training: shapes, tokenizers and initial weights.

    model, tokenizer = make_model("llada", seed=1234)

Imported by dpad/training/train.py, which trains them.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import dream
import llada
from dataset import arithmetic
from dpad.engine.pretrained import PretrainedDiffusionModel
from dpad.results import files

# LLaDA's special tokens, in the order of their ids here (on the hub they sit at 126080 and above).
LLADA_TOKENS = {
    "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "mask_token": "<|mdm_mask|>",
    "start_header": "<|start_header_id|>", "end_header": "<|end_header_id|>", "end_of_turn": "<|eot_id|>",
}
LLADA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DREAM_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 1024
# The pieces of text that BPE may merge within. A capital begins a piece, without the space before it, so that a name is
# the same token at the start of a line and inside one, and copying names is one skill instead of one for each name.
# A number up to 99 is one piece and one token: with one or two tokens, a model that decodes in any order would have to
# guess the positions of everything after it.
PIECES = r"<<|>>|####|\d{1,2}|[A-Z][a-z]*| ?[a-z]+|\n| ?[^A-Za-z\d\s<>#]|\s"
# RoPE's base and the spread of the initial weights suit this width and these lengths instead of the 8B's.
LLADA_SHAPE: dict[str, Any] = {
    "d_model": 192, "n_layers": 6, "n_heads": 4, "mlp_hidden_size": 512, "rope_theta": 10_000.0, "init_std": 0.07,
}
DREAM_SHAPE: dict[str, Any] = {
    "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 544, "rope_theta": 10_000.0, "initializer_range": 0.07,
}
MAX_POSITIONS = 4096


def make_model(family: str, seed: int) -> tuple[PretrainedDiffusionModel, PreTrainedTokenizerBase]:
    """A model of random weights, from torch's global generator, and its tokenizer.

    Args:
        family: a key of FAMILIES.
        seed: of the problems that the tokenizer is trained on.
    """
    tokenizer, model_class, config = FAMILIES[family](seed)
    model = model_class._from_config(config, attn_implementation="eager")
    initialize_for_copying(model)
    return model, tokenizer


@torch.no_grad()
def initialize_for_copying(model: PretrainedDiffusionModel) -> None:
    """Change initial weights so that an attention head only has to learn where to look in order to copy a token.

    From independent random weights it would have to learn where to look, what to read there and what to write, and none
    of them helps without the others: in so few steps, models never learned to copy names. Three changes help:

    - Embeddings are scaled to what layers add to them, so that a token's identity stays readable in every layer.
    - The model's head starts as the embeddings.
    - The output projection of an attention head starts as the transpose of its value projection, so that attending to a
      token raises that token's logit (Trockman and Kolter, "Mimetic initialization of self-attention layers", 2023).
    """
    embedding: Any = model.get_input_embeddings().weight
    head = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == len(embedding))
    head.weight.copy_(embedding)
    embedding /= embedding.std()
    for layer in model.layers:
        attention: Any = getattr(layer, "self_attn", layer)  # Dream's, LLaDA's
        output: Any = attention.o_proj if attention is not layer else attention.attn_out
        values = attention.v_proj.weight.unflatten(0, (model.kv_head_count, model.head_size))  # [K, D, E]
        values = values.repeat_interleave(output.in_features // model.head_size // model.kv_head_count, dim=0)
        output.weight.copy_(values.flatten(0, 1).T)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer in the files that its family's checkpoints on the hub have."""
    tokenizer.save_pretrained(folder)
    if not isinstance(tokenizer, dream.DreamTokenizer):
        return

    # Dream's checkpoints have vocab.json and merges.txt instead of tokenizer.json. Tokens that are in neither (special
    # tokens, whole numbers) are listed in the configuration.
    tokenizer.backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    file = folder / "tokenizer_config.json"
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {
        str(token_id): {field: getattr(token, field) for field in fields}
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    files.write_json(file, files.read_json(file) | {"added_tokens_decoder": added})


def train_bpe(pattern: str, special_tokens: list[str], vocabulary: int, seed: int) -> Tokenizer:
    """Train a byte-level BPE of `vocabulary` tokens on training problems, which `pattern` splits into pieces first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special_tokens, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    samples = islice(arithmetic.problems(seed, "train"), 20_000)
    extra = ["Question: ", "\nAnswer:", "user", "assistant", "system"] * 1000
    tokenizer.train_from_iterator([*(p["question"] + "\n" + p["answer"] for p in samples), *extra], trainer)
    return tokenizer


def make_llada(seed: int) -> tuple[PreTrainedTokenizerBase, type[PretrainedDiffusionModel], PreTrainedConfig]:
    """Tokenizer, model class and configuration of the embedded LLaDA."""
    bpe = train_bpe(PIECES, list(LLADA_TOKENS.values()), VOCABULARY, seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=LLADA_CHAT, model_max_length=MAX_POSITIONS,
        padding_side="left", pad_token=LLADA_TOKENS["eos_token"],
        additional_special_tokens=[LLADA_TOKENS[name] for name in ("start_header", "end_header", "end_of_turn")],
        **{name: LLADA_TOKENS[name] for name in ("bos_token", "eos_token", "mask_token")},
    )
    return tokenizer, llada.LLaDAModelLM, llada.LLaDAConfig(
        **LLADA_SHAPE, vocab_size=VOCABULARY, max_sequence_length=MAX_POSITIONS,
        mask_token_id=tokenizer.mask_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eot_id=bpe.token_to_id(LLADA_TOKENS["end_of_turn"]),
    )


def make_dream(seed: int) -> tuple[PreTrainedTokenizerBase, type[PretrainedDiffusionModel], PreTrainedConfig]:
    """Tokenizer, model class and configuration of the embedded Dream."""
    # The tokenizer splits text with Qwen's pattern. Its longer pieces do no harm, because no merge crosses one of ours.
    # But it splits numbers into digits, so whole numbers are added as tokens.
    numbers = [str(number) for number in range(10, 100)]
    bpe = train_bpe(PIECES.replace(r"\d{1,2}", r"\d"), [], VOCABULARY - 8 - len(numbers), seed)
    parts = json.loads(bpe.to_str())["model"]
    tokenizer = dream.DreamTokenizer(
        vocab=parts["vocab"],
        merges=[tuple(pair) for pair in parts["merges"]],  # type: ignore[misc]  # as transformers passes them
        chat_template=DREAM_CHAT,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(number, normalized=False) for number in numbers])
    return tokenizer, dream.DreamModel, dream.DreamConfig(
        **DREAM_SHAPE, vocab_size=VOCABULARY, max_position_embeddings=MAX_POSITIONS,
        mask_token_id=tokenizer.mask_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )


FAMILIES = {"llada": make_llada, "dream": make_dream}
