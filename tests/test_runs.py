"""Runs: a resumed run ends as an uninterrupted one, other settings use another folder, a batch changes no answer.

    python -m pytest tests/test_runs.py
"""

import dataclasses
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from helpers import completion_of

from dpad import ROOT
from dpad.engine import loading
from dpad.engine.prompts import cut_prompt
from dpad.evaluation import adapter, identity, processes, runs
from dpad.evaluation.journal import digest
from dpad.evaluation.metrics import metrics_of
from dpad.evaluation.tasks import load_tasks
from dpad.results.files import read_json
from llada.settings import LLaDASettings
from sampler import GaussianSampler, WindowSampler

SHORT = {"gen_length": 32, "block_length": 16, "threshold": 0.02}
DECODING = {field.name for field in dataclasses.fields(LLaDASettings)}
RECORD_FIELDS = {
    "kind", "name", "task", "model", "checkpoint", "command", "settings", "metrics", "samples", "latency_s",
    "latency_median_s", "tps", "nfe", "answer_tokens", "seconds", "tokens_processed", "empty_answers", "reused",
    "batch_size_used", "cut_prompts", "processes", "environment", "other_metrics", "answer_length", "ms_per_token",
    "slots", "kept_suffix",
}
SETTINGS = {
    "gen_length", "block_length", "steps", "threshold", "factor", "temperature", "remasking", "cache",
    "suffix_sampler", "early_termination", "num_fewshot", "batch_size", "limit", "seed", "dtype", "device",
    "chat_template", "suppress_eos", "prompt_limit", "mc_samples", "after_eos",
}


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def evaluate(loaded: loading.LoadedModel, task: str = "arithmetic-50", **options) -> dict:
    """`runs.evaluate` without a progress bar; decoding settings by their names among the options."""
    settings = LLaDASettings(**{name: value for name, value in options.items() if name in DECODING})
    others = {name: value for name, value in options.items() if name not in DECODING}
    return runs.evaluate(loaded, task, settings, progress=False, **others)


def samples_of(folder: str | Path, drop: tuple[str, ...] = ("seconds",)) -> list[dict]:
    lines = (Path(folder) / "samples.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in drop} for line in lines]


def test_record_and_samples(loaded, tmp_path):
    """The record has the fields that tables are made of, its numbers follow from the samples, and both are on disk."""
    record = evaluate(
        loaded, limit=5, output=tmp_path, suffix_sampler=GaussianSampler(16, 3.0, 1.6), early_termination=True, **SHORT
    )
    folder = record.pop("folder")
    assert record == read_json(Path(folder) / "record.json")
    assert record.keys() == RECORD_FIELDS and record["settings"].keys() == SETTINGS
    assert record["settings"]["suffix_sampler"] == {
        "name": "gaussian", "window": 16, "k_sigma": 3.0, "scale": 1.6}
    assert (record["settings"]["steps"], record["settings"]["limit"], record["settings"]["seed"]) == (2, 5, 1234)
    assert record["metrics"].keys() == {"strict-match", "flexible-extract"}
    samples = samples_of(folder, drop=())
    assert [sample["doc_id"] for sample in samples] == list(range(5)) and record["samples"] == 5
    assert record["answer_tokens"] == sum(sample["tokens"] for sample in samples) > 0
    assert record["nfe"] == pytest.approx(sum(sample["forwards"] for sample in samples) / 5)
    assert record["seconds"] == pytest.approx(sum(sample["seconds"] for sample in samples))
    assert record["latency_s"] == pytest.approx(record["seconds"] / 5)
    assert record["tps"] == pytest.approx(record["answer_tokens"] / record["seconds"])
    assert record["tokens_processed"] == sum(sample["tokens_processed"] for sample in samples)
    assert record["slots"] == pytest.approx(record["tokens_processed"] / 5)
    assert record["answer_length"] == pytest.approx(record["answer_tokens"] / 5)
    assert record["ms_per_token"] == pytest.approx(1000 * record["seconds"] / record["answer_tokens"])
    blocks = sum(sample["blocks"] for sample in samples)
    assert 5 <= blocks <= 10 and 0 < record["kept_suffix"] < 16
    assert record["kept_suffix"] == pytest.approx(
        sum(sample["kept_suffix"] * sample["blocks"] for sample in samples) / blocks)
    assert all(sample["correct"].keys() == record["metrics"].keys() for sample in samples)
    assert not list(Path(folder).glob(".*.part")), "temporary files stay behind"


def test_both_scores_of_text_after_eos(loaded, tmp_path, monkeypatch):
    """An answer that goes on after EOS is right under one convention and wrong under the other: a record has both, and
    the other convention asks for no new answers."""
    problems = [json.loads(line) for line in (ROOT / "dataset" / "arithmetic-50.jsonl").read_text().splitlines()]
    texts = [problem["answer"] for problem in problems[:5]]

    def complete(loaded, prompts, *args, **options):
        # Three answers go on after EOS: the second and the fifth are wrong with what follows, the third only without.
        place = len(asked)
        asked.extend(prompts)
        text = texts[place]
        if place in (1, 4):
            return [completion_of(text, full_text=f"{text}14==", full_tokens=9)]
        if place == 2:
            return [completion_of("", full_text=text)]
        return [completion_of(text)]

    asked: list[str] = []
    monkeypatch.setattr(adapter, "complete", complete)
    drop = evaluate(loaded, limit=5, output=tmp_path, **SHORT)
    strict = {"drop": 0.8, "keep": 0.6}
    assert drop["settings"]["after_eos"] == "drop" and drop["other_metrics"]["after_eos"] == "keep"
    assert drop["metrics"]["strict-match"]["value"] == strict["drop"]
    assert drop["other_metrics"]["metrics"]["strict-match"]["value"] == strict["keep"]
    right = [sample["correct"]["strict-match"] for sample in samples_of(drop["folder"])]
    assert right == [1, 1, 0, 1, 1] and drop["empty_answers"] == 1 and drop["answer_tokens"] == 5

    monkeypatch.setattr(adapter, "complete", None)
    keep = evaluate(loaded, limit=5, output=tmp_path, after_eos="keep", **SHORT)
    assert keep["folder"] == drop["folder"] and keep["reused"] == 5
    assert (keep["metrics"], keep["other_metrics"]["metrics"]) == (drop["other_metrics"]["metrics"], drop["metrics"])
    samples = samples_of(keep["folder"])
    assert [sample["correct"]["strict-match"] for sample in samples] == [1, 0, 1, 1, 0]
    assert samples[1]["answer"] == f"{texts[1]}14==" and samples[1]["other_answer"] == texts[1]
    assert keep["empty_answers"] == 0 and keep["answer_tokens"] == 21
    with pytest.raises(ValueError, match="after_eos is 'cut'; it must be one of drop, keep"):
        evaluate(loaded, limit=4, output=tmp_path, after_eos="cut", **SHORT)


def test_resumed_run_equals_uninterrupted_run(loaded, tmp_path, monkeypatch):
    """An interruption between any two answers changes nothing but times, and nothing is generated twice."""
    settings = {"limit": 6} | SHORT
    whole = evaluate(loaded, output=tmp_path / "whole", **settings)
    complete, calls = adapter.complete, []

    def interrupted(*args, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return complete(*args, **options)

    monkeypatch.setattr(adapter, "complete", interrupted)
    with pytest.raises(runs.Interrupted, match="3 finished answers are kept in .*the same command goes on"):
        evaluate(loaded, output=tmp_path / "parts", **settings)
    monkeypatch.setattr(adapter, "complete", complete)
    parts = evaluate(loaded, output=tmp_path / "parts", **settings)
    assert (whole["reused"], parts["reused"]) == (0, 3)
    assert Path(whole["folder"]).name == Path(parts["folder"]).name
    assert samples_of(whole["folder"]) == samples_of(parts["folder"])
    monkeypatch.setattr(adapter, "complete", None)  # a finished run needs no generation
    again = evaluate(loaded, output=tmp_path / "parts", **settings)
    assert again["reused"] == 6 and again["seconds"] == parts["seconds"] and again["metrics"] == parts["metrics"]


def test_from_scratch_generates_again(loaded, tmp_path):
    """Saved answers are ignored when that is asked for, and only then."""
    settings = {"limit": 2, "output": tmp_path} | SHORT
    evaluate(loaded, **settings)
    assert evaluate(loaded, **settings)["reused"] == 2
    assert evaluate(loaded, from_scratch=True, **settings)["reused"] == 0


@pytest.mark.parametrize("change", [
    {"threshold": 0.03}, {"cache": "dual"}, {"seed": 5}, {"suffix_sampler": WindowSampler(8)}, {"batch_size": 2},
    {"num_fewshot": 1}, {"chat_template": False}, {"name": "other"},
])
def test_other_settings_use_another_folder(loaded, tmp_path, change):
    """A journal is never shared between settings that change an answer or its cost."""
    settings = {"limit": 1, "output": tmp_path} | SHORT
    first = evaluate(loaded, **settings)
    other = evaluate(loaded, **(settings | change))
    assert first["folder"] != other["folder"] and other["reused"] == 0


def test_other_weights_use_another_folder(loaded, checkpoint_folder, tmp_path):
    """A checkpoint that was trained further in its folder does not inherit the answers of the older weights."""
    folder = shutil.copytree(checkpoint_folder, tmp_path / checkpoint_folder.name)
    copy = dataclasses.replace(loaded, checkpoint=str(folder))
    before = runs.run_folder(tmp_path, "", "arithmetic-50", copy, SHORT)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    stat = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert runs.run_folder(tmp_path, "", "arithmetic-50", copy, SHORT) != before


def test_the_same_weights_use_the_same_folder(loaded, checkpoint_folder, tmp_path):
    """Guards answers against a new date or place of the checkpoint: what its files hold decides."""
    before = runs.run_folder(tmp_path, "", "arithmetic-50", loaded, SHORT)
    folder = shutil.copytree(checkpoint_folder, tmp_path / "elsewhere" / checkpoint_folder.name)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    copy = dataclasses.replace(loaded, checkpoint=str(folder))
    assert runs.run_folder(tmp_path, "", "arithmetic-50", copy, SHORT) == before


def test_large_files_are_sampled(tmp_path, monkeypatch):
    """Guards 16 GB of weights: their beginning, end and many places between are read, not all of them."""
    monkeypatch.setattr(identity, "SAMPLED", 1000)
    monkeypatch.setattr(identity, "SAMPLE", 16)
    path = tmp_path / "model.safetensors"
    content = bytearray(1 << 16)
    path.write_bytes(content)
    before = identity.sample_hash(path)
    assert identity.sample_hash(path) == before
    for place in (0, len(content) - 1):
        changed = bytearray(content)
        changed[place] = 1
        path.write_bytes(changed)
        assert identity.sample_hash(path) != before
    path.write_bytes(bytes(1 << 15) + b"\1" * 300 + bytes((1 << 15) - 300))  # shorter than a weight matrix
    assert identity.sample_hash(path) != before


def test_a_new_run_beside_an_older_one_says_so(loaded, tmp_path):
    """Guards runs that start anew in silence: what differs from the run before is said, once."""
    settings = {"limit": 1, "output": tmp_path} | SHORT
    notes = []
    first = evaluate(loaded, note=notes.append, **settings)
    evaluate(loaded, note=notes.append, **settings | {"limit": 2})
    assert not notes, "the same run goes on"
    changed = settings | {"threshold": 0.03}
    for _ in range(2):
        evaluate(loaded, note=notes.append, **changed)
    before = SHORT["threshold"]
    assert notes == [f"a new run begins; the answers in {first['folder']} are of threshold {before} instead of 0.03"]
    evaluate(loaded, note=notes.append, name="other", **settings)
    assert len(notes) == 1, "another name is another run"
    (Path(first["folder"]) / "run.json").write_text("[]")
    evaluate(loaded, note=notes.append, **settings | {"seed": 5, "cache": "dual"})
    assert notes[1].endswith("of threshold 0.03 instead of 0.02, cache \"none\" instead of \"dual\", "
                             "seed 1234 instead of 5"), "what is no identity is left alone"


def test_fewer_samples_are_said(loaded, tmp_path):
    """Guards a record of all samples, which a look at the first few replaces in the same folder."""
    settings = {"output": tmp_path} | SHORT
    notes = []
    for limit in (2, 3, 1, 1, 3):
        evaluate(loaded, note=notes.append, limit=limit, **settings)
    [note] = notes
    assert "was of 3 samples and is now of 1; all answers are kept" in note


def test_answers_are_checked_against_their_requests(loaded, tmp_path):
    """Guards journals whose keys were swapped, checksums and all: the run is refused before anything is answered."""
    settings = {"limit": 2, "output": tmp_path} | SHORT
    folder = Path(evaluate(loaded, **settings)["folder"])
    path = folder / "answers-0.jsonl"
    one, two = (json.loads(line) for line in path.read_text().splitlines())
    one["key"], two["key"] = two["key"], one["key"]
    for fields in (one, two):
        del fields["checksum"]
        fields["checksum"] = digest(fields, 8)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in (one, two)))
    with pytest.raises(ValueError, match="is no answer to the request of that key, arithmetic-50, document 0"):
        evaluate(loaded, **settings)


def test_a_journal_that_is_deleted_under_a_run_is_said(loaded, tmp_path, monkeypatch):
    """Guards `rm -r results` in the middle of a run: one sentence, and no answer is written into nothing."""
    complete = adapter.complete

    def delete(*arguments, **options):
        [folder] = tmp_path.iterdir()
        shutil.rmtree(folder)
        return complete(*arguments, **options)

    monkeypatch.setattr(adapter, "complete", delete)
    with pytest.raises(ValueError, match="answers-0.jsonl was deleted or replaced while this run was writing it"):
        evaluate(loaded, limit=2, output=tmp_path, **SHORT)


def test_answers_of_other_processes_may_not_disappear(loaded, tmp_path, monkeypatch):
    """Guards two processes of which one loses its journal: the other does not give all the answers again in silence."""
    class Two(processes.Processes):
        def wait(self):
            pass

    monkeypatch.setattr(adapter.DiffusionLM, "generate_until", lambda *_: pytest.fail("scored"))
    with pytest.raises(ValueError, match="1 answers of other processes are missing in .*The same command"):
        evaluate(loaded, limit=2, output=tmp_path, processes=Two(rank=0, count=2, local_rank=0), **SHORT)


def test_batched_answers_equal_single_answers(loaded, tmp_path):
    """The size of the batch changes the cost, never the answer; six prompts in batches of three and of four."""
    settings = {"limit": 6, "output": tmp_path, "early_termination": True} | SHORT
    runs = [evaluate(loaded, batch_size=size, **settings) for size in (1, 3, 4)]
    single, *batched = [samples_of(run["folder"], drop=("seconds", "tokens_processed")) for run in runs]
    assert batched == [single, single]


def test_nothing_of_the_repository_needs_the_network(loaded, tmp_path, monkeypatch):
    """The own tasks, few-shot examples included, work on a machine that has never been online."""
    def refuse(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)  # nor a certain working directory
    for task in ("arithmetic-50", "arithmetic-500"):
        record = evaluate(loaded, task, limit=1, num_fewshot=2, output="out", **SHORT)
        prompt = samples_of(record["folder"])[0]["prompt"]
        assert prompt.count("Question:") == 3 and prompt.count("####") == 2


def test_prompts_follow_the_chat_template_setting(loaded, tmp_path):
    """With the template one user's turn holds the prompt; without it the raw prompt goes in."""
    settings = {"limit": 1, "output": tmp_path} | SHORT
    on, off = (
        samples_of(evaluate(loaded, chat_template=chat, **settings)["folder"])[0]["prompt"]
        for chat in (True, False)
    )
    assert off.startswith("Question: ") and off.endswith("\nAnswer:")
    assert on == loaded.chat(off)


def test_accuracy_counts_right_answers(loaded, tmp_path, monkeypatch):
    """A model that gives the reference answer scores 1; a right last number without the marker is flexible alone."""
    docs = list(load_tasks("arithmetic-50")["tasks"]["arithmetic-50"].eval_docs)
    texts = [docs[0]["answer"], f"It is {docs[1]['answer'].split()[-1]}.", "#### 1,234,567", "nothing"]
    answers = iter(texts)

    def perfect(loaded, prompts, settings, until):
        return [completion_of(next(answers)) for _ in prompts]

    monkeypatch.setattr(adapter, "complete", perfect)
    record = evaluate(loaded, limit=4, output=tmp_path, **SHORT)
    assert record["metrics"]["strict-match"]["value"] == 0.25
    assert record["metrics"]["flexible-extract"]["value"] == 0.5
    assert [sample["correct"]["flexible-extract"] for sample in samples_of(record["folder"])] == [1, 1, 0, 0]


@pytest.mark.parametrize("change, message", [
    pytest.param(  # reads the index of lm-eval's tasks
        {"task": "arithmetik-50"}, "no task 'arithmetik-50'; did you mean 'arithmetic-50'", marks=pytest.mark.slow
    ),
    ({"limit": 0}, "limit is 0; it must be an integer of at least 1"),
    ({"num_fewshot": -1}, "num_fewshot is -1"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": None}, "batch_size is None; it must be an integer of at least 1, or \"auto\""),
    ({"gen_length": 1024}, r"arithmetic-50, document 0: gen_length is 1024.* holds 1024 tokens"),
    ({"block_length": 5}, "block_length is 5; it must divide gen_length"),
])
def test_bad_settings_are_named(loaded, tmp_path, change, message):
    """Every setting that cannot be used raises ValueError with its name and what is allowed."""
    with pytest.raises(ValueError, match=message):
        evaluate(loaded, **({"task": "arithmetic-50", "output": tmp_path} | SHORT | change))


def test_long_prompts_are_cut_and_counted(loaded, tmp_path):
    """--prompt_limit leaves the last tokens of a prompt, and the record says how many prompts that was."""
    settings = {"limit": 3, "output": tmp_path} | SHORT
    record = evaluate(loaded, prompt_limit=20, **settings)
    assert record["cut_prompts"] == 3 and record["settings"]["prompt_limit"] == 20
    assert evaluate(loaded, **settings)["cut_prompts"] == 0
    text, cut = cut_prompt(loaded, "Tom has 3 apples and 4 pears.", 5)
    assert "Tom has 3 apples and 4 pears.".endswith(text) and cut > 0


def test_metrics_of_tasks_and_groups():
    """An aggregated group counts as one; a group without an aggregate shows its tasks; deviations may be missing."""
    one = {"alias": "a", "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.1}
    other = {"alias": "b", "exact_match,none": 1.0, "exact_match_stderr,none": "N/A", "pass@1,create": 0.25}
    assert metrics_of({"results": {"a": one}}, "a") == {"flexible-extract": {"value": 0.5, "stderr": 0.1}}
    assert metrics_of({"results": {"group": one, "a": other, "b": other}}, "group").keys() == {
        "flexible-extract"
    }
    assert metrics_of({"results": {"group": {"alias": "g"}, "a": one, "b": other}}, "group") == {
        "a/flexible-extract": {"value": 0.5, "stderr": 0.1},
        "b/exact_match": {"value": 1.0, "stderr": None},
        "b/pass@1,create": {"value": 0.25, "stderr": None},
    }
