"""What is trained of a model, all weights or a LoRA adapter, and how the result is written.

    target, save = prepare(loaded, settings, folder)

Imported by command.py and scratch.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dpad.engine.checkpoint import find_folder, stored_type
from dpad.engine.loading import LoadedModel
from dpad.engine.pretrained import PretrainedDiffusionModel
from dpad.results import files
from dpad.training.adapters import SHARD, add_lora, copy_tokenizer, save_adapter, write_base
from dpad.training.settings import TrainingSettings

Save = Callable[[dict[str, Tensor]], None]


def prepare(loaded: LoadedModel, settings: TrainingSettings, folder: Path,
            chat_template: bool | None = None) -> tuple[nn.Module, Save]:
    """The module to train, in training mode, and the function that writes its trained weights into a folder.

    Checkpoints are written in the type that the model's own is stored in. base.json says what they were trained from.

    Args:
        chat_template: whether prompts went through it; None: the model's default.
    """
    model = loaded.pretrained
    if settings.gradient_checkpointing:
        model.recompute_layers()
    if settings.lora is not None:
        adapted = add_lora(model, settings.lora, settings.lora_alpha, settings.lora_dropout)
        return adapted.train(), lambda weights: save_adapter(adapted, folder, loaded, weights, chat_template)

    def save(weights: dict[str, Tensor]) -> None:
        write_base(folder, loaded, chat_template)
        copy_tokenizer(base, folder)
        write_checkpoint(model, folder, stored, weights)

    base = find_folder(loaded.checkpoint, local_files_only=True)
    stored = getattr(torch, stored_type(base))
    model.requires_grad_(True)
    return model.train(), save


def write_checkpoint(
    model: PretrainedDiffusionModel, folder: Path, dtype: torch.dtype, weights: dict[str, Tensor]
) -> None:
    """Write weights and configuration.

    Args:
        model: says the configuration; its own weights are not looked at.
        dtype: that the weights are stored in.
        weights: by the names of the model's state dict.
    """
    stored = {name: weight.to(dtype) for name, weight in weights.items()}
    model.save_pretrained(folder, state_dict=stored, max_shard_size=SHARD)
    for path in folder.glob("*.safetensors"):
        files.give_usual_mode(path)
    config = folder / "config.json"
    files.write_json(config, files.read_json(config) | {"dtype": str(dtype).removeprefix("torch.")})
