"""lm-eval's own command line with our models: several processes share the work, and nothing is ignored in silence.

    bash tests/run.sh tests/test_lm_eval_cli.py
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from dpad.engine.loading import family_of
from dpad.evaluation import lm_eval_cli
from dpad.evaluation.journal import Journal
from sampler import AnchorSampler

BIN = Path(sys.executable).parent


def start(checkpoint, output, launcher=(), model_args="", limit=3, flags=()):
    """lm-eval's command line in a process of its own, or in those that a launcher starts."""
    arguments = f"checkpoint={checkpoint},gen_length=32,block_size=16,threshold=0.02{model_args}"
    program = [*launcher, "-m", "dpad.evaluation.lm_eval_cli"] if launcher else [
        sys.executable, "-m", "dpad.evaluation.lm_eval_cli"]
    return subprocess.run(
        [*program, "--model", "dpad", "--model_args", arguments, "--device", "cpu", "--tasks", "arithmetic-50",
         "--include_path", "dataset/tasks", "--apply_chat_template", "--limit", str(limit), "--output_path",
         str(output), "--log_samples", *flags],
        cwd=ROOT, text=True, capture_output=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
    )


def launchers():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    return {
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", port],
        "accelerate": [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                       "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port],
    }


def answers_of(output):
    [path] = output.rglob("samples_*.jsonl")
    samples = map(json.loads, path.read_text().splitlines())
    return sorted((sample["doc_id"], sample["filter"], json.dumps(sample["resps"])) for sample in samples)


@pytest.mark.slow
def test_processes_share_the_work(checkpoint_folder, tmp_path):
    """Guards `accelerate launch` and torchrun: each request is answered once, one process reports, with a journal or
    without; fewer requests than processes are no trouble."""
    alone = start(checkpoint_folder, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr[-2000:]

    journal = tmp_path / "journal"
    shared = start(checkpoint_folder, tmp_path / "shared", launchers()["accelerate"], f",journal={journal}")
    assert shared.returncode == 0, shared.stderr[-2000:]
    assert answers_of(tmp_path / "shared") == answers_of(tmp_path / "alone")
    assert shared.stdout.count("|exact_match|") == alone.stdout.count("|exact_match|") > 0
    [folder] = journal.iterdir()
    with Journal(folder) as saved:
        assert len(saved.answers) == 3
    shares = [len((folder / f"answers-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert sorted(shares) == [1, 2]

    one = start(checkpoint_folder, tmp_path / "one", launchers()["torchrun"], limit=1)
    assert one.returncode == 0, one.stderr[-2000:]
    assert answers_of(tmp_path / "one") == answers_of(tmp_path / "alone")[:2]


@pytest.mark.slow
def test_processes_say_once_what_is_wrong(checkpoint_folder, tmp_path):
    done = start(checkpoint_folder, tmp_path, launchers()["torchrun"], model_args=",treshold=0.5")
    assert done.returncode != 0
    assert sum(line.startswith("lm_eval_cli: treshold: not a setting") for line in done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_gen_kwargs_end_the_command_line(checkpoint_folder, tmp_path):
    done = start(checkpoint_folder, tmp_path, flags=["--gen_kwargs", "temperature=0.5,max_gen_toks=8"])
    assert done.returncode == 2
    assert "lm_eval_cli: gen_kwargs: max_gen_toks, temperature would not be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("gen_kwargs, ignored", [
    ("temperature=0.5", "temperature"), ({"do_sample": True, "top_p": 0.9}, "do_sample, top_p"),
    ("gen_length=128", "gen_length"), ({"until": ["\n"], "max_gen_toks": 5}, "max_gen_toks"),
])
def test_gen_kwargs_that_would_be_ignored_are_refused(gen_kwargs, ignored):
    """Guards against a temperature that somebody believes to have set."""
    with pytest.raises(ValueError, match=f"gen_kwargs: {ignored} would not be used; .* --model_args"):
        lm_eval_cli.evaluate(model="dpad", model_args="checkpoint=tiny", tasks=["x"], gen_kwargs=gen_kwargs)


def test_stop_strings_are_honoured_where_the_family_has_them():
    """Guards `until`, which LLaDA's answers end at; Dream's end at EOS alone."""
    lm_eval_cli.check_gen_kwargs("checkpoint=tiny", {"until": ["\n"]})
    with pytest.raises(ValueError, match="gen_kwargs: until would not be used"):
        lm_eval_cli.check_gen_kwargs({"pretrained": "dream-tiny"}, {"until": ["\n"]})


def test_a_process_alone_leaves_the_environment_alone(monkeypatch, checkpoint_folder):
    """Guards what runs in the same process later, such as training: accelerate takes LOCAL_RANK for one of several."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = dict(os.environ)
    lm_eval_cli.CommandLineLM(checkpoint=str(checkpoint_folder), gen_length=16, block_length=8)
    assert dict(os.environ) == before


def test_other_flags_that_would_be_ignored_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="max_batch_size is 4; batch_size auto finds"):
        lm_eval_cli.CommandLineLM.create_from_arg_string("checkpoint=tiny", {"max_batch_size": 4})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--use_cache keeps the answers of each process apart"):
        lm_eval_cli.evaluate(model="dpad", model_args="checkpoint=tiny", tasks=["x"], use_cache="cache")


def test_a_method_is_one_argument():
    """Guards `method=ssm` among lm-eval's model_args: all of its settings, of which others replace one each."""
    family = family_of("tiny")
    settings = lm_eval_cli.settings_from(family, {"gen_length": 64, "threshold": 0.8}, "ssm")
    assert settings.suffix_sampler == AnchorSampler(64, 32) and settings.threshold == 0.8
    assert settings.soft_suffix is not None and settings.early_termination
    with pytest.raises(ValueError, match="method is 'smm'; .* did you mean 'ssm'"):
        lm_eval_cli.settings_from(family, {}, "smm")
