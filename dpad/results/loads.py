"""Records of a server under load: latency and tokens per second by how many clients ask, and what went wrong.

    python run.py table benchmarks/serve-cpu.json                  # python -m benchmarks.load --output ... writes it

Imported by tables.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpad.results.formatting import Table, join_unique, number, ratio, seconds, times
from dpad.results.records import commit_of, hardware_line


def load_table(records: Sequence[dict]) -> Table:
    """For each number of clients: answers, those that were lost or another one's, latency, speed, batches, memory."""
    rows = [(record, row) for record in records for row in record["rows"]]
    several = len({record["server"] for record in records}) > 1
    return Table(
        ["clients", *["server"] * several, "answers", "wrong", "lost", "p50 (s)", "p95 (s)", "tokens/s", "gain",
         "prompts a batch", "tokens per CPU s", "memory (MB)"],
        [
            [str(row["clients"]), *[record["server"]] * several, str(row["answers"]), str(row["wrong"]),
             str(row["lost"]), seconds(row["latency_s"]["p50"]), seconds(row["latency_s"]["p95"]),
             number(row["tokens_per_second"], 0),
             times(ratio(row["tokens_per_second"], record["rows"][0]["tokens_per_second"])),
             number(row.get("rows_per_batch")), number(ratio(row.get("tokens"), row.get("processor_s")), 0),
             _memory_text(row.get("memory_mb"))]
            for record, row in rows
        ],
    )


def _memory_text(memory: dict | None) -> str:
    """The server's memory when the clients had begun, and at their end."""
    return number(None) if memory is None else f"{memory['start']:.0f} to {memory['end']:.0f}"


def load_caption(records: Sequence[dict]) -> str:
    """What asked for what, and where."""
    parts = []
    for record in records:
        settings = record["settings"]
        part = (f"Model {record['model']}, {record['problems']} questions of {record['task']} in turn, half of them as "
                f"streams, each answer compared with that of being alone; G = {settings['gen_length']}, blocks of "
                f"{settings['block_length']}, one token a forward, DPad with the dual cache, at most "
                f"{settings['max_batch']} prompts a batch; {record['seconds']:g} s for each number of clients, which "
                f"run on the same machine; {record['server']}")
        parts.append(f"{part}; {record['remark']}" if record.get("remark") else part)
    return (f"{' '.join(f'{part}.' for part in parts)} Gain: tokens/s over one client's; CPU s: of the server. "
            f"{join_unique(map(hardware_line, records))}, commit {join_unique(map(commit_of, records))}.")
