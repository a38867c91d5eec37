"""The forms of records: what a file must hold so that tables and charts can be made of it, whoever wrote it.

    fault({"samples": "many"}, {"samples": COUNT})     # "samples is 'many'; it must be an integer of at least 1"

A form is a Leaf, an object by its keys ("key?" may be missing or null), `[form]` for a list of at least one, `Each` for
an object of any keys, or `Several` for a list of any length. Imported by records.py, never run.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 500  # characters of a name


@dataclass(frozen=True)
class Leaf:
    """A single value: what it must be, in words, and the test."""

    words: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object of any keys, whose values all have one form."""

    form: Any


@dataclass(frozen=True)
class Several:
    """A list of any length, whose entries all have one form."""

    form: Any


def _number(minimum: float, maximum: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and minimum <= value <= maximum


def _integer(minimum: int, maximum: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and _number(minimum, maximum)(value)


CONVENTION = Leaf("drop or keep", lambda value: value in ("drop", "keep"))
TEXT = Leaf(f"text of at most {MAX_TEXT} characters", lambda value: isinstance(value, str) and len(value) <= MAX_TEXT)
NUMBER = Leaf("a number", _number(-1e15, 1e15))
AMOUNT = Leaf("a number of at least 0", _number(0, 1e15))
SECONDS = Leaf("a time above 0", _number(1e-12, 1e12))
COUNT = Leaf("an integer of at least 1", _integer(1, 2**53))
ZERO_OR_MORE = Leaf("an integer of at least 0", _integer(0, 2**53))
LENGTH = Leaf("an integer from 1 to 2^30", _integer(1, 2**30))
SPAN = Leaf("an integer from 0 to 2^30", _integer(0, 2**30))
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
BITS = Leaf("text of 0 and 1", lambda value: isinstance(value, str) and re.fullmatch("[01]+", value) is not None)
SIZE = Leaf("an integer of at least 1, or text", lambda value: COUNT.fits(value) or TEXT.fits(value))

ENVIRONMENT = {
    "commit?": TEXT, "date?": TEXT,
    "hardware?": {
        "processor?": TEXT, "cores?": COUNT, "threads?": COUNT, "products?": TEXT, "onednn_gain?": AMOUNT,
        "gpus?": Several({"name": TEXT, "memory_gb?": AMOUNT}),
    },
}
COST = {  # of a run: means over its samples, and what a token of an answer took
    "latency_s": AMOUNT, "tps?": AMOUNT, "nfe?": AMOUNT, "answer_length?": AMOUNT, "ms_per_token?": AMOUNT,
    "slots?": AMOUNT, "kept_suffix?": AMOUNT, "tokens_processed?": AMOUNT,
}
EVALUATION = {
    "name": TEXT, "task": TEXT, "model": TEXT, "samples": COUNT, **COST, "answer_tokens?": ZERO_OR_MORE,
    "metrics": Each({"value?": NUMBER}), "other_metrics?": {"metrics": Each({"value?": NUMBER})},
    "settings": {
        "gen_length?": LENGTH, "num_fewshot?": ZERO_OR_MORE, "limit?": COUNT, "batch_size?": SIZE, "steps?": COUNT,
        "threshold?": NUMBER, "factor?": NUMBER, "cache?": TEXT, "refresh?": SIZE, "early_termination?": FLAG,
        "device?": TEXT, "dtype?": TEXT, "quantize?": TEXT, "after_eos?": CONVENTION,
        "suffix_sampler?": {"name": TEXT, "window?": SPAN, "number?": ZERO_OR_MORE}, "rule?": {"name": TEXT},
    },
    "adapter?": {"name": TEXT, "sha256": TEXT}, "environment?": ENVIRONMENT,
}
RUN_SETTINGS = {  # of a comparison: what all of its methods share
    "gen_length?": LENGTH, "block_length?": LENGTH, "num_fewshot?": ZERO_OR_MORE, "limit?": COUNT, "batch_size?": SIZE,
    "device?": TEXT, "dtype?": TEXT, "quantize?": TEXT, "after_eos?": CONVENTION,
}
COMPARISON = {
    "name": TEXT, "task": TEXT, "model": TEXT, "samples": COUNT, "seeds": [ZERO_OR_MORE], "repeats?": COUNT,
    "settings": RUN_SETTINGS, "processes?": COUNT, "adapter?": {"name": TEXT, "sha256": TEXT},
    "environment?": ENVIRONMENT,
    "rows": [{
        "method": TEXT, "source?": TEXT, "flags?": TEXT, "draws?": FLAG,
        "runs": [{
            "seed": ZERO_OR_MORE, "repeat?": ZERO_OR_MORE, **COST, "answer_tokens": ZERO_OR_MORE, "seconds": AMOUNT,
            "reused?": ZERO_OR_MORE, "metrics": Each({"value?": NUMBER}), "right?": Each(BITS),
        }],
    }],
}
WORK = {
    "prompt_length": COUNT, "gen_length": LENGTH, "block_length": COUNT, "steps_per_block": COUNT, "threshold?": NUMBER,
    "batch_size": COUNT, "blocks?": COUNT, "dtype": TEXT, "device?": TEXT,
    "sampler": {"window": COUNT, "k_sigma": NUMBER, "scale": NUMBER},
}
BENCHMARK = {
    "model": TEXT, "repeats": COUNT, "settings": WORK, "environment?": ENVIRONMENT,
    "rows": [{
        "name": TEXT, "dpad": FLAG, "cache": TEXT, "parallel": FLAG, "stops": FLAG, "batch_size?": COUNT,
        "forwards": ZERO_OR_MORE, "tokens_processed": ZERO_OR_MORE, "kept_suffix": AMOUNT, "latency_s": [SECONDS],
        "floor_s": [SECONDS], "ratio": AMOUNT, "speedup?": AMOUNT, "floor_speedup?": AMOUNT, "full_ms?": AMOUNT,
        "cached_ms?": AMOUNT, "read_s?": AMOUNT, "peak_memory?": AMOUNT,
    }],
}
GROWTH = {
    "model": TEXT, "repeats": COUNT, "settings": WORK, "environment?": ENVIRONMENT,
    "rows": [{"name": TEXT, "gen_length": LENGTH, "block_s": [[SECONDS]]}],
}
AGREEMENT = {
    "device": TEXT, "problems": COUNT, "environment?": ENVIRONMENT,
    "rows": [{"model": TEXT, "cache?": TEXT, "threshold?": NUMBER, "early_termination?": FLAG}],
}
QUANTIZATION = {
    "configuration": TEXT, "device": TEXT, "problems": COUNT, "settings": {"gen_length": LENGTH},
    "environment?": ENVIRONMENT,
    "rows": [{"model": TEXT, "dtype": TEXT, "quantize?": TEXT, "weights": COUNT, "estimated": FLAG,
              "products?": TEXT, "seconds?": [SECONDS], "speedup?": AMOUNT, "right?": ZERO_OR_MORE, "answers?": AMOUNT,
              "tokens?": AMOUNT}],
}
STARTUP = {
    "settings": {"repeats": COUNT}, "environment?": ENVIRONMENT,
    "rows": [{"name": TEXT, "seconds": [SECONDS], "processor_s": [SECONDS]}],
    "loading": {"shape": TEXT, "bytes": COUNT, "plain_s": [SECONDS], "load_s": [SECONDS], "read_s": [SECONDS],
                "own_mb": [AMOUNT], "mapped_mb": [AMOUNT]},
}
AUTHORS = {
    "model": TEXT, "repeats": COUNT, "settings": WORK, "environment?": ENVIRONMENT,
    "theirs": {"commit": TEXT, "python": TEXT, "torch?": TEXT, "transformers?": TEXT, "threads": COUNT},
    "rows": [{
        "model": TEXT, "family": TEXT, "name": TEXT, "dpad": FLAG, "cache": TEXT, "theirs_s": [SECONDS],
        "ours_s": [SECONDS], "floor_s": [SECONDS], "torch_floor_s?": [SECONDS], "ratio": SECONDS, "allowed": SECONDS,
        "allowed_by_torch?": SECONDS, "equal_tokens": ZERO_OR_MORE, "first_difference?": ZERO_OR_MORE,
    }],
}
TRAINING_STEPS = {
    "model": TEXT, "environment?": ENVIRONMENT,
    "settings": {"lora": COUNT, "batch_size": COUNT, "prompt_length": COUNT, "gen_length": LENGTH, "dtype?": TEXT,
                 "device?": TEXT},
    "rows": [{"name": TEXT, "seconds": [SECONDS], "tokens": [COUNT], "tokens_per_second": AMOUNT,
              "loss_is_finite": FLAG, "peak_memory?": AMOUNT}],
}
LOAD = {
    "model": TEXT, "task": TEXT, "problems": COUNT, "server": TEXT, "seconds": SECONDS, "remark?": TEXT,
    "settings": {"gen_length": LENGTH, "block_length": LENGTH, "max_batch": COUNT, "dtype?": TEXT, "device?": TEXT},
    "environment?": ENVIRONMENT,
    "rows": [{
        "clients": COUNT, "answers": COUNT, "wrong": ZERO_OR_MORE, "lost": ZERO_OR_MORE, "tokens_per_second": AMOUNT,
        "latency_s": {"p50": SECONDS, "p95": SECONDS}, "rows_per_batch?": AMOUNT,
        "memory_mb?": {"start": AMOUNT, "end": AMOUNT}, "processor_s?": AMOUNT, "tokens?": ZERO_OR_MORE,
    }],
}
STUDY = {
    "model": TEXT, "arm": TEXT, "seed": ZERO_OR_MORE,
    "settings": {"problems": COUNT, "threshold?": NUMBER, "dtype": TEXT, "device?": TEXT}, "environment?": ENVIRONMENT,
    "training?": {"settings": {"steps?": COUNT, "batch_size?": COUNT}},
    "rows": [{
        "task": TEXT, "decoding": TEXT, "right": BITS, "expected_suffix": AMOUNT, "tokens_processed": ZERO_OR_MORE,
    }],
}
SHARE = Leaf("a number from 0 to 1", _number(0, 1))
SERIES = [Leaf("a number from 0 to 1, or null", lambda value: value is None or SHARE.fits(value))]
ATTENTION = {
    "model": TEXT, "task?": TEXT, "problems": COUNT, "samples": COUNT, "block?": ZERO_OR_MORE, "step": ZERO_OR_MORE,
    "settings": {"gen_length": LENGTH, "block_length": LENGTH, "dtype?": TEXT, "device?": TEXT},
    "views": [{
        "suffix": TEXT, "kept_suffix": AMOUNT, "heads": COUNT, "first": Leaf("an integer", _integer(-2**30, 2**30)),
        "layers": [{
            "before": SHARE, "block": SHARE, "behind": SHARE, "last?": SHARE, "median?": SHARE,
            "mean": SERIES, "low": SERIES, "high": SERIES,
        }],
    }],
    "environment?": ENVIRONMENT,
}
PAPER = {
    "problems": Each(COUNT), "models": Each(TEXT), "marks": Each(TEXT),
    "scripts": [{"script": TEXT, "shows": TEXT, "model": TEXT, "gen_lengths": Several(LENGTH)}],
    "sources": Each({
        "title": TEXT, "method": TEXT, "paper": TEXT, "gpu": TEXT, "hardware": TEXT, "batch_size": COUNT, "basis": TEXT,
        "tables": Each(TEXT),
        "rows": [{
            "table": TEXT, "model": TEXT, "benchmark": TEXT, "shots": ZERO_OR_MORE, "gen_length": LENGTH, "name": TEXT,
            "variant?": TEXT, "latency_s?": SECONDS, "tps?": AMOUNT, "answer_tokens?": COUNT, "metrics": Each(NUMBER),
            "uncertain?": Each(TEXT),
        }],
    }),
}


def fault(value: Any, form: Any, place: str = "") -> str | None:
    """What keeps a value from having a form, in words that name the place; None where it has it."""
    if isinstance(form, Leaf):
        return None if form.fits(value) else f"{place} is {reprlib.repr(value)}; it must be {form.words}"

    if isinstance(form, (list, Several)):
        inner = form[0] if isinstance(form, list) else form.form
        if not isinstance(value, list) or (isinstance(form, list) and not value):
            at_least = " of at least one entry" if isinstance(form, list) else ""
            return f"{place} is {reprlib.repr(value)}; it must be a list{at_least}"
        faults = (fault(entry, inner, f"{place}[{number}]") for number, entry in enumerate(value))
        return next(filter(None, faults), None)

    if not isinstance(value, dict):
        return f"{place} is {reprlib.repr(value)}; it must be an object"
    if isinstance(form, Each):
        if any(len(key) > MAX_TEXT for key in value):
            return f"{place} has a key of more than {MAX_TEXT} characters"
        faults = (fault(entry, form.form, _join(place, key)) for key, entry in value.items())
        return next(filter(None, faults), None)
    missing = [key for key in form if not key.endswith("?") and key not in value]
    if missing:
        return f"it has no {', '.join(_join(place, key) for key in missing)}"
    for name, inner in form.items():
        key = name.rstrip("?")
        if name != key and value.get(key) is None:
            continue
        found = fault(value[key], inner, _join(place, key))
        if found:
            return found
    return None


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key

