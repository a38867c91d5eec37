"""The server over HTTP: OpenAI's own client, streams, errors, hosts and keys, clients that are slow, gone or malicious.

    bash tests/run.sh tests/test_server.py

The servers run in threads of this process; those in processes of their own are in test_server_process.py.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from serving import alone, running, wait_until

from dpad.engine import loading
from llada.settings import LLaDASettings

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

SETTINGS = LLaDASettings(gen_length=64, threshold=0.9)
QUICK = LLaDASettings(gen_length=64, steps=8)
EGGS = [{"role": "user", "content": "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?"}]
SLOW = {"prompt": "Hello there", "max_tokens": 768, "threshold": 0, "steps": 768}  # seconds, with random weights


@pytest.fixture(scope="module")
def tiny():
    """A server of the embedded model."""
    with running(loading.load("tiny", device="cpu"), SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu")


@pytest.fixture(scope="module")
def quick(loaded):
    """A server of random weights, which knows no end of an answer, with little patience."""
    with running(loaded, QUICK, patience=0.5, max_body=10_000, max_queue=8) as server:
        yield server


def client_of(server, **options):
    return openai.OpenAI(**{"base_url": server.url, "api_key": "none", "max_retries": 0} | options)


def post(server, content=None, path="/completions", **options):
    return httpx.post(server.url + path, content=json.dumps(content) if isinstance(content, dict) else content,
                      timeout=30, **options)


def error_of(response, status):
    """The error of a response, once its form has been checked."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


# --- OpenAI's client --------------------------------------------------------------------------------------------------


def test_a_chat(tiny):
    answer = client_of(tiny).chat.completions.create(model="tiny", messages=EGGS)
    [choice] = answer.choices
    assert choice.message.content.endswith("#### 12") and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage.prompt_tokens > 20 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 10 < usage.completion_tokens < 64


def test_a_stream_of_a_chat_is_the_whole_answer(tiny):
    client = client_of(tiny)
    whole = client.chat.completions.create(model="tiny", messages=EGGS, extra_body={"block_length": 8})
    pieces = list(client.chat.completions.create(
        model="tiny", messages=EGGS, stream=True, stream_options={"include_usage": True},
        extra_body={"block_length": 8},
    ))
    *pieces, last = pieces
    assert last.choices == [] and last.usage == whole.usage
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "stop"
    texts = [piece.choices[0].delta.content or "" for piece in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(map(bool, texts)) > 2, "it comes block by block"
    assert len({piece.id for piece in pieces}) == 1


def test_drafts_are_an_extension(tiny):
    pieces = client_of(tiny).chat.completions.create(model="tiny", messages=EGGS, stream=True,
                                                     extra_body={"drafts": True, "threshold": 0})
    drafts = [piece.choices[0].draft for piece in pieces if hasattr(piece.choices[0], "draft")]
    assert drafts and "░" in drafts[0] and all(isinstance(draft, str) for draft in drafts)


def test_completions_of_several_prompts(tiny):
    client = client_of(tiny)
    loaded = tiny.service.loaded
    coins = "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
    prompts = [loaded.chat(EGGS[0]["content"]), loaded.chat(coins)]
    answer = client.completions.create(model="tiny", prompt=prompts)
    assert [choice.text[-2:] for choice in answer.choices] == ["12", "38"]
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.object == "text_completion"
    by_ids = client.completions.create(
        model="tiny", prompt=[loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts])
    assert [choice.text for choice in by_ids.choices] == [choice.text for choice in answer.choices]
    assert by_ids.usage == answer.usage
    echoed = client.completions.create(model="tiny", prompt=prompts, echo=True)
    assert [choice.text for choice in echoed.choices] == [
        prompt + choice.text for prompt, choice in zip(prompts, answer.choices)]
    texts = ["", ""]
    for piece in client.completions.create(model="tiny", prompt=prompts, echo=True, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == [choice.text for choice in echoed.choices]


def test_stop_strings_limits_and_seeds(tiny):
    client = client_of(tiny)
    whole = client.chat.completions.create(model="tiny", messages=EGGS).choices[0].message.content
    cut = client.chat.completions.create(model="tiny", messages=EGGS, stop=["####"])
    assert cut.choices[0].message.content == whole.partition("####")[0] and cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="tiny", messages=EGGS, max_tokens=5)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 5
    drawn = [client.completions.create(model="tiny", prompt="Hello", temperature=5, seed=seed).choices[0].text
             for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_errors_are_those_that_the_client_knows(tiny):
    client = client_of(tiny)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "dpad"
    for call in (lambda: client.models.retrieve("gpt-5"),
                 lambda: client.chat.completions.create(model="gpt-5", messages=EGGS)):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=EGGS, n=3)
    assert caught.value.param == "n" and "it must be 1" in str(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:  # before the stream begins
        client.completions.create(model="tiny", prompt="Hi", stream=True, max_tokens=10**6)
    assert caught.value.param == "max_tokens"


def test_a_key_is_asked_for(loaded):
    with running(loaded, QUICK, api_key="a secret") as server:
        assert client_of(server, api_key="a secret").models.list().data
        for key in ("a secre", "a secret!", "é", "x"):
            headers = {"authorization": f"Bearer {key}".encode()}
            error = error_of(httpx.get(f"{server.url}/models", headers=headers), 401)
            assert error["code"] == "invalid_api_key" and "secret" not in error["message"]
        with pytest.raises(openai.AuthenticationError):
            client_of(server, api_key="wrong").completions.create(model="x", prompt="Hi")
        assert error_of(httpx.get(f"{server.root}/metrics"), 401)
        assert error_of(post(server, {"prompt": "Hi"}), 401)
        assert httpx.get(f"{server.root}/health").status_code == 200


# --- Hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers, is_allowed", [
    ({}, True), ({"host": "localhost:1"}, True), ({"origin": "http://localhost:3000"}, True),
    ({"host": "evil.example"}, False), ({"origin": "https://evil.example"}, False), ({"origin": "null"}, False),
    ({"x-forwarded-host": "evil.example"}, False), ({"host": "127.0.0.1.evil.example"}, False),
])
def test_a_website_cannot_use_a_visitors_server(quick, headers, is_allowed):
    for path in ("/v1/models", "/metrics", "/health"):
        response = httpx.get(quick.root + path, headers=headers)
        assert response.status_code == 200 if is_allowed else error_of(response, 403)


def test_beyond_this_machine_a_host_may_have_any_name(loaded):
    with running(loaded, QUICK, local_only=False) as server:
        assert httpx.get(f"{server.url}/models", headers={"host": "model.example"}).status_code == 200
        own = {"host": "model.example", "origin": "https://model.example"}
        assert httpx.get(f"{server.url}/models", headers=own).status_code == 200
        error_of(httpx.get(f"{server.url}/models", headers={"origin": "https://evil.example"}), 403)


# --- What is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"x"', b"{'a': 1}", b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}',
    b'{"temperature": NaN, "prompt": "Hi"}', b'{"temperature": Infinity, "prompt": "Hi"}',
    b'{"temperature": 1e999, "prompt": "Hi"}', b'{"seed": ' + b"9" * 5000 + b', "prompt": "Hi"}',
    b'{"seed": 99999999999999999999, "prompt": "Hi"}', b"[" * 4000, b'{"a":' * 900 + b"1" + b"}" * 900,
    b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}", b'{"prompt": "Hi"} {}', b"\x00", b'{"prompt": "Hi", "\\u0000": 1}',
    b'{"prompt": "Hi", "stop": ["\\udfff"]}', b'{"prompt": {"__class__": 1}}',
])
def test_malformed_bodies_get_status_400(quick, body):
    """Guards against tracebacks, hangs and status 500, whatever somebody sends."""
    for path in ("/completions", "/chat/completions"):
        assert error_of(post(quick, body, path), 400)["type"] == "invalid_request_error"
    assert quick.service.open == 0


@pytest.mark.parametrize("method, path, status", [
    ("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("POST", "/v1/embeddings", 404), ("GET", "/", 404),
    ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("GET", "/v1/models/no/such", 404),
    ("GET", "/v1/%00%0a%1b[31m", 404),
])
def test_other_addresses(quick, method, path, status):
    error_of(httpx.request(method, quick.root + path), status)


def test_requests_that_are_too_large(quick):
    """Guards memory: what is too large is not kept, and its client hears why, with its length and without."""
    assert error_of(post(quick, {"prompt": "x" * 20_000}), 413)["code"] == "request_too_large"
    pieces = (b"x" * 65536 for _ in range(64))
    error_of(httpx.post(f"{quick.url}/completions", content=pieces, timeout=30), 413)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n"
    assert b" 413 " in exchange(quick, head)
    assert error_of(post(quick, {"prompt": "word " * 1900}), 400)["code"] == "context_length_exceeded"


def exchange(server, data, seconds=5.0):
    """Send bytes, and read what comes until the server ends the connection, or for so long."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and (piece := connection.recv(65536)):
                received += piece
                if b"\r\n\r\n" in received and b"content-length" in received:
                    break
        except OSError:
            pass
    return received


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"HELLO\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
])
def test_what_is_no_http(quick, data):
    received = exchange(quick, data)
    assert received == b"" or b" 40" in received.split(b"\r\n")[0]
    assert httpx.get(f"{quick.root}/health").status_code == 200


def test_slow_writers_are_not_waited_for(quick):
    """Guards the places in the queue: a head or a body that does not come ends its connection (patience: 0.5 s)."""
    start = time.monotonic()
    for data in (b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", quick.port), timeout=5) as connection:
            connection.sendall(data)
            assert connection.recv(100) == b""
    slow = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{"
    assert b" 408 " in exchange(quick, slow)
    assert time.monotonic() - start < 6 and quick.service.open == 0


def test_a_second_request_on_a_connection_may_not_be_slow_either(quick):
    with socket.create_connection(("127.0.0.1", quick.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        received = b""
        while b"}" not in received:
            received += connection.recv(4096)
        connection.sendall(b"GET /heal")
        assert b" 200 " in received and connection.recv(4096) == b""


def test_slow_readers_are_not_waited_for(loaded):
    """Guards decoder and memory: a client that takes nothing of a long stream is cut off, and others are answered."""
    with running(loaded, QUICK, patience=1.0) as server:
        body = json.dumps({"prompt": ["Hello"] * 128, "max_tokens": 256, "stream": True, "echo": True, "drafts": True,
                           "threshold": 0, "block_length": 4, "seed": 3}).encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        # Pretend that the machine's buffers are small: they hold megabytes otherwise.
        for protocol in wait_for_connections(server):
            protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
                           + body)
        wait_until(lambda: server.service.decoder.decoding)
        assert post(server, {"prompt": "Hello", "max_tokens": 4}).status_code == 200
        wait_until(lambda: server.service.open == 0, 30)
        assert server.metric("dpad_disconnects_total") == 1, "the whole stream has been sent"
        wait_until(lambda: not server.server.server_state.connections)
        connection.close()


def wait_for_connections(server):
    wait_until(lambda: server.server.server_state.connections)
    return list(server.server.server_state.connections)


# --- The queue --------------------------------------------------------------------------------------------------------


@contextmanager
def decoder_held(server):
    """The decoding thread waits inside."""
    decoder = server.service.decoder
    decode, go_on = decoder._decode, threading.Event()

    def wait(jobs):
        assert go_on.wait(30)
        decode(jobs)

    decoder._decode = wait
    try:
        yield
    finally:
        go_on.set()
        decoder._decode = decode


def test_a_full_queue_is_said_to_be_full(quick):
    """Guards the clients' patience and the server's memory: status 429 at once, and when to come again."""
    body = {"prompt": "Hello", "max_tokens": 4}
    with ThreadPoolExecutor(8) as pool:
        with decoder_held(quick):
            futures = [pool.submit(post, quick, body) for _ in range(6)]
            wait_until(lambda: quick.service.open == 6)
            response = post(quick, body | {"prompt": ["Hello"] * 3})
            assert error_of(response, 429)["code"] == "queue_full" and 1 <= int(response.headers["retry-after"]) <= 60
            futures.append(pool.submit(post, quick, body | {"prompt": ["Hello"] * 2}))
            wait_until(lambda: quick.service.open == 8)
            error_of(post(quick, body), 429)
            with pytest.raises(openai.RateLimitError):
                client_of(quick).completions.create(model=quick.service.loaded.name, prompt="Hello")
            assert httpx.get(f"{quick.root}/health").json()["status"] == "ok"
        assert [future.result().status_code for future in futures] == [200] * 7
    assert quick.service.open == 0


def test_more_prompts_than_the_queue_holds_are_refused(quick):
    assert error_of(post(quick, {"prompt": ["Hello"] * 9}), 400)["param"] == "prompt"


def test_requests_that_arrive_together_are_one_batch(loaded):
    prompts = [f"Number {number}" for number in range(16)]
    with running(loaded, QUICK, max_batch=16, batch_wait=1000) as server, ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda prompt: post(server, {"prompt": prompt}).json()["choices"][0]["text"], prompts))
        assert server.metric("dpad_batch_rows_count") <= 3 and server.metric("dpad_batch_rows_sum") == 16
    ids = [loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    assert texts == [loaded.answer_text.decode(alone(loaded, prompt, QUICK)) for prompt in ids]


@pytest.mark.parametrize("stream", [False, True])
def test_disconnecting_ends_the_decoding(loaded, stream):
    """Guards the work for clients that have gone: their row ends at the next forward, seconds before its end."""
    with running(loaded, QUICK) as server:
        for _ in range(2):
            with suppress(httpx.ReadTimeout):  # of the whole answer; a stream is left after its first piece
                with httpx.stream("POST", f"{server.url}/completions", json=SLOW | {"stream": stream},
                                  timeout=30 if stream else 0.3) as response:
                    next(response.iter_raw())
            wait_until(lambda: not server.service.decoder.decoding and server.service.open == 0, 3)
        assert server.metric("dpad_disconnects_total") == 2
        assert server.metric("dpad_completion_tokens_total") == 0
        assert post(server, {"prompt": "Hello", "max_tokens": 4}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long_is_ended(loaded, stream):
    with running(loaded, QUICK, timeout=0.3) as server:
        response = post(server, SLOW | {"stream": stream})
        error = json.loads(response.text.split("data: ")[-1])["error"] if stream else error_of(response, 504)
        assert error["code"] == "timeout" and "[DONE]" not in response.text
        wait_until(lambda: not server.service.decoder.decoding, 3)
        if stream:
            with pytest.raises(openai.APIError, match="0.3 seconds"):
                body = {key: value for key, value in SLOW.items() if key not in ("prompt", "max_tokens")}
                list(client_of(server).completions.create(model=server.service.loaded.name, prompt="Hello",
                                                          max_tokens=768, stream=True, extra_body=body))


def test_health_answers_while_the_model_decodes(loaded):
    with running(loaded, QUICK) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(post, server, SLOW | {"max_tokens": 256, "steps": 256})
        wait_until(lambda: server.service.decoder.decoding)
        start = time.monotonic()
        health = httpx.get(f"{server.root}/health").json()
        assert time.monotonic() - start < 1 and health["decoding"] == 1
        assert slow.result().status_code == 200


def test_metrics_count_what_happened(loaded):
    with running(loaded, QUICK) as server:
        usage = post(server, {"prompt": ["Hello", "You"], "max_tokens": 40}).json()["usage"]
        post(server, {"prompt": ""})
        httpx.get(f"{server.root}/v1/other")
        text = httpx.get(f"{server.root}/metrics")
        assert text.headers["content-type"].startswith("text/plain")
        assert 'dpad_requests_total{endpoint="/v1/completions",status="200"} 1.0' in text.text
        assert 'dpad_requests_total{endpoint="/v1/completions",status="400"} 1.0' in text.text
        assert 'dpad_requests_total{endpoint="other",status="404"} 1.0' in text.text
        assert f"dpad_prompt_tokens_total {usage['prompt_tokens']:.1f}" in text.text
        assert f"dpad_completion_tokens_total {usage['completion_tokens']:.1f}" in text.text
        assert "dpad_waiting 0.0" in text.text and "dpad_batch_rows_sum 2.0" in text.text


def test_a_fault_of_the_server_is_an_error_in_its_form(loaded, capsys):
    """Guards clients against a server that hangs, and the terminal against what a fault's text holds."""
    with running(loaded, QUICK) as server:
        def fail(jobs):
            raise RuntimeError("broken\x1b[31m\n")

        server.service.decoder._decode = fail
        error = error_of(post(server, {"prompt": "Hello"}), 500)
        assert error["type"] == "server_error" and error["code"] == "decoding_failed"
        text = post(server, {"prompt": "Hello", "stream": True}).text
        assert '"code":"decoding_failed"' in text and "[DONE]" not in text
    assert "\x1b" not in capsys.readouterr().err


# --- The end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace, status", [(30.0, 200), (0.0, 503)])
def test_at_the_end_whoever_waits_gets_the_answer_or_a_clear_error(loaded, grace, status):
    with ThreadPoolExecutor(3) as pool:
        with running(loaded, QUICK, grace=grace) as server:
            body = SLOW | {"max_tokens": 256, "steps": 256}
            whole = pool.submit(post, server, body)
            stream = pool.submit(post, server, body | {"stream": True})
            wait_until(lambda: server.service.open == 2 and server.service.decoder.decoding)
            server.service.drain()
            error_of(post(server, {"prompt": "Hello"}), 503)
            assert httpx.get(f"{server.root}/health").status_code == 503
        assert whole.result().status_code == status
        assert ("[DONE]" if status == 200 else '"code":"shutting_down"') in stream.result().text
        if status != 200:
            assert error_of(whole.result(), 503)["code"] == "shutting_down"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.root}/health")
