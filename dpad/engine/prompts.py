"""Prompts before they are answered: whether they fit, cutting them, and whether the chat template is used.

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples?"

Imported, never run.
"""

from __future__ import annotations

from dpad.engine.loading import LoadedModel


def count_tokens(loaded: LoadedModel, text: str) -> int:
    """How many tokens a complete text has."""
    return len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def check_prompt(loaded: LoadedModel, prompt: str, gen_length: int) -> None:
    """Raise ValueError when a prompt, chat template included, is empty or too long for `gen_length` more tokens."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; it must have at least one word")
    length = count_tokens(loaded, prompt)
    maximum = loaded.model.max_positions
    if length + gen_length > maximum:
        raise ValueError(f"gen_length is {gen_length}, but after a prompt of {length} tokens there is room for "
                         f"{max(0, maximum - length)}: {loaded.name} holds {maximum} tokens, prompt and answer "
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
