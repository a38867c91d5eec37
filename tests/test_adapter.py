"""The adapter: requests keep their order and get their own answers, batches shrink, lm-eval's command line works.

    python -m pytest tests/test_adapter.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from lm_eval.api.instance import Instance

from dpad import ROOT
from dpad.engine import loading
from dpad.evaluation import adapter, lm_eval_cli
from dpad.evaluation.adapter import GENERATE, DiffusionLM
from dpad.evaluation.tasks import load_tasks
from llada.settings import LLaDASettings
from sampler import WindowSampler


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def settings(**changes) -> LLaDASettings:
    return LLaDASettings(**({"gen_length": 32, "block_length": 16, "threshold": 0.02} | changes))


def request(prompt: str, doc: dict | None = None, until: tuple[str, ...] = (), doc_id: int = 0) -> Instance:
    return Instance("generate_until", doc or {}, (prompt, {"until": list(until)}), 0, metadata=("task", doc_id, 1))


def test_stop_strings_cut_text_but_not_humaneval_in_chat(loaded):
    """LLaDA's text ends before a stop string; HumanEval's with the chat template is left whole."""
    humaneval, stop = {"task_id": "HumanEval/0"}, ("\ndef",)

    def stops(lm):
        requests = [request("f", humaneval, stop), request("f", {}, stop)]
        return [prepared.until for prepared in lm.prepare(GENERATE, requests)]

    raw, chat = DiffusionLM(loaded, settings()), DiffusionLM(loaded, settings())
    chat.apply_chat_template([{"role": "user", "content": "f"}])
    assert stops(raw) == [stop, stop]
    assert stops(chat) == [(), stop]


def test_keys_tell_requests_apart(loaded):
    """An answer is reused for the very same request alone: its task, document, repeat, prompt, stops and settings."""
    def key(changes=MappingProxyType({}), prompt="How many?", **fields):
        return DiffusionLM(loaded, settings(**changes)).prepare(GENERATE, [request(prompt, **fields)])[0].key

    changes = [
        key(), key(prompt="How old?"), key(doc_id=1), key(until=("x",)), key({"seed": 1}),
        key({"threshold": 0.5}), key({"suffix_sampler": WindowSampler(3)}),
    ]
    repeated = [request("How many?")] * 2
    changes += [prepared.key for prepared in DiffusionLM(loaded, settings()).prepare(GENERATE, repeated)][1:]
    assert len(set(changes)) == len(changes) and key() == changes[0]


def test_repeats_of_a_document_draw_anew(loaded):
    """A task that asks for several answers gets different ones when sampling, and the first is that of a single ask."""
    lm = DiffusionLM(loaded, settings(temperature=1.0))
    once = request("How many apples?")
    first, second = lm.generate_until([once, once])
    assert first != second
    assert DiffusionLM(loaded, settings(temperature=1.0)).generate_until([once]) == [first]
    assert sorted(lm.answers) == [("task", 0, 0), ("task", 0, 1)]


def test_requests_keep_their_order(loaded):
    """Answers come back in the order asked, whatever batches their stop strings and repeats made."""
    prompts = ["How many apples?", "How old is Zoe?", "How many boxes does Tom fill with 30 pencils?"]
    requests = [request(prompt, until=(stop,), doc_id=i) for i, (prompt, stop) in enumerate(zip(prompts, "aea"))]
    alone = [DiffusionLM(loaded, settings()).generate_until([one])[0] for one in requests]
    assert DiffusionLM(loaded, settings(), batch_size=3).generate_until(requests) == alone


def test_auto_backs_off_when_memory_runs_out(loaded, monkeypatch):
    """Guards --batch_size auto: a batch that does not fit is halved until it does, and no answer is lost or changed."""
    requests = [request(f"How many apples are {number}?", doc_id=number) for number in range(7)]
    plain = DiffusionLM(loaded, settings()).generate_until(requests)
    sizes, complete = [], adapter.complete

    def small_machine(model, prompts, settings, until):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return complete(model, prompts, settings, until)

    monkeypatch.setattr(adapter, "complete", small_machine)
    lm = DiffusionLM(loaded, settings(), batch_size="auto")
    assert lm.generate_until(requests) == plain
    assert sizes == [7, 4, 2, 2, 2, 1] and lm.batch_size_used == 2
    with pytest.raises(ValueError, match="memory ran out on 4 sequences at once; finished answers are kept"):
        DiffusionLM(loaded, settings(), batch_size=4).generate_until(requests)
    monkeypatch.setattr(adapter, "complete", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        DiffusionLM(loaded, settings(), batch_size="auto").generate_until(requests)


def test_rolling_loglikelihoods_are_refused(loaded):
    """A perplexity task must not end in a stack trace in the middle of a run."""
    with pytest.raises(ValueError, match="asks for log-likelihoods of whole documents"):
        load_tasks(str(Path(__file__).parent / "data" / "perplexity.yaml"))
    with pytest.raises(NotImplementedError, match="whole documents"):
        DiffusionLM(loaded, settings()).loglikelihood_rolling([])


@pytest.mark.slow
def test_lm_eval_command_line(checkpoint_folder, tmp_path):
    """The adapter under lm-eval's own command line, by the command in lm_eval_cli.py: answers, metrics and speed."""
    arguments = f"checkpoint={checkpoint_folder},gen_length=32,block_size=16,threshold=0.02,dropout_strategy=gaussian"
    done = subprocess.run(
        [sys.executable, "-m", "dpad.evaluation.lm_eval_cli", "--model", "dpad", "--model_args", arguments,
         "--device", "cpu", "--tasks", "arithmetic-50", "--include_path", "dataset/tasks", "--apply_chat_template",
         "--limit", "2", "--output_path", str(tmp_path), "--log_samples"],
        cwd=ROOT, text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["config"]["speed"]["samples"] == 2 and results["config"]["decoding"]["threshold"] == 0.02
    assert results["results"]["arithmetic-50"]["exact_match,strict-match"] == 0


@pytest.mark.parametrize("arguments, message", [
    ("checkpoint=tiny,treshold=0.9", "treshold: not a setting of"),
    ("checkpoint=tiny,threshold=2", "threshold is 2.0; it must be a finite number of at least 0 and at most 1"),
    ("checkpoint=tiny,block_size=7", "block_length is 7; it must divide gen_length"),
    ("checkpoint=dream-tiny,remasking=random", "remasking: not a setting of"),
    ("checkpoint=tiny,pretrained=tiny", "checkpoint and pretrained mean the same"),
    ("checkpoint=tiny,batch_size=0", "batch_size is 0; it must be an integer of at least 1, or \"auto\""),
])
def test_bad_model_args_are_named(arguments, message):
    """Guards --model_args: each argument that cannot be used is one sentence."""
    with pytest.raises(ValueError, match=message):
        lm_eval_cli.CommandLineLM.create_from_arg_string(arguments, {"device": "cpu"})


def test_a_journal_of_model_args_is_used_again(loaded, checkpoint_folder, tmp_path):
    """Guards journal=...: the same arguments find the answers of an earlier run; numbers and labels are understood."""
    arguments = f"checkpoint={checkpoint_folder},gen_length=32,block_size=16,threshold=0.02,journal={tmp_path}"
    answers = []
    for reused in (0, 1):
        lm = lm_eval_cli.CommandLineLM.create_from_arg_string(arguments, {"device": "cpu"})
        answers.append(lm.generate_until([request("How many apples?")]))
        assert lm.reused == reused
        lm.journal.close()
    assert answers[0] == answers[1] == DiffusionLM(loaded, settings()).generate_until([request("How many apples?")])
