"""How an answer is decoded: one frozen object from the command line to the block loop, which checks itself.

    settings = LLaDASettings(gen_length=256, threshold=0.9, cache="prefix", suffix_sampler=GaussianSampler(256, 3, 1.6))
    settings = LLaDASettings.from_choices({"gen_length": 256, "dropout_strategy": "gaussian"})      # as people say it

`DecodingSettings` has the settings that every model shares; a family adds its own in a subclass (llada/settings.py,
dream/settings.py). To add a setting, add a field there: its flag, keyword, chat command, control in the web UI and
entry in the records are derived from it (fields.py). Imported, never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dpad.engine.checks import check_integer, suggest
from dpad.engine.fields import Setting, check_settings, setting, settings_of
from dpad.engine.rules import RULES, ParallelRule
from dpad.engine.soft import SoftSuffix
from sampler import SAMPLERS, WINDOW, FullSuffix, NoSuffix, SuffixSampler, UniformSampler

BLOCK_LENGTH = 32
CACHE_MODES = ("none", "prefix", "dual")
# What positions are ordered by, under the names of Dream's own code: the candidate's probability, the entropy of the
# distribution, the difference of its two largest probabilities, or nothing (a random order).
ALGS = ("maskgit_plus", "entropy", "topk_margin", "origin")


# --- Parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A setting whose value is an object with settings of its own. People choose it by a name.

    title: what the command line calls the group of its flags. field: of DecodingSettings. selector: the setting that
    holds the name. kinds: the class of each name; None where the name means that there is no object. presets: names for
    an object with certain parameters: the name of its kind and the parameters; those in CHOOSABLE are defaults, the
    others stay.
    """

    title: str
    field: str
    selector: Setting
    kinds: Mapping[Any, type | None]
    presets: Mapping[str, tuple[str, Mapping[str, Any]]] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings of all kinds by name; of several with one name the first."""
        found: dict[str, Setting] = {}
        for kind in self.kinds.values():
            for entry in settings_of(kind) if kind else ():
                found.setdefault(entry.name, entry)
        return found

    def kind(self, values: Mapping[str, Any]) -> type | None:
        """The class that a person chose, from the choices by name."""
        name = self.selector.check(values.get(self.selector.name, self.selector.default))
        return self.kinds[self.presets[name][0] if name in self.presets else name]

    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that a person may choose beside the name, as they are when nobody chooses them."""
        kind = self.kind(values)
        defaults = {entry.name: entry.default for entry in settings_of(kind)} if kind else {}
        name = values.get(self.selector.name, self.selector.default)
        preset = self.presets[name][1] if name in self.presets else {}
        defaults |= preset
        for key in preset.keys() - CHOOSABLE:
            del defaults[key]
        if "window" in defaults:
            defaults["window"] = min(defaults["window"], values.get("gen_length") or WINDOW)
        return defaults

    def make(self, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> Any:
        """The object that a person chose; None where the name means none.

        Args:
            values: all choices by name.
            chosen: those among them that are this part's parameters.

        Raises:
            ValueError: a parameter is not one of the kind's, or its value is not allowed.
        """
        kind = self.kind(values)
        parameters: Mapping[str, Any] = self.defaults(values)
        name = values.get(self.selector.name, self.selector.default)
        for key, value in chosen.items():
            if key not in parameters and name in self.presets and key in self.presets[name][1]:
                raise ValueError(f"{key} is {value!r}, but {self.selector.label} {name} sets it itself; for another "
                                 f"value choose {self.presets[name][0]}")
            if key not in parameters:
                names = ", ".join(self.settings[own].label for own in parameters) or "no settings of its own"
                raise ValueError(f"{key} is {value!r}, but {self.selector.label} {show(name)} does not use it; it has "
                                 f"{names}")
        if kind is None:
            return None
        if name in self.presets:
            fixed = {key: values.get("block_length", BLOCK_LENGTH) if value == "block_length" else value
                     for key, value in self.presets[name][1].items()}
            parameters = {**fixed, **parameters}
        made = kind(**{**parameters, **chosen})
        if isinstance(made, UniformSampler) and made.number == 0:  # the published default, which nobody means
            raise ValueError(f"number is 0, so that {self.selector.label} {name} would keep no suffix at all; say with "
                             "-nt how many tokens to keep")
        return made

    def is_object(self, value: Any) -> bool:
        """Whether a value of `field` is the object itself, and not what the selector calls it."""
        return self.field != self.selector.name or not isinstance(value, (str, bool))

    def name_of(self, value: Any) -> Any:
        """What the selector calls an object; the class's name where it has none there."""
        names = [name for name, kind in self.kinds.items() if (type(value) is kind if kind else value is None)]
        return names[0] if names else type(value).__name__

    def as_choices(self, value: Any) -> dict[str, Any]:
        """The selector's name for an object, and the object's parameters, by name."""
        return {self.selector.name: self.name_of(value)} | _parameters(value)


CHOOSABLE = {"window"}  # of the presets' parameters
PRESETS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "random": ("uniform", {}),  # an old name, which the authors' scripts use
    "streaming": ("anchor", {"window": 96, "stride": 0, "last": True}),
    "ssm": ("anchor", {"window": 64, "stride": "block_length", "last": True}),
}
SAMPLER = Part(
    title="suffix dropout (DPad)",
    field="suffix_sampler",
    kinds=SAMPLERS,
    presets=PRESETS,
    selector=Setting(
        name="dropout_strategy", kind=str, default="null", flags=("-d", "--dropout_strategy"),
        choices=(*SAMPLERS, *PRESETS),
        help="the suffix that a block sees: null (all of it), gaussian (DPad), gaussian-even (the same without dice), "
        "uniform, window, anchor (a window, every stride-th token, the last one), streaming (Streaming-dLLM's), ssm "
        "(SSM's), attention (chosen by scores), spotlight (without the most attended far tokens) or block (none of it, "
        "as in block diffusion); random is an old name of uniform",
    ),
)
RULE = Part(
    title="rules of parallel decoding",
    field="rule",
    kinds={"none": None, **RULES},
    selector=Setting(
        name="rule", kind=str, default="none", flags=("--rule",), choices=("none", *RULES),
        help="parallel decoding by another rule than a threshold: falling (Streaming-dLLM's), eb (EB-Sampler), "
        "localleap, hierarchy, klass or credit",
    ),
)
SOFT = Part(
    title="soft suffix (SSM)",
    field="soft_suffix",
    kinds={False: None, True: SoftSuffix},
    selector=Setting(name="soft_suffix", kind=bool, default=False, flags=("--soft_suffix",),
                     help="SSM's soft suffix: kept suffix tokens enter as mixtures of mask and likeliest tokens"),
)
PARTS = (SAMPLER, RULE, SOFT)
PART_SETTINGS = {name: entry for part in PARTS for name, entry in part.settings.items()}


def part_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that apply to the parts that a person chose, by name, as they are when nobody chooses them."""
    return {name: default for part in PARTS for name, default in part.defaults(values).items()}


def show(value: Any) -> str:
    """A name or a switch in a message."""
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


# --- Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """The settings that all models share; a family's subclass adds its own.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    family: ClassVar[str] = "any family"  # of the subclass, as people call it
    own_order: ClassVar[str] = "maskgit_plus"  # of ALGS, where neither a rule nor a person says another

    gen_length: int = setting(256, "length of the answer", flags=("-l", "--gen_length"), minimum=1, unit="tokens")
    block_length: int = setting(BLOCK_LENGTH, "length of a block, which must divide the answer's length; the authors' "
                                "code calls it block_size",
                                flags=("-b", "--block_size", "--block_length"), minimum=1, unit="tokens")
    steps: int | None = setting(None, "forwards in all, without a threshold (default: one per token)", minimum=1)
    threshold: float | None = setting(None, "parallel decoding: decode every token that is at least this confident; "
                                      "0: a fixed number of tokens per step; with a rule, the rule's own (0.9)",
                                      flags=("-th", "--threshold"), minimum=0, maximum=1, off=0)
    rule: ParallelRule | None = None
    alg: str | None = setting(None, "what positions are ordered by: maskgit_plus (the candidate's probability), "
                              "entropy (of the prediction), topk_margin (of the likeliest token over the next) or "
                              "origin (nothing: a random order) (default: the model's own)", choices=ALGS)
    temperature: float = setting(0.0, "0 takes the likeliest token; higher values draw", minimum=0)
    cache: str = setting("none", "which slots a step recomputes: none (all of them), prefix (block and suffix) or dual "
                         "(the block)", choices=CACHE_MODES,
                         shortcuts={"prefix": ("-c", "--use_cache"), "dual": ("-dc", "--dual_cache")})
    refresh: int | str = setting("always", "with a cache, which blocks' first forwards recompute the whole prefix: "
                                 "always (every block's), every N-th block's, or never (the first block's alone); the "
                                 "others recompute the block before, the block and the suffix, an approximation",
                                 minimum=1, words=("always", "never"))
    suffix_sampler: SuffixSampler | None = None
    soft_suffix: SoftSuffix | None = None
    early_termination: bool = setting(False, "stop after the block that holds EOS", flags=("-e", "--early_termination"))
    seed: int = setting(1234, "seed of the suffix draws and of noise", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.gen_length % self.block_length:
            raise ValueError(f"block_length is {self.block_length}; it must divide gen_length ({self.gen_length})")
        if self.parallel:
            object.__setattr__(self, "steps", None)  # the confidences decide how many there are
        if self.total_steps % self.blocks or self.total_steps > self.gen_length:
            raise ValueError(f"steps is {self.steps}; it must be a multiple of the number of blocks ({self.blocks}) "
                             f"and at most one a token ({self.gen_length})")
        if self.refresh == 1:
            object.__setattr__(self, "refresh", "always")
        if self.refresh != "always" and self.cache == "none":
            raise ValueError(f"refresh is {self.refresh}, but cache is none, which keeps nothing that could be "
                             "recomputed; choose cache prefix or dual, or leave it out")
        if self.suffix_sampler is None:
            object.__setattr__(self, "suffix_sampler", FullSuffix())
        if not isinstance(self.suffix_sampler, SuffixSampler):
            raise ValueError(f"suffix_sampler is {self.suffix_sampler!r}; it must be a SuffixSampler (sampler.py) or "
                             "None for the whole suffix")
        self.suffix_sampler.check(self.gen_length)
        if self.soft_suffix is not None and not isinstance(self.soft_suffix, SoftSuffix):
            raise ValueError(f"soft_suffix is {self.soft_suffix!r}; it must be a SoftSuffix (dpad/engine/soft.py) or "
                             "None")
        if self.soft_suffix is not None and isinstance(self.suffix_sampler, NoSuffix):
            raise ValueError("soft_suffix is on, but dropout_strategy block keeps no suffix that could be soft")
        self._check_rule()

    def _check_rule(self) -> None:
        """Raise ValueError unless rule, threshold and alg go together."""
        if self.rule is not None and not isinstance(self.rule, ParallelRule):
            raise ValueError(f"rule is {self.rule!r}; it must be one of dpad/engine/rules.py, or None")
        if self.rule is not None and self.threshold is not None:
            raise ValueError(f"threshold is {self.threshold!r} while rule is {RULE.name_of(self.rule)}, which does not "
                             "use it; give one of the two")
        allowed: tuple[str, ...] = ALGS
        beside = ""
        if self.rule is not None:
            allowed = self.rule.orders
            beside = f"rule {RULE.name_of(self.rule)}"
        elif self.threshold is not None:
            allowed = ("maskgit_plus", "topk_margin")
            beside = "a threshold"
        if self.alg is not None and self.alg not in allowed:
            raise ValueError(f"alg is {self.alg!r}; with {beside} it must be {' or '.join(allowed)}")

    @property
    def parallel(self) -> bool:
        """Whether the confidences decide how many tokens a step decodes."""
        return self.threshold is not None or self.rule is not None

    def refreshes(self, block: int) -> bool:
        """Whether a block's first forward recomputes the whole prefix. block: counted from 0."""
        if isinstance(self.refresh, str):
            return self.refresh == "always" or block == 0
        return block % self.refresh == 0

    @property
    def order(self) -> str:
        """What positions are ordered by, one of ALGS."""
        if self.alg is not None:
            return self.alg
        if self.rule is not None:
            return self.rule.orders[0]
        return "maskgit_plus" if self.parallel else self.own_order

    @property
    def is_random(self) -> bool:
        """Whether another seed can give another answer."""
        assert self.suffix_sampler is not None
        return self.suffix_sampler.is_random or self.temperature > 0 or self.alg == "origin"

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def total_steps(self) -> int:
        """Forwards of the fixed schedule; with parallel decoding the fewest that there can be, one a block."""
        return self.steps or (self.blocks if self.parallel else self.gen_length)

    @property
    def steps_per_block(self) -> int:
        return self.total_steps // self.blocks

    # --- As people say them, and as records keep them ---

    @classmethod
    def choices(cls) -> tuple[Setting, ...]:
        """All settings of the family in order; those of the parts, and what chooses them, stand in for the objects."""
        own = settings_of(cls)
        names = {entry.name for entry in own}
        parts = [entry for part in PARTS for entry in (part.selector, *part.settings.values())]
        return (*own, *(entry for entry in parts if entry.name not in names))

    @classmethod
    def from_choices(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a person chose, by the names of `choices`; the others take their defaults.

        Without a window it is the sampler's default, or `gen_length` where that is shorter. A name that both the family
        and a chosen part have (the threshold of a rule) is the part's.

        Raises:
            ValueError: naming the setting as its flag does, its value and what is allowed; or that the family or the
                chosen part has no such setting.
        """
        entries = {entry.name: entry for entry in cls.choices()}
        try:
            return cls.from_keywords(values)
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            raise ValueError(f"{entries[name].label if name in entries else name} {rest}") from None

    @classmethod
    def from_keywords(cls, values: Mapping[str, Any]) -> Self:
        """The same, named by the keywords in messages; a part may be given as an object too (suffix_sampler=...)."""
        entries = {entry.name: entry for entry in cls.choices()}
        unknown = sorted(values.keys() - entries.keys() - {part.field for part in PARTS})
        if unknown:
            labels = [entry.label for entry in entries.values()]
            raise ValueError(f"{', '.join(unknown)}: not a setting of {cls.family}, which has {', '.join(labels)}"
                             f"{suggest(unknown[0], labels)}")
        own = {entry.name for entry in settings_of(cls)}
        gen_length = entries["gen_length"].check(values.get("gen_length", entries["gen_length"].default))
        values = dict(values) | {"gen_length": gen_length}
        taken: set[str] = set()
        parts = {}
        for part in PARTS:
            if part.field in values and part.is_object(values[part.field]):
                parts[part.field] = values.pop(part.field)
                if part.selector.name in values:
                    raise ValueError(f"{part.selector.name} is {values[part.selector.name]!r} while {part.field} is "
                                     f"given; give one of the two")
                continue
            applicable = part.defaults(values).keys()
            names = [name for name in part.settings if name in values and (name not in own or name in applicable)]
            taken.update(names)
            chosen = {name: values[name] for name in names if not (name in own and values[name] is None)}
            parts[part.field] = part.make(values, chosen)
        fields = {name: values[name] for name in own if name in values and name not in taken}
        foreign = values.keys() - own - taken - {part.selector.name for part in PARTS}
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))}: not beside an object that brings its own; give the name "
                             "of its kind in its place, or leave this out")
        settings = cls(**fields, **parts)
        if settings.parallel and values.get("steps") is not None:
            raise ValueError(f"steps is {values['steps']}, but a threshold, factor or rule decides how many steps "
                             "there are; leave one out")
        return settings

    def as_choices(self) -> dict[str, Any]:
        """The inverse of `from_choices`: every setting that applies, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in settings_of(type(self))}
        for part in PARTS:
            value = getattr(self, part.field)
            values |= part.as_choices(value)
        return values

    def to_json(self) -> dict[str, Any]:
        """What records keep: every field, the steps filled in, and the parts by name (None for the whole suffix).

        What came later than the first records (an `alg`, a `refresh`, a rule, a soft suffix, the Gaussian's `last`) is
        left out where it is off, so that the same settings have the same record as before.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["steps"] = self.total_steps
        for part in PARTS:
            value = values[part.field]
            name = part.name_of(value)
            parameters = {key: entry for key, entry in _parameters(value).items()
                          if key != "last" or entry or type(value).last}
            values[part.field] = None if name == part.selector.default else {"name": name} | parameters
        if self.soft_suffix is not None:
            values["soft_suffix"] = _parameters(self.soft_suffix)
        if self.refresh == "always":
            values["refresh"] = None
        return {name: value for name, value in values.items()
                if value is not None or name not in ("alg", "refresh", "rule", "soft_suffix")}


def _parameters(value: Any) -> dict[str, Any]:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else {}


# --- Token ids --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenIds:
    """The special tokens that decoding needs. end_of_turn: ends a turn of the chat template, where a model has it."""

    mask: int
    eos: int
    end_of_turn: int | None = None

    @classmethod
    def of(cls, model: Any, mask_id: int | None = None, eos_id: int | None = None) -> TokenIds:
        """The ids in a model's configuration, or others in their place.

        Raises:
            ValueError: an id is outside of the model's vocabulary, or the two are equal.
        """
        config = model.config
        mask = config.mask_token_id if mask_id is None else mask_id
        eos = config.eos_token_id if eos_id is None else eos_id
        for name, token in (("mask_id", mask), ("eos_id", eos)):
            check_integer(name, token, 0, model.vocabulary_size - 1)
        if mask == eos:
            raise ValueError(f"mask_id is {mask}; it must differ from eos_id")
        return cls(mask, eos, getattr(config, "eot_id", None))
