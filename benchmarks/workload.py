"""What the benchmark decodes: the rows of its tables, and the workload that all of them share.

    rows = choose_rows("caches", ["Vanilla", "+DPad"])
    work = Workload(prompt_length=128, gen_length=256, steps_per_block=4)

Imported by bench.py and measurement.py. Needs no torch, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dpad.engine.checks import check_choice, check_integer
from dpad.engine.configurations import CACHES, CONFIGURATIONS, DPAD, LONG_SEQUENCES, Configuration
from dpad.engine.fields import check_settings, setting
from sampler import WINDOW, GaussianSampler

# The tables, by the value of --rows. In "caches" every row makes the same forwards, several tokens each and to the end
# of the answer, so that it shows what suffix dropout and the caches do to them. "figure" is the paper's figure for long
# sequences.
ROWS = {
    "caches": {
        name: dataclasses.replace(CONFIGURATIONS[name], parallel=True, early_termination=False) for name in CACHES
    },
    "figure": {name: CONFIGURATIONS[name] for name in LONG_SEQUENCES},
}


def choose_rows(table: str, names: Sequence[str] | None = None) -> dict[str, Configuration]:
    """The rows of a table of ROWS, or those of these names, in this order.

    Raises:
        ValueError: the table has no row of such a name, or one is named twice.
    """
    rows = ROWS[table]
    if names is None:
        return rows
    for name in names:
        check_choice("row", name, rows)
    if len(set(names)) < len(names):
        raise ValueError(f"row is {','.join(names)!r}; it must be different rows")
    return {name: rows[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every row decodes; checks itself. Rows without parallel decoding make one forward a token.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    prompt_length: int = setting(128, "length of the prompt", minimum=1, unit="tokens")
    gen_length: int = setting(256, "length of the answer", flags=("-l", "--gen_length"), minimum=1, unit="tokens")
    block_length: int = setting(32, "length of a block", flags=("-b", "--block_size", "--block_length"), minimum=1,
                              unit="tokens")
    steps_per_block: int = setting(4, "forwards in a block", minimum=1)
    threshold: float | None = setting(None, "instead of a fixed number of forwards, as many as the confidences need",
                                      flags=("-th", "--threshold"), above=0, maximum=1)
    batch_size: int = 1
    blocks: int | None = setting(None, "rows with early termination end after this many blocks", minimum=1)
    window: int | None = setting(None, f"DPad's window (default: {WINDOW}, or --gen_length where that is shorter)",
                                 flags=("-w", "--window"))
    k_sigma: float = setting(DPAD["k_sigma"], "DPad's k", flags=("-k", "--k_sigma"))
    scale: float = setting(DPAD["scale"], "DPad's scale", flags=("-sc", "--scale"))
    seed: int = setting(1234, "seed of prompts and draws", minimum=0)

    def __post_init__(self) -> None:
        check_settings(self)
        check_integer("batch_size", self.batch_size, 1)
        if self.gen_length % self.block_length:
            raise ValueError(f"block_length is {self.block_length}; it must divide gen_length ({self.gen_length})")
        if self.steps_per_block > self.block_length:
            raise ValueError(f"steps_per_block is {self.steps_per_block}; it must be at most one a token "
                             f"({self.block_length})")
        if self.blocks is not None and self.blocks > self.gen_length // self.block_length:
            raise ValueError(f"blocks is {self.blocks}; an answer of {self.gen_length} tokens has only "
                             f"{self.gen_length // self.block_length}")
        self.sampler.check(self.gen_length)

    @property
    def sampler(self) -> GaussianSampler:
        """The suffix sampler of the rows with DPad."""
        window = min(WINDOW, self.gen_length) if self.window is None else self.window
        return GaussianSampler(window, self.k_sigma, self.scale)

    def to_json(self) -> dict:
        """What records keep."""
        fields = dataclasses.asdict(self)
        for name in ("window", "k_sigma", "scale"):
            del fields[name]
        return fields | {"sampler": {"name": type(self.sampler).__name__} | dataclasses.asdict(self.sampler)}
