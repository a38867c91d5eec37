"""What makes a network of transformer.py a model of transformers: its forward, from_pretrained, resizing, peft's hooks.

Imported by generation.py, never run. Those who only decode do without: importing this takes two seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from dpad.engine import checkpoint, process
from dpad.engine.checks import check_integer, one_line
from dpad.engine.products import Linear
from dpad.engine.transformer import MaskedDiffusionModel, RMSNorm, positions_of

# What transformers passes to every forward and what leaves the result as it is; other arguments there are refused.
NEUTRAL = {"return_dict": (None, True)}
# Why other arguments of transformers' models are refused.
REFUSED = {
    "labels": "the loss of a masked diffusion model needs masks that are drawn (dpad/training)",
    "use_cache": "a forward keeps nothing; generate does, with cache='prefix' or 'dual'",
    "past_key_values": "a forward keeps nothing; generate does, with cache='prefix' or 'dual'",
    "inputs_embeds": "`hidden_states` takes embeddings, and `head` makes logits of its result",
    "output_attentions": "`python run.py attention` shows what a block attends to",
}
# Options of from_pretrained that say where a hub id's files come from.
DOWNLOAD = ("revision", "local_files_only", "cache_dir", "token", "force_download")


class PretrainedDiffusionModel(MaskedDiffusionModel, PreTrainedModel):
    """A MaskedDiffusionModel with what transformers' models have."""

    supports_gradient_checkpointing = True  # by transformer.Layer
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig):
        PreTrainedModel.__init__(self, config)
        process.prepare()

    def recompute_layers(self) -> None:
        """In training, keep each layer's input alone, and compute the layer again for its gradients."""
        options = {"use_reentrant": False}
        if hasattr(self, "activation_checkpointing_enable"):
            self.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # its name in older versions of transformers
            self.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def _set_gradient_checkpointing(self, enable: bool = True, *arguments: Any, every_n_layers: int = 1,
                                    **options: Any) -> None:
        """transformers', which knows `every_n_layers` of its own class of layers alone."""
        super()._set_gradient_checkpointing(enable, *arguments, **options)
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = enable and index % every_n_layers == 0

    def forward(
        self, input_ids: Tensor | None = None, position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None, logits_to_keep: int | Tensor = 0, **unused: object,
    ) -> MaskedLMOutput:
        """Logits of every token, or of the places that were asked for.

        Args:
            input_ids: [R, Q] token ids.
            position_ids: [R, Q] or [Q], the position of each token in the sequence it was taken from. By default each
                row counts from its own first token that `attention_mask` admits.
            attention_mask: [R, Q], 1 or True at tokens, 0 at padding; by default everything is a token.
            logits_to_keep: 0 for all places, n > 0 for the last n, or a 1-D tensor of indices into [0, Q): the head
                then computes these alone. (The head of LLaDA-8B costs as much as two of its layers.)

        Returns:
            MaskedLMOutput with `logits` [R, Q or the number asked for, V].

        Raises:
            ValueError: naming the argument when a shape or an index does not fit.
        """
        foreign = sorted(
            name for name, value in unused.items()
            if not any(value is neutral for neutral in NEUTRAL.get(name, (None, False)))
            and not (name == "token_type_ids" and isinstance(value, Tensor) and not value.any())
        )
        if foreign:
            reasons = "".join(f"; {name}: {REFUSED[name]}" for name in foreign if name in REFUSED)
            raise ValueError(f"{', '.join(foreign)}: not an argument of {type(self).__name__}.forward, which takes "
                             f"input_ids, position_ids, attention_mask and logits_to_keep{reasons}")
        if input_ids is None:
            raise ValueError("input_ids is missing; it must be [rows, tokens]")
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {list(input_ids.shape)}; it must be [rows, tokens]")
        rows, length = input_ids.shape
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(f"attention_mask has shape {list(attention_mask.shape)}; it must have input_ids' "
                                 f"shape, {list(input_ids.shape)}")
            attention_mask = attention_mask.bool()
        if position_ids is None:
            position_ids = positions_of(attention_mask, input_ids)
        elif position_ids.shape not in ((length,), (1, length), (rows, length)):
            raise ValueError(f"position_ids has shape {list(position_ids.shape)}; it must be [{length}] or "
                             f"[{rows}, {length}]")
        hidden = self.hidden_states(input_ids, position_ids.expand(rows, length), attention_mask)
        if isinstance(logits_to_keep, int):
            if not 0 <= logits_to_keep <= length:
                raise ValueError(f"logits_to_keep is {logits_to_keep}; it must lie between 0 (all) and {length}")
            hidden = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        elif isinstance(logits_to_keep, Tensor) and logits_to_keep.ndim == 1:
            hidden = hidden[:, logits_to_keep]
        else:
            raise ValueError("logits_to_keep must be a number of last places or a 1-D tensor of indices")
        return MaskedLMOutput(logits=self.head(hidden))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        """What peft looks for in the base of an adapter of a causal model; decoding never calls it."""
        return {"input_ids": input_ids}

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True,
    ) -> nn.Embedding:
        """transformers': rows are added to, or cut off, the embedding and the head. The configuration follows.

        Raises:
            ValueError: a special token of the configuration would lose its row.
        """
        if new_num_tokens is not None:
            names = ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "eot_id")
            ids = {getattr(self.config, name, None) or 0: name for name in names}
            largest = max(ids)
            try:
                check_integer("new_num_tokens", new_num_tokens, largest + 1)
            except ValueError as error:
                raise ValueError(f"{error}: {ids[largest]} is {largest}") from None
        embedding: nn.Embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if hasattr(self.config, "embedding_size"):
            self.config.embedding_size = self.config.vocab_size
        return embedding

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """Load a checkpoint folder or hub id, sharded or not, from safetensors alone and without remote code.

        Takes transformers' options (`dtype`, `device_map`, `revision`, ...). Unlike transformers' own, a weight that
        is missing, foreign or of another shape is an error: a model with random layers answers, but nonsense.

        Raises:
            ValueError: the folder is missing or holds no configuration, has missing or foreign weights or wrong shapes.
        """
        unknown = sorted(options.keys() & {"variant", "gguf_file", "state_dict"})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not an option here; weights come from {checkpoint.WEIGHTS}, or "
                             f"from the files in {checkpoint.INDEX}")
        download = {option: options.pop(option) for option in DOWNLOAD if option in options}
        folder = checkpoint.find_folder(name, **download) / options.pop("subfolder", "")
        config = cls.check_folder(folder, options.get("config"))

        wants_info = options.pop("output_loading_info", False)
        options |= {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True,
                    "ignore_mismatched_sizes": True}
        load: Callable[..., Any] = super().from_pretrained
        # The packages that read quantized weights raise whatever they meet: a GPU is missing, a version is too old, ...
        quantized = getattr(config, "quantization_config", None) or options.get("quantization_config")
        refusals: tuple[type[Exception], ...] = (Exception,) if quantized else (OSError, SafetensorError)
        try:
            model, info = load(folder, *args, **options)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except refusals as error:
            raise ValueError(f"checkpoint {str(name)!r} could not be loaded: {one_line(error)}") from error
        checkpoint.check_names(folder, info["missing_keys"], info["unexpected_keys"],
                               [entry[0] for entry in info["mismatched_keys"]])
        checkpoint.check_types(folder, _types_of_plain_weights(model))
        return (model, info) if wants_info else model


def _types_of_plain_weights(model: nn.Module) -> dict[str, str]:
    """The types of the weights that are numbers as they stand, which those of a quantization package's modules are not.
    """
    return {
        f"{name}.weight": str(module.weight.dtype).removeprefix("torch.") for name, module in model.named_modules()
        if type(module) in (nn.Linear, Linear, nn.Embedding, RMSNorm) and type(module.weight.data) is Tensor
    }
