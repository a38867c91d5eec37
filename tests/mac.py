"""A stand-in for a device without float64: tensors that say they are on another device, and refuse what a Mac's refuse.

    with Mac() as mac:
        model.to(mac.device); model.generate(...)

It computes on the CPU. Like a real device it keeps its tensors apart from the CPU's (except numbers, and tensors used
as an index), and like Apple's it has no float64 and lacks a few operators. Imported by tests, never run.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")  # a name that every build of torch knows
LACKING = ("nonzero_static", "_cummax_helper", "_cummin_helper", "logcumsumexp", "linalg_")
INDEXING = ("index.Tensor", "index_put_.default", "index_put.default", "_index_put_impl_.default")


class MacTensor(Tensor):
    """A tensor on the stand-in; `data_on_cpu` has its numbers."""

    data_on_cpu: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> MacTensor:
        if data.dtype == torch.float64:
            raise TypeError("Cannot convert a Mac's tensor to float64, which its framework doesn't support")
        with torch.inference_mode(data.is_inference()):  # in that mode, a view of an ordinary tensor is an ordinary one
            made = torch.Tensor._make_wrapper_subclass(
                cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
                device=DEVICE, requires_grad=data.requires_grad,
            )
        made.data_on_cpu = data
        return made

    def __repr__(self) -> str:
        return f"MacTensor({self.data_on_cpu!r})"

    def tolist(self) -> Any:
        return self.data_on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """torch.tensor with a list: torch itself would forget the numbers of what is made on its device "meta"."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") is not None:
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


class Mac(TorchDispatchMode):
    """While it is on, tensors made for the device are the stand-in's."""

    device = DEVICE

    def __enter__(self) -> Any:
        self.lists = _Lists()
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.lists.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operator on the CPU, and say where its result would be."""
    name = str(function).removeprefix("aten.")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, MacTensor)]
    device = kwargs.get("device")
    moves = name.startswith(("_to_copy", "copy_"))
    if here and not moves:
        if name.startswith(LACKING):
            raise NotImplementedError(f"The operator 'aten::{name}' is not implemented for the stand-in")
        foreign = [tensor for tensor in tensors if not isinstance(tensor, MacTensor) and tensor.ndim]
        if foreign and name not in INDEXING:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    is_here = torch.device(device) == DEVICE if device is not None else bool(here)
    if name.startswith("copy_"):
        is_here = isinstance(args[0], MacTensor)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(MacTensor, lambda tensor: tensor.data_on_cpu, (args, kwargs))
    result = function(*args, **kwargs)
    if name.split(".")[0].endswith("_") and not name.startswith("_"):  # in place
        return here[0] if here and result is here[0].data_on_cpu else result
    return tree_map_only(Tensor, MacTensor, result) if is_here else result


def on_mac(model: torch.nn.Module) -> Any:
    """A copy of a model whose weights are on the stand-in."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(MacTensor(weight.data), requires_grad=False)
    return model
