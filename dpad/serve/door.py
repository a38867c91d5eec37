"""What stands in front of the server: foreign hosts and wrong keys are refused.

Imported by app.py, never run; standard library only.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

from dpad.interact.guard import NAMING_HEADERS, is_local
from dpad.serve.protocol import ApiError

OPEN = ("/health",)  # needs no key


class Door:
    """ASGI middleware.

    Args:
        app: what answers the requests that pass.
        local_only: whether the server is for its own machine. A website can make a visitor's browser talk to it by
            giving its own name this machine's address; the request then names a foreign host or origin.
        api_key: what clients must send as a bearer token, if anything.
        on_refusal: is called with the path and the status of what is refused here.
    """

    def __init__(self, app: Any, local_only: bool, api_key: str | None,
                 on_refusal: Callable[[str, int], None]) -> None:
        self.app = app
        self.local_only = local_only
        self.api_key = api_key
        self.on_refusal = on_refusal

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self.app(scope, receive, send)
            return

        try:
            self.check(scope)
        except ApiError as error:
            self.on_refusal(scope["path"], error.status)
            await refuse(error, send)
        else:
            await self.app(scope, receive, send)

    def check(self, scope: dict[str, Any]) -> None:
        """Raise ApiError unless the request may pass."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if self.local_only:
            if not hosts or not all(is_local(value) for name, value in headers if name in NAMING_HEADERS):
                raise ApiError(403, "this server is for its own machine alone: ask http://127.0.0.1 or "
                                    "http://localhost")
        elif any(name == b"origin" and value.rpartition(b"://")[2] not in hosts for name, value in headers):
            raise ApiError(403, "this server answers programs, not the pages of other websites")
        if self.api_key is not None and scope["path"] not in OPEN:
            given = dict(headers).get(b"authorization", b"")
            kind, _, key = given.partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key.encode()):
                error = ApiError(401, "the API key is missing or wrong: send Authorization: Bearer KEY",
                                 code="invalid_api_key")
                error.headers["www-authenticate"] = "Bearer"
                raise error


async def refuse(error: ApiError, send: Any) -> None:
    """Answer a request with an error, and end its connection, whose body is not read."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close",
               **error.headers}
    await send({"type": "http.response.start", "status": error.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})
