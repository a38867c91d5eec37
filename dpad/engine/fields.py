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
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dpad.engine.checks import MAX_INTEGER, check_choice, check_integer, check_number, suggest

ON = ("on", "true", "yes", "1")
OFF = ("off", "false", "no", "0")
NONE = ("none", "off", "default")  # what a person types for a setting that may be left out
Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One choice that a person can make: its keyword, its flags and what is allowed.

    name: the keyword of `generate` and the key in records. kind: int, float, bool or str. flags: of the command line.
    negation: flags that turn a switch off which may be on by default. shortcuts: values of `choices` that have flags of
    their own, such as --use_cache for "prefix". minimum, above, maximum: bounds of a number; `above` is not allowed
    itself. words: texts that are allowed in place of a number. unit: of a number, such as "tokens". optional: None is
    allowed. off: a value that means None, such as a threshold of 0.
    """

    name: str
    kind: type
    default: Any
    help: str
    flags: tuple[str, ...]
    negation: tuple[str, ...] = ()
    shortcuts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    unit: str = ""
    optional: bool = False
    off: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What people may call the setting: its long flags without the dashes, those of the authors' code included."""
        return tuple(flag.removeprefix("--") for flag in self.flags if flag.startswith("--"))

    @property
    def label(self) -> str:
        """What the setting is called everywhere: the last of its names."""
        return self.names[-1]

    def check(self, value: Any, name: str = "") -> Any:
        """The value in its kind, with None for `off`; ValueError (about `name`, or the keyword) when not allowed."""
        name = name or self.name
        if value is None and self.optional:
            return None
        if self.off is not None and value == self.off and not isinstance(value, bool):
            return None
        if isinstance(value, str) and value in self.words:
            return value

        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; it must be True or False")
        elif self.kind is int:
            maximum = MAX_INTEGER if self.maximum is None else int(self.maximum)
            try:
                check_integer(name, value, int(self.minimum or 0), maximum)
            except ValueError as error:
                raise ValueError(" or ".join([str(error), *self.words]) + suggest(value, self.words)) from None
        elif self.kind is float:
            check_number(name, value, minimum=self.minimum, above=self.above, maximum=self.maximum)
        else:
            check_choice(name, value, self.choices)
        return self.kind(value)

    def parse(self, text: str) -> Any:
        """The value that a person typed; ValueError names the label, the value and what is allowed."""
        if self.kind is bool:
            if text.lower() not in ON + OFF:
                raise ValueError(f"{self.label} is {text!r}; it must be on or off")
            return text.lower() in ON
        if self.optional and text.lower() in NONE:
            return None
        try:
            value = self.kind(text)
        except ValueError:
            value = text  # no number, which `check` refuses
        return self.check(value, self.label)


def setting(default: Any, help: str, **options: Any) -> Any:
    """A dataclass field that is a setting. options: of `Setting`; the flag is the field's name if there are no `flags`.

    The field's annotation says the kind, with `| None` that it is optional, and with `| str` that a number has `words`.
    """
    return dataclasses.field(default=default, metadata={"setting": {"help": help, **options}})


def settings_of(cls: type) -> tuple[Setting, ...]:
    """The settings among a dataclass's fields, in their order."""
    annotations = typing.get_type_hints(cls)
    settings = []
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if "setting" in field.metadata:
            kinds = typing.get_args(annotations[field.name]) or (annotations[field.name],)
            kind, *_ = [kind for kind in kinds if kind is not types.NoneType]
            options = {"flags": (f"--{field.name}",)} | field.metadata["setting"]
            settings.append(Setting(
                name=field.name, kind=kind, default=field.default, optional=types.NoneType in kinds, **options
            ))
    return tuple(settings)


def check_settings(instance: Any) -> None:
    """Check every setting of a frozen dataclass instance, and put None in place of values that mean off."""
    for entry in settings_of(type(instance)):
        object.__setattr__(instance, entry.name, entry.check(getattr(instance, entry.name)))


# --- The command line -------------------------------------------------------------------------------------------------


class _Shortcut(argparse.Action):
    """Store a value, unless a later one of the choices is stored already: --dual_cache includes --use_cache."""

    def __init__(self, *, choices_in_order: tuple[str, ...], **options: Any):
        super().__init__(nargs=0, **options)
        self.choices_in_order = choices_in_order

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        earlier = getattr(parser, "given", {}).setdefault(self.dest, self)
        if not isinstance(earlier, _Shortcut):
            raise argparse.ArgumentError(self, f"given beside {earlier.option_strings[-1]}; give one of the two")
        present = getattr(namespace, self.dest, self.const)
        setattr(namespace, self.dest, max(present, self.const, key=self.choices_in_order.index))


def add_flags(parser: argparse._ActionsContainer, settings: Iterable[Setting]) -> None:
    """Add the settings' flags to an argparse parser or group. The namespace then has only those that were typed."""
    for entry in settings:
        options: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS, "help": _help(entry)}
        if entry.kind is bool:
            options["action"] = "store_true"
        else:
            options["type"] = integer_or_text if entry.words else entry.kind
            number = "NAME" if entry.choices else "N" if entry.kind is int else "X"
            options["metavar"] = "|".join((number, *entry.words))
        group = parser.add_mutually_exclusive_group() if entry.negation else parser
        group.add_argument(*entry.flags, **options)
        if entry.negation:
            group.add_argument(*entry.negation, dest=entry.name, default=argparse.SUPPRESS, action="store_false",
                                help=f"the opposite of {entry.flags[-1]}")
        for value, flags in entry.shortcuts.items():
            included = [names[0] for smaller, names in entry.shortcuts.items()
                        if entry.choices.index(smaller) < entry.choices.index(value)]
            also = f", with or without {' '.join(included)}" if included else ""
            parser.add_argument(
                *flags, dest=entry.name, const=value, default=argparse.SUPPRESS, action=_Shortcut,
                choices_in_order=entry.choices, help=f"short for {entry.flags[-1]} {value}{also}",
            )


def integer_or_text(text: str) -> int | str:
    """What a person typed where a number or a word may stand; it is checked later."""
    try:
        return int(text)
    except ValueError:
        return text


def _help(entry: Setting) -> str:
    notes = [entry.unit] if entry.unit else []
    if entry.kind is not bool and entry.default is not None:
        notes.append(f"default: {entry.default}")
    elif entry.off is not None:
        notes.append(f"default: {entry.off:g}")
    text = entry.help.replace("%", "%%")
    return text + (f" ({'; '.join(notes)})" if notes else "")


def read_flags(namespace: argparse.Namespace, settings: Iterable[Setting]) -> dict[str, Any]:
    """The settings whose flags were typed, by name."""
    return {entry.name: getattr(namespace, entry.name) for entry in settings if hasattr(namespace, entry.name)}


# --- Keywords ---------------------------------------------------------------------------------------------------------


def takes_settings(cls: type) -> Callable[[Function], Function]:
    """A decorator for a function whose `**keywords` are the fields of a dataclass, so that `help()` shows them.

    `inspect.signature` then has every field with its type and default, and the docstring's line `{settings}` lists what
    each of them means.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in dataclasses.fields(cls)
        ]
        lines = [
            textwrap.fill(f"{entry.name}: {entry.help}", 112, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for entry in settings_of(cls)
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__doc__ = (inspect.getdoc(function) or "").replace("    {settings}", "\n".join(lines))
        return function

    return decorate
