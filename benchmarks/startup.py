"""How long a first token waits: from a command to the first forward, and what loading 8B takes in time and memory.

    python -m benchmarks.startup --output benchmarks/startup-cpu.json
    python -m benchmarks.startup --repeats 1 --shape small                    # tries the script itself

Each command runs in a process of its own, and its time is the processor's as well as the clock's: a busy machine
lengthens only the latter. The time of `generate` is that before it decodes; its processor's time has the decoding of
32 tokens in it. The large checkpoint is a stand-in: a file with the header of LLaDA-8B's weights whose
numbers take no room on the disk, so that it can be made anywhere. Reading it is compared with reading the plain file.
"""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import SHAPES
from benchmarks.progress import Progress
from dpad import ROOT
from dpad.engine import loading
from dpad.engine.checkpoint import CONFIG, WEIGHTS
from dpad.engine.checks import check_choice, check_integer
from dpad.engine.command_line import Parser
from dpad.results import files, outputs, records, tables

PROMPT = "Tom has 3 bags with 4 apples each. How many apples does Tom have?"
GENERATE = [str(ROOT / "run.py"), "generate", "-m", "tiny", "-l", "32", "--json", "--prompt", PROMPT]
COMMANDS = {  # what a row is called -> Python's arguments
    "import torch": ["-c", "import torch"],
    "load('tiny', bare=True)": ["-c", "import dpad; dpad.load('tiny', bare=True)"],
    "load('tiny')": ["-c", "import dpad; dpad.load('tiny')"],
    "run.py generate -m tiny, until it decodes": GENERATE,
}
PIECE = 2**24  # bytes read at once

# Run in a process of its own: what loading takes, then what reading every weight once takes.
LOADING = """
import json, sys, time
from pathlib import Path
import torch
from dpad.engine.loading import FAMILIES
from benchmarks.startup import memory_mb

family, folder = FAMILIES[sys.argv[1]], Path(sys.argv[2])
network = family.network
before, start = memory_mb(), time.perf_counter()
model = network.load(folder, torch.bfloat16, torch.device("cpu"))
middle = time.perf_counter()
for weight in model.parameters():
    weight.view(torch.int16).max()
print(json.dumps({"load_s": middle - start, "read_s": time.perf_counter() - middle,
                  "own_mb": memory_mb()["RssAnon"] - before["RssAnon"],
                  "mapped_mb": memory_mb()["RssFile"] - before["RssFile"]}))
"""


def memory_mb() -> dict[str, float]:
    """This process's memory in MB: its own (RssAnon), and that of files, which the system may drop (RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 2**10 for name in ("RssAnon", "RssFile")}


def run(arguments: list[str]) -> tuple[float, float, str]:
    """Seconds of the clock and of the processor that a Python process takes, and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": paths})
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def measure_commands(repeats: int, progress: Progress) -> list[dict[str, Any]]:
    """A row for each of COMMANDS, in turns; the first turn fills the system's caches and does not count."""
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "seconds": [], "processor_s": []} for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            progress.announce(f"{name}: {'warm-up' if not repeat else f'run {repeat}'}")
            seconds, processor, printed = run(arguments)
            decoding = json.loads(printed)["seconds"] if arguments is GENERATE else 0.0
            if repeat:
                rows[name]["seconds"].append(seconds - decoding)
                rows[name]["processor_s"].append(processor)
            progress.advance()
    return list(rows.values())


def make_stand_in(shape: str, folder: Path) -> int:
    """A checkpoint of a shape whose weights are zeros that take no room; returns the bytes that they stand for."""
    family_name, fields = SHAPES[shape]
    network = loading.FAMILIES[family_name].network
    config: Any = network.config_class(**fields)
    config.save_pretrained(folder)
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    header: dict[str, Any] = {}
    size = 0
    for name, weight in network.without_weights(config).state_dict().items():
        count = 2 * math.prod(weight.shape)
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [size, size + count]}
        size += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with open(folder / WEIGHTS, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return size


def measure_loading(shape: str, repeats: int, progress: Progress) -> dict[str, Any]:
    """Loading a stand-in of a shape, and reading its file plainly, in turns."""
    row: dict[str, Any] = {"shape": shape, "plain_s": []}
    with tempfile.TemporaryDirectory() as name:
        row["bytes"] = make_stand_in(shape, Path(name))
        for repeat in range(repeats):
            progress.announce(f"{shape}: loading, run {repeat + 1}")
            start = time.perf_counter()
            with open(Path(name) / WEIGHTS, "rb", buffering=0) as file:
                while file.read(PIECE):
                    pass
            row["plain_s"].append(time.perf_counter() - start)
            _, _, printed = run(["-c", LOADING, SHAPES[shape][0], name])
            for key, value in json.loads(printed).items():
                row.setdefault(key, []).append(max(0.0, value))
            progress.advance()
    return row


def main() -> int:
    parser = Parser(prog="python -m benchmarks.startup", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--shape", default="8b", help=f"of the stand-in: {', '.join(SHAPES)} (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    options = parser.parse_args()
    try:
        check_choice("--shape", options.shape, tuple(SHAPES))
        check_integer("--repeats", options.repeats, 1)
        if options.output is not None:
            outputs.check("--output", options.output, outputs.STARTUP)
    except ValueError as error:
        parser.error(str(error))

    with Progress((options.repeats + 1) * len(COMMANDS) + options.repeats, "run") as progress:
        rows = measure_commands(options.repeats, progress)
        loading_row = measure_loading(options.shape, options.repeats, progress)
    record = {
        "kind": "startup", "settings": {"repeats": options.repeats}, "rows": rows, "loading": loading_row,
        "threads": torch.get_num_threads(), "environment": records.environment(),
    }
    print(tables.render([record]))
    if options.output is not None:
        files.write_json(options.output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
