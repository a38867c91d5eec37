"""The server of one machine: uvicorn with bounds on slow clients, and an end that waits for answers.

Imported by command.py, never run; needs uvicorn (dpad/serve/requirements.txt).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from asyncio import Transport
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dpad.serve.app import Service
from dpad.serve.limits import Limits

MAX_HEAD = 2**14  # bytes of a request before its body
KEEP_ALIVE = 30  # seconds for which a connection waits for the next request
LAST_FORWARD = 60.0  # seconds
MARGIN = 2.0  # seconds to send what the decoder's end has become


def serve(service: Service, app: Any, listener: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; then finish what is being decoded, within `limits.grace` seconds."""
    asyncio.run(make_server(service, app).serve(sockets=[listener]))
    service.decoder.join(LAST_FORWARD)  # torch aborts a process that ends while another thread computes


def make_server(service: Service, app: Any) -> Server:
    config = uvicorn.Config(
        app, http=protocol_of(service.limits), loop="asyncio", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE, h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=int(service.limits.grace + MARGIN + 1),
    )
    return Server(config, service)


class Server(uvicorn.Server):
    """uvicorn's server, whose end is orderly: status 0, and whoever waits gets the answer or a clear error."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal asks for the end; a second one also ends what is being decoded."""
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.ask_for_end)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def ask_for_end(self) -> None:
        if self.should_exit:
            self.service.end()
        self.should_exit = True
        self.service.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async def end_when_patience_is_over() -> None:
            await asyncio.sleep(self.service.limits.grace)
            self.service.end()

        end = asyncio.create_task(end_when_patience_is_over())
        await super().shutdown(sockets)
        end.cancel()
        self.service.end()


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """The protocol of a connection, which does not wait long for a client."""

    class PatientProtocol(H11Protocol):
        """Ends connections whose next request begins but does not come, and those that take nothing of an answer."""

        head: asyncio.TimerHandle | None = None
        reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # so that it is known whether the client takes what is sent
            self.head = self.loop.call_later(limits.patience, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_answered = self.cycle is None or self.cycle.response_complete
            if is_answered and self.head is None:
                self.head = self.loop.call_later(limits.patience, self.transport.abort)
            elif not is_answered and self.head is not None:
                self.head.cancel()
                self.head = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self.reading = self.loop.call_later(limits.patience, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.reading is not None:
                self.reading.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.head, self.reading):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return PatientProtocol


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port that cannot be had is known before a model is loaded.

    Raises:
        ValueError: naming host or port, and why.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                                        flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host is {host!r}, which is no address of this machine ({error})") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a server that has just ended
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(f"port is {port}, which cannot be used on {host} ({error.strerror}); choose another with "
                         "--port, from 1024 to 65535") from None
    listener.setblocking(False)
    return listener
