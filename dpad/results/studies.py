"""The study of training with suffix dropout: accuracy over all seeds, differences between models, and their table.

    python run.py table results/study/records

A record (benchmarks/training/study.py writes it) is of one model, trained in one way with one seed. It has a row for
each task and way of decoding, and a row says which answers were right. All models with the same seed answer the same
problems, so the difference between two of them is taken problem by problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dpad.results.evaluations import Z95, share_interval
from dpad.results.formatting import Table, join_unique, number
from dpad.results.records import commit_of, hardware_line

ARMS = {  # by name, in the order of tables and charts
    "base": "not trained further",
    "full": "trained with the full suffix",
    "dropout": "trained with suffix dropout",
    "none": "trained without a suffix",
}
COMPARED = ("dropout", "full")  # tables have the difference: the first minus the second
Rows = dict[int, dict[str, Any]]  # by seed, the rows of one arm, task and way of decoding


class Place(NamedTuple):
    """What rows have in common that are pooled or compared. conditions: see `conditions_of`."""

    task: str
    decoding: str
    conditions: str


class Difference(NamedTuple):
    """A share of right answers minus another one on the same problems, and its 95 % interval, all in points."""

    points: float
    low: float
    high: float


def pool(records: Sequence[dict]) -> dict[Place, dict[str, Rows]]:
    """The rows of all seeds by place and by arm; the arms in the order of ARMS, others behind them.

    Raises:
        ValueError: two records have the same row.
    """
    order = [*ARMS, *(record["arm"] for record in records)]
    places: dict[Place, dict[str, Rows]] = {}
    for record in sorted(records, key=lambda record: order.index(record["arm"])):
        for row in record["rows"]:
            by_arm = places.setdefault(Place(row["task"], row["decoding"], conditions_of(record)), {})
            by_seed = by_arm.setdefault(record["arm"], {})
            if record["seed"] in by_seed:
                raise ValueError(f"two records of a study have arm {record['arm']}, seed {record['seed']} and task "
                                 f"{row['task']}; name the records of one study instead of a folder that holds several")
            by_seed[record["seed"]] = row
    return places


def conditions_of(record: dict) -> str:
    """What must agree before rows are pooled or compared: the number of problems, the steps and the dtype."""
    settings = record["settings"]
    threshold = settings.get("threshold")
    steps = "one token a step" if threshold is None else f"threshold {threshold:g}"
    return f"{settings['problems']} problems a seed, {steps}, {settings['dtype']}"


# --- Statistics -------------------------------------------------------------------------------------------------------


def share(rows: Iterable[dict]) -> float:
    """The share of right answers over all rows, in percent."""
    answers = "".join(row["right"] for row in rows)
    return 100 * answers.count("1") / len(answers)


def interval(rows: Iterable[dict]) -> tuple[float, float]:
    """Its 95 % interval, in percent, over all problems of all rows (Wilson 1927); each seed has its own problems."""
    rows = list(rows)
    return share_interval(share(rows) / 100, sum(len(row["right"]) for row in rows))


def compare(first: Rows, second: Rows) -> Difference | None:
    """The difference between two arms over the problems of all seeds that both have; None where there is none."""
    pairs = [
        pair for seed in first if seed in second
        for pair in zip(first[seed]["right"], second[seed]["right"], strict=True)
    ]
    return paired_difference(pairs.count(("1", "0")), pairs.count(("0", "1")), len(pairs)) if pairs else None


def paired_difference(gained: int, lost: int, count: int) -> Difference:
    """The difference of two shares of `count` problems, of which the first alone has `gained` right, the second `lost`.

    The interval counts one more problem of either kind (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479), so that
    it is sensible also where there are few.
    """
    more = (gained + 1) / (count + 2)
    less = (lost + 1) / (count + 2)
    reach = Z95 * math.sqrt((more + less - (more - less) ** 2) / (count + 2))
    bounds = max(-1.0, more - less - reach), min(1.0, more - less + reach)
    return Difference(100 * (gained - lost) / count, 100 * bounds[0], 100 * bounds[1])


# --- Table ------------------------------------------------------------------------------------------------------------


def study_table(records: Sequence[dict]) -> Table:
    """For each task and way of decoding: the suffix that an answer's first block keeps, the slots computed on average
    over the arms, the accuracy of each arm, and the difference between the COMPARED ones, in all and by seed."""
    places = pool(records)
    arms = list(dict.fromkeys(arm for by_arm in places.values() for arm in by_arm))
    several = len({place.conditions for place in places}) > 1
    headings = ["task", "decoded with", *["conditions"] * several, "first block keeps", "slots per answer",
                *(f"{arm} (%)" for arm in arms), " − ".join(COMPARED), "by seed"]
    cells = []
    for place, by_arm in places.items():
        rows = [row for by_seed in by_arm.values() for row in by_seed.values()]
        slots = sum(row["tokens_processed"] for row in rows) / sum(len(row["right"]) for row in rows)
        cells.append([
            place.task, place.decoding, *[place.conditions] * several,
            number(rows[0]["expected_suffix"], 0), number(slots, 0),
            *(_accuracy_text(by_arm.get(arm, {})) for arm in arms), *_difference_texts(by_arm),
        ])
    return Table(headings, cells)


def _accuracy_text(rows: Rows) -> str:
    """97.3 [96.4, 98.1]"""
    if not rows:
        return number(None)
    low, high = interval(rows.values())
    return f"{share(rows.values()):.1f} [{low:.1f}, {high:.1f}]"


def _difference_texts(by_arm: Mapping[str, Rows]) -> list[str]:
    """+0.3 [−0.5, +1.1], and the points of each seed."""
    first, second = (by_arm.get(arm, {}) for arm in COMPARED)
    difference = compare(first, second)
    if difference is None:
        return [number(None)] * 2
    by_seed = (compare({seed: first[seed]}, second) for seed in sorted(first) if seed in second)
    points, low, high = map(_signed, difference)
    return [f"{points} [{low}, {high}]", ", ".join(_signed(entry.points) for entry in by_seed if entry)]


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def study_caption(records: Sequence[dict]) -> str:
    """What the columns are, and with what they were measured."""
    arms = [f"{arm}: {meaning}" for arm, meaning in ARMS.items() if any(record["arm"] == arm for record in records)]
    settings = [(record.get("training") or {}).get("settings") or {} for record in records if record["arm"] != "base"]
    trained = {f"Trained for {entry['steps']} steps of {entry['batch_size']} examples. " for entry in settings
               if entry.get("steps") and entry.get("batch_size")}
    seeds = len({record["seed"] for record in records})
    return (
        f"First block keeps: the suffix tokens that an answer's first block sees, on average over draws. Slots: "
        f"computed by all forwards, on average over the models. Right answers in percent, with 95 % intervals over all "
        f"seeds (Wilson); {', '.join(arms)}. {' − '.join(COMPARED)}: the difference on the same problems in points, "
        f"with its 95 % interval (Bonett and Price), and by seed. {''.join(sorted(trained))}{seeds} "
        f"seed{'s' * (seeds != 1)}, {join_unique(map(conditions_of, records))}, "
        f"{join_unique(map(hardware_line, records))}, commit {join_unique(map(commit_of, records))}."
    )
