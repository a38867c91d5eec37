r"""Weights in 8 or 4 bits, quantized by torchao when a model is loaded: `--quantize int8`, load(name, quantize="int8").

    python run.py generate -m tiny --quantize int8 \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"

Weights alone are quantized, and of these the matrices of the layers: they are nearly all of a large model. The
embedding, which is looked up and not multiplied with, the head, whose logits decide which token is decoded and when,
norms and biases stay as they are; so do activations, keys and values. torchao is imported when it is first needed; the
rest of the program works without it. Imported, never run.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dpad.engine.checks import check_choice

if TYPE_CHECKING:
    import torch
    from transformers import TorchAoConfig

    from dpad.engine.transformer import MaskedDiffusionModel

SCHEMES = ("int8", "int4")
TORCHAO = "torchao==0.18.0"  # as in requirements.txt beside this file
GROUP = 32  # int4: consecutive weights of a row that share a scale and a zero point; int8: all of a row
PADDED = 1024  # torchao stores rows of int4 weights on a GPU in multiples of this
CAPABILITY = 8  # the compute capability that they need there: Ampere


def check_scheme(scheme: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError, in one sentence, unless weights can be quantized like this here.

    scheme: one of SCHEMES. dtype: of everything that is not quantized, and of the activations.
    """
    import torch

    check_choice("quantize", scheme, SCHEMES)
    name = f"quantize is {scheme!r}"
    if find_spec("torchao") is None:
        raise ValueError(f"{name}, which needs the package torchao: run `pip install {TORCHAO}`")
    if scheme == "int8":
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device)[0] < CAPABILITY:
            raise ValueError(f"{name}, which needs a GPU of compute capability {CAPABILITY}.0 or more; int8 needs none")
        if dtype != torch.bfloat16:
            raise ValueError(f"{name}, which on a GPU computes in bfloat16 alone; leave out the dtype "
                             f"({str(dtype).removeprefix('torch.')}), or give int8")
    elif device.type != "cpu":
        raise ValueError(f"{name}, for which torchao has no kernels on {device.type!r}; give int8, or the device cpu")


def make_config(scheme: str, device: torch.device, dtype: torch.dtype) -> TorchAoConfig:
    """What transformers' from_pretrained takes as `quantization_config`.

    Raises:
        ValueError: see `check_scheme`; torchao is too old, or not one of this processor's.
    """
    check_scheme(scheme, device, dtype)
    try:
        from transformers import TorchAoConfig

        return TorchAoConfig(_torchao_config(scheme, device))
    except (ImportError, OSError, AttributeError, TypeError) as error:
        raise ValueError(f"quantize is {scheme!r}, but the installed torchao cannot do it "
                         f"({type(error).__name__}: {error}): run `pip install {TORCHAO}`") from error


def _torchao_config(scheme: str, device: torch.device) -> Any:
    # set_inductor_config would also change how the whole process multiplies matrices in float32.
    if scheme == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False, version=2)
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)


def quantize_model(model: MaskedDiffusionModel, config: TorchAoConfig) -> None:
    """Quantize a model that has been loaded, in place, as if it had been loaded with this configuration."""
    from torchao.quantization import quantize_
    from transformers.quantizers.auto import AutoHfQuantizer

    for layer in model.layers:
        quantize_(layer, config.get_apply_tensor_subclass())
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config)  # save_pretrained takes the format from it


def check_quantized(model: MaskedDiffusionModel, scheme: str) -> None:
    """Raise ValueError if a matrix of the layers was left as it was; see to it that what cannot be saved says so."""
    from torch import Tensor, nn

    plain = [name for name, module in model.layers.named_modules()
             if isinstance(module, nn.Linear) and type(module.weight.data) is Tensor]
    if plain:
        raise ValueError(f"quantize is {scheme!r}, which shares a scale among {GROUP} weights of a row, but the rows "
                         f"of {plain[0].partition('.')[2]} are no multiple of that; give int8")
    if scheme == "int4" and model.device.type == "cpu":
        quantizer: Any = model.hf_quantizer
        quantizer.is_serializable = _refuse_to_save


def _refuse_to_save() -> bool:
    raise ValueError("weights in int4 on the CPU are laid out for this very processor and cannot be saved; save int8, "
                     "or int4 on a GPU, or quantize anew when loading")


def silence() -> None:
    """Keep torchao from warning, whenever anybody imports it, of kernels that it has but nothing here uses.

    transformers imports it in every process, where it is installed.
    """
    for name, words in (("torchao", "Failed to load"), ("torch.utils._pytree", "register_constant")):
        logging.getLogger(name).addFilter(lambda record, words=words: words not in record.getMessage())  # type: ignore[misc]
