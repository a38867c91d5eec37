"""Makes transformers' Auto classes find the models of this repository, as soon as both have been imported.

    import dream                                          # or llada, or dpad; before or after transformers
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained("checkpoints/dream-tiny")

Importing transformers and torch takes seconds, and those who import `dpad` for its --help need neither. So the classes
are registered when transformers' own registry is imported, whoever does that. Tokenizers import the registry of models
too, and importing models takes seconds once more; so a stand-in of each model's class is registered there, which
imports it when something of it is used. Imported, never run.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# transformers' registries, and the module of each family's package that registers its classes there when imported
REGISTRIES = {
    "transformers.models.auto.configuration_auto": "configuration",
    "transformers.models.auto.modeling_auto": "modeling",
    "transformers.models.auto.tokenization_auto": "tokenization",
}


def register(registry: str) -> None:
    """Import the modules that register the families' classes in one of REGISTRIES, which has been imported."""
    from dpad.engine.loading import FAMILIES
    from dpad.engine.registry import register_model

    for family in FAMILIES.values():
        if REGISTRIES[registry] == "modeling":
            members: dict[str, Any] = {"config_class": family.network.config_class, "_family": family}
            register_model(_StandIn(family.model_class, (), members))  # until the class itself is imported
            continue
        module = f"{family.package}.{REGISTRIES[registry]}"
        if find_spec(module):  # LLaDA's tokenizer needs no class of its own
            import_module(module)


class _StandIn(type):
    """A class of a family's models that is imported when something of it is asked for, or when it is called.

    Until then it is a subclass of nothing.
    """

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        return cls.__dict__["_family"].model(*arguments, **keywords)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.__dict__["_family"].model, name)


class _Finder(MetaPathFinder):
    """Finds REGISTRIES where Python does, with a loader that registers our classes after theirs."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in REGISTRIES else None
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        register(module.__name__)


def install() -> None:
    """Register the classes now where transformers' registries have been imported, and later where they have not."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for registry in REGISTRIES:
            if registry in sys.modules:
                register(registry)
