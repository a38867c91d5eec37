"""The named ways of decoding that the paper compares: Vanilla, +DPad, +Parallel+DPad, ... and what each of them is.

The demo, the benchmark, the web UI, the tables and the charts take names, settings and colours from this one table.

    python -m dpad.engine.configurations          # prints the table
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpad.engine.settings import BLOCK_LENGTH
from sampler import WINDOW

# The Gaussian sampler's k and a (--k_sigma, --scale) wherever the choice is ours: examples, benchmark, demo and web UI.
# The paper has them for every model but LLaDA-8B-Instruct, whose values are the defaults of the published flags.
DPAD: dict[str, Any] = {"k_sigma": 3.0, "scale": 1.6}
DPAD_INSTRUCT: dict[str, Any] = {"k_sigma": 4.0, "scale": 2.0}
THRESHOLD = 0.9  # +Parallel unmasks all tokens that are at least this confident
LONG_ANSWER = 1024  # from this length on the paper has its long-sequence figure instead of its main tables


@dataclass(frozen=True)
class Configuration:
    """A way of decoding.

    Attributes:
        dpad: suffix dropout: a block sees only some of the suffix positions.
        parallel: a forward unmasks every token above a confidence threshold instead of one.
        cache: which keys and values are reused: "none", "prefix" or "dual".
        early_termination: decoding stops after the block in which the answer ends.
    """

    dpad: bool = False
    parallel: bool = False
    cache: str = "none"
    early_termination: bool = False

    @property
    def name(self) -> str:
        """As in the paper. DPad includes early termination there, so that only names without DPad mention it."""
        parts = {
            "+Parallel": self.parallel,
            f"+{self.cache.capitalize()}Cache": self.cache != "none",
            "+DPad": self.dpad,
        }
        name = "".join(part for part, applies in parts.items() if applies) or "Vanilla"
        return name + "+EarlyTermination" * (self.early_termination and not self.dpad)

    @property
    def help(self) -> str:
        """What the configuration does, in a few words."""
        parts = ["tokens above the threshold at once" if self.parallel else "one token per forward"]
        if self.cache != "none":
            parts.append(f"{self.cache} cache")
        parts.append("suffix dropout" if self.dpad else "whole suffix")
        if self.early_termination:
            parts.append("early termination")
        return ", ".join(parts)

    @property
    def is_baseline(self) -> bool:
        """Whether this is vanilla decoding, which speedups compare with."""
        return self == VANILLA

    def choices(
        self, gen_length: int, *, k_sigma: float = DPAD["k_sigma"], scale: float = DPAD["scale"], window: int = WINDOW,
        threshold: float = THRESHOLD,
    ) -> dict[str, Any]:
        """The configuration's settings, as `DecodingSettings.from_choices` takes them.

        Args:
            gen_length: tokens of the answer, a multiple of BLOCK_LENGTH; a longer window is cut to it.
            k_sigma, scale, window: of the Gaussian sampler, where the configuration has DPad.
            threshold: the confidence from which on tokens are unmasked, where the configuration is parallel.
        """
        choices: dict[str, Any] = {
            "gen_length": gen_length,
            "block_length": BLOCK_LENGTH,
            "cache": self.cache,
            "early_termination": self.early_termination,
        }
        if self.parallel:
            choices["threshold"] = threshold
        if self.dpad:
            choices |= {
                "dropout_strategy": "gaussian",
                "window": min(window, gen_length),
                "k_sigma": k_sigma,
                "scale": scale,
            }
        return choices


VANILLA = Configuration()

CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        VANILLA,
        Configuration(early_termination=True),
        Configuration(dpad=True, early_termination=True),
        Configuration(parallel=True),
        Configuration(parallel=True, dpad=True, early_termination=True),
        Configuration(parallel=True, cache="prefix"),
        Configuration(parallel=True, cache="prefix", dpad=True, early_termination=True),
        # Not in the paper: caches without parallel decoding, to see what each does to the same forwards.
        Configuration(cache="prefix"),
        Configuration(cache="dual"),
        Configuration(cache="prefix", dpad=True, early_termination=True),
        Configuration(cache="dual", dpad=True, early_termination=True),
    )
}

LONG_SEQUENCES = ("Vanilla", "Vanilla+EarlyTermination", "+DPad", "+Parallel", "+Parallel+DPad",
                  "+Parallel+PrefixCache", "+Parallel+PrefixCache+DPad")
PAPER_TABLE = tuple(name for name in LONG_SEQUENCES if name != "Vanilla+EarlyTermination")
CACHES = ("Vanilla", "+PrefixCache", "+DualCache", "+DPad", "+PrefixCache+DPad", "+DualCache+DPad")


def names_for(gen_length: int) -> tuple[str, ...]:
    """The configurations that the paper shows for answers of this length."""
    return LONG_SEQUENCES if gen_length >= LONG_ANSWER else PAPER_TABLE


def dpad_parameters(model: str) -> dict[str, Any]:
    """The sampler's `k_sigma` and `scale` for a model.

    Args:
        model: a short name such as "instruct", a checkpoint folder or a hub id.
    """
    return dict(DPAD_INSTRUCT if "instruct" in Path(model).name.lower() else DPAD)


def classify(settings: Mapping) -> Configuration:
    """What a record's settings are, whatever its name; the result need not be one of CONFIGURATIONS.

    Args:
        settings: the `settings` of an evaluation's record, or a row of a benchmark's record, which says in `dpad`,
            `cache`, `parallel` and `stops` what it is.
    """
    if "dpad" in settings:
        return Configuration(settings["dpad"], settings["parallel"], settings["cache"], settings["stops"])

    return Configuration(
        dpad=settings.get("suffix_sampler") is not None,
        parallel=any(settings.get(name) is not None for name in ("threshold", "factor", "rule")),
        cache=settings.get("cache") or "none",
        early_termination=bool(settings.get("early_termination")),
    )


if __name__ == "__main__":
    for name, configuration in CONFIGURATIONS.items():
        print(f"{name:28}{configuration.help}")
