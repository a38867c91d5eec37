"""Settings as people type them in the chat: names or flags with values, completed, and put in place of the old ones.

    read_words(LLaDASettings.choices(), ["threshold", "0.9", "-e", "--cache=prefix"])
    # {"threshold": 0.9, "early_termination": True, "cache": "prefix"}

Imported by chat.py, never run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpad.engine.checks import suggest
from dpad.engine.fields import NONE, OFF, ON, Setting
from dpad.engine.settings import part_defaults
from dpad.interact.line_editor import Suggestion

if TYPE_CHECKING:
    from dpad.engine.settings import DecodingSettings


def find_setting(settings: Sequence[Setting], word: str) -> tuple[Setting, Any]:
    """The setting of a name or a flag, and the value that the flag has when none follows; None where one must.

    Raises:
        ValueError: there is none.
    """
    for setting in settings:
        if word in setting.flags:
            return setting, True if setting.kind is bool else None
        if word in setting.negation:
            return setting, False
        for value, flags in setting.shortcuts.items():
            if word in flags:
                return setting, value
        if word in setting.names:
            return setting, None
    labels = [setting.label for setting in settings]
    is_flag = any(f"-{word}" in setting.flags for setting in settings)
    hint = f"; did you mean '-{word}'?" if is_flag else suggest(word, labels)
    raise ValueError(f"there is no setting {word!r}; the settings are {', '.join(labels)}{hint}")


def read_words(settings: Sequence[Setting], words: Sequence[str]) -> dict[str, Any]:
    """The values, by the settings' names, of `threshold 0.9`, `threshold=0.9`, `-th 0.9`, `--threshold=0.9` and of
    flags without a value, such as `-e`, `--no_keep_last` or `-dc`.

    Raises:
        ValueError: a word is no setting, a value is missing or not allowed, or a setting has two.
    """
    values: dict[str, Any] = {}
    by_shortcut = set()  # of those, the one that includes the other counts: -c -dc
    rest = [*words]
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        setting, value = find_setting(settings, word)
        is_shortcut = isinstance(value, str)
        if equals and (is_shortcut or value is False):
            raise ValueError(f"{word} is given {text!r}; it takes no value")
        if value is None and not equals and not rest:
            raise ValueError(f"{word} has no value: /settings takes names with their values, such as: /settings "
                             "threshold 0.9 cache prefix")
        if equals or value is None or (value is True and rest and rest[0].lower() in ON + OFF):
            value = setting.parse(text if equals else rest.pop(0))
        if setting.name in values:
            if not (is_shortcut and setting.name in by_shortcut):
                raise ValueError(f"{setting.label} is given twice; give one value")
            value = max(value, values[setting.name], key=setting.choices.index)
        if is_shortcut:
            by_shortcut.add(setting.name)
        values[setting.name] = value
    return values


def suggest_word(
    settings: Sequence[Setting], values: Mapping[str, Any], before: Sequence[str], word: str
) -> list[Suggestion]:
    """What an unfinished word may become.

    Args:
        values: the present ones, by the settings' names.
        before: the words before it.
    """
    awaited = None  # the setting whose value comes next
    for part in before:
        awaited = None if awaited else _awaiting(settings, part)
    name, equals, begin = word.partition("=")
    if equals and not awaited:
        awaited, word = _awaiting(settings, name), begin
    prefix = f"{name}=" if equals else ""
    if awaited or equals:
        return [Suggestion(prefix + value) for value in _few_values(awaited) if value.startswith(word)]

    found = []
    for setting in settings:
        names: Sequence[str] = [setting.label]
        if word.startswith("-"):
            names = [*setting.flags, *setting.negation, *itertools.chain(*setting.shortcuts.values())]
        value = f"{show_value(values[setting.name])} · " if setting.name in values else ""
        found += [Suggestion(name, value + setting.help) for name in names if name.startswith(word)]
    return found


def _awaiting(settings: Sequence[Setting], word: str) -> Setting | None:
    """The setting whose value must follow a word."""
    try:
        setting, value = find_setting(settings, word)
    except ValueError:
        return None
    return setting if value is None else None


def _few_values(setting: Setting | None) -> list[str]:
    """The values that a person can type for a setting that has few of them."""
    if setting is None:
        return []
    if setting.kind is bool:
        return [ON[0], OFF[0]]
    none = NONE[:1] if setting.optional and NONE[0] not in setting.choices else ()
    return [*setting.choices, *setting.words, *none]


def apply_changes(settings: DecodingSettings, changes: Mapping[str, Any]) -> DecodingSettings:
    """The settings with some choices changed.

    Parameters of the sampler, or of another part, that have their default values keep following the defaults, such as a
    window that depends on the answer's length. The others stay, unless a new dropout strategy does not have them.

    Raises:
        ValueError: a value is not allowed, values do not fit together, or the strategy does not have a parameter.
    """
    values = settings.as_choices()
    defaults = part_defaults(values)
    new = {name: changes.get(name, value) for name, value in values.items() if name not in defaults}
    applicable = part_defaults(new)
    parameters = {name: values[name] for name in defaults.keys() & applicable if values[name] != defaults[name]}
    return type(settings).from_choices(new | parameters | dict(changes))


def show_value(value: object) -> str:
    """A setting's value as `Setting.parse` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
