"""The server as a Ray Serve deployment: what ray.yaml says, and two replicas of the embedded model.

    bash tests/run.sh tests/test_ray.py
    DPAD_TEST_RAY=1 bash tests/run.sh tests/test_ray.py        # also starts Ray, which takes most of a minute
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from helpers import ROOT
from serving import wait_until

from dataset import read_problems

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")
pytest.importorskip("ray.serve")
pytestmark = pytest.mark.slow

CONFIG = ROOT / "dpad" / "serve" / "ray.yaml"


def test_the_configuration_is_one_of_ray_serve():
    """Guards keys that Ray has renamed, and arguments that the server has renamed."""
    from ray.serve.schema import ServeDeploySchema

    from dpad.serve.ray_app import build

    config = yaml.safe_load(CONFIG.read_text())
    [application] = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "dpad.serve.ray_app:build"
    assert [deployment.name for deployment in application.deployments] == ["Model"]
    assert build(application.args)
    assert config["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("arguments, message", [
    ({}, "model is None"), ({"model": "tiny", "treshold": 0.9}, "did you mean 'threshold'"),
    ({"model": "tiny", "threshold": 2}, "threshold is 2"), ({"model": "tiny", "max_batch": 0}, "max_batch is 0"),
    ({"model": "tiny", "gen_length": 2048}, "at most max_tokens"), ({"model": "no such"}, "model is 'no such'"),
])
def test_arguments_that_cannot_be_used(arguments, message):
    """Guards a cluster from starting replicas that cannot live."""
    from dpad.serve.ray_app import build

    with pytest.raises(ValueError, match=message):
        build(arguments)


@pytest.mark.skipif(not os.environ.get("DPAD_TEST_RAY"), reason="starts Ray; DPAD_TEST_RAY=1 asks for it")
def test_two_replicas_answer_together(tmp_path):
    """Guards the deployment: both replicas answer, whole and as streams, as one server does; errors pass; it ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["port"] = port
    deployment = config["applications"][0]["deployments"][0]
    deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    deployment["ray_actor_options"] = {"num_cpus": 0.5}
    (tmp_path / "ray.yaml").write_text(yaml.safe_dump(config))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    root = f"http://127.0.0.1:{port}"
    client = openai.OpenAI(base_url=f"{root}/v1", api_key="none", max_retries=0, timeout=60)
    questions = [problem["question"] for problem in read_problems("arithmetic-50.jsonl")][:20]

    def health():
        try:
            return httpx.get(f"{root}/health", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}

    def ask(question):
        chat = client.chat.completions.create
        messages = [{"role": "user", "content": question}]
        pieces = chat(model="tiny", messages=messages, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        return chat(model="tiny", messages=messages).choices[0].message.content, streamed

    with open(tmp_path / "log", "w") as log:
        child = subprocess.Popen([sys.executable, "-m", "ray.serve.scripts", "run", str(tmp_path / "ray.yaml")],
                                 env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: health().get("status") == "ok" or child.poll() is not None, 180)
        assert child.poll() is None, (tmp_path / "log").read_text()[-3000:]
        replicas = set()
        wait_until(lambda: replicas.add(health().get("process")) or len(replicas - {None}) == 2, 60)
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(ask, questions))
        assert all(whole == streamed and "####" in whole for whole, streamed in answers)
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", prompt="Hi", n=2)
    finally:
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(60) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            raise

