"""`run.py serve` as a process: signals, a crash under load, memory, and lm-eval as its client.

    bash tests/run.sh tests/test_server_process.py
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import process, wait_until

import run
from benchmarks import load
from dataset import read_problems
from dpad.evaluation import tasks

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow

FLAGS = ("-m", "tiny", "-d", "gaussian", "-k", "3", "-sc", "1.6", "-th", "0.9", "-l", "128")
QUESTIONS = [problem["question"] for problem in read_problems("arithmetic-50.jsonl")]


@functools.cache  # making one takes longer than an answer
def client_of(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


def ask(url, question, **options):
    """The answer to a question, or the error that the client raises."""
    try:
        answer = client_of(url).chat.completions.create(model="tiny", messages=[{"role": "user", "content": question}],
                                                **options)
        return answer.choices[0].message.content
    except openai.OpenAIError as error:
        return error


def slow(length):
    """A request of one long block, a token a forward: seconds."""
    return {"max_tokens": length, "extra_body": {"threshold": 0, "steps": length, "block_length": length,
                                                 "dropout_strategy": "null"}}


def busy(url):
    """How many prompts are with the server."""
    health = httpx.get(f"{url.removesuffix('/v1')}/health").json()
    return health["waiting"] + health["decoding"]


def test_a_signal_ends_the_server_when_it_has_answered():
    """Guards the end that a supervisor asks for: status 0, nothing on standard error, and no answer lost."""
    with process(*FLAGS, "--grace", "300") as (child, url), ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, url, question, **slow(128)) for question in QUESTIONS[:2]]
        wait_until(lambda: busy(url) == 2)
        child.send_signal(signal.SIGTERM)
        assert all(isinstance(answer.result(), str) for answer in answers)
        assert child.wait(20) == 0
        assert "Traceback" not in child.stderr.read()


def test_a_second_signal_ends_it_at_once():
    with process(*FLAGS) as (child, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, QUESTIONS[0], **slow(768))
        wait_until(lambda: busy(url) == 1)
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        error = answer.result(10)
        assert isinstance(error, openai.InternalServerError) and error.code == "shutting_down"
        assert child.wait(10) == 0 and "Traceback" not in child.stderr.read()


def test_after_kill_9_and_a_restart_clients_go_on():
    """Guards clients of a server that crashes under load: each has its answer or a clear error, and the port is free
    for the next server at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    results, is_over = [], threading.Event()

    def visit(number):
        while not is_over.is_set():
            question = QUESTIONS[number % 10]
            results.append((question, ask(url, question)))
            number += 1
            if isinstance(results[-1][1], openai.APIConnectionError):
                time.sleep(0.1)

    with process(*FLAGS, port=port) as (child, _), ThreadPoolExecutor(8) as pool:
        expected = {question: ask(url, question) for question in QUESTIONS[:10]}
        visitors = [pool.submit(visit, number) for number in range(8)]
        try:
            wait_until(lambda: len(results) > 20)
            child.kill()
            child.wait(10)
            wait_until(lambda: sum(isinstance(answer, openai.APIConnectionError) for _, answer in results) > 8)
            before = len(results)
            with process(*FLAGS, port=port):
                wait_until(lambda: sum(isinstance(answer, str) for _, answer in results[before:]) > 20, 30)
                is_over.set()
                for visitor in visitors:
                    visitor.result(30)
        finally:
            is_over.set()
    wrong = [(question, answer) for question, answer in results
             if answer != expected[question] and not isinstance(answer, openai.APIConnectionError)]
    assert not wrong


def memory_of(process_id):
    """The resident memory of a process in MB."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the process has no memory")


@pytest.fixture(scope="module")
def server():
    with process(*FLAGS, "--patience", "2") as (child, url):
        yield child, url


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_what_is_refused_leaves_nothing_behind(server):
    """Guards against growth: hundreds of malformed, huge, foreign and broken requests, and clients that leave."""
    child, url = server
    port = int(url.split(":")[2].split("/")[0])
    bodies = [b"[" * 10**6, b"x" * (2**20 + 1), b'{"prompt": "' + b"word " * 200_000 + b'"}', b'{"a":' * 10**5, b"\xff"]
    broken = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n" + b"x" * 50_000

    def attack(count):
        statuses = set()
        with httpx.Client(timeout=30) as client:
            for number in range(count):
                statuses |= {client.post(f"{url}/completions", content=body).status_code for body in bodies}
                statuses.add(client.get(f"{url}/models", headers={"host": f"x{number}.example"}).status_code)
                statuses.add(client.get(f"{url}/{number}").status_code)
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(broken)
        return statuses

    attack(10)
    before = memory_of(child.pid)
    assert attack(40) == {400, 403, 404, 413}
    assert memory_of(child.pid) < before + 20
    assert "####" in ask(url, QUESTIONS[0])
    wait_until(lambda: len(os.listdir(f"/proc/{child.pid}/fd")) < 30)


def test_the_load_program_compares_every_answer(server):
    """Guards the measurement: each answer is right, also of streams; a wrong one and a lost one are counted."""
    _, url = server
    root = url.removesuffix("/v1")
    prompts = load.questions()[:4]
    expected = load.answers_alone(prompts)
    row = asyncio.run(load.load(root, 4, 2.0, prompts, expected))
    assert row["answers"] >= 4 and row["wrong"] == row["lost"] == 0 < row["latency_s"]["p50"]
    assert row["tokens_per_second"] > 0
    assert asyncio.run(load.load(root, 2, 0.5, prompts, ["another one"] * 4))["wrong"] >= 2
    assert asyncio.run(load.load("http://127.0.0.1:9", 1, 0.01, prompts, expected))["lost"] == 1


def test_lm_eval_gets_the_scores_of_the_harness(server, tmp_path, monkeypatch):
    """Guards answers over the network: lm-eval's client of chat completions has those, and the scores, of run.py."""
    pytest.importorskip("aiohttp")
    pytest.importorskip("tenacity")
    limit = 8
    _, url = server
    record = tmp_path / "record.json"
    options = ["--limit", str(limit), "--device", "cpu", "--output", str(tmp_path), "--record", str(record)]
    assert run.main(["-t", "arithmetic-50", *FLAGS, *options]) == 0
    metrics = json.loads(record.read_text())["metrics"]
    [samples] = tmp_path.rglob("samples.jsonl")
    answers = [json.loads(line)["answer"] for line in samples.read_text().splitlines()]

    import lm_eval
    import lm_eval.models  # lm-eval imports it by itself only where no model, such as ours, has been registered

    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args={"model": "tiny", "base_url": f"{url}/chat/completions", "num_concurrent": 4, "max_gen_toks": 128,
                    "tokenizer_backend": None, "max_retries": 1},
        tasks=["arithmetic-50"], task_manager=tasks.own_tasks(), limit=limit, apply_chat_template=True,
        log_samples=True, bootstrap_iters=0,
    )
    scores = results["results"]["arithmetic-50"]
    assert {name: scores[f"exact_match,{name}"] for name in metrics} == {
        name: metric["value"] for name, metric in metrics.items()}
    theirs = {sample["doc_id"]: sample["resps"][0][0] for sample in results["samples"]["arithmetic-50"]}
    assert [theirs[number] for number in range(limit)] == answers
