"""What the tests of the server share: a server in a thread of this process, and one as a process of its own.

    with running(loaded, max_batch=4) as server:
        httpx.get(f"{server.url}/models")

Imported by test_serve*.py.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from helpers import ROOT

from dpad.engine.loading import LoadedModel
from dpad.engine.settings import DecodingSettings
from dpad.serve.limits import Limits


class Running:
    """A server in a thread. url: where its endpoints are. service, server: its parts."""

    def __init__(self, service: Any, server: Any, port: int) -> None:
        self.service = service
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.root = f"http://127.0.0.1:{port}"

    def metric(self, name: str) -> float:
        """The sum of a counter over its labels."""
        lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.service.metrics.text().decode(), flags=re.MULTILINE)
        return sum(map(float, lines))


@contextmanager
def running(loaded: LoadedModel, settings: DecodingSettings | None = None, api_key: str | None = None,
            local_only: bool = True, **limits: Any) -> Iterator[Running]:
    """A server of this process. limits: of `Limits`."""
    from dpad.serve.app import Service, make_app
    from dpad.serve.server import listen, make_server

    service = Service(loaded, settings or loaded.family.settings(gen_length=64, threshold=0.9), Limits(**limits))
    server = make_server(service, make_app(service, local_only=local_only, api_key=api_key))
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Running(service, server, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"


def wait_until(holds: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait until something holds; AssertionError when it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not become true"
        time.sleep(0.01)


@contextmanager
def process(*flags: str, port: int = 0, **variables: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`run.py serve` in a process of its own, and its URL."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | variables
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "serve", "--device", "cpu", "--port", str(port), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )
    try:
        assert child.stdout is not None and child.stderr is not None
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield child, line.split()[0]
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate(timeout=20)


def alone(loaded: LoadedModel, ids: list[int], settings: DecodingSettings) -> list[int]:
    """The tokens of the answer that a prompt gets by itself."""
    output = loaded.generate(torch.tensor([ids]), settings)
    return output.sequences[0, len(ids) :].tolist()
