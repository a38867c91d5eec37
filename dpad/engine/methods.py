r"""Published ways of decoding by name: what `--method` takes, and what `run.py compare` puts beside each other.

    python run.py generate -m tiny --method streaming \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
    python -m dpad.engine.methods                         # prints them all

A method has settings that make it what it is (`fixed`), and values that its authors chose (`defaults`), which flags for
several methods at once may replace. A new one is an entry in METHODS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpad.engine.checks import suggest
from dpad.engine.configurations import BLOCK_LENGTH, THRESHOLD, dpad_parameters
from dpad.engine.fields import settings_of
from dpad.engine.settings import PARTS, DecodingSettings, part_defaults
from sampler import WINDOW

DPAD_PAPER = "DPad, arXiv 2508.14148"
FAST_DLLM = "Fast-dLLM, arXiv 2505.22618"
STREAMING = "Streaming-dLLM, arXiv 2601.17917"
SSM = "SSM, arXiv 2608.23167"
OURS = "this project"


@dataclass(frozen=True)
class Method:
    """A way of decoding.

    name: what `--method` takes. help: what it does, in a few words. source: whose it is. fixed: the settings that make
    it what it is, by the names of `DecodingSettings.choices`. defaults: its other settings, as published.
    """

    name: str
    help: str
    source: str
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether this is vanilla decoding, with or without early termination, which no shared flag changes."""
        return self.name in BASELINES

    def choices(self, gen_length: int, block_length: int = BLOCK_LENGTH, model: str = "") -> dict[str, Any]:
        """All of its settings, as `DecodingSettings.from_choices` takes them.

        Args:
            gen_length, block_length: in tokens; a longer window is cut to the answer.
            model: name or folder, which decides the published parameters of DPad's sampler.
        """
        values = {**self.defaults, **self.fixed, "gen_length": gen_length, "block_length": block_length}
        if "k_sigma" in values:
            values |= dpad_parameters(model)
        if "window" in values:
            values["window"] = min(values["window"], gen_length)
        return values


_DPAD = {"dropout_strategy": "gaussian", "early_termination": True}
_GAUSSIAN = {"window": WINDOW, "k_sigma": None, "scale": None}  # these two are the model's
_PARALLEL = {"threshold": THRESHOLD}
_WHOLE = {"dropout_strategy": "null", "soft_suffix": False}
_ONE_A_STEP = {"threshold": None, "rule": "none", "cache": "none"}

METHODS = {
    method.name: method
    for method in (
        Method("vanilla", "one token a forward, the whole suffix, every block", "LLaDA, arXiv 2502.09992",
               {**_WHOLE, **_ONE_A_STEP, "early_termination": False}),
        Method("vanilla-stop", "the same, stopping after the block that holds EOS", DPAD_PAPER,
               {**_WHOLE, **_ONE_A_STEP, "early_termination": True}),
        Method("parallel", "every token above a threshold at once", FAST_DLLM, {"rule": "none"}, _PARALLEL),
        Method("fast-dllm", "a threshold and the prefix cache, the whole suffix", FAST_DLLM,
               {**_WHOLE, "rule": "none", "cache": "prefix"}, _PARALLEL),
        Method("dpad", "suffix dropout: near tokens likely, far ones never", DPAD_PAPER, _DPAD, _GAUSSIAN),
        Method("dpad-parallel", "suffix dropout with a threshold", DPAD_PAPER, {**_DPAD, "rule": "none"},
               {**_GAUSSIAN, **_PARALLEL}),
        Method("dpad-parallel-cache", "suffix dropout with a threshold and the prefix cache", DPAD_PAPER,
               {**_DPAD, "rule": "none", "cache": "prefix"}, {**_GAUSSIAN, **_PARALLEL}),
        Method("dpad-even", "as many suffix tokens as dpad keeps, spread evenly instead of drawn", OURS,
               {**_DPAD, "dropout_strategy": "gaussian-even"}, _GAUSSIAN),
        Method("dpad-last", "dpad, and the answer's last token", OURS, {**_DPAD, "last": True}, _GAUSSIAN),
        Method("window", "the nearest suffix tokens, about as many as dpad keeps", OURS,
               {**_DPAD, "dropout_strategy": "window"}, {"window": 64}),
        Method("no-suffix", "no suffix at all", "block diffusion, arXiv 2503.09573",
               {**_DPAD, "dropout_strategy": "block"}),
        Method("streaming", "a window and the last token, a threshold that falls, the prefix cache", STREAMING,
               {"dropout_strategy": "streaming", "early_termination": True, "rule": "falling"},
               {"window": 96, "cache": "prefix"}),
        Method("ssm", "a window, the first token of every block, the last one; soft suffix states; a threshold", SSM,
               {"dropout_strategy": "ssm", "early_termination": True, "soft_suffix": True, "rule": "none"},
               {"window": 64, **_PARALLEL}),
        Method("ssm-hard", "ssm without soft states", SSM,
               {"dropout_strategy": "ssm", "early_termination": True, "soft_suffix": False, "rule": "none"},
               {"window": 64, **_PARALLEL}),
        Method("attention", "the suffix tokens that the block attends to most", "articles about DPad",
               {**_DPAD, "dropout_strategy": "attention"}, {"window": 8}),
        Method("spotlight", "all suffix tokens but the most attended far ones", DPAD_PAPER,
               {**_DPAD, "dropout_strategy": "spotlight"}),
        Method("margin", "a threshold on how far a token is ahead of the next", "Kim et al. 2025, arXiv 2502.06768",
               {"alg": "topk_margin", "rule": "none"}, _PARALLEL),
        Method("eb", "tokens while their entropies stay within a bound", "EB-Sampler, arXiv 2505.24857",
               {"rule": "eb"}),
        Method("localleap", "a lower threshold beside confident tokens", "LocalLeap, arXiv 2510.07081",
               {"rule": "localleap"}),
        Method("klass", "tokens whose distributions have settled", "KLASS, arXiv 2511.05664", {"rule": "klass"}),
        Method("credit", "a threshold on logits with credit from earlier forwards", "CreditDecoding, arXiv 2510.06133",
               {"rule": "credit"}),
        Method("hierarchy", "a threshold, and the best token of every run of masks", "dInfer", {"rule": "hierarchy"}),
    )
}
BASELINES = ("vanilla", "vanilla-stop")


def find_method(name: str) -> Method:
    """The method of a name; ValueError, with the name that was perhaps meant, where there is none."""
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}{suggest(name, METHODS)}")
    return METHODS[name]


def combine(
    method: Method | None, own: Mapping[str, Any], shared: Mapping[str, Any], family: type[DecodingSettings],
    model: str = "",
) -> tuple[dict[str, Any], set[str]]:
    """The choices of one way of decoding, for `from_choices`, and which of the shared ones are among them.

    Args:
        method: whose settings these are; None for those given alone.
        own: choices for this way alone. They replace the method's one by one; another sampler, rule or soft suffix
            drops the parameters of the method's.
        shared: choices for several ways. They replace the method's defaults, but nothing that makes it what it is, and
            what it has no use for is left out.
        family: whose settings they will be.

    Raises:
        ValueError: a length, or the name of a sampler or rule, is not allowed.
    """
    entries = {entry.name: entry for entry in family.choices()}
    said = {**shared, **own}
    gen_length, block_length = (entries[name].check(said.get(name, entries[name].default), entries[name].label)
                                for name in ("gen_length", "block_length"))
    base = method.choices(gen_length, block_length, model) if method else {}
    fixed = method.fixed if method else {}
    applicable = {name: value for name, value in shared.items() if name not in fixed}
    for part in PARTS:  # parameters that were given for another sampler than this method's
        theirs = shared.get(part.selector.name)
        if part.selector.name in fixed and theirs not in (None, fixed[part.selector.name]):
            applicable = {name: value for name, value in applicable.items()
                          if name not in part.settings or name in _own_settings(family)}
    without_steps = {name: value for name, value in applicable.items() if name != "steps"}
    useless = _useless(_replace(_replace(base, without_steps), own), family)
    applicable = {name: value for name, value in applicable.items() if name not in useless}
    values = _replace(_replace(base, applicable), own)
    return values, {name for name, value in shared.items() if name in values and values[name] == value}


def _replace(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with changes, without parameters of a sampler, rule or soft suffix that another one replaces."""
    kept = dict(values)
    for part in PARTS:
        name = part.selector.name
        if name in changes and changes[name] != values.get(name, part.selector.default):
            kept = {key: value for key, value in kept.items() if key not in part.settings}
    if changes.keys() & {"factor", "steps"}:  # they take the place of a threshold
        kept.pop("threshold", None)
    return kept | dict(changes)


def _useless(values: Mapping[str, Any], family: type[DecodingSettings]) -> set[str]:
    """The choices that the chosen sampler, rule, soft suffix or cache does not use, and those that a rule replaces."""
    used = part_defaults(values).keys()
    useless = {name for part in PARTS for name in part.settings} - used - _own_settings(family)
    has_rule = values.get("rule", "none") != "none"
    if has_rule:
        useless |= {"threshold", "factor"} - used
    if has_rule or values.get("threshold") or values.get("factor"):
        useless.add("steps")
    if values.get("cache", "none") == "none":
        useless.add("refresh")
    return useless


def _own_settings(family: type[DecodingSettings]) -> set[str]:
    return {entry.name for entry in settings_of(family)}


if __name__ == "__main__":
    for entry in METHODS.values():
        print(f"{entry.name:21}{entry.help} ({entry.source})")
