"""What stands in front of the page: foreign hosts are refused, uploads are bounded, and it is known who listens.

Imported by demo/app.py and page.py, never run; standard library only.

The page is served to this machine alone. A website elsewhere can still make a visitor's browser talk to it, by giving
its own name this machine's address; the request then names a foreign host, or comes from a foreign origin.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOSTS = ("127.0.0.1", "localhost", "[::1]")
NAMING_HEADERS = (b"host", b"x-forwarded-host", b"origin")  # those that say whom a request is for, or from where
REFUSAL = b"This page is served to its own machine alone: open it as http://127.0.0.1 or http://localhost."


class Streams:
    """Which visitors listen: Gradio runs a job whether or not anybody opens the stream of its results."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def opened(self, session: str) -> Iterator[None]:
        """A visitor's stream while it is open."""
        self._count(session, 1)
        try:
            yield
        finally:
            self._count(session, -1)

    def _count(self, session: str, change: int) -> None:
        with self._changed:
            self._open[session] += change
            if not self._open[session]:
                del self._open[session]
            self._changed.notify_all()

    def wait(self, session: str, seconds: float) -> bool:
        """Whether the visitor listens, now or within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: session in self._open, seconds)


class Guard:
    """ASGI middleware in front of the page.

    Args:
        app: what answers the requests that pass.
        streams: is told whose streams are open.
        uploads: the folder of uploaded files and downloads; before each upload, the oldest are deleted.
        max_upload: bytes of a request's body.
    """

    MAX_FILES = 64  # in the folder of uploads
    MAX_AGE = 3600  # seconds of a file there

    def __init__(self, app: Any, streams: Streams, uploads: Path, max_upload: int) -> None:
        self.app = app
        self.streams = streams
        self.uploads = uploads
        self.max_upload = max_upload

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        if not all(is_local(value) for name, value in headers if name in NAMING_HEADERS) or not any(
            name == b"host" for name, _ in headers
        ):
            await self._refuse(scope, send, 403, REFUSAL)
            return

        if scope["path"].endswith("/deep_link"):  # Gradio would write the visitor's state into a file each time
            await self._refuse(scope, send, 404, b"This page has no links to its state.")
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            length = dict(headers).get(b"content-length", b"")
            if not length.isdigit() or int(length) > self.max_upload:
                await self._refuse(scope, send, 413, b"The request is larger than %d MB, or does not say its length."
                                   % (self.max_upload // 2**20))
                return
            if scope["path"].endswith("/upload"):
                prune(self.uploads, self.MAX_FILES, self.MAX_AGE)

        session = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])[0]
        if session and scope["path"].endswith("/queue/data"):
            with self.streams.opened(session):
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @staticmethod
    async def _refuse(scope: dict[str, Any], send: Any, status: int, body: bytes) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_local(header: bytes) -> bool:
    """Whether a Host, X-Forwarded-Host or Origin header names this machine, with whatever port."""
    text = header.decode("latin-1").strip().lower()
    try:
        host = urlsplit(text).netloc if text.startswith(("http://", "https://")) else text
    except ValueError:  # of brackets without an address
        return False
    return re.sub(r":[0-9]{1,5}$", "", host) in HOSTS


def prune(folder: Path, max_files: int, max_age: float) -> None:
    """Delete a folder's files that are older than `max_age` seconds, and the oldest beyond `max_files`."""
    ages: list[tuple[float, Path]] = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another request may have deleted it
            if path.is_file():
                ages.append((time.time() - path.stat().st_mtime, path))
    for number, (age, path) in enumerate(sorted(ages)):
        if number >= max_files or age > max_age:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # Gradio gives each file a folder of its own
