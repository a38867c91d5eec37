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
from sampler import SAMPLERS, WINDOW, FullSuffix, SuffixSampler, UniformSampler

CACHE_MODES = ("none", "prefix", "dual")
ALIASES = {"random": "uniform"}  # an old name, which the authors' scripts use
STRATEGY = Setting(
    name="dropout_strategy", kind=str, default="null", flags=("-d", "--dropout_strategy"),
    choices=(*SAMPLERS, *ALIASES),
    help="the suffix that a block sees: null (all of it), gaussian (DPad), uniform, window, or block (none of it, as "
    "in block diffusion); random is an old name of uniform",
)
SAMPLER_SETTINGS = {entry.name: entry for sampler in SAMPLERS.values() for entry in settings_of(sampler)}


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """The settings that all models share; a family's subclass adds its own.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    family: ClassVar[str] = "any family"  # of the subclass, as people call it

    gen_length: int = setting(256, "length of the answer", flags=("-l", "--gen_length"), minimum=1, unit="tokens")
    block_length: int = setting(32, "length of a block, which must divide the answer's length",
                                flags=("-b", "--block_size"), minimum=1, unit="tokens")
    steps: int | None = setting(None, "forwards in all, without a threshold (default: one per token)", minimum=1)
    threshold: float | None = setting(None, "parallel decoding: decode every token that is at least this confident; "
                                      "0: a fixed number of tokens per step", flags=("-th", "--threshold"), minimum=0,
                                      maximum=1, off=0)
    temperature: float = setting(0.0, "0 takes the likeliest token; higher values draw", minimum=0)
    cache: str = setting("none", "which slots a step recomputes: none (all of them), prefix (block and suffix) or dual "
                         "(the block)", choices=CACHE_MODES,
                         shortcuts={"prefix": ("-c", "--use_cache"), "dual": ("-dc", "--dual_cache")})
    suffix_sampler: SuffixSampler | None = None
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
        if self.suffix_sampler is None:
            object.__setattr__(self, "suffix_sampler", FullSuffix())
        if not isinstance(self.suffix_sampler, SuffixSampler):
            raise ValueError(f"suffix_sampler is {self.suffix_sampler!r}; it must be a SuffixSampler (sampler.py) or "
                             "None for the whole suffix")
        self.suffix_sampler.check(self.gen_length)

    @property
    def parallel(self) -> bool:
        """Whether the confidences decide how many tokens a step decodes."""
        return self.threshold is not None

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
        """All settings of the family in order; those of the samplers stand in for `suffix_sampler`."""
        return (*settings_of(cls), STRATEGY, *SAMPLER_SETTINGS.values())

    @classmethod
    def from_choices(cls, values: Mapping[str, Any]) -> Self:
        """The settings that a person chose, by the names of `choices`; the others take their defaults.

        Without a window it is the sampler's default, or `gen_length` where that is shorter.

        Raises:
            ValueError: naming the setting as its flag does, its value and what is allowed; or that the family or the
                dropout strategy has no such setting.
        """
        entries = {entry.name: entry for entry in cls.choices()}
        unknown = sorted(values.keys() - entries.keys())
        if unknown:
            labels = [entry.label for entry in entries.values()]
            raise ValueError(f"{', '.join(unknown)}: not a setting of {cls.family}, which has {', '.join(labels)}"
                             f"{suggest(unknown[0], labels)}")
        fields = {entry.name: values[entry.name] for entry in settings_of(cls) if entry.name in values}
        try:
            gen_length = entries["gen_length"].check(fields.get("gen_length", entries["gen_length"].default))
            settings = cls(**fields, suffix_sampler=make_sampler(values, gen_length))
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            raise ValueError(f"{entries[name].label if name in entries else name} {rest}") from None
        if settings.parallel and values.get("steps") is not None:
            raise ValueError(f"steps is {values['steps']}, but a threshold or factor decides how many steps there are; "
                             "leave one out")
        return settings

    def as_choices(self) -> dict[str, Any]:
        """The inverse of `from_choices`: every setting that applies, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in settings_of(type(self))}
        return values | {"dropout_strategy": sampler_name(self.suffix_sampler)} | _parameters(self.suffix_sampler)

    def to_json(self) -> dict[str, Any]:
        """What records keep: every field, the steps filled in, and the sampler by name (None for the whole suffix)."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["steps"] = self.total_steps
        sampler = values["suffix_sampler"]
        full = isinstance(sampler, FullSuffix)
        values["suffix_sampler"] = None if full else {"name": sampler_name(sampler)} | _parameters(sampler)
        return values


def sampler_name(sampler: SuffixSampler | None) -> str:
    """What --dropout_strategy calls a sampler; the class's name where it has none there."""
    for name, kind in SAMPLERS.items():
        if type(sampler) is kind:
            return name
    return type(sampler).__name__


def _parameters(sampler: SuffixSampler | None) -> dict[str, Any]:
    return dataclasses.asdict(sampler) if dataclasses.is_dataclass(sampler) else {}


def default_parameters(strategy: str, gen_length: int = WINDOW) -> dict[str, Any]:
    """The parameters of a dropout strategy, by name, as they are when nobody chooses them."""
    STRATEGY.check(strategy)
    cls = SAMPLERS[ALIASES.get(strategy, strategy)]
    defaults = {entry.name: entry.default for entry in settings_of(cls)}
    if "window" in defaults:
        defaults["window"] = min(defaults["window"], gen_length)
    return defaults


def make_sampler(values: Mapping[str, Any], gen_length: int) -> SuffixSampler:
    """The sampler that a person chose: `dropout_strategy` and its parameters, by name, for answers of `gen_length`.

    Raises:
        ValueError: a parameter is not one of the strategy's, or its value is not allowed.
    """
    strategy = values.get(STRATEGY.name, STRATEGY.default)
    parameters = default_parameters(strategy, gen_length)
    chosen = {name: values[name] for name in SAMPLER_SETTINGS if name in values}
    for name, value in chosen.items():
        if name not in parameters:
            names = ", ".join(SAMPLER_SETTINGS[own].label for own in parameters) or "no settings of its own"
            raise ValueError(f"{name} is {value!r}, but dropout_strategy {strategy} does not use it; it has {names}")
    sampler = SAMPLERS[ALIASES.get(strategy, strategy)](**parameters | chosen)
    if isinstance(sampler, UniformSampler) and sampler.number == 0:  # the published default, which nobody means
        raise ValueError(f"number is 0, so that dropout_strategy {strategy} would keep no suffix at all; say with -nt "
                         "how many tokens to keep")
    return sampler


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
