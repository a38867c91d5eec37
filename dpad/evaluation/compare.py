"""A comparison: ways of decoding beside each other, with one model on one task, in one process.

    python run.py compare -m tiny -t arithmetic-50 --methods dpad,streaming,ssm -th 0.9     # calls `compare` below

Each method is evaluated by runs.py, one that draws once for each seed, so that every answer is in a journal as soon as
it is finished: `<output>/runs` has a run's folder for each. What comes out is in a folder of its own:

    comparison.json       the record, for `run.py table`
    table.md, table.csv   the table
    pareto.png, .svg      accuracy against milliseconds per answer token, and against slots
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dpad.engine.checks import check_integer, suggest
from dpad.engine.command_line import Parser
from dpad.engine.fields import Setting, add_flags, read_flags, settings_of
from dpad.engine.methods import BASELINES, METHODS, combine
from dpad.engine.settings import DecodingSettings, part_defaults
from dpad.evaluation.identity import code_version, fingerprint
from dpad.evaluation.journal import digest
from dpad.evaluation.processes import ALONE, Processes
from dpad.results import charts, comparisons, files, records, tables

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel

DEFAULT = ("vanilla", "vanilla-stop", "dpad", "parallel", "dpad-parallel", "streaming", "ssm-hard", "ssm")
ALL = "all"
NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,39}")
PICTURES = ("pareto.png", "pareto.svg")
FILES = ("comparison.json", "table.md", "table.csv", *PICTURES)
NUMBERS = (  # of a run's record, that a comparison keeps
    "samples", "latency_s", "latency_median_s", "tps", "ms_per_token", "nfe", "slots", "answer_length", "kept_suffix",
    "answer_tokens", "seconds", "tokens_processed", "empty_answers", "reused", "metrics",
)


@dataclass(frozen=True)
class Entry:
    """A way of decoding in a comparison.

    name: what the table calls it. help, source: of a published method; "" for one's own. settings: with the first seed.
    """

    name: str
    help: str
    source: str
    settings: DecodingSettings

    @property
    def draws(self) -> bool:
        """Whether another seed can give other answers."""
        return self.settings.is_random


# --- Which methods ----------------------------------------------------------------------------------------------------


def read_methods(
    texts: Sequence[str], shared: Mapping[str, Any], family: type[DecodingSettings], model: str,
    flags: Sequence[Setting], note: Callable[[str], None],
) -> list[Entry]:
    """The methods that a person asked for, vanilla decoding without and with early termination before them.

    Args:
        texts: each with names of METHODS and `name=flags`, commas between them; `all` stands for all that the model can
            do. Without any it is DEFAULT. With the name of a published method, the flags change that method.
        shared: choices for all methods, see `methods.combine`.
        flags: what may stand behind `name=`.
        note: called with a sentence about what the model cannot do, where nobody asked for it by name.

    Raises:
        ValueError: there is no such method, two have one name, flags cannot be used, or no method uses a shared one.
    """
    words = [word.strip() for text in texts for word in text.split(",")]
    asked = [*BASELINES, *(word for word in words or DEFAULT if word not in (*BASELINES, ALL))]
    named = {word.partition("=")[0] for word in asked}
    left_out = set(DEFAULT) if not words else set()  # nobody asked for them by name
    if ALL in words:
        left_out |= METHODS.keys() - named
        asked += [name for name in METHODS if name not in named]

    entries: dict[str, Entry] = {}
    used: set[str] = set()
    for word in asked:
        name, has_flags, text = word.partition("=")
        name = name.strip()
        if has_flags and name in BASELINES:
            raise ValueError(f"method {name} is what the others are compared with, and takes no flags; give yours "
                             "another name")
        if name in entries:
            raise ValueError(f"methods has {name!r} twice; give each method a name of its own")
        try:
            own = _read_own(name, text, flags) if has_flags else None
            entries[name], theirs = _make(name, own, shared, family, model)
        except ValueError as error:
            if name not in left_out:
                raise
            note(f"{name} is left out: {error}")
        else:
            used |= theirs
    unused = [entry.label for entry in flags if entry.name in shared.keys() - used]
    if unused:
        raise ValueError(f"{', '.join(unused)}: no method uses this, or each has its own; for one method, write "
                         f'--methods "mine=FLAGS"')
    return list(entries.values())


def _make(
    name: str, own: dict[str, Any] | None, shared: Mapping[str, Any], family: type[DecodingSettings], model: str
) -> tuple[Entry, set[str]]:
    """An entry, and the names of the shared choices that it uses. own: None where no flags were given."""
    if own is None and name not in METHODS:
        raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}, {ALL}, or your own, "
                         f'"mine=-d window -w 32"{suggest(name, METHODS)}')
    own = own or {}
    base = METHODS.get(own.pop("method", name))
    try:
        choices, used = combine(base, own, shared, family, model)
        settings = family.from_choices(choices)
    except ValueError as error:
        raise ValueError(f"method {name}: {error}") from None
    published = METHODS.get(name)
    return Entry(name, published.help if published else "", published.source if published else "", settings), used


class _MethodParser(Parser):
    """The flags of one's own method; a mistake in them is a ValueError."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"method {self.prog}: {message}")


def _read_own(name: str, text: str, flags: Sequence[Setting]) -> dict[str, Any]:
    """The choices in the flags of one's own method, and `method`, if it builds on another."""
    if not NAME.fullmatch(name) or name == ALL:
        raise ValueError(f"method is {name!r}; a name has at most 40 letters, digits and . + - _, begins with a letter "
                         f"or digit, and is not {ALL!r}")
    parser = _MethodParser(prog=name, add_help=False)
    if name not in METHODS:
        parser.add_argument("--method", choices=METHODS)
    add_flags(parser, [entry for entry in flags if entry.name != "seed"])
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"method {name}: {text!r} cannot be read, {str(error).lower()}") from None
    arguments = parser.parse_args(words)
    own = read_flags(arguments, flags)
    return own | {"method": arguments.method} if getattr(arguments, "method", None) else own


def flags_of(settings: DecodingSettings) -> str:
    """The flags of run.py that say the same as these settings, without the seed."""
    family = type(settings)
    entries = {entry.name: entry for entry in family.choices()}
    default = family()
    mine = settings.as_choices()
    switches = {name: value for name, value in part_defaults(mine).items() if entries[name].kind is bool}
    theirs = default.as_choices() | switches  # the other parameters of a sampler or rule are always said
    words: list[str] = []
    for name, entry in entries.items():
        value = mine.get(name)
        if name not in mine or name == "seed" or (name in theirs and value == theirs[name]):
            continue
        if entry.kind is not bool:
            shortcut = entry.shortcuts.get(str(value))
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [shortcut[0]] if shortcut else [entry.flags[0], text]
        elif value:
            words.append(entry.flags[0])
        else:
            words += entry.negation[:1]
    return shlex.join(words)


# --- The comparison ---------------------------------------------------------------------------------------------------


def describe(
    entries: Sequence[Entry], *, task: str, model: str, adapter: str | None, seed: int, seeds: int, repeats: int,
    **answering: Any,
) -> dict[str, Any]:
    """What a comparison is of, whatever the machine and the code: the same for the same command.

    Raises:
        ValueError: seeds or repeats are not allowed.
    """
    check_integer("seeds", seeds, 1, 1000)
    check_integer("repeats", repeats, 1, 1000)
    return {
        "task": task, "model": model, "adapter": adapter, "seeds": [seed + number for number in range(seeds)],
        "repeats": repeats, **answering, "methods": {entry.name: entry.settings.to_json() for entry in entries},
    }


def folder_of(output: str | Path, name: str, description: Mapping[str, Any]) -> Path:
    """Where a comparison's results are: the same folder for the same description."""
    parts = [name, "compare", Path(description["task"]).stem if description["task"].endswith(".yaml")
             else description["task"], Path(description["model"]).name]
    stem = "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts if part)
    return Path(output) / f"{stem}-{digest(description, 10)}"


def find_complete(folder: Path, description: Mapping[str, Any], checkpoint: str) -> dict[str, Any] | None:
    """The record of a comparison that was made before; None where there is none, or code or checkpoint are others."""
    if description["adapter"] is not None or description["task"].endswith(".yaml"):
        return None  # their files may have changed as well, which loading them tells
    try:
        [record] = records.load([folder / "comparison.json"])
    except ValueError:
        return None
    known = record.get("identity") or {}
    is_same = known.get("code") == code_version() and (
        not Path(checkpoint).is_dir() or known.get("checkpoint") == fingerprint(checkpoint))
    return record if record["kind"] == "comparison" and is_same else None


def compare(
    loaded: LoadedModel, entries: Sequence[Entry], description: Mapping[str, Any], *, tasks: dict[str, Any],
    output: str | Path, name: str, command: str, chat_template: bool | None, num_fewshot: int,
    batch_size: int | str, prompt_limit: int | None, after_eos: str, limit: int | None, from_scratch: bool = False,
    progress: bool = True, processes: Processes = ALONE, isolation: str | None = None,
) -> dict[str, Any] | None:
    """Evaluate every method; return the record of the comparison, with the "folder" that it is to be written to.

    The methods take turns: all with the first seed in the table's order, then those that draw with the second one, ...;
    with `repeats`, everything once more. Interrupted, the same call goes on where it stopped.

    Args:
        entries: see `read_methods`.
        description: see `describe`; the other arguments are as in `runs.evaluate`.

    Returns:
        The record; None in every process but the first.

    Raises:
        ValueError, runs.Interrupted: see `runs.evaluate`.
    """
    from tqdm import tqdm

    from dpad.evaluation import runs

    seeds, repeats = description["seeds"], description["repeats"]
    turns = [
        (entry, seed, repeat) for repeat in range(repeats) for seed in seeds for entry in entries
        if seed == seeds[0] or entry.draws
    ]
    documents = sum(min(len(task.eval_docs), limit or len(task.eval_docs)) * _repeats(task)
                    for task in tasks["tasks"].values())
    rows: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in entries}
    settings: dict[str, Any] = {}
    is_shown = None if progress and processes.rank == 0 else True  # None: on a terminal
    with tqdm(total=len(turns) * documents, unit="sample", disable=is_shown) as bar:
        for number, (entry, seed, repeat) in enumerate(turns, start=1):
            bar.set_description(f"{entry.name} ({number} of {len(turns)})")
            record = runs.evaluate(
                loaded, description["task"], dataclasses.replace(entry.settings, seed=seed), tasks=tasks,
                num_fewshot=num_fewshot, batch_size=batch_size, limit=limit, chat_template=chat_template,
                output=Path(output) / "runs", name=entry.name + (f"+{repeat + 1}" if repeat else ""),
                from_scratch=from_scratch, command=command, progress=bar, processes=processes,
                prompt_limit=prompt_limit, after_eos=after_eos, isolation=isolation, rehearse=True,
                fewshot_seed=seeds[0],
            )
            bar.update(number * documents - bar.n)  # answers of earlier runs, and of other processes
            if record is None:
                continue
            settings = settings or record["settings"]
            rows[entry.name].append(
                {"seed": seed, "repeat": repeat} | {key: record[key] for key in NUMBERS}
                | {"right": right_answers(Path(record["folder"]) / "samples.jsonl", record["metrics"])}
            )
    if processes.rank or record is None:
        return None
    own = {entry.name for entry in settings_of(type(entries[0].settings))} - {"gen_length", "block_length"}
    parts = ("suffix_sampler", "rule", "soft_suffix")
    return {
        "kind": "comparison",
        "name": name or "comparison",
        "task": description["task"],
        "model": loaded.name,
        "checkpoint": record["checkpoint"],
        "command": command,
        "samples": record["samples"],
        "seeds": seeds,
        "repeats": repeats,
        "settings": {key: value for key, value in settings.items() if key not in own and key not in parts},
        "rows": [
            {
                "method": entry.name, "help": entry.help, "source": entry.source, "flags": flags_of(entry.settings),
                "draws": entry.draws, "settings": entry.settings.to_json(), "runs": rows[entry.name],
            }
            for entry in entries
        ],
        "processes": processes.count,
        "environment": records.environment(),
        "identity": {
            "code": code_version(),
            "checkpoint": fingerprint(loaded.checkpoint, getattr(loaded.model.config, "_commit_hash", None)),
        },
    } | {key: record[key] for key in ("adapter", "isolation") if key in record}


def _repeats(task: Any) -> int:
    return getattr(task.config, "repeats", 1) or 1


def right_answers(samples: Path, metrics: Mapping[str, Any]) -> dict[str, str]:
    """For each metric that counts right answers a 0 or 1 per document, in their order. samples: see samples.py."""
    documents = {
        (line["task"], line["doc_id"]): line["correct"] for _, line in files.read_json_lines(samples, largest=None)
    }
    right = {}
    for metric, entry in metrics.items():
        scores = [correct.get(metric) for correct in documents.values()]
        share = sum(scores) / len(scores) if scores and all(score in (0, 1) for score in scores) else None
        if share is not None and entry["value"] is not None and abs(share - entry["value"]) < 1e-9:
            right[metric] = "".join(str(int(score)) for score in scores)
    return right


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Write the record, its table and its plots into a folder, each file whole or not at all."""
    entry = dict(record)
    files.write_json(folder / "comparison.json", entry)
    files.write_text(folder / "table.md", tables.render([entry], form="markdown") + "\n")
    files.write_text(folder / "table.csv", tables.csv_table([entry]))
    if comparisons.metric_labels(entry):
        for name in PICTURES:
            charts.pareto_chart(entry, folder / name)
