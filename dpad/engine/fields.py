"""A setting is written once, as a dataclass field; flags, keywords, chat, web UI and records are derived from it.

    @dataclass(frozen=True, kw_only=True)
    class Example:
        threshold: float = setting(0.9, "decode every token at least this confident", flags=("-th", "--threshold"),
                                   above=0, maximum=1)

        def __post_init__(self):
            check_settings(self)

`settings_of(Example)` lists the fields as `Setting` objects, `add_flags` gives them to an argparse parser, and
`takes_settings` turns them into the keywords of a function. Imported, never run; standard library only.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dpad.engine.checks import check_choice, check_integer, check_number, describe_integer, describe_number

ON = ("on", "true", "yes", "1")
OFF = ("off", "false", "no", "0")
NONE = ("none", "off", "default")  # what a person types for a setting that may be left out


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One choice that a person can make: its keyword, its flags and what is allowed.

    name: the keyword of `generate` and the key in records. kind: int, float, bool or str. flags: of the command line.
    shortcuts: flags that stand for one of the values, such as --use_cache for "prefix". minimum, above, maximum: bounds
    of a number; `above` is not allowed itself. unit: of a number, such as "tokens". optional: None is allowed. off:
    a value that means None, such as a threshold of 0.
    """

    name: str
    kind: type
    default: Any
    help: str
    flags: tuple[str, ...]
    shortcuts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    unit: str = ""
    optional: bool = False
    off: float | None = None

    @property
    def label(self) -> str:
        """What people call the setting: its long flag without the dashes."""
        return self.flags[-1].lstrip("-")

    @property
    def allowed(self) -> str:
        """The values that the setting takes, in words."""
        if self.kind is bool:
            return "on or off"
        if self.kind is str:
            return f"one of {', '.join(self.choices)}"
        if self.kind is int:
            return describe_integer(int(self.minimum or 0))
        text = describe_number(self.minimum, self.above, self.maximum)
        return text + (f", or {self.off:g} for off" if self.off is not None else "")

    def check(self, value: Any) -> Any:
        """The value in its kind, with None for `off`; ValueError when it is not allowed."""
        if value is None and self.optional:
            return None
        if self.off is not None and not isinstance(value, bool) and value == self.off:
            return None
        try:
            if self.kind is bool and not isinstance(value, bool):
                raise ValueError
            elif self.kind is int:
                check_integer(self.name, value, int(self.minimum or 0))
            elif self.kind is float:
                check_number(self.name, value, minimum=self.minimum, above=self.above, maximum=self.maximum)
            elif self.kind is str:
                check_choice(self.name, value, self.choices)
        except ValueError:
            allowed = self.allowed.replace("on or off", "True or False")
            raise ValueError(f"{self.name} is {value!r}; it must be {allowed}") from None
        return self.kind(value)

    def parse(self, text: str) -> Any:
        """The value that a person typed; ValueError names the label, the text and what is allowed."""
        try:
            if self.kind is bool:
                if text.lower() not in ON + OFF:
                    raise ValueError
                return text.lower() in ON
            if self.optional and text.lower() in NONE:
                return None
            return self.check(self.kind(text))
        except ValueError:
            raise ValueError(f"{self.label} is {text!r}; it must be {self.allowed}") from None


def setting(
    default: Any, help: str, *, flags: tuple[str, ...] = (), shortcuts: Mapping[str, str] | None = None,
    choices: tuple[str, ...] = (), minimum: float | None = None, above: float | None = None,
    maximum: float | None = None, unit: str = "", off: float | None = None,
) -> Any:
    """A dataclass field that is a setting; see `Setting`. Without `flags` its flag is the field's name.

    The field's annotation says the kind, and with `| None` that it is optional.
    """
    metadata = {
        "help": help, "flags": flags, "shortcuts": shortcuts or {}, "choices": choices, "minimum": minimum,
        "above": above, "maximum": maximum, "unit": unit, "off": off,
    }
    return dataclasses.field(default=default, metadata={"setting": metadata})


def settings_of(cls: type) -> tuple[Setting, ...]:
    """The settings among a dataclass's fields, in their order."""
    annotations = typing.get_type_hints(cls)
    settings = []
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if "setting" in field.metadata:
            kinds = typing.get_args(annotations[field.name]) or (annotations[field.name],)
            [kind] = [kind for kind in kinds if kind is not types.NoneType]
            metadata = dict(field.metadata["setting"])
            metadata["flags"] = metadata["flags"] or (f"--{field.name}",)
            settings.append(Setting(
                name=field.name, kind=kind, default=field.default, optional=types.NoneType in kinds, **metadata
            ))
    return tuple(settings)


def check_settings(instance: Any) -> None:
    """Check every setting of a frozen dataclass instance, and put None in place of values that mean off."""
    for entry in settings_of(type(instance)):
        object.__setattr__(instance, entry.name, entry.check(getattr(instance, entry.name)))


# --- The command line -------------------------------------------------------------------------------------------------


class _Shortcut(argparse.Action):
    """Store a fixed value, unless a later one of the choices is there: dual includes prefix, whatever the order."""

    def __init__(self, *, choices_in_order: tuple[str, ...], **options: Any):
        super().__init__(nargs=0, **options)
        self.choices_in_order = choices_in_order

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        present = getattr(namespace, self.dest, self.const)
        setattr(namespace, self.dest, max(present, self.const, key=self.choices_in_order.index))


def add_flags(parser: argparse._ActionsContainer, settings: Iterable[Setting]) -> None:
    """Add the settings' flags to an argparse parser or group. The namespace then has only those that were typed."""
    for entry in settings:
        options: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS, "help": _help(entry)}
        if entry.kind is bool:
            options["action"] = "store_true"
        else:
            options["type"] = entry.kind
            options["metavar"] = "NAME" if entry.choices else "N" if entry.kind is int else "X"
        parser.add_argument(*entry.flags, **options)
        for flags, value in entry.shortcuts.items():
            parser.add_argument(
                *flags.split("/"), dest=entry.name, const=value, default=argparse.SUPPRESS, action=_Shortcut,
                choices_in_order=entry.choices, help=f"short for {entry.flags[-1]} {value}",
            )


def _help(entry: Setting) -> str:
    notes = []
    if entry.unit:
        notes.append(entry.unit)
    if entry.kind is not bool and entry.default is not None:
        notes.append(f"default: {entry.default}")
    elif entry.off is not None:
        notes.append(f"default: {entry.off:g}")
    text = entry.help.replace("%", "%%")
    return text + (f" ({'; '.join(notes)})" if notes else "")


def given_settings(namespace: argparse.Namespace, settings: Iterable[Setting]) -> dict[str, Any]:
    """What was typed of the settings, by name."""
    return {entry.name: getattr(namespace, entry.name) for entry in settings if hasattr(namespace, entry.name)}


# --- Keywords ---------------------------------------------------------------------------------------------------------


def takes_settings(cls: type) -> Callable[[Callable], Callable]:
    """A decorator for a function that ends in `**keywords`: a dataclass's fields become its real keywords.

    `inspect.signature` and `help()` then show every field with its type and default, and the docstring's line
    `{settings}` lists what each one means. An unknown keyword is a TypeError, as with any function.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = {field.name: field for field in dataclasses.fields(cls)}
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for name, field in fields.items()
        ]
        lines = [f"        {entry.name}: {_help(entry).replace('%%', '%')}" for entry in settings_of(cls)]

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            call.__signature__.bind(*arguments, **options)  # type: ignore[attr-defined]
            return function(*arguments, **options)

        call.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        call.__doc__ = (function.__doc__ or "").replace("        {settings}", "\n".join(lines))
        return call

    return decorate
