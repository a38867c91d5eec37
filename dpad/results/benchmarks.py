"""Tables of benchmarks: times beside their roofline and the authors' code, cost by answer length, and agreement.

    python run.py table benchmarks/cpu-small.json
    python run.py table benchmarks/cpu-growth.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dpad.engine.configurations import VANILLA, classify
from dpad.results.formatting import Table, join_unique, number, seconds, times
from dpad.results.records import commit_of, hardware_line, numbers_of


def benchmark_table(records: Sequence[dict]) -> Table:
    """For each row: time, its spread over the repeats, work, time of a forward of each kind, and the roofline."""
    rows = [(record, row | {"speedup": speedup_of(record, row)}) for record in records for row in record["rows"]]
    columns: dict[str, Callable[[dict], str]] = {
        "latency (s)": lambda row: seconds(statistics.median(row["latency_s"])),
        "spread": lambda row: f"±{100 * _spread(row['latency_s']):.0f}%",
        "speedup": lambda row: times(row["speedup"]),
        "forwards": lambda row: str(row["forwards"]),
        "slots": lambda row: str(row["tokens_processed"]),
        "kept suffix": lambda row: number(row["kept_suffix"], 0),
        "full (ms)": lambda row: number(row.get("full_ms"), 2),
        "cached (ms)": lambda row: number(row.get("cached_ms"), 2),
        "roofline (s)": lambda row: seconds(statistics.median(row["floor_s"])),
        "× roofline": lambda row: f"{row['ratio']:.2f}",
    }
    if any(row.get("read_s") for _, row in rows):
        columns["read (s)"] = lambda row: number(row.get("read_s"), 3)
    columns["memory (GB)"] = lambda row: number(row.get("peak_memory") and row["peak_memory"] / 2**30, 2)

    per_row = [_parameters(record) | {"batch": str(_batch_size(record, row))} for record, row in rows]
    varying = {name: [values[name] for values in per_row] for name in _differing(per_row)}
    cells = [
        [row["name"], *(values[index] for values in varying.values()), *(text(row) for text in columns.values())]
        for index, (_, row) in enumerate(rows)
    ]
    return Table(["configuration", *varying, *columns], cells)


def _parameters(record: dict) -> dict[str, str]:
    """What rows of two benchmarks may differ in, by the headings of columns."""
    work = record["settings"]
    return {
        "model": record["model"],
        "G": str(work["gen_length"]),
        "batch": str(work["batch_size"]),
        "prompt": str(work["prompt_length"]),
        "steps": f"threshold {work['threshold']}" if work.get("threshold") else str(work["steps_per_block"]),
        "dtype": work["dtype"],
        "hardware": hardware_line(record),
    }


def _differing(parameters: Sequence[dict[str, str]]) -> list[str]:
    """The names whose values are not all the same."""
    return [name for name in parameters[0] if len({values[name] for values in parameters}) > 1]


def speedup_of(record: dict, row: dict) -> float | None:
    """A benchmark row's speedup over vanilla decoding; None in a record that did not time it."""
    return row.get("speedup") if has_baseline(record) else None


def has_baseline(record: dict) -> bool:
    """Whether a benchmark timed vanilla decoding, which speedups are relative to."""
    return any(row["name"] == VANILLA.name for row in record["rows"])


def _spread(values: Sequence[float]) -> float:
    """Half of the range, relative to the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def growth_table(records: Sequence[dict]) -> Table:
    """A row for each answer length; for each configuration what a block costs, and that over the cost at the shortest
    answer."""
    parameters = [_parameters(record) | {"G": ""} for record in records]
    costs: dict[str, dict[int, float]] = {}
    for place, (record, values) in enumerate(zip(records, parameters), start=1):
        prefix = " ".join(values[name] for name in _differing(parameters))
        if parameters.count(values) > 1:
            prefix += f" record {place}"
        for row in record["rows"]:
            costs.setdefault(f"{prefix} {row['name']}".strip(), {})[row["gen_length"]] = block_ms(row)

    cells = []
    for length in sorted({length for by_length in costs.values() for length in by_length}):
        line = [str(length)]
        for by_length in costs.values():
            cost = by_length.get(length)
            line += [number(cost), times(None if cost is None else cost / by_length[min(by_length)])]
        cells.append(line)
    return Table(["G", *(heading for name in costs for heading in (f"{name} (ms per block)", f"{name} growth"))], cells)


def block_ms(row: dict) -> float:
    """Milliseconds of a block in a row of a growth record: the mean over its blocks of the median over the repeats."""
    return 1000 * statistics.fmean(statistics.median(repeats) for repeats in row["block_s"])


def _batch_size(record: dict, row: dict) -> int:
    return row.get("batch_size") or record["settings"]["batch_size"]


def batch_sizes(record: dict) -> list[int]:
    """The batch sizes of a benchmark's rows; a record of one size may name it in its settings alone."""
    return list(dict.fromkeys(_batch_size(record, row) for row in record["rows"]))


def benchmark_caption(records: Sequence[dict]) -> str:
    """What was timed, how and where: a line for each record."""
    return "\n".join(_describe_benchmark(record) for record in records)


def _describe_benchmark(record: dict) -> str:
    work = record["settings"]
    sampler = work["sampler"]
    steps = f"threshold {work['threshold']}" if work.get("threshold") else f"{work['steps_per_block']} steps"
    if record["kind"] == "growth":
        answer = join_unique(sorted({row["gen_length"] for row in record["rows"]}))
        end = ""
    else:
        answer = str(work["gen_length"])
        end = f" (early termination after {work['blocks']})" if work.get("blocks") else ""
    if record["kind"] != "benchmark" or has_baseline(record):
        baseline = ""
    else:
        baseline = f" There is no baseline: {VANILLA.name} was not timed, so there are no speedups."
    return (
        f"Model {record['model']}, prompt {work['prompt_length']}, G = {answer}, blocks of {work['block_length']} in "
        f"{steps}{end}, batch size {join_unique(batch_sizes(record))}, DPad window {sampler['window']}, "
        f"k {sampler['k_sigma']:g}, scale {sampler['scale']:g}; median of {record['repeats']} runs; "
        f"{hardware_line(record)}, {work['dtype']}, commit {commit_of(record)}.{baseline}"
    )


def summarize(record: dict) -> dict:
    """A benchmark or growth record in one line of JSON: for each row its time, and what that is relative to."""
    if record["kind"] == "growth":
        rows = [{"name": row["name"], "gen_length": row["gen_length"], "block_ms": round(block_ms(row), 3)}
                for row in record["rows"]]
    else:
        rows = [{"name": row["name"], "batch_size": _batch_size(record, row),
                 "latency_s": round(statistics.median(row["latency_s"]), 5), "speedup": _round(row["speedup"]),
                 "floor_speedup": _round(row["floor_speedup"]), "times_floor": _round(row["ratio"])}
                for row in record["rows"]]
    return {"kind": record["kind"], "model": record["model"], "rows": rows}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# --- Agreement with the plain path --------------------------------------------------------------------------------


def steps_table(records: Sequence[dict]) -> Table:
    """Training steps of each suffix: time, its spread, tokens, memory, and whether the loss stayed finite."""
    rows = [(record, row) for record in records for row in record["rows"]]
    return Table(
        ["trained with", "model", "s a step", "spread", "speedup", "tokens a step", "tokens/s", "memory (GB)", "loss"],
        [
            [row["name"], record["model"], seconds(statistics.median(row["seconds"])),
             f"±{100 * _spread(row['seconds']):.0f}%",
             times(statistics.median(record["rows"][0]["seconds"]) / statistics.median(row["seconds"])),
             number(statistics.median(row["tokens"]), 0), number(row["tokens_per_second"], 0),
             number(row.get("peak_memory") and row["peak_memory"] / 2**30, 1),
             "finite" if row["loss_is_finite"] else "not finite"]
            for record, row in rows
        ],
    )


def steps_caption(records: Sequence[dict]) -> str:
    """What was trained, and where."""
    return " ".join(
        f"Random weights in the shape {record['model']}, LoRA of rank {settings['lora']}, {settings['batch_size']} "
        f"examples a step, prompt {settings['prompt_length']}, canvas {settings['gen_length']}, layers "
        f"{'kept' if settings.get('no_checkpointing') else 'recomputed'} in the backward pass; median of "
        f"{len(record['rows'][0]['seconds'])} steps; {hardware_line(record)}, {settings.get('dtype', 'unknown')}, "
        f"commit {commit_of(record)}."
        for record in records for settings in [record["settings"]]
    )


AGAIN = " again"  # the end of a repeated run's name


def agreement_table(records: Sequence[dict]) -> Table:
    """For each way of decoding, and each dtype with and without graphs, the share of answers and of tokens that are
    the plain path's: the smaller, where a run was repeated (NAME again)."""
    several = len({record["device"] for record in records}) > 1
    devices = [record["device"] for record in records for _ in record["rows"]]
    rows = [row for record in records for row in record["rows"]]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_agreement(value))
    runs = [name for name in names if name.removesuffix(AGAIN) == name or name.removesuffix(AGAIN) not in names]
    return Table(
        ["configuration", "model", *["device"] * several, *runs],
        [
            [_describe_decoding(row), row["model"], *[device] * several,
             *(_agreement_text([row.get(run), row.get(run + AGAIN)]) for run in runs)]
            for row, device in zip(rows, devices)
        ],
    )


def _is_agreement(value: object) -> bool:
    return (isinstance(value, dict) and value.keys() == {"answers", "tokens"}
            and all(isinstance(share, (int, float)) for share in value.values()))


def _agreement_text(runs: Sequence[Any]) -> str:
    measured = [shares for shares in runs if _is_agreement(shares)]
    if not measured:
        return number(None)
    return " / ".join(f"{100 * min(shares[name] for shares in measured):.1f}" for name in ("answers", "tokens"))


def _describe_decoding(row: dict) -> str:
    sampler = row.get("suffix_sampler")  # "None" in the records that hold it as text
    return classify(row | {"suffix_sampler": None if sampler == "None" else sampler}).name


def agreement_caption(records: Sequence[dict]) -> str:
    """What the shares count, and where they were measured."""
    return " ".join(
        f"Answers / tokens (%) that equal the plain path's: float32 runs those of float32 on the CPU without graphs, "
        f"bfloat16 with graphs those of bfloat16 without; {record['problems']} "
        f"problem{'s' * (record['problems'] != 1)}, {hardware_line(record)}, commit {commit_of(record)}."
        for record in records
    )


# --- Quantized weights ------------------------------------------------------------------------------------------------


def quantization_table(records: Sequence[dict]) -> Table:
    """For each model and way to keep its weights: their size, how fast it answers and how many are right, and what is
    the same as in float32."""
    several = len({record["device"] for record in records}) > 1
    rows = [(record, row) for record in records for row in record["rows"]]
    libraries = {row["products"] for _, row in rows if numbers_of(row) == "float32" and "products" in row}
    cells = [
        [row["model"], _numbers(row, len(libraries) > 1), *[record["device"]] * several,
         _size(row["weights"]) + " (estimated)" * row["estimated"],
         _times_or_dash(row.get("speedup")), number(row.get("right"), 0),
         *(_percent(row.get(name)) for name in ("answers", "tokens"))]
        for record, row in rows
    ]
    return Table(["model", "numbers", *["device"] * several, "weights", "speed", "right", "same answers (%)",
                  "same tokens (%)"], cells)


def _numbers(row: dict, names_library: bool) -> str:
    words = numbers_of(row) or ""
    return f"{words} ({row['products']} products)" if names_library and words == "float32" else words


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**29 else f"{count / 2**20:.1f} MB"


def _times_or_dash(quotient: float | None) -> str:
    return "–" if quotient is None else times(quotient)


def _percent(share: float | None) -> str:
    return number(share if share is None else 100 * share)


def quantization_caption(records: Sequence[dict]) -> str:
    """What was decoded, where, and what was only estimated."""
    return " ".join(
        f"Right: of {record['problems']} problem{'s' * (record['problems'] != 1)}, {record['configuration']}, G = "
        f"{record['settings']['gen_length']}. Speed, and what is the same: relative to the first row of "
        f"a model; all were timed in turns. Estimated sizes are of models that were not loaded. "
        f"{_gain_sentence(record)}{hardware_line(record)}, {record['device']}, commit {commit_of(record)}."
        for record in records
    )


def _gain_sentence(record: dict) -> str:
    gain = ((record.get("environment") or {}).get("hardware") or {}).get("onednn_gain")
    if not gain or record["device"] != "cpu":
        return ""
    return f"oneDNN multiplies a float32 matrix {gain:.1f} times as fast as torch's own library. "


# --- Start-up ---------------------------------------------------------------------------------------------------------


def startup_table(records: Sequence[dict]) -> Table:
    """For each command: the median time until it is done, or until it decodes, by the clock and of the processor."""
    several = len(records) > 1
    cells = [
        [row["name"], *[commit_of(record)] * several,
         *(f"{statistics.median(row[name]):.2f} ({min(row[name]):.2f} to {max(row[name]):.2f})"
           for name in ("seconds", "processor_s"))]
        for record in records for row in record["rows"]
    ]
    return Table(["what", *["commit"] * several, "seconds", "processor (s)"], cells)


def startup_caption(records: Sequence[dict]) -> str:
    """What the large stand-in took to load, and where all was measured."""
    sentences = []
    for record in records:
        load = record["loading"]
        middle = {name: statistics.median(values) for name, values in load.items() if isinstance(values, list)}
        sentences.append(
            f"Medians of {record['settings']['repeats']}, with the smallest and largest. A stand-in for the weights of "
            f"{load['shape']} ({_size(load['bytes'])} in bfloat16, zeros that take no room on the disk): loaded in "
            f"{middle['load_s']:.2f} s, and read from memory once in {middle['read_s']:.1f} s, where reading the file "
            f"takes {middle['plain_s']:.1f} s. The process takes {middle['own_mb'] / 2**10:.2f} GB of its own for it, "
            f"and {middle['mapped_mb'] / 2**10:.1f} GB that are the file's. {hardware_line(record)}, commit "
            f"{commit_of(record)}."
        )
    return " ".join(sentences)


# --- Beside the authors' code -----------------------------------------------------------------------------------------

GOAL = 0.9  # share of what the roofline allows


def authors_table(records: Sequence[dict]) -> Table:
    """For each row: the authors' time and this project's, the ratio, what the roofline allows, and whether the tokens
    are equal."""
    rows = [(record, row) for record in records for row in record["rows"]]
    per_row = [_parameters(record) | {"model": row["model"]} for record, row in rows]
    varying = _differing(per_row)
    return Table(
        ["configuration", *varying, "theirs (s)", "ours (s)", "theirs / ours", "spread", "torch's products allow",
         "roofline allows", "of that (%)", "equal tokens"],
        [
            [row["name"], *(values[name] for name in varying), seconds(statistics.median(row["theirs_s"])),
             seconds(statistics.median(row["ours_s"])), times(row["ratio"]),
             f"±{100 * _spread([theirs / ours for theirs, ours in zip(row['theirs_s'], row['ours_s'])]):.0f}%",
             _times_or_dash(row.get("allowed_by_torch")), times(row["allowed"]),
             number(100 * row["ratio"] / row["allowed"], 0),
             f"{row['equal_tokens']} of {record['settings']['gen_length']}"]
            for (record, row), values in zip(rows, per_row)
        ],
    )


def authors_caption(records: Sequence[dict]) -> str:
    """What was decoded, with which versions of their code, and where the goal is reached: a line for each record."""
    return "\n".join(_describe_authors(record) for record in records)


def _describe_authors(record: dict) -> str:
    theirs = record["theirs"]
    models = join_unique(row["model"] for row in record["rows"])
    rows = record["rows"]
    reached = sum(row["ratio"] >= GOAL * row["allowed"] for row in rows)
    own = [row["ratio"] >= GOAL * row["allowed_by_torch"] for row in rows if row.get("allowed_by_torch")]
    by_torch = f", with torch's own products in {sum(own)}" if own else ""
    different = sum(row.get("first_difference") is not None for row in record["rows"])
    tokens = f"differ in {different} rows" if different else "are equal in every row"
    commit = f"commit {theirs['commit']}" if theirs["commit"] != "unknown" else "files by their hashes in the record"
    versions = ", ".join(f"{name} {theirs[name]}" for name in ("python", "torch", "transformers") if theirs.get(name))
    return (
        f"{_describe_benchmark(record | {'model': models})} Theirs: {commit}, {versions}, {theirs['threads']} "
        f"thread{'s' * (theirs['threads'] != 1)}. The tokens {tokens}; {100 * GOAL:.0f} % of what the roofline allows "
        f"is reached in {reached} of {len(rows)} rows{by_torch}."
    )
