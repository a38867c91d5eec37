"""Checks of what people pass in. Each raises ValueError in one sentence: the argument, its value, what is allowed.

    check_integer("batch_size", 0, minimum=1)     # ValueError: batch_size is 0; it must be an integer of at least 1

Imported by everything that takes arguments; standard library only.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

MAX_INTEGER = 2**63 - 1  # what an int64 tensor holds


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_INTEGER) -> None:
    """Raise ValueError unless `value` is an integer in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        too_large = isinstance(value, int) and value > maximum
        bounds = f"from {minimum} to {maximum}" if too_large or maximum < MAX_INTEGER else f"of at least {minimum}"
        raise ValueError(f"{name} is {short(value)}; it must be an integer {bounds}")


def check_number(
    name: str, value: object, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> None:
    """Raise ValueError unless `value` is a finite number of at least `minimum`, above `above` and at most `maximum`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
        or (maximum is not None and value > maximum)
    ):
        bounds = {"of at least": minimum, "above": above, "at most": maximum}
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        raise ValueError(f"{name} is {short(value)}; it must be a finite number {' and '.join(words)}".rstrip())


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} is {short(value)}; it must be one of {', '.join(choices)}{suggest(value, choices)}")


def suggest(value: object, choices: Iterable[str], count: int = 1) -> str:
    """`; did you mean "this"?` for a value that looks like one of the choices; otherwise nothing.

    count: how many of them are named, at most.
    """
    names = {name.lower(): name for name in choices}
    close = difflib.get_close_matches(str(value)[:200].lower(), names, n=count)
    return f"; did you mean {' or '.join(repr(names[name]) for name in close)}?" if close else ""


def check_text(name: str, value: object) -> None:
    """Raise ValueError unless `value` is text that can be written as UTF-8, which bytes of another encoding cannot.

    Python hands bytes of the command line and of standard input that are not UTF-8 on as lone surrogates; JSON may hold
    them too. Tokenizers and files refuse them.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {short(value)}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def texts_of(name: str, value: object) -> list[str]:
    """Texts as a list, whether one text or several were given; ValueError unless there is one at least."""
    if isinstance(value, str):
        value = [value]  # a text is one text, not a sequence of characters
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {short(value)}; it must be text or a list of texts")
    texts = list(value)
    if not texts:
        raise ValueError(f"{name} is empty; it must have at least one text")
    for index, text in enumerate(texts):
        check_text(f"{name}[{index}]", text)
    return texts


def short(value: object, length: int = 60) -> str:
    """A value as an error shows it: its repr, cut when it is long."""
    return one_line(repr(value), length)


def one_line(text: object, length: int = 200) -> str:
    """What a library or a file says, for a sentence: one line without control characters, cut when it is long."""
    line = " ".join(str(text).split())
    line = line if len(line) <= length else f"{line[: length - 3]}..."
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def check_config(
    integers: dict[str, object], optional: dict[str, object], numbers: dict[str, object],
    switches: dict[str, object], others: dict[str, object],
) -> None:
    """Check fields of a config.json: integers of at least 1, others that may also be None, numbers above 0, booleans.

    Of the others, num_labels is checked, since transformers makes a table of that many entries.

    Raises:
        ValueError: naming the first field that does not fit, its value and what is allowed.
    """
    for name, value in integers.items():
        check_integer(f"config field {name}", value, 1)
    for name, value in optional.items():
        if value is not None:
            check_integer(f"config field {name}", value, 1)
    for name, value in numbers.items():
        check_number(f"config field {name}", value, above=0, maximum=1e15)
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"config field {name} is {short(value)}; it must be true or false")
    if others.get("num_labels") is not None:
        check_integer("config field num_labels", others["num_labels"], 0, 2**16)


# Fields of a config.json by which layers would compute something else: what they may be, and what is not implemented.
PLAIN: dict[str, tuple[tuple[object, ...], str]] = {
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
         "expert_intermediate_size"), ((None, 0), "mixtures of experts are not implemented")),
    "use_sliding_window": ((None, False), "attention within a sliding window is not implemented"),
    **dict.fromkeys(("qk_layernorm", "use_qk_norm", "qk_norm"),
                    ((None, False), "norms of queries and keys are not implemented")),
    "partial_rotary_factor": ((None, 1), "RoPE for a part of each head is not implemented"),
    "use_mrope": ((None, False), "RoPE in several dimensions is not implemented"),
    "mlp_bias": ((None, False), "biases in the MLP are not implemented"),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"),
                    ((None,), "soft caps of scores and logits are not implemented")),
}


def check_plain(fields: Mapping[str, object], own: Mapping[str, tuple[tuple[object, ...], str]]) -> None:
    """Check the fields of a config.json that are not sizes: those of PLAIN, and a family's own.

    Raises:
        ValueError: naming the field, its value, why that is refused, and what is allowed.
    """
    for name, (allowed, why) in {**PLAIN, **own}.items():
        if name in fields and fields[name] not in allowed:
            values = " or ".join(repr(value) for value in allowed if value is not None)
            raise ValueError(f"config field {name} is {short(fields[name])}, but {why}; it must be "
                             f"{values + ', or ' if values else ''}left out")
    layers = fields.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise ValueError(f"config field layer_types is {short(layers)}, but every layer attends to everything here; "
                         "it must be full_attention alone, or left out")


def plain_rope(theta: object, others: dict[str, object]) -> object:
    """The base of RoPE, wherever a config.json says it; `rope_parameters` and `rope_scaling` are taken from the others.

    Raises:
        ValueError: RoPE is scaled.
    """
    for name in ("rope_scaling", "rope_parameters"):
        value = others.pop(name, None)
        if value is None:
            continue
        plain = {"rope_type": "default", "type": "default", "rope_theta": None, "partial_rotary_factor": 1}
        if not isinstance(value, dict) or any(
            key not in plain or plain[key] not in (None, entry) for key, entry in value.items()
        ):
            raise ValueError(f"config field {name} is {short(value)}, but scaled RoPE is not implemented; it must be "
                             "of rope_type 'default', or left out")
        theta = value.get("rope_theta", theta)
    return theta


def check_token_ids(vocab_size: int, required: dict[str, object], optional: dict[str, object]) -> None:
    """Check a config.json's special tokens: `required` has mask_token_id and eos_token_id, `optional` may have None.

    Raises:
        ValueError: naming the field that is no token of the vocabulary; or the mask is EOS.
    """
    for name, value in {**required, **optional}.items():
        if name in required or value is not None:
            check_integer(f"config field {name}", value, 0, vocab_size - 1)
    if required["mask_token_id"] == required["eos_token_id"]:
        raise ValueError(f"config field mask_token_id is {required['mask_token_id']}; it must differ from eos_token_id")
