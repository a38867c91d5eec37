r"""LoRA adapters: found, checked against the model that they are for, and merged into its weights.

    python run.py generate -m 1.5 --adapter FOLDER \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"

An adapter is a folder that peft writes: adapter_config.json and adapter_model.safetensors. It may come from
anywhere: no other file of it is read and no code is taken from it, and both files are compared with the model's
configuration before the model's weights are loaded. Merged, it costs nothing when decoding. Imported, never run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import warnings
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dpad.engine import checkpoint
from dpad.engine.checks import check_integer, check_number, one_line, short
from dpad.engine.json_text import parse_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from dpad.engine.transformer import MaskedDiffusionModel

CONFIG = checkpoint.ADAPTER
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"  # which weights an adapter, or a checkpoint, was made from; written here, but not by peft

NAMES = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")  # fields that hold names of modules
PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}  # by expressions for names, a value of another field
SWITCHES = ("fan_in_fan_out", "use_rslora", "use_dora")
APPLIED = {"r", "lora_alpha", "bias", "layers_to_transform", *NAMES, *PATTERNS, *SWITCHES}
# What the training did, and what does not matter to its result.
HISTORY = {"peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "auto_mapping",
           "inference_mode", "lora_dropout", "init_lora_weights", "eva_config", "ensure_weight_tying"}
# Initial weights that leave the base as it is. Others (pissa, olora, loftq, ...) change it, and the folder lacks that.
INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
MAX_RANK = 2**14
MAX_PATTERN = 300  # characters
MAX_NAMES = 4096
SAMPLED_ROWS = 8  # of each matrix, that a fingerprint covers


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter whose files have been looked at. name: folder or hub id. fields: of adapter_config.json."""

    name: str
    folder: Path
    fields: dict[str, Any]
    headers: dict[str, checkpoint.Weight]

    @cached_property
    def sha256(self) -> str:
        """A hash of the two files' content."""
        content = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            with open(self.folder / name, "rb") as file:
                while piece := file.read(2**20):
                    content.update(piece)
        return content.hexdigest()

    @property
    def label(self) -> str:
        """What tells models with different adapters apart, in few characters that any file's name may have."""
        return re.sub(r"[^\w.+=]+", "-", f"{Path(self.name).name}.{self.sha256[:8]}")

    @property
    def base(self) -> str:
        """The model that it was trained from, as the folder calls it; "" where it does not."""
        return one_line(self.fields.get("base_model_name_or_path") or "")

    def __str__(self) -> str:
        return f"adapter {str(self.folder)!r}" + (f" of {self.base!r}" if self.base else "")


def describe_adapter(adapter: Adapter | None) -> dict[str, Any]:
    """What a record says of the adapter of a model; nothing where it has none."""
    if adapter is None:
        return {}
    return {"adapter": {"name": checkpoint.relative_to_root(adapter.name), "sha256": adapter.sha256}}


# --- Finding and reading ----------------------------------------------------------------------------------------------


def read_adapter(name: str | Path, **options: Any) -> Adapter:
    """Find an adapter and look at its files; no weight is read.

    Args:
        name: a folder, or a hub id whose files are then downloaded.
        options: of huggingface_hub.snapshot_download.

    Raises:
        ValueError: it is no LoRA adapter, it needs what is not implemented, a file is damaged, or peft is missing.
    """
    name = str(name)
    folder = _find(name, **options)
    _check_folder(folder)
    fields = checkpoint.read_object(folder / CONFIG, kind="adapter")
    _check_fields(folder, fields)
    headers = checkpoint.read_header(folder / WEIGHTS, kind="adapter")
    if wrong := [f"{weight} ({header.dtype})" for weight, header in headers.items()
                 if header.dtype not in checkpoint.FLOATING]:
        raise ValueError(f"adapter {str(folder)!r} has weights that are not floating-point numbers: "
                         f"{checkpoint.listing(wrong)}")
    return Adapter(str(folder.resolve()) if os.path.isdir(name) else name, folder, fields, headers)


def _find(name: str, **options: Any) -> Path:
    if name and os.path.isdir(name):
        return Path(name)
    if os.path.exists(name):
        raise ValueError(f"adapter is {short(name, 200)}, which is a file; give the folder that holds {CONFIG} and "
                         f"{WEIGHTS}")
    if not checkpoint.is_hub_id(name) or name.startswith((".", "-")):
        raise ValueError(f"adapter is {short(name, 200)}; it must be an existing folder or a hub id (owner/name)"
                         + checkpoint.similar(Path(name)))

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, BASE, checkpoint.CONFIG], **options))
    except (OSError, ValueError) as error:
        raise ValueError(f"adapter {name!r} could not be downloaded: {one_line(error)}") from error


def _check_folder(folder: Path) -> None:
    """Raise ValueError, saying what the folder is instead, unless it holds an adapter's two files."""
    name = f"adapter {str(folder)!r}"
    files = sorted(os.listdir(folder))
    has_config = (folder / CONFIG).is_file()
    if not has_config and checkpoint.CONFIG in files:
        raise ValueError(f"{name} is a whole checkpoint, not an adapter: load it as the model, -m {folder}")
    if not has_config:
        inner = [str(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))]
        hint = f"; did you mean {' or '.join(inner[:3])}?" if inner else ": the folder is empty" if not files else ""
        raise ValueError(f"{name} has no {CONFIG}{hint}")
    if not (folder / WEIGHTS).is_file():
        other = [file for file in files if Path(file).suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f", but {one_line(other[0])}, a format that is not loaded here, since it may run code" if other else ""
        raise ValueError(f"{name} is incomplete: it has no {WEIGHTS}{hint}")


def _check_fields(folder: Path, fields: dict[str, Any]) -> None:
    """Raise ValueError unless an adapter_config.json describes a LoRA that can be merged here."""
    name = f"adapter {str(folder)!r}"
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{name} has peft_type {short(fields.get('peft_type'))}; only 'LORA' can be merged here")
    if fields.get("init_lora_weights", True) not in INITIAL:
        raise ValueError(f"{name}: field init_lora_weights is {short(fields['init_lora_weights'])}, which changes the "
                         "base's weights when the training begins; save it with peft's "
                         "path_initial_model_for_weight_conversion first")
    defaults = {field.name: field.default for field in dataclasses.fields(import_peft().LoraConfig)}
    for field in sorted(fields.keys() - APPLIED - HISTORY):
        if fields[field] and fields[field] != defaults.get(field):
            raise ValueError(f"{name}: field {short(field)} is {short(fields[field])}, which is not implemented here; "
                             "a plain LoRA leaves it empty")

    for field in SWITCHES:
        if not isinstance(fields.get(field, False), bool):
            raise ValueError(f"{name}: field {field} is {short(fields[field])}; it must be true or false")
    if fields.get("bias", "none") not in ("none", "all", "lora_only"):
        raise ValueError(f"{name}: field bias is {short(fields['bias'])}; it must be none, all or lora_only")
    _check_scale(name, "r", fields.get("r", 8))
    _check_scale(name, "lora_alpha", fields.get("lora_alpha", 8))
    for field, of in PATTERNS.items():
        values = fields.get(field) or {}
        if not isinstance(values, dict) or len(values) > MAX_NAMES:
            raise ValueError(f"{name}: field {field} is {short(values)}; it must be an object of at most {MAX_NAMES} "
                             "entries")
        for pattern, value in values.items():
            _check_pattern(name, field, pattern)
            _check_scale(name, of, value)
    for field in NAMES:
        value = fields.get(field)
        if isinstance(value, str):
            _check_pattern(name, field, value)
        elif value is not None and not (
            isinstance(value, list) and len(value) <= MAX_NAMES and all(isinstance(entry, str) for entry in value)
        ):
            raise ValueError(f"{name}: field {field} is {short(value)}; it must be names of modules, {MAX_NAMES} of "
                             "them at most")
        elif field == "layers_pattern":
            for entry in value or []:
                _check_pattern(name, field, entry)
    if not fields.get("target_modules"):
        raise ValueError(f"{name} names no target_modules")
    layers = fields.get("layers_to_transform")
    for layer in layers if isinstance(layers, list) else [] if layers is None else [layers]:
        check_integer(f"{name}: field layers_to_transform", layer, 0, 2**16)


def _check_scale(name: str, field: str, value: object) -> None:
    if field == "r":
        check_integer(f"{name}: field r", value, 1, MAX_RANK)
    else:
        check_number(f"{name}: field {field}", value)


def _check_pattern(name: str, field: str, pattern: str) -> None:
    """Raise ValueError unless a regular expression is one whose search ends soon, whoever wrote it."""
    repeats = re.findall(r"[*+{]|\)\?", pattern)
    try:
        if len(pattern) > MAX_PATTERN or len(repeats) > 4 or re.search(r"\)[*+{]", pattern):
            raise ValueError("it must have at most four repetitions, and none of a group")
        re.compile(pattern)
    except (re.error, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: field {field} has {short(pattern)}, an expression that is not searched for: "
                         f"{one_line(error)}") from error


def import_peft() -> Any:
    """The package, which takes two seconds to import; ValueError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"an adapter needs the package peft ({one_line(error)}): run `pip install peft`") from error
    return peft


# --- Does it fit? -----------------------------------------------------------------------------------------------------


def check_adapter(adapter: Adapter, name: str, folder: Path, model_class: type[MaskedDiffusionModel]) -> None:
    """Compare an adapter with a checkpoint, before the weights of either are read.

    Args:
        name: of the checkpoint: its folder or hub id. folder: where its files are.

    Raises:
        ValueError: the adapter is one of another base, or has weights of other names or shapes than the model needs.
    """
    config = model_class.check_folder(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"checkpoint {name!r} has quantized weights, into which no adapter can be merged; give the "
                         "checkpoint that it was made from")
    check_base(adapter, name, folder)

    import torch

    words = f"{adapter} does not fit {name!r}"
    with torch.device("meta"):  # takes no memory
        model = model_class(config)
        _check_targets(adapter, model, words)
        try:
            adapted = _wrap(model, adapter)
            needed = import_peft().get_peft_model_state_dict(adapted, save_embedding_layers=False)
        except Exception as error:  # peft raises whatever it meets
            raise ValueError(f"{words}: {one_line(error)}") from error
    if config.tie_word_embeddings and hasattr(model.get_input_embeddings(), "lora_embedding_A"):
        raise ValueError(f"{words}: it adapts the embedding, which is the head too; peft adapts it as the embedding "
                         "alone, so that the two cannot be merged")
    # Of an adapted embedding or head peft also writes the weight as it was before.
    copies = {weight: tensor for weight, tensor in adapted.state_dict().items()
              if weight.endswith(".base_layer.weight") and weight in adapter.headers}
    shapes = {weight: tuple(tensor.shape) for weight, tensor in (needed | copies).items()}
    for weight in sorted(shapes.keys() & adapter.headers.keys()):
        if shapes[weight] != adapter.headers[weight].shape:
            raise ValueError(f"{words}: {weight} has the shape {list(adapter.headers[weight].shape)} and would need "
                             f"{list(shapes[weight])}")
    for kind, weights in (("lacks", shapes.keys() - adapter.headers.keys()),
                          ("has foreign", adapter.headers.keys() - shapes.keys())):
        if weights:
            raise ValueError(f"{words}: it {kind} weights: {checkpoint.listing(weights)}")


def check_base(adapter: Adapter, name: str, folder: Path) -> None:
    """Raise ValueError if an adapter says that it was trained from other weights than those of a checkpoint.

    Weights are compared by `base_fingerprint`, so that a copy of the base is the base. Where an adapter only names its
    base, that is looked for in its folder or in the hub's cache. If it is in neither, a checkpoint of another name on
    the hub is another base, and of a folder nothing is known.
    """
    expected = None
    if (adapter.folder / BASE).is_file():
        expected = checkpoint.read_object(adapter.folder / BASE, kind="adapter").get("sha256")
        if not isinstance(expected, str) or not re.fullmatch("[0-9a-f]{64}", expected):
            raise ValueError(f"adapter {str(adapter.folder)!r} has a {BASE} without the base's sha256")
    elif os.path.isdir(name) and (os.path.isdir(adapter.base) or checkpoint.is_hub_id(adapter.base)):
        with suppress(ValueError, OSError):  # it is not here, or no checkpoint any more
            expected = base_fingerprint(checkpoint.find_folder(adapter.base, local_files_only=True))
    if expected is not None:
        if base_fingerprint(folder) != expected:
            raise ValueError(f"{adapter} was trained from other weights than those of {name!r}")
    elif checkpoint.HUB_ID.fullmatch(adapter.base) and not os.path.isdir(name) and adapter.base.lower() != name.lower():
        raise ValueError(f"{adapter} was not trained from {name!r}")


def recorded_template(folder: Path) -> bool | None:
    """Whether prompts went through the chat template when an adapter or a checkpoint was trained; None: unknown.

    Raises:
        ValueError: the folder has a base.json that cannot be read.
    """
    if not (folder / BASE).is_file():
        return None
    value = checkpoint.read_object(folder / BASE, kind="folder").get("chat_template")
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"folder {str(folder)!r} has a {BASE} whose chat_template is {short(value)}; it must be true, "
                         "false or null")
    return value


def base_fingerprint(folder: str | Path) -> str:
    """What identifies the weights of a checkpoint, in a second for 16 GB: a hash of all tensors' names, types, shapes
    and of some rows of each, however they are spread over files.

    Raises:
        ValueError: a file of weights is missing or damaged.
    """
    content = hashlib.sha256()
    with ExitStack() as stack:
        files: dict[Path, tuple[BinaryIO, dict[str, Any], int]] = {}
        for name, weight in sorted(checkpoint.read_headers(Path(folder)).items()):
            if weight.path not in files:
                opened = stack.enter_context(open(weight.path, "rb"))
                size = int.from_bytes(opened.read(8), "little")
                files[weight.path] = opened, parse_json(opened.read(size).decode(), str(weight.path)), 8 + size
            file, entries, start = files[weight.path]
            begin, end = entries[name]["data_offsets"]
            rows = weight.shape[0] if len(weight.shape) > 1 else 1
            content.update(f"{name} {weight.dtype} {weight.shape}\n".encode())
            for row in sample(rows):
                file.seek(start + begin + row * (end - begin) // rows)
                content.update(file.read((end - begin) // rows))
    return content.hexdigest()


def sample(count: int) -> list[int]:
    """SAMPLED_ROWS numbers spread over [0, count), or all of them."""
    return sorted({(count - 1) * number // (SAMPLED_ROWS - 1) for number in range(SAMPLED_ROWS)} if count else ())


def _wrap(model: MaskedDiffusionModel, adapter: Adapter) -> PeftModel:
    """The model as peft adapts it, with adapter weights that are yet to be filled in."""
    fields = {name: value for name, value in adapter.fields.items() if name in APPLIED and value is not None}
    return wrap(model, **fields, init_lora_weights=False)


def wrap(model: MaskedDiffusionModel, **fields: Any) -> PeftModel:
    """peft's get_peft_model, without its warnings: what they are about is checked here. fields: of a LoraConfig."""
    peft = import_peft()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(**fields))


def _check_targets(adapter: Adapter, model: MaskedDiffusionModel, words: str) -> None:
    """Raise ValueError if an adapter names modules that the model lacks."""
    targets = adapter.fields["target_modules"]
    if isinstance(targets, str):
        return  # an expression; peft says when it finds nothing
    names = [f".{name}" for name, _ in model.named_modules()]

    def is_there(target: str) -> bool:
        return any(name.endswith(f".{target}") for name in names)

    lasts = {target: target.rpartition(".")[2] for target in targets if not is_there(target)}
    if lacking := {last for last in lasts.values() if not is_there(last)} or lasts.keys():
        raise ValueError(f"{words}: it adapts {checkpoint.listing(lacking)}, which the model lacks; its layers have "
                         f"{', '.join(projections(model))}")


def projections(model: MaskedDiffusionModel) -> list[str]:
    """The names of the matrices in each layer."""
    from torch.nn import Linear

    layers = model.layers.named_modules()
    return sorted({name.rpartition(".")[2] for name, module in layers if isinstance(module, Linear)})


# --- Merging ----------------------------------------------------------------------------------------------------------


def merge_into(model: MaskedDiffusionModel, adapter: Adapter, dtype: torch.dtype) -> None:
    """Add an adapter to the weights of a model, in place, and turn these into a type. The adapter must fit.

    Each sum is computed in float32 and rounded once.

    Raises:
        ValueError: weights of the adapter are not finite, or sums are not; the file cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = f"adapter {str(adapter.folder)!r}"
    try:
        weights = load_file(adapter.folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name} could not be loaded: {one_line(error)}") from error
    if broken := [weight for weight, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{name} has weights that are not finite numbers: {checkpoint.listing(broken)}")

    from peft.tuners.tuners_utils import BaseTunerLayer

    peft = import_peft()
    adapted = _wrap(model, adapter)
    peft.set_peft_model_state_dict(adapted, weights)
    for path, module in list(adapted.named_modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        parameters = list(module.get_base_layer().parameters(recurse=False))
        for parameter in parameters:
            parameter.data = parameter.data.float()
        module.merge()
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
            if not torch.isfinite(parameter).all():
                raise ValueError(f"{name} added to the model gives numbers beyond "
                                 f"{str(dtype).removeprefix('torch.')}, in {path}")
    adapted.unload()  # of peft's modules nothing is left
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.requires_grad_(True).eval()  # as it was loaded
