"""How a model is trained: one frozen object from the command line to the loop, which checks itself.

    settings = TrainingSettings(gen_lengths=Mixture((128, 256), (0.3, 0.7)), steps=500)

A setting is written here once; flags and logs are derived from it (dpad/engine/fields.py). The flags of the suffix are
decoding's own, and each takes a mixture of values. Imported by command.py: python run.py train --help
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dpad.engine.checks import check_number, short
from dpad.engine.fields import Setting, check_settings, setting, settings_of
from dpad.engine.settings import SAMPLER
from sampler import SAMPLERS, ScoredSampler, SuffixSampler, UniformSampler

OBJECTIVES = ("blockwise", "full")
STRATEGY = SAMPLER.selector
# The parameters of samplers that choose before a forward; the others need the attention of one.
SUFFIX_SETTINGS: dict[str, Setting] = {}
for _sampler in SAMPLERS.values():
    if not issubclass(_sampler, ScoredSampler):
        SUFFIX_SETTINGS |= {entry.name: entry for entry in settings_of(_sampler) if entry.name not in SUFFIX_SETTINGS}
PRECISIONS = ("bfloat16", "float32")
OPTIMIZERS = ("adamw", "muon")
Value = TypeVar("Value", int, float, str)


@dataclass(frozen=True)
class Mixture(Generic[Value]):
    """Values of a setting that samples draw from, and the share of the samples that get each.

    Raises:
        ValueError: there is no value, one is there twice, or a share is not a positive number.
    """

    values: tuple[Value, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shares:
            object.__setattr__(self, "shares", (1.0,) * len(self.values))
        if not self.values or len(self.shares) != len(self.values) or len(set(self.values)) < len(self.values):
            raise ValueError(f"{self.values} with shares {self.shares}; it must be different values, each with a share")
        for share in self.shares:
            check_number("share", share, above=0)

    @classmethod
    def parse(cls, entry: Setting, text: str) -> Mixture:
        """What a person typed: `64,128,256`, or with shares `128:0.3,256:0.7`.

        Raises:
            ValueError: naming the flag, what was typed and what is allowed.
        """
        values: list[Any] = []
        shares: list[float] = []
        for part in text.split(","):
            value, colon, share = part.strip().partition(":")
            values.append(entry.parse(value))
            try:
                shares.append(float(share) if colon else 1.0)
            except ValueError:
                shares.append(math.nan)
        try:
            return cls(tuple(values), tuple(shares))
        except ValueError:
            raise ValueError(f"{entry.label} is {short(text)}; it must be different values separated by commas, such "
                             "as 64,128, or with shares above 0, such as 64:0.3,128:0.7") from None

    def draw(self, rng: random.Random, allowed: Callable[[Value], bool] = lambda value: True) -> Value:
        """One of the values that are allowed, which keep their shares among themselves."""
        pairs = [(value, share) for value, share in zip(self.values, self.shares) if allowed(value)]
        return rng.choices([value for value, _ in pairs], [share for _, share in pairs])[0]

    def __str__(self) -> str:
        if len(set(self.shares)) == 1:
            return ",".join(map(str, self.values))
        return ",".join(f"{value}:{share:g}" for value, share in zip(self.values, self.shares))


@dataclass(frozen=True)
class SuffixMixture:
    """The suffix samplers that training draws from: strategies, and values of their parameters.

    parameters: by the names that decoding has for them (window, k_sigma, scale, number); those that are left out have
    decoding's defaults. A window is cut to the canvas, as decoding's default is.

    Raises:
        ValueError: none of the strategies has such a parameter, or a value is not allowed.
    """

    strategies: Mixture[str] = Mixture(("null",))
    parameters: Mapping[str, Mixture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {strategy: SAMPLER.kind({STRATEGY.name: strategy}) for strategy in self.strategies.values}
        for strategy, kind in kinds.items():
            if kind is not None and issubclass(kind, ScoredSampler):
                raise ValueError(f"{STRATEGY.label} is {strategy}, which chooses by the attention of a forward; "
                                 "training takes the strategies that choose before it")
        own = {name for strategy in kinds for name in SAMPLER.defaults({STRATEGY.name: strategy})}
        for name, mixture in self.parameters.items():
            label = SUFFIX_SETTINGS[name].label
            if name not in own:
                has = ", ".join(sorted(SUFFIX_SETTINGS[key].label for key in own)) or "no settings of its own"
                raise ValueError(f"{label} is {mixture}, but {STRATEGY.label} {self.strategies} does not use it; it "
                                 f"has {has}")
        if UniformSampler in kinds.values():
            for number in self.parameters["number"].values if "number" in self.parameters else (0,):
                SAMPLER.make({STRATEGY.name: "uniform"}, {"number": number})

    def draw(self, rng: random.Random, gen_length: int, block_length: int) -> SuffixSampler:
        """One sampler for an answer of `gen_length` tokens in blocks of `block_length`."""
        values = {STRATEGY.name: self.strategies.draw(rng), "gen_length": gen_length, "block_length": block_length}
        chosen = {name: self.parameters[name].draw(rng) for name in SAMPLER.defaults(values) if name in self.parameters}
        if "window" in chosen:
            chosen["window"] = min(chosen["window"], gen_length)
        return SAMPLER.make(values, chosen)

    def to_json(self) -> dict[str, str]:
        """What logs keep: what a person would have typed, by name."""
        return {STRATEGY.name: str(self.strategies)} | {name: str(value) for name, value in self.parameters.items()}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a training run.

    gen_lengths: canvas lengths, in tokens, that the answers are padded to with EOS. block_lengths: in tokens; each must
    divide every canvas. suffix: what a block sees behind it. (The latter two: objective "blockwise".)

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    objective: str = setting("blockwise", "what a sample shows and scores: blockwise (prompt, clean prefix, one masked "
                             "block, its suffix; loss over the block) or full (LLaDA's own: the whole canvas masked at "
                             "random)", choices=OBJECTIVES)
    lora: int | None = setting(None, "train a LoRA adapter of this rank instead of all weights", minimum=1)
    lora_alpha: float | None = setting(None, "LoRA's alpha (default: twice the rank)", above=0)
    lora_dropout: float = setting(0.0, "LoRA's dropout", minimum=0, maximum=1)
    steps: int = setting(500, "optimizer steps", minimum=1)
    batch_size: int = setting(32, "examples of one optimizer step, over all processes", minimum=1)
    microbatch_tokens: int = setting(8192, "the most tokens of one forward; a step's gradients are accumulated over as "
                                     "many as it takes", minimum=1)
    rate: float = setting(2e-5, "peak learning rate", above=0)
    warmup: float = setting(0.05, "share of the steps in which the rate rises to its peak", minimum=0, maximum=1)
    decay: float = setting(0.4, "share of the steps, at the end, in which it falls to a fiftieth", minimum=0, maximum=1)
    weight_decay: float = setting(0.0, "AdamW's weight decay", minimum=0)
    clip: float = setting(1.0, "largest norm of a step's gradient", above=0)
    noise_min: float = setting(0.001, "least share of masked tokens: a sample's share is drawn evenly from here",
                               above=0, maximum=1)
    noise_max: float = setting(1.0, "largest share of masked tokens", above=0, maximum=1)
    eos_weight: float = setting(1.0, "weight in the loss of the EOS padding behind an answer's first EOS", minimum=0,
                                maximum=1)
    precision: str = setting("bfloat16", "type that forwards compute in; weights in training are float32",
                             choices=PRECISIONS)
    gradient_checkpointing: bool = setting(False, "recompute layers in the backward pass, for less memory")
    optimizer: str = setting("adamw", "adamw, or muon for the layers' matrices (and adamw for the rest)",
                             choices=OPTIMIZERS)
    seed: int = setting(1234, "seed of the order of the examples and of noise", minimum=0)
    held_out: int = setting(128, "examples that are kept out of training, to measure the loss on; at most a tenth of a "
                          "file", minimum=0)
    log_every: int = setting(10, "steps between lines of the log", minimum=1)
    eval_every: int = setting(100, "steps between measurements on the held-out examples and on --eval_task", minimum=1)
    save_every: int = setting(100, "steps between saved states", minimum=1)
    gen_lengths: Mixture[int] = Mixture((256,))
    block_lengths: Mixture[int] = Mixture((32,))
    suffix: SuffixMixture = SuffixMixture()

    def __post_init__(self) -> None:
        check_settings(self)
        for length in self.gen_lengths.values:
            for block_length in self.block_lengths.values if self.objective == "blockwise" else ():
                if length % block_length:
                    raise ValueError(f"block_length is {block_length}; it must divide every gen_length ({length})")
        if self.noise_max < self.noise_min:
            raise ValueError(f"noise_max is {self.noise_max:g}; it must be at least noise_min ({self.noise_min:g})")
        if self.objective == "full" and self.suffix != SuffixMixture():
            raise ValueError(f"{STRATEGY.label} is {self.suffix.strategies}, but objective full shows the whole "
                             "canvas; use objective blockwise, or leave it out")
        if self.lora is None and (self.lora_alpha is not None or self.lora_dropout):
            name = "lora_dropout" if self.lora_alpha is None else "lora_alpha"
            raise ValueError(f"{name} is {getattr(self, name):g}, but no adapter is trained without lora")
        if self.lora is not None and self.optimizer == "muon":
            raise ValueError("optimizer is 'muon', which trains the layers' matrices; with lora it must be adamw")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 0: it rises, stays, and falls to a fiftieth."""
        rising = (step + 1) / max(1, round(self.warmup * self.steps))
        falling = (self.steps - step) / max(1e-9, self.decay * self.steps)
        return self.rate * min(1.0, rising, max(0.02, falling))

    def to_json(self) -> dict[str, Any]:
        """What logs and states keep: every field, mixtures as a person types them."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return values | {"gen_lengths": str(self.gen_lengths), "block_lengths": str(self.block_lengths),
                         "suffix": self.suffix.to_json()}
