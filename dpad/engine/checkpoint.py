"""A checkpoint's files, looked at before any weight is loaded: is it a checkpoint, and what do its files say they hold?

    find_folder("checkpoints/llada-tiny")     # a folder, or a hub id whose files are then downloaded
    check_folder(folder)                      # ValueError, in one sentence, for everything that is no checkpoint

A checkpoint may come from anywhere, so nothing in it is believed: JSON is bounded, and names, shapes and types of the
weights are compared with config.json before memory is taken for them. Imported, never run.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad import ROOT
from dpad.engine.checks import one_line, short
from dpad.engine.json_text import MAX_JSON, parse_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # of a hub repository

LARGE = 2**30  # bytes of weights; of smaller models nobody wants to hear
MAX_VOCABULARY = 64 * 2**20  # bytes of a file that holds a vocabulary
MAX_TEMPLATE = 2**18  # bytes
# Types of weights, as safetensors and torch call them.
FLOATING = ("F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32", "float64")

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
PLAIN_NAME = re.compile(r"[\w][\w.+=-]{0,200}\.safetensors", re.ASCII)
DTYPES = (None, "auto", "float32", "bfloat16", "float16", "float64")
KERNELS = (None, "sdpa", "eager")
# Fields of config.json through which transformers would take other files, layers or code than those checked here.
ALLOWED: dict[str, tuple[str | None, ...]] = {
    "dtype": DTYPES, "torch_dtype": DTYPES, "attn_implementation": KERNELS, "_attn_implementation": KERNELS,
    "transformers_weights": (None,), "fusion_config": (None,), "per_layer_config": (None,), "attribute_map": (None,),
    "sub_configs": (None,), "experts_implementation": (None,),
    "text_config": (None,), "text_encoder": (None,), "decoder": (None,), "generator": (None,),
}
# The package that each of transformers' quantization methods needs, by its name for pip and for import.
QUANTIZERS = {
    "aqlm": ("aqlm[gpu,cpu]", "aqlm"),
    "auto-round": ("auto-round", "auto_round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed-tensors", "compressed_tensors"),
    "eetq": ("kernels", "kernels"),
    "fbgemm_fp8": ("fbgemm-gpu", "fbgemm_gpu"),
    "gguf": ("gguf", "gguf"),
    "gptq": ("gptqmodel optimum", "gptqmodel"),
    "higgs": ("flute-kernel", "flute"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum-quanto", "optimum.quanto"),
    "quark": ("amd-quark", "quark"),
    "sinq": ("sinq", "sinq"),
    "spqr": ("spqr_quant[gpu]", "spqr_quant"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}


# --- The folder -------------------------------------------------------------------------------------------------------


def find_folder(name: str | Path, **options: Any) -> Path:
    """The folder of a checkpoint; that of a hub id is in the hub's cache, into which its files are downloaded.

    Args:
        name: an existing folder, or a hub id (owner/name).
        options: of huggingface_hub.snapshot_download: revision, local_files_only, cache_dir, token, ...

    Raises:
        ValueError: it is neither, or the hub does not give it.
    """
    if os.path.isdir(name):
        return Path(name)
    path = Path(name)
    if os.path.exists(name):
        raise ValueError(f"checkpoint {str(name)!r} is a file; give the folder that holds it and config.json"
                         + (", with weights in .safetensors files" if path.suffix != ".safetensors" else ""))
    if not is_hub_id(str(name)):
        raise ValueError(f"checkpoint {str(name)!r} is neither an existing folder nor a hub id (owner/name)"
                         + similar(path))

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=DOWNLOADED, ignore_patterns=["*/*"], **options))
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint {str(name)!r} could not be downloaded: {one_line(error)}") from error


def relative_to_root(name: str) -> str:
    """A folder inside the repository by its path there, so that files do not tell where a clone lies; others as is."""
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else name


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the hub, and is not rather a mistyped folder."""
    return bool(HUB_ID.fullmatch(name)) and ".." not in name and not similar(Path(name))


def similar(path: Path) -> str:
    """A question whether a folder beside a path was meant, as the end of a sentence; "" if none is like it."""
    if not os.path.isdir(path.parent) or not path.name:
        return ""
    folders = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()]
    close = difflib.get_close_matches(path.name, folders, n=2, cutoff=0.85)
    return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""


def check_folder(folder: Path, with_weights: bool = True) -> None:
    """Raise ValueError, saying what the folder is instead, unless it holds config.json and weights in safetensors."""
    name = f"checkpoint {str(folder)!r}"
    if (folder / ADAPTER).is_file():
        base = one_line(read_object(folder / ADAPTER).get("base_model_name_or_path"))
        raise ValueError(f"{name} is a PEFT adapter of {base!r}, not a model: give the model and this folder together, "
                         f"-m MODEL --adapter {folder}")

    files = sorted(os.listdir(folder))
    if not (folder / CONFIG).is_file():
        inner = [path.parent for pattern in ("*/", "snapshots/*/", "*/snapshots/*/")
                 for path in sorted(folder.glob(pattern + CONFIG))]
        if inner:
            raise ValueError(f"{name} has no config.json; did you mean {' or '.join(map(str, inner[:3]))}?")
        if not files:
            raise ValueError(f"{name} has no config.json: the folder is empty")
        raise ValueError(f"{name} has no config.json{_what_else(files)}: it must be a folder written by "
                         "save_pretrained or downloaded from the hub")
    if with_weights and not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
        raise ValueError(f"{name} could not be loaded: it has no weights in {WEIGHTS} or {INDEX}{_what_else(files)}")


def _what_else(files: Iterable[str]) -> str:
    """What a folder holds in place of a checkpoint, as the end of a clause."""
    other = [file for file in files if Path(file).suffix in (".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5")]
    if other:
        return f", but {other[0]!r}, a format that is not loaded here (save the model with save_pretrained)"
    if any(file.startswith(("tokenizer", "vocab")) for file in files) and not any(
        file.endswith(".safetensors") for file in files
    ):
        return ", but a tokenizer"
    return ""


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_object(path: Path, max_bytes: int = MAX_JSON, kind: str = "checkpoint") -> dict[str, Any]:
    """The JSON object in a file of a checkpoint, or of another `kind` of folder, which may be anything.

    Raises:
        ValueError: the file cannot be read, is too large, is no bounded JSON (see `parse_json`), or holds no object.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise ValueError(f"it is larger than {max_bytes / 2**20:.0f} MB")
        value = parse_json(path.read_text(encoding="utf-8"), "it", largest=sys.float_info.max)
        if not isinstance(value, dict):
            raise ValueError(f"it holds no JSON object, but a {type(value).__name__}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        unnamed = "names no model_type or " if path.name == CONFIG else ""
        article = "an" if path.name.startswith("a") else "a"
        raise ValueError(f"{kind} {str(path.parent)!r} has {article} {path.name} that {unnamed}cannot be read: "
                         f"{reason}") from error
    return value


def check_tokenizer_files(folder: Path) -> None:
    """Raise ValueError unless a tokenizer's files are of a bearable size, and the small ones JSON objects."""
    for path in sorted(folder.iterdir()):
        limit = MAX_TEMPLATE if path.suffix == ".jinja" else MAX_VOCABULARY
        if path.suffix in (".json", ".jinja", ".txt") and path.exists():
            if not path.is_file():
                raise ValueError(f"checkpoint {str(folder)!r} has a {one_line(path.name)} that is no file")
            if path.stat().st_size > limit:
                raise ValueError(f"checkpoint {str(folder)!r} has a {one_line(path.name)} that is larger than "
                                 f"{limit / 2**20:g} MB")
    for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"):
        if (folder / file).exists():
            read_object(folder / file)


# --- config.json ------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a checkpoint's config.json, with a model_type that is text.

    Raises:
        ValueError: it cannot be read, or its weights are quantized by a package that is not installed.
    """
    config = read_object(folder / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(f"checkpoint {str(folder)!r} has a config.json that names no model_type or cannot be "
                         "read: model_type must be text")
    if config.get("quantization_config") is not None:
        check_quantization(folder, config)
    return config


def quant_method(config: dict[str, Any]) -> Any:
    """How a config.json says that the weights are quantized; None where they are not, or it does not say how."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    if quantization.get("quant_method") is None and any(quantization.get(f"load_in_{bits}bit") for bits in (4, 8)):
        return "bitsandbytes"  # which older versions of transformers did not write down
    return quantization.get("quant_method")


def check_quantization(folder: Path, config: dict[str, Any]) -> None:
    """Raise ValueError unless the package is installed that a config.json's `quantization_config` needs."""
    name = f"checkpoint {str(folder)!r} has quantized weights"
    method = quant_method(config)
    if not isinstance(method, str):
        raise ValueError(f"{name}, but its quantization_config names no quant_method")

    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ValueError(f"{name} of a kind that transformers does not know: quant_method is {short(method)}")
    package, module = QUANTIZERS.get(method, ("", ""))
    if module and find_spec(module.split(".")[0]) is None:
        raise ValueError(f"{name} ({method}), which need the package {package.split()[0]}: run `pip install {package}`")


def check_fields(folder: Path, config_class: type[PretrainedConfig], fields: dict[str, Any]) -> None:
    """Raise ValueError when a config.json has fields by which transformers would do something else than load a model.
    """
    name = f"checkpoint {str(folder)!r}"
    for field in fields:
        if field.startswith("__") or callable(getattr(config_class, field, None)):
            raise ValueError(f"{name}: config field {short(field)} is the name of a method")
    for field, allowed in ALLOWED.items():
        if fields.get(field) not in allowed:
            raise ValueError(f"{name}: config field {field} is {short(fields[field])}; it must be "
                             f"{' or '.join(str(value) for value in allowed if value) or 'left out'}")


def make_config(folder: Path, config_class: type[PretrainedConfig], fields: dict[str, Any]) -> PretrainedConfig:
    """The configuration that the fields of a config.json stand for.

    Raises:
        ValueError: naming a field that cannot be used, its value and what is allowed.
    """
    name = f"checkpoint {str(folder)!r}"
    try:
        return config_class.from_dict(copy.deepcopy(fields))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # transformers does not check the types of its own fields
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"{name} has a config.json that cannot be used ({reason})") from error


# --- Names, types and shapes of the weights ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """What the header of a .safetensors file, at `path`, says of a tensor. dtype: F32, BF16, ..."""

    dtype: str
    shape: tuple[int, ...]
    path: Path


def read_headers(folder: Path) -> dict[str, Weight]:
    """What the weights' files say they hold, by the tensors' names; no weight is read.

    The same files as transformers takes: WEIGHTS, and only without it those of INDEX.

    Raises:
        ValueError: a file is missing, damaged or outside of the folder, or holds other tensors than the index says.
    """
    name = f"checkpoint {str(folder)!r}"
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)

    index = read_object(folder / INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{name} has a {INDEX} without weight_map and metadata")
    expected: dict[str, set[str]] = {}
    for weight, file in weight_map.items():
        # Plain names: a path could lead out of the folder, and any other format could run code.
        if not isinstance(file, str) or not PLAIN_NAME.fullmatch(file):
            raise ValueError(f"{name} has a {INDEX} that names {short(file)}; it must be the plain name of a "
                             ".safetensors file in the folder")
        expected.setdefault(file, set()).add(weight)

    headers: dict[str, Weight] = {}
    for file, weights in sorted(expected.items()):
        if not (folder / file).is_file():
            raise ValueError(f"{name} is incomplete and could not be loaded: {one_line(file)} is missing")
        header = read_header(folder / file)
        if different := sorted(header.keys() ^ weights):
            raise ValueError(f"{name} has a {INDEX} that does not fit {file}: {listing(different)}")
        headers |= header
    return headers


def read_header(path: Path, kind: str = "checkpoint") -> dict[str, Weight]:
    """The tensors of one file; safetensors checks that they lie in it without overlap and fill it.

    Raises:
        ValueError: the file cannot be read. kind: what its folder is, for the message.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_JSON:
            raise ValueError(f"its header is larger than {MAX_JSON // 2**20} MB")
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            return {name: Weight(part.get_dtype(), tuple(part.get_shape()), path) for name, part in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{kind} {str(path.parent)!r} could not be loaded: {one_line(path.name)}: "
                         f"{one_line(error)}") from error


@dataclass(frozen=True)
class Layout:
    """The weights that a model needs, by their names in a checkpoint.

    outer: the shapes of those outside of the layers. prefix: what stands before a layer's number. inner: the shapes of
    one layer's weights, by the rest of their names. layers: their number. head: the name of the head's weight.
    """

    outer: dict[str, tuple[int, ...]]
    prefix: str
    inner: dict[str, tuple[int, ...]]
    layers: int
    head: str

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.outer.values())) + self.layers * sum(map(math.prod, self.inner.values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights, by their names."""
        layers = {f"{self.prefix}{layer}.{name}": shape for layer in range(self.layers)
                  for name, shape in self.inner.items()}
        return self.outer | layers


def check_weights(folder: Path, layout: Layout, config: PretrainedConfig) -> None:
    """Compare the headers of the weights with what a model of this configuration needs, before memory is taken.

    Raises:
        ValueError: naming the weights that are missing, foreign, of another shape or not floating-point numbers.
    """
    name = f"checkpoint {str(folder)!r}"
    headers = read_headers(folder)
    if getattr(config, "quantization_config", None) is not None:
        # How a matrix is stored is the package's own. It has at least half a bit a weight, or else config.json lies.
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if layout.layers > len(headers) or layout.count > 16 * size:
            raise ValueError(f"{name} has a config.json of {layout.count} weights, which its {size} bytes cannot hold")
        _check_packed(folder, layout.shapes(), headers)
        return

    start = len(layout.prefix)
    stored = {weight[start:].split(".")[0] for weight in headers if weight.startswith(layout.prefix)}
    if len(stored) != layout.layers:
        raise ValueError(f"{name} has a config.json of {layout.layers} layers; its weights have {len(stored)}")
    shapes = layout.shapes()
    check_names(
        folder, missing=shapes.keys() - headers.keys(), foreign=headers.keys() - shapes.keys(),
        mismatched=[weight for weight, shape in shapes.items() if weight in headers and headers[weight].shape != shape],
        hint=_hint_about_head(config) if headers.keys() ^ shapes.keys() == {layout.head} else "",
    )
    check_types(folder, {weight: header.dtype for weight, header in headers.items()})


def _check_packed(folder: Path, shapes: dict[str, tuple[int, ...]], headers: dict[str, Weight]) -> None:
    """Compare the headers of quantized weights with what the model needs, as far as all formats are alike.

    Of a matrix there may be several tensors (numbers, scales, zero points, ...), whose names begin with its module's.
    Vectors stay as they are, and so does what is a floating-point number under its own name.
    """
    modules = {weight.rpartition(".")[0] for weight in shapes}
    owners = {stored: _owner(stored, modules) for stored in headers}
    present = set(owners.values())
    plain = {weight: headers[weight] for weight in shapes.keys() & headers.keys()
             if len(shapes[weight]) == 1 or headers[weight].dtype in FLOATING}
    check_names(
        folder,
        missing=[weight for weight, shape in shapes.items() if weight not in headers
                 and (len(shape) == 1 or weight.rpartition(".")[0] not in present)],
        foreign=[stored for stored, owner in owners.items() if owner is None],
        mismatched=[weight for weight, header in plain.items() if header.shape != shapes[weight]],
    )
    check_types(folder, {weight: header.dtype for weight, header in plain.items()})


def _owner(stored: str, modules: set[str]) -> str | None:
    """The module among these that a tensor's name begins with."""
    while stored:
        stored = stored.rpartition(".")[0]
        if stored in modules:
            return stored
    return None


def stored_type(folder: Path) -> str:
    """The widest type of a checkpoint's weights, as torch calls it: float32, bfloat16 or float16."""
    types = {weight.dtype for weight in read_headers(folder).values()}
    return "float32" if types - {"BF16"} and types - {"F16"} else "float16" if "F16" in types else "bfloat16"


def check_types(folder: Path, types: dict[str, str]) -> None:
    """Raise ValueError if there are weights, by their names, of other types than FLOATING."""
    wrong = [f"{weight} ({dtype})" for weight, dtype in types.items() if dtype not in FLOATING]
    if wrong:
        raise ValueError(f"checkpoint {str(folder)!r} has weights that are not floating-point numbers: "
                         f"{listing(wrong)}")


def check_names(
    folder: Path, missing: Iterable[str], foreign: Iterable[str], mismatched: Iterable[str], hint: str = ""
) -> None:
    """Raise ValueError if there are names of weights that do not fit config.json."""
    for kind, names in (
        ("missing", missing), ("foreign", foreign), ("of another shape than config.json says", mismatched),
    ):
        if names:
            raise ValueError(f"checkpoint {str(folder)!r} has weights that are {kind}: {listing(names)}{hint}")


def _hint_about_head(config: PretrainedConfig) -> str:
    field = config.attribute_map.get("tie_word_embeddings", "tie_word_embeddings")
    tied = config.tie_word_embeddings
    return (f"; config.json says that {field} is {str(tied).lower()}: {str(not tied).lower()} would mean that the head "
            f"is {'the stored one' if tied else 'the embedding'}")


def listing(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(one_line(name, 100) for name in ordered[:3]) + more
