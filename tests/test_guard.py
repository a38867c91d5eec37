"""The page against what may be sent to it: foreign hosts, endless uploads, jobs that nobody listens to.

    bash tests/run.sh tests/test_guard.py
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import threading
import time

import pytest

from dpad.engine import loading
from dpad.interact import denoiser
from dpad.interact.denoiser import MAX_FILE, Denoiser, Shelf
from dpad.interact.guard import Guard, Streams, is_local, prune

Page = pytest.importorskip("dpad.interact.page", reason="demo/requirements.txt is not installed").Page


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu")


@pytest.fixture(scope="module")
def page(loaded):
    return Page(Denoiser(loaded))


def decode(page, session, **changed):
    """A job of the page as Gradio runs it: all that it yields."""
    values = {name: control.value for name, control in page.controls.items()} | changed
    return page.decode("How many apples?", tuple(values.values()), with_vanilla=False, session=session)


# --- Hosts ------------------------------------------------------------------------------------------------------------


def status_of(guard, headers, path="/", method="GET", kind="http"):
    """The status with which a request is answered; 200 when it reaches the page."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": headers, "query_string": b""}
    asyncio.run(guard(scope, None, send))
    return sent[0].get("status", sent[0]["type"])


@pytest.fixture
def guard(tmp_path):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Guard(answer, Streams(), tmp_path, MAX_FILE)


@pytest.mark.parametrize("host", [b"127.0.0.1", b"127.0.0.1:7860", b"localhost", b"localhost:80", b"LOCALHOST:7860",
                                  b"[::1]:7860"])
def test_hosts_that_are_this_machine(guard, host):
    assert is_local(host) and status_of(guard, [(b"host", host)]) == 200
    assert status_of(guard, [(b"host", host), (b"origin", b"http://" + host)]) == 200


@pytest.mark.parametrize("host", [
    b"evil.example", b"evil.example:7860", b"127.0.0.1.evil.example", b"localhost.evil.example:7860", b"", b" ",
    b"evil.example#127.0.0.1", b"127.0.0.1@evil.example", b"127.0.0.1:7860:7860", b"127.0.0.1, evil.example",
    b"0.0.0.0", b"127.0.0.1\xff", b"null", b"http://", b"[", b"[::1", b"[v1.x]",
])
def test_foreign_hosts_are_refused(guard, host):
    """Guards against a website that gives its own name this machine's address (DNS rebinding)."""
    local = (b"host", b"127.0.0.1:7860")
    assert status_of(guard, [(b"host", host)]) == 403
    assert status_of(guard, [local, (b"host", host)]) == 403
    assert status_of(guard, [local, (b"x-forwarded-host", host)]) == 403
    assert status_of(guard, [local, (b"origin", b"http://" + host)]) == 403
    assert status_of(guard, [(b"host", host)], kind="websocket") == "websocket.close"


def test_a_request_without_a_host_is_refused(guard):
    assert status_of(guard, []) == 403


# --- Uploads ----------------------------------------------------------------------------------------------------------


def test_requests_without_bound_are_refused(guard):
    local = (b"host", b"localhost")
    for length, status in ((b"100", 200), (str(MAX_FILE + 1).encode(), 413), (b"-1", 413), (b"1e3", 413), (b"", 413)):
        assert status_of(guard, [local, (b"content-length", length)], method="POST") == status
    assert status_of(guard, [local, (b"transfer-encoding", b"chunked")], method="POST") == 413


def test_no_state_is_written(guard):
    """Guards the disk against Gradio's links to a page's state, one file for each."""
    assert status_of(guard, [(b"host", b"localhost")], path="/gradio_api/deep_link") == 404


def test_uploads_are_few_and_go(guard, tmp_path, monkeypatch):
    """Guards the disk: before each upload the oldest files are deleted, and those that are too old."""
    monkeypatch.setattr(Guard, "MAX_FILES", 5)
    for number in range(9):
        file = tmp_path / str(number) / "trace.jsonl"
        file.parent.mkdir()
        file.write_text("x")
        os.utime(file, (time.time() - 100 + number,) * 2)
    headers = [(b"host", b"localhost"), (b"content-length", b"10")]
    assert status_of(guard, headers, path="/gradio_api/upload", method="POST") == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "6", "7", "8"]
    prune(tmp_path, 5, max_age=95)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "7", "8"]


def test_an_opened_trace_leaves_no_file(page, tmp_path):
    """Guards the disk on the other side: what has been read, or refused, is deleted."""
    *_, last = decode(page, None, gen_length=32, block_length=32, window=32)
    file = tmp_path / "trace.jsonl"
    file.write_bytes(open(last[page.download], "rb").read())
    shown = page.open_trace(str(file))
    assert len(page.denoiser.shelf.get(shown[page.shown])) == 1 and not file.exists()
    file.write_text("[" * 100_000)
    assert "trace.jsonl" in page.open_trace(str(file))[page.message] and not file.exists()
    with open(file, "wb") as huge:
        huge.truncate(MAX_FILE + 1)
    assert "larger than 8 MB" in page.open_trace(str(file))[page.message] and not file.exists()


# --- Traces that are kept ---------------------------------------------------------------------------------------------


def test_traces_are_bounded_in_number_size_and_age():
    shelf = Shelf(max_count=3, max_size=100, max_age=0.2)
    keys = [shelf.put([number], 10) for number in range(5)]
    assert [shelf.get(key) for key in keys] == [[], [], [2], [3], [4]]
    large = shelf.put(["large"], 95)
    assert len(shelf) == 1 and shelf.get(large) == ["large"]
    assert not shelf.get(shelf.put(["too large"], 101))
    key = shelf.put(["old"], 1)
    time.sleep(0.25)
    assert not shelf.get(key) and len(shelf) == 0
    assert not shelf.get("no key")


def test_a_trace_that_has_gone_is_said(page, monkeypatch):
    """Guards the player: what is no longer kept gives a sentence, and the replay stops."""
    *_, last = decode(page, None, gen_length=32, block_length=32, window=32)
    key = last[page.shown]
    assert page.left in page.seek(1, key) and page.position in page.tick(0, key)
    assert page.seek(10**9, key)[page.left] == page.seek(last[page.position]["value"], key)[page.left]
    monkeypatch.setattr(page.denoiser, "shelf", Shelf(1, 1, 1))
    for shown in (page.seek(1, key), page.tick(1, key), page.press_play("Play", 1, key)):
        assert "no longer kept" in shown[page.message]


# --- Jobs that nobody listens to --------------------------------------------------------------------------------------


def test_a_job_waits_for_its_stream(page, monkeypatch):
    """Guards the model: nothing is decoded for a visitor whose stream is never opened, or is closed."""
    monkeypatch.setattr("dpad.interact.page.PATIENCE", 0.2)
    started = []
    start = page.denoiser.start
    monkeypatch.setattr(page.denoiser, "start", lambda *arguments: started.append(start(*arguments)) or started[-1])
    assert not list(decode(page, "nobody")) and not started

    with page.streams.opened("visitor"):
        job = decode(page, "visitor", gen_length=512, dropout_strategy="null", threshold=0)
        next(job)
        next(job)
    assert started and started[0].is_alive()
    assert len(list(job)) <= 1
    started[0].join(10)
    assert not started[0].is_alive() and started[0].cancelled.is_set()

    with page.streams.opened("visitor"):
        *_, last = decode(page, "visitor", gen_length=32, block_length=32, window=32)
    assert page.shown in last


def test_streams_may_open_late_and_twice():
    streams = Streams()
    late = streams.opened("a")
    threading.Timer(0.1, late.__enter__).start()
    assert streams.wait("a", 5)
    late.__exit__(None, None, None)
    assert not streams.wait("a", 0)
    with streams.opened("b"), streams.opened("b"):
        pass
    assert not streams.wait("b", 0)


@pytest.mark.slow
def test_the_served_page(loaded, tmp_path, monkeypatch):
    """Guards that all this stands in front of the real page: hosts, a job without a stream, a job with one."""
    from demo import app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("dpad.interact.page.PATIENCE", 0.5)
    started = []
    begin = denoiser.Denoiser.start
    monkeypatch.setattr(denoiser.Denoiser, "start", lambda *a: started.append(begin(*a)) or started[-1])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    page = app.open_page(loaded, port, tmp_path)

    def ask(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"} | headers)
        return connection.getresponse()

    try:
        assert ask("GET", "/").status == 200
        foreign = ask("GET", "/", Host="evil.example")
        assert foreign.status == 403 and b"127.0.0.1" in foreign.read()
        assert ask("GET", "/config", Origin="https://evil.example").status == 403

        job = next(fn for fn in page.blocks.fns.values() if fn.fn and fn.fn.__name__ == "answer")
        values = ["How many apples?", False, 0, *(control.value for control in page.controls.values())]
        for session, listens in (("nobody", False), ("somebody", True)):
            body = {"data": values, "fn_index": job._id, "session_hash": session, "trigger_id": None}
            assert ask("POST", "/gradio_api/queue/join", body).status == 200
            if listens:
                stream = ask("GET", f"/gradio_api/queue/data?session_hash={session}")
                assert b"process_completed" in stream.read()
            else:
                time.sleep(2)
            assert bool(started) is listens
    finally:
        page.blocks.close()
