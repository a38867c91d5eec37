"""Load for a server: many clients at once against one, every answer compared with the one that it gets alone.

    pip install -r dpad/serve/requirements.txt
    python -m benchmarks.load --output benchmarks/serve-cpu.json            # 1 and 64 clients, a minute each
    python -m benchmarks.load --clients 1,8 --seconds 5                     # tries the script itself
    python -m benchmarks.load --url http://127.0.0.1:8000 --server "Ray Serve, 2 replicas"      # one that runs already

It starts `run.py serve` with the embedded model and ends it. The clients ask its questions in turn, each the next one
as soon as it has an answer, every second time as a stream. The exit status is 1 if an answer is wrong or lost.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.progress import Progress
from dataset import read_problems
from dpad import ROOT
from dpad.engine import completion, loading
from dpad.engine.checks import check_integer, check_number
from dpad.engine.command_line import Parser, say
from dpad.results import files, outputs, records

MODEL = "tiny"
TASK = "arithmetic-50"
# One token a forward, most of which recompute the block alone: a processor gains most from a batch of small forwards.
# A threshold of 0 is none, whatever the server's own is.
CHOICES: dict[str, Any] = {
    "gen_length": 128, "block_length": 16, "cache": "dual", "dropout_strategy": "gaussian", "k_sigma": 3, "scale": 1.6,
    "window": 128, "threshold": 0,
}
MAX_BATCH = 32
PATIENCE = 120  # seconds for one answer


# --- What is asked, and what must come --------------------------------------------------------------------------------


def questions() -> list[str]:
    return [f"Question: {problem['question']}\nAnswer:" for problem in read_problems(f"{TASK}.jsonl")]


def answers_alone(prompts: Sequence[str]) -> list[str]:
    """The answer of each prompt when it is decoded by itself, in this process."""
    loaded = loading.load(MODEL, device="cpu", dtype="float32")
    settings = loaded.family.settings.from_choices(CHOICES | {"early_termination": True})
    return [completion.complete(loaded, [loaded.chat(prompt)], settings)[0].text for prompt in prompts]


# --- Clients ----------------------------------------------------------------------------------------------------------


class Tally:
    """What clients have got. latencies: in seconds, of answers that are right."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.tokens = 0
        self.wrong = 0
        self.lost = 0

    def row(self, clients: int, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.latencies) or [float("nan")]
        share = {f"p{percent}": ordered[math.ceil(len(ordered) * percent / 100) - 1] for percent in (50, 95)}
        return {"clients": clients, "seconds": seconds, "answers": len(self.latencies) + self.wrong,
                "wrong": self.wrong, "lost": self.lost, "tokens": self.tokens,
                "tokens_per_second": self.tokens / seconds, "latency_s": share}


async def ask(client: Any, url: str, prompt: str, stream: bool) -> tuple[str, int]:
    """An answer's text and tokens, from the whole answer or put together from a stream."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": stream} | CHOICES
    if not stream:
        response = await client.post(f"{url}/v1/chat/completions", json=body)
        response.raise_for_status()
        answer = response.json()
        return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]
    text = ""
    tokens = 0
    is_complete = False
    body["stream_options"] = {"include_usage": True}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                is_complete = True
            elif line.startswith("data: "):
                piece = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content", "") for choice in piece["choices"])
                tokens += (piece["usage"] or {}).get("completion_tokens", 0)
    if not is_complete:
        raise ValueError("the stream has no end")
    return text, tokens


async def load(url: str, clients: int, seconds: float, prompts: Sequence[str], expected: Sequence[str]) -> dict:
    """The row of so many clients that ask for so long."""
    import httpx

    tally = Tally()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    start = time.perf_counter()

    async def visit(client: httpx.AsyncClient, number: int) -> None:
        while True:
            place = number % len(prompts)
            begun = time.perf_counter()
            try:
                text, tokens = await ask(client, url, prompts[place], stream=number // len(prompts) % 2 == 1)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                tally.lost += 1
                say("load.py", f"{type(error).__name__}: {error}")
            else:
                if text == expected[place]:
                    tally.latencies.append(time.perf_counter() - begun)
                    tally.tokens += tokens
                else:
                    tally.wrong += 1
            if time.perf_counter() - start >= seconds:
                return
            number += 51  # the next question, and the other way of asking

    async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as client:
        await asyncio.gather(*(visit(client, 7 * number) for number in range(clients)))
    return tally.row(clients, time.perf_counter() - start)


# --- The server -------------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """`run.py serve` with the embedded model: its address, and the number of its process."""
    command = [sys.executable, str(ROOT / "run.py"), "serve", "-m", MODEL, "--device", "cpu", "--dtype", "float32",
               "--port", "0", "--max_batch", str(MAX_BATCH)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise ValueError(f"the server does not start: {shlex.join(command[1:])}")
        yield line.split()[0].removesuffix("/v1"), child.pid
        child.send_signal(signal.SIGTERM)
        if child.wait(60) != 0:
            raise ValueError(f"the server has ended with status {child.returncode}")
    finally:
        child.kill()
        child.wait()


def batches(url: str) -> tuple[float, float]:
    """Prompts decoded so far, and in how many batches."""
    import httpx

    text = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
    return tuple(float(re.findall(rf"^dpad_batch_rows_{name} (\S+)", text, re.MULTILINE)[0])  # type: ignore
                 for name in ("sum", "count"))


def memory(process: int) -> float | None:
    """The resident memory of a process in MB; None where the system does not say."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None


def computing(process: int) -> float | None:
    """The processor time of a process in seconds, which others on the machine change little; None as above."""
    status = Path(f"/proc/{process}/stat")
    if not status.exists():
        return None
    user, system = status.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(url: str, process: int | None, clients: int, seconds: float, prompts: Sequence[str],
            expected: Sequence[str]) -> dict[str, Any]:
    """A row: a short time in which buffers grow, then the time that counts."""
    asyncio.run(load(url, clients, min(10.0, seconds / 3), prompts, expected))
    if process is None:
        return asyncio.run(load(url, clients, seconds, prompts, expected))
    before, start, computed = batches(url), memory(process), computing(process)
    row = asyncio.run(load(url, clients, seconds, prompts, expected))
    rows, count = (after - earlier for after, earlier in zip(batches(url), before))
    row["rows_per_batch"] = rows / count
    if start is not None and computed is not None:
        row["processor_s"] = (computing(process) or 0) - computed
        row["memory_mb"] = {"start": start, "end": memory(process)}
    return row


# --- The command line -------------------------------------------------------------------------------------------------


def main() -> int:
    parser = Parser(prog="python -m benchmarks.load", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--clients", default="1,64", metavar="N,...", help="how many ask at once (default: "
                        "%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, metavar="X", help="for each of them (default: "
                        "%(default)s)")
    parser.add_argument("--url", help="a server that runs already, of the embedded model; without /v1")
    parser.add_argument("--server", metavar="TEXT", help="what the record calls it (default: run.py serve)")
    parser.add_argument("--remark", metavar="TEXT", help="what else the record says, such as what ran beside it")
    parser.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    options = parser.parse_args()
    try:
        counts = [int(text) if text.strip().isdecimal() else text for text in options.clients.split(",")]
        for count in counts:
            check_integer("--clients", count, 1, 1024)
        check_number("--seconds", options.seconds, above=0)
        if options.output is not None:
            outputs.check("--output", options.output, outputs.LOAD)
        if records.version("httpx") is None:
            raise ValueError("httpx is not installed: pip install -r dpad/serve/requirements.txt")
    except ValueError as error:
        parser.error(str(error))

    prompts = questions()
    with Progress(len(counts) + 1, "row") as progress:
        progress.announce(f"{len(prompts)} answers alone")
        expected = answers_alone(prompts)
        progress.advance()
        rows = []

        def measure_all(url: str, process: int | None) -> None:
            for count in counts:
                progress.announce(f"{count} client{'s' * (count != 1)}")
                rows.append(measure(url, process, int(count), options.seconds, prompts, expected))
                progress.advance()

        if options.url is not None:
            measure_all(options.url.rstrip("/").removesuffix("/v1"), None)
        else:
            with server() as (url, process):
                measure_all(url, process)

    record = {
        "kind": "load", "model": MODEL, "task": TASK, "problems": len(prompts), "seconds": options.seconds,
        "server": options.server or "run.py serve", "remark": options.remark,
        "command": shlex.join(["python", "-m", "benchmarks.load", *sys.argv[1:]]),
        "settings": CHOICES | {"max_batch": MAX_BATCH, "device": "cpu", "dtype": "float32"}, "rows": rows,
        "versions": {name: records.version(name) for name in ("fastapi", "uvicorn", "ray")},
        "environment": records.environment(),
    }
    if options.output is not None:
        files.write_json(options.output, record)
    from dpad.results.tables import terminal_table

    print(terminal_table([record]))
    return int(any(row["wrong"] or row["lost"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
