"""The server as an ASGI application: OpenAI's endpoints, /health and /metrics, in front of a thread that decodes.

    service = Service(loaded, settings, Limits())
    app = make_app(service)           # for uvicorn (server.py) or Ray Serve (ray_app.py)

    GET  /v1/models, /v1/models/NAME
    POST /v1/chat/completions, /v1/completions        whole or as a stream
    GET  /health, /metrics

Imported, never run; needs FastAPI and prometheus_client (dpad/serve/requirements.txt).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dpad.engine import completion
from dpad.engine.checks import one_line
from dpad.engine.command_line import say
from dpad.engine.json_text import parse_json
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import check_room
from dpad.engine.settings import DecodingSettings
from dpad.serve import metrics
from dpad.serve.decoder import Decoder, Draft, Failed, Finished, Job, Text
from dpad.serve.door import Door
from dpad.serve.limits import Limits
from dpad.serve.metrics import Metrics
from dpad.serve.protocol import CHAT, TEXT, ApiError, Endpoint, Query, RequestReader, Response, model_object
from dpad.serve.text import GrowingAnswer

MAX_RETRY_AFTER = 60  # seconds
DRAIN = 2**26  # bytes of a request that is too large, which are read so that its client hears why


class Service:
    """What answers: the model, its decoding thread, the requests that are open, and what is counted.

    Args:
        loaded: the model. settings: how to decode where a request does not say. limits: see there.

    Raises:
        ValueError: the model has no room for answers of the settings' length.
    """

    def __init__(self, loaded: LoadedModel, settings: DecodingSettings, limits: Limits) -> None:
        self.loaded = loaded
        self.limits = limits
        self.created = int(time.time())
        check_room(loaded, 1, settings.gen_length)
        completion.warm_up(loaded, loaded.raw("Hello"), settings.gen_length)
        self.reader = RequestReader(loaded, settings, limits)
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="reader")  # one: tokenizers do not like company
        self.decoder = Decoder(loaded, limits, on_batch=lambda rows, seconds: self.metrics.count_batch(rows, seconds))
        self.metrics = Metrics(lambda: self.decoder.waiting, lambda: len(self.decoder.decoding))
        self.open = 0  # prompts that are received, wait, are decoded or are sent
        self.ending = False
        self.decoder.start()

    def admit(self) -> Visit:
        """A request's place in the queue, which it must `leave` when its answer has been sent or its client has gone.

        Raises:
            ApiError: there is none, or the server is being ended.
        """
        if self.ending:
            raise ending()
        visit = Visit(self)
        visit.take(1)
        return visit

    def drain(self) -> None:
        """Take no more requests."""
        self.ending = True

    def end(self) -> None:
        """Fail what is still being decoded, and stop the thread."""
        self.ending = True
        self.decoder.close(ending())
        self.reading.shutdown(wait=False, cancel_futures=True)

    async def read(self, endpoint: Endpoint, body: bytes) -> Query:
        """What a request's body asks for; in a thread, because a long prompt takes a while."""
        def read() -> Query:
            try:
                text = body.decode()
            except UnicodeDecodeError as error:
                raise ApiError(400, f"the request is not UTF-8 text: {error.reason} at byte {error.start}") from None
            try:
                value = parse_json(text, "the request")
            except ValueError as error:
                raise ApiError(400, str(error)) from None
            return self.reader.read(endpoint, value)

        return await asyncio.get_running_loop().run_in_executor(self.reading, read)

    def retry_after(self) -> int:
        """Seconds after which a place may be free: when a batch will have been decoded."""
        seconds = self.decoder.seconds_per_prompt * self.limits.max_batch
        return min(MAX_RETRY_AFTER, max(1, math.ceil(seconds)))


class Visit:
    """One request while it is open: its places in the queue, and its prompts that are decoded.

    events: (index of the prompt, what its job says), from the decoding thread.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.places = 0
        self.jobs: list[Job] = []
        self.events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self.start = time.monotonic()
        self.deadline = asyncio.get_running_loop().time() + service.limits.timeout

    def take(self, places: int) -> None:
        service = self.service
        if service.open + places > service.limits.max_queue:
            raise ApiError(429, f"{service.open} prompts are here already, of at most {service.limits.max_queue}; ask "
                                "again later", code="queue_full", retry_after=service.retry_after())
        service.open += places
        self.places += places

    def leave(self) -> None:
        """Nobody waits any more."""
        for job in self.jobs:
            job.cancel()
        self.service.open -= self.places
        self.places = 0

    def submit(self, query: Query) -> None:
        """Begin to answer."""
        self.take(len(query.prompts) - 1)
        loop = asyncio.get_running_loop()

        def listener(index: int) -> Callable[[Any], None]:
            def listen(event: Any) -> None:
                try:
                    loop.call_soon_threadsafe(self.events.put_nowait, (index, event))
                except RuntimeError:  # the loop has ended
                    pass
            return listen

        for index, ids in enumerate(query.prompts):
            answer = GrowingAnswer(self.service.loaded.answer_text, query.max_tokens, query.stop)
            job = Job(ids, query.settings, answer, listener(index), query.drafts)
            self.jobs.append(job)
            self.service.decoder.submit(job)

    async def follow(self) -> AsyncIterator[tuple[int, Any]]:
        """Text, Draft and Finished of all prompts, until all are finished.

        Raises:
            ApiError: decoding failed, or took too long.
        """
        left = len(self.jobs)
        while left:
            try:
                async with asyncio.timeout_at(self.deadline):
                    index, event = await self.events.get()
            except TimeoutError:
                raise ApiError(504, f"the answer was not complete after {self.service.limits.timeout:g} seconds",
                               code="timeout") from None
            if isinstance(event, Failed):
                raise as_api_error(event.error)
            left -= isinstance(event, Finished)
            yield index, event
        self.service.metrics.prompt_tokens.inc(sum(len(job.ids) for job in self.jobs))
        self.service.metrics.completion_tokens.inc(self.tokens)

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(job.answer.tokens for job in self.jobs)


def ending() -> ApiError:
    return ApiError(503, "this server is being ended; ask again later", code="shutting_down")


def gone_away() -> ApiError:
    """What nobody reads; the status is the one that nginx writes into its logs then."""
    return ApiError(499, "the client has left")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about a fault of the server."""
    if isinstance(error, ApiError):
        return error
    if completion.is_out_of_memory(error):
        return ApiError(503, "the device has not enough memory for this request; ask for fewer tokens",
                        code="out_of_memory")
    say("serve", f"{type(error).__name__}: {error}")
    return ApiError(500, f"decoding failed: {type(error).__name__}: {one_line(error)}", code="decoding_failed")


# --- HTTP -------------------------------------------------------------------------------------------------------------


def make_app(service: Service, *, local_only: bool = True, api_key: str | None = None) -> Any:
    """The ASGI application.

    Args:
        local_only: refuse requests that name another host than this machine.
        api_key: what clients must send as a bearer token, if anything.
    """
    app = FastAPI(title="DPad", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        is_well = service.decoder.is_alive() and not service.ending
        status = {"status": "ok" if is_well else "ending", "model": service.loaded.name, "process": os.getpid(),
                  "waiting": service.decoder.waiting, "decoding": len(service.decoder.decoding)}
        return JSONResponse(status, 200 if is_well else 503)

    @app.get("/metrics")
    async def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_object(service.loaded.name, service.created)]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> JSONResponse:
        if name != service.loaded.name:
            raise ApiError(404, f"model is {one_line(repr(name), 60)}; this server has {service.loaded.name}", "model",
                           "model_not_found")
        return JSONResponse(model_object(name, service.created))

    for endpoint in (CHAT, TEXT):
        app.post(f"/v1/{endpoint.name}", response_model=None)(Answering(service, endpoint).handle)

    @app.exception_handler(ApiError)
    async def show_error(request: Request, error: ApiError) -> JSONResponse:
        count(request.url.path, error.status)
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def show_http_error(request: Request, error: HTTPException) -> JSONResponse:
        where = one_line(f"{request.method} {request.url.path}", 100)
        wrong = f"{where} is not what this server has; see docs/server.md" if error.status_code in (404, 405) \
            else str(error.detail)
        count(request.url.path, error.status_code)
        return JSONResponse(ApiError(error.status_code, wrong).body(), error.status_code, error.headers)

    endpoints = {f"/v1/{endpoint.name}" for endpoint in (CHAT, TEXT)}

    def count(path: str, status: int) -> None:
        service.metrics.requests.labels(path if path in endpoints else "other", status).inc()

    return Door(app, local_only, api_key, on_refusal=count)


class Answering:
    """One of the two ways to ask."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self.service = service
        self.endpoint = endpoint

    async def handle(self, request: Request) -> Any:
        """Answer a request, whole or as a stream."""
        visit = self.service.admit()
        is_handed_on = False
        try:
            body = await read_body(request, self.service.limits)
            query = await self.service.read(self.endpoint, body)
            visit.submit(query)
            response = Response(query, self.service.loaded.name, secrets.token_hex(12))
            if not query.stream:
                return await self.answer(request, visit, response)
            is_handed_on = True
            return EventStream(self.stream(visit, response), lambda: self.close(visit))
        except ApiError:
            raise
        except Exception as error:
            raise (ending() if self.service.ending else as_api_error(error)) from None
        finally:
            if not is_handed_on:
                self.close(visit)

    def close(self, visit: Visit) -> None:
        visit.leave()
        self.service.metrics.latency.labels(f"/v1/{self.endpoint.name}").observe(time.monotonic() - visit.start)

    def count(self, status: int) -> None:
        self.service.metrics.requests.labels(f"/v1/{self.endpoint.name}", status).inc()

    async def answer(self, request: Request, visit: Visit, response: Response) -> JSONResponse:
        """The whole answer. A client that leaves before it is complete ends its decoding."""
        texts = ["" for _ in visit.jobs]
        reasons = ["" for _ in visit.jobs]

        async def collect() -> None:
            async for index, event in visit.follow():
                if isinstance(event, Text):
                    texts[index] += event.text
                elif isinstance(event, Finished):
                    reasons[index] = event.reason

        async def wait_until_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        answer = asyncio.ensure_future(collect())
        gone = asyncio.ensure_future(wait_until_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.service.metrics.disconnects.inc()
                raise gone_away()
            await answer
        finally:
            answer.cancel()
            gone.cancel()
        self.count(200)
        return JSONResponse(response.whole(texts, reasons, visit.tokens))

    async def stream(self, visit: Visit, response: Response) -> AsyncIterator[str]:
        """The events of a stream; an error becomes the last one."""
        status = 499  # where the client leaves
        try:
            for index in range(len(visit.jobs)):
                if opening := response.opening(index):
                    yield as_event(opening)
            async for index, event in visit.follow():
                if isinstance(event, Text):
                    yield as_event(response.text(index, event.text))
                elif isinstance(event, Draft):
                    yield as_event(response.draft(index, visit.jobs[index].read_draft()))
                elif isinstance(event, Finished):
                    yield as_event(response.end(index, event.reason))
            if response.query.include_usage:
                yield as_event(response.usage_piece(visit.tokens))
            status = 200
            yield "data: [DONE]\n\n"
        except ApiError as error:
            status = error.status
            yield as_event(error.body())
        finally:
            if status == 499:
                self.service.metrics.disconnects.inc()
            self.count(status)


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called when all have been sent, or the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


def as_event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        ApiError: it is too large, or does not come in time.
    """
    chunks: list[bytes] = []
    size = 0
    declared = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"the request is larger than {limits.max_body} bytes", code="request_too_large")
    if declared.isdecimal() and int(declared) > DRAIN:
        raise too_large
    try:
        async with asyncio.timeout(limits.patience):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limits.max_body:
                    chunks.append(chunk)
                elif size > DRAIN:
                    raise too_large
                else:
                    chunks.clear()
    except TimeoutError:
        raise ApiError(408, f"the request was not complete after {limits.patience:g} seconds",
                       code="request_timeout") from None
    except ClientDisconnect:
        raise gone_away() from None
    if size > limits.max_body:
        raise too_large
    return b"".join(chunks)
