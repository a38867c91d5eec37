"""LoRA adapters as training makes them: added to a model, written into a folder, merged into a checkpoint.

    adapted = add_lora(loaded.model, rank=64)                # only the adapter's weights are trained
    save_adapter(adapted, "out", loaded)                     # python run.py generate -m tiny --adapter out ...
    merge_adapter(load("tiny", adapter="out"), "merged")     # python run.py generate -m merged ...

dpad/engine/adapters.py reads adapters and checks them. Imported, never run.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpad.engine.adapters import (
    BASE,
    CONFIG,
    MAX_RANK,
    WEIGHTS,
    base_fingerprint,
    describe_adapter,
    import_peft,
    projections,
    wrap,
)
from dpad.engine.checkpoint import find_folder, relative_to_root, stored_type
from dpad.engine.checks import check_choice, check_integer, check_number, short
from dpad.results import outputs
from dpad.results.files import give_usual_mode, write_json, write_whole

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from dpad.engine.loading import LoadedModel
    from dpad.engine.transformer import MaskedDiffusionModel

ALL = "all-linear"
SHARD = "5GB"  # a file of weights is at most this large
# What a checkpoint on the hub holds beside its weights and config.json.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json")


def add_lora(
    model: MaskedDiffusionModel, rank: int, alpha: float | None = None, dropout: float = 0.0,
    targets: str | Sequence[str] = ALL,
) -> PeftModel:
    """Freeze a model and add low-rank matrices to the projections of its layers (LoRA, arXiv 2106.09685).

    The sum B A is scaled by alpha / rank; B starts as zeros, so that the model begins as it was. The adapter's weights
    are float32, whatever the model's are. The head is left alone, whatever its name.

    Args:
        rank: of each added matrix.
        alpha: None takes twice the rank, so that another rank needs no other learning rate.
        dropout: the share of a projection's inputs that the added matrices do not see in training.
        targets: "all-linear" for all projections of each layer, or names of some of them.

    Returns:
        The model as peft wraps it: `hidden_states`, `head` and all else are reached through it, and
        `merge_and_unload()` ends it.

    Raises:
        ValueError: naming the argument, its value and what is allowed; or peft is not installed.
    """
    import_peft()
    check_integer("rank", rank, 1, MAX_RANK)
    if alpha is not None:
        check_number("alpha", alpha, above=0)
    check_number("dropout", dropout, minimum=0)
    if dropout >= 1:
        raise ValueError(f"dropout is {dropout}; it must be below 1")
    if hasattr(model, "peft_config"):
        raise ValueError("the model has an adapter already; merge it, or load the model again")
    names = projections(model)
    if isinstance(targets, str) and targets != ALL or not targets:
        raise ValueError(f"targets is {short(targets)}; it must be {ALL!r}, or a list of some of "
                         f"{', '.join(names)}")
    chosen = names if targets == ALL else sorted(set(targets))
    for target in chosen:
        check_choice("targets", target, names)
    return wrap(
        model, r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout, target_modules=chosen,
        exclude_modules=[model.head_name.removesuffix(".weight")],  # LLaDA's is called as a projection of its layers
    )


def save_adapter(
    adapted: PeftModel, folder: str | Path, loaded: LoadedModel, state_dict: dict[str, Tensor] | None = None,
    chat_template: bool | None = None,
) -> None:
    """Write an adapter as peft does, and into base.json which weights it was trained from.

    Each file is written whole, the weights last; equal adapters give equal files. Those of an earlier state of the same
    training are replaced.

    Args:
        loaded: the model that `add_lora` was given.
        state_dict: of `adapted`, where its weights are spread over processes (FSDP); None reads them from it.
        chat_template: see `write_base`.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = import_peft().get_peft_model_state_dict(adapted, state_dict=state_dict, save_embedding_layers=False)
    fields = adapted.peft_config[adapted.active_adapter].to_dict() | {
        "base_model_name_or_path": relative_to_root(loaded.checkpoint), "inference_mode": True, "auto_mapping": None,
    }
    write_base(folder, loaded, chat_template)
    write_json(folder / CONFIG, {
        field: sorted(value) if isinstance(value, set) else value for field, value in sorted(fields.items())
    })
    with write_whole(folder / WEIGHTS) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary,
                  metadata={"format": "pt"})


def write_base(folder: str | Path, loaded: LoadedModel, chat_template: bool | None = None) -> None:
    """Write base.json: which weights an adapter, or a checkpoint, was made from, and how its prompts were built.

    Args:
        loaded: the model that the training began with, or that has been merged.
        chat_template: whether prompts went through the chat template, which is then the default wherever the folder is
            used, whatever its name; None takes the default of `loaded`.
    """
    write_json(Path(folder) / BASE, {
        "base": relative_to_root(loaded.checkpoint),
        "sha256": fingerprint_of(loaded.checkpoint),
        "chat_template": loaded.chat_template if chat_template is None else chat_template,
    } | describe_adapter(loaded.adapter))


@functools.cache
def fingerprint_of(checkpoint: str) -> str:
    """The base_fingerprint of a checkpoint that has been loaded, taken once in a process."""
    return base_fingerprint(find_folder(checkpoint, local_files_only=True))


def merge_adapter(loaded: LoadedModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a model that was loaded with an adapter as a checkpoint of its own, in the layout of the hub's.

    The weights are split into files of 5 GB; the base's tokenizer is copied. The folder appears when all of it is on
    the disk.

    Args:
        dtype: the type that the weights are turned into, in memory too; None takes the one in which the base is stored.

    Raises:
        ValueError: the model has no adapter, or the folder exists and is not empty.
    """
    if loaded.adapter is None:
        raise ValueError(f"model {loaded.name} was loaded without an adapter; give the one that is to be merged")
    check_new_folder("output", folder)
    folder = Path(folder)
    base = find_folder(loaded.checkpoint, local_files_only=True)
    dtype = dtype or getattr(torch, stored_type(base))
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.to(dtype)

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        loaded.pretrained.save_pretrained(temporary, max_shard_size=SHARD)
        copy_tokenizer(base, temporary)
        write_base(temporary, loaded)
        for path in temporary.iterdir():
            give_usual_mode(path)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the tokenizer, its chat template and the like from a checkpoint's folder."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def check_new_folder(name: str, folder: str | Path) -> None:
    """Raise ValueError unless a folder can be made, or is there and empty. name: of the flag or argument."""
    outputs.check_folder(name, folder)
    if os.path.isdir(folder) and (files := sorted(os.listdir(folder))):
        raise ValueError(f"{name} is {str(folder)!r}, a folder that holds {short(files[0])}; it must be a new folder "
                         "or an empty one")
