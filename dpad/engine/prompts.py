"""Prompts before they are answered: whether they fit, cutting them, and whether the chat template is used.

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"

Imported, never run.
"""

from __future__ import annotations

from pathlib import Path

from dpad import ROOT
from dpad.engine.loading import LoadedModel

EMBEDDED = ROOT / "checkpoints"


class PromptTooLong(ValueError):
    """A prompt that leaves no room for its answer."""


def count_tokens(loaded: LoadedModel, text: str) -> int:
    """How many tokens a complete text has."""
    return len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def check_prompt(loaded: LoadedModel, prompt: str, gen_length: int) -> None:
    """Refuse a prompt, chat template included, that cannot be answered.

    Raises:
        PromptTooLong: it leaves no room for `gen_length` more tokens.
        ValueError: it is empty.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty; it must have at least one word")
    check_room(loaded, count_tokens(loaded, prompt), gen_length)


def check_room(loaded: LoadedModel, length: int, gen_length: int) -> None:
    """Raise PromptTooLong when a prompt of `length` tokens leaves no room for `gen_length` more."""
    maximum = loaded.model.max_positions
    if length + gen_length > maximum:
        raise PromptTooLong(f"gen_length is {gen_length}, but after a prompt of {length} tokens there is room for "
                            f"{max(0, maximum - length)}: {loaded.title} holds {maximum} tokens, prompt and answer "
                            "together")


def cut_prompt(loaded: LoadedModel, prompt: str, limit: int) -> tuple[str, int]:
    """The last `limit` tokens of a prompt as text, and how many tokens were cut from its start."""
    ids = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if len(ids) <= limit:
        return prompt, 0
    return loaded.tokenizer.decode(ids[-limit:], clean_up_tokenization_spaces=False), len(ids) - limit


def check_chat_template(loaded: LoadedModel, choice: bool | None) -> bool:
    """Whether prompts go through the chat template: the choice, or the model's default where it is None.

    Raises:
        ValueError: they should, and the tokenizer has none.
    """
    if choice and loaded.tokenizer.chat_template is None:
        raise ValueError(f"chat_template is on, but the tokenizer of {loaded.name} has none")
    return loaded.chat_template if choice is None else choice


def knows_single_questions_only(checkpoint: str) -> bool:
    """Whether a model (its folder or hub id) was trained on single questions, as the embedded ones were.

    Worked examples before a question, or a conversation, only confuse it.
    """
    return Path(checkpoint).is_relative_to(EMBEDDED)
