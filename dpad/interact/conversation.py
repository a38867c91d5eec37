"""Conversations in files: what `/save` and `/load` of the chat write and read.

    write_conversation("talk.jsonl", turns, "tiny")
    turns = read_conversation("talk.jsonl")     # [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]

A file has one line, a JSON object with the turns as `messages`, which `run.py train --data` reads too. Imported by
chat.py, never run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpad.results import files, forms, outputs

Turns = list[dict[str, str]]
FORM = {"messages": [{
    "role": forms.Leaf("system, user or assistant", lambda value: value in ("system", "user", "assistant")),
    "content": forms.Leaf("text", lambda value: isinstance(value, str)),
}]}


def read_conversation(path: str | Path) -> Turns:
    """The turns of a conversation: questions and answers in turn, perhaps after a system's turn.

    Raises:
        ValueError: the file cannot be read, or holds something else; one sentence says what.
    """
    content = files.read_json(path)
    fault = forms.fault(content, FORM)
    if fault:
        raise ValueError(f"{path} is not a conversation (/save writes one): {fault.strip()}")
    turns = [{key: turn[key] for key in ("role", "content")} for turn in content["messages"]]
    roles = [turn["role"] for turn in turns]
    talk = roles[roles[0] == "system" :]
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise ValueError(f"{path} is not a conversation: its messages are not questions of a user, each with an "
                         "assistant's answer")
    return turns


def write_conversation(path: str | Path, turns: Turns, model: str, replace: bool = False) -> None:
    """Keep a conversation. A file that holds the beginning of it is continued.

    Args:
        model: the name of the model that answered.
        replace: whether another conversation may be replaced.

    Raises:
        ValueError: the file cannot be written, or holds something else.
    """
    if not turns:
        raise ValueError("there is no conversation yet")
    check_output("/save", path, outputs.CONVERSATION, replace or _is_beginning(path, turns))
    line: dict[str, Any] = {"kind": "conversation", "model": model, "messages": turns}
    files.write_text(path, json.dumps(line, ensure_ascii=False) + "\n")


def _is_beginning(path: str | Path, turns: Turns) -> bool:
    try:
        kept = read_conversation(path)
    except ValueError:
        return False
    return kept == turns[: len(kept)]


def check_output(command: str, path: str | Path, kind: outputs.Kind, replace: bool) -> None:
    """Raise ValueError unless a command may write a file: a new one, or with `replace` one of the same kind."""
    outputs.check(command, path, kind)
    if Path(path).exists() and not replace:
        raise ValueError(f"{command} is {str(path)!r}, which exists; --replace behind its name replaces it")
