"""The adapter and its journal: finished answers survive anything, and a resumed run ends as an uninterrupted one.

    python -m pytest tests/test_harness.py
"""

import dataclasses
import fcntl
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from dpad.engine import completion, loading
from dpad.evaluation import harness
from dpad.evaluation.journal import Journal, digest
from dpad.results import records
from sampler import GaussianSampler, UniformSampler, WindowSampler

SHORT = {"gen_length": 32, "block_length": 16, "threshold": 0.02}
RECORD_FIELDS = {
    "kind", "name", "task", "model", "checkpoint", "command", "settings", "metrics", "samples", "latency_s",
    "latency_median_s", "tps", "nfe", "answer_tokens", "seconds", "tokens_processed", "empty_answers", "reused",
    "batch_size_used", "cut_prompts", "processes", "environment",
}
SETTINGS = {
    "gen_length", "block_length", "steps", "threshold", "factor", "temperature", "remasking", "cache",
    "suffix_sampler", "early_termination", "num_fewshot", "batch_size", "limit", "seed", "dtype", "device",
    "chat_template", "suppress_eos", "prompt_limit", "mc_samples",
}


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    return loading.load(str(checkpoint_folder), device="cpu", dtype="float32")


def samples_of(folder: str | Path, drop: tuple[str, ...] = ("seconds",)) -> list[dict]:
    lines = (Path(folder) / "samples.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in drop} for line in lines]


def answer_line(key: str, **fields) -> bytes:
    return json.dumps({"key": key, **fields}).encode() + b"\n"


# --- The journal ------------------------------------------------------------------------------------------------------


def test_journal_returns_what_was_appended(tmp_path):
    """An answer is found again under its key, with line breaks and any script inside its text."""
    text = "line\nbreak \u2028 中 \"quoted\" \ud800"
    with Journal(tmp_path) as journal:
        journal.append({"key": "a", "answer": text})
        journal.append({"key": "b", "answer": ""})
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a", "b"]
        assert journal.answers["b"] == {"key": "b", "answer": ""}
        assert journal.answers["a"]["answer"].startswith("line\nbreak \u2028 中")


@pytest.mark.parametrize("rest", [b"{", b'{"key": "b", "answer": "5', b'{"key": "b"}', b"\xe4\xb8"])
def test_unfinished_last_line_is_cut_off(tmp_path, rest):
    """What a killed process had half written is dropped, on disk too, and the next answer starts on its own line."""
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(answer_line("a") + rest)
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a"]
        assert path.read_bytes() == answer_line("a")
        journal.append({"key": "c"})
    assert path.read_bytes() == answer_line("a") + answer_line("c")


@pytest.mark.parametrize("bad", [b"{not json\n", b"\n", b"[1]\n", b'{"answer": "no key"}\n', b"\xff\n"])
def test_corruption_elsewhere_is_refused_with_its_line(tmp_path, bad):
    """A journal that was damaged is never read as if those answers were not there, and is left as it is."""
    content = answer_line("a") + bad + answer_line("b")
    path = tmp_path / "answers-0.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"answers-0\.jsonl, line 2 is corrupt"):
        Journal(tmp_path)
    assert path.read_bytes() == content
    Journal(tmp_path, from_scratch=True).close()  # the refusal released the lock, and starting over is the way out
    assert path.read_bytes() == b""


def test_second_run_on_a_journal_is_refused(tmp_path):
    """Two processes never write one journal; a refused second run does not truncate it either."""
    with Journal(tmp_path) as journal:
        journal.append({"key": "a"})
        with pytest.raises(ValueError, match="in use by another run"):
            Journal(tmp_path, from_scratch=True)
    with Journal(tmp_path) as journal:
        assert list(journal.answers) == ["a"]


def test_all_ranks_answers_are_read(tmp_path):
    """A run with another number of processes still finds every answer; an unfinished line of a rank is left to it."""
    (tmp_path / "answers-1.jsonl").write_bytes(answer_line("b") + b'{"key": "c"')
    with Journal(tmp_path, rank=0) as journal:
        assert list(journal.answers) == ["b"]
        with open(tmp_path / "answers-0.jsonl", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / "answers-1.jsonl").read_bytes().endswith(b'{"key": "c"')


def test_short_write_is_an_error(tmp_path, monkeypatch):
    """A full disk may take a part of a line: that is no finished answer."""
    with Journal(tmp_path) as journal:
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:5]))
        with pytest.raises(OSError, match="only 5 of"):
            journal.append({"key": "a"})
        assert not journal.answers


def test_digest_tells_values_apart():
    """Order of keys does not matter, everything else does."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, ["a", 1], {"a": None})}) == 5


# --- Evaluation -------------------------------------------------------------------------------------------------------


def test_record_and_samples(loaded, tmp_path):
    """The record has the fields that report.py reads, its numbers follow from the samples, and both are on disk."""
    record = harness.evaluate(
        loaded, "arithmetic-50", limit=5, output=tmp_path, suffix_sampler=GaussianSampler(16, 3.0, 1.6),
        early_termination=True, progress=False, **SHORT,
    )
    folder = record.pop("folder")
    assert record == records.read_json(Path(folder) / "record.json")
    assert record.keys() == RECORD_FIELDS and record["settings"].keys() == SETTINGS
    assert record["settings"]["suffix_sampler"] == {"name": "gaussian", "window": 16, "k_sigma": 3.0, "scale": 1.6}
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
    assert all(sample["correct"].keys() == record["metrics"].keys() for sample in samples)
    assert not list(Path(folder).glob(".*.part")), "temporary files stay behind"


def test_resumed_run_equals_uninterrupted_run(loaded, tmp_path, monkeypatch):
    """An interruption between any two answers changes nothing but times, and nothing is generated twice."""
    settings = {"limit": 6, "progress": False} | SHORT
    whole = harness.evaluate(loaded, "arithmetic-50", output=tmp_path / "whole", **settings)
    complete, calls = harness.complete, []

    def interrupted(*args, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return complete(*args, **options)

    monkeypatch.setattr(harness, "complete", interrupted)
    with pytest.raises(harness.Interrupted, match="3 finished answers are kept in .*the same command goes on"):
        harness.evaluate(loaded, "arithmetic-50", output=tmp_path / "parts", **settings)
    monkeypatch.setattr(harness, "complete", complete)
    parts = harness.evaluate(loaded, "arithmetic-50", output=tmp_path / "parts", **settings)
    assert (whole["reused"], parts["reused"]) == (0, 3)
    assert Path(whole["folder"]).name == Path(parts["folder"]).name
    assert samples_of(whole["folder"]) == samples_of(parts["folder"])
    monkeypatch.setattr(harness, "complete", None)  # a finished run needs no generation
    again = harness.evaluate(loaded, "arithmetic-50", output=tmp_path / "parts", **settings)
    assert again["reused"] == 6 and again["seconds"] == parts["seconds"] and again["metrics"] == parts["metrics"]


def test_from_scratch_generates_again(loaded, tmp_path):
    """Saved answers are ignored when that is asked for, and only then."""
    settings = {"limit": 2, "output": tmp_path, "progress": False} | SHORT
    harness.evaluate(loaded, "arithmetic-50", **settings)
    assert harness.evaluate(loaded, "arithmetic-50", **settings)["reused"] == 2
    assert harness.evaluate(loaded, "arithmetic-50", from_scratch=True, **settings)["reused"] == 0


@pytest.mark.parametrize("change", [
    {"threshold": 0.03}, {"cache": "dual"}, {"seed": 5}, {"suffix_sampler": WindowSampler(8)}, {"batch_size": 2},
    {"num_fewshot": 1}, {"chat_template": False}, {"name": "other"},
])
def test_other_settings_use_another_folder(loaded, tmp_path, change):
    """A journal is never shared between settings that change an answer or its cost."""
    settings = {"limit": 1, "output": tmp_path, "progress": False} | SHORT
    first = harness.evaluate(loaded, "arithmetic-50", **settings)
    other = harness.evaluate(loaded, "arithmetic-50", **(settings | change))
    assert first["folder"] != other["folder"] and other["reused"] == 0


def test_other_weights_use_another_folder(loaded, checkpoint_folder, tmp_path):
    """A checkpoint that was trained further in its folder does not inherit the answers of the older weights."""
    settings = harness.DiffusionLM(loaded, SHORT).settings
    before = harness.run_folder(tmp_path, "", "arithmetic-50", loaded, settings)
    weights = checkpoint_folder / "model.safetensors"
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert harness.run_folder(tmp_path, "", "arithmetic-50", loaded, settings) != before


def test_batched_answers_equal_single_answers(loaded, tmp_path):
    """The size of the batch changes the cost, never the answer; six prompts in batches of three and of four."""
    settings = {"limit": 6, "output": tmp_path, "progress": False, "early_termination": True} | SHORT
    runs = [harness.evaluate(loaded, "arithmetic-50", batch_size=size, **settings) for size in (1, 3, 4)]
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
        record = harness.evaluate(loaded, task, limit=1, num_fewshot=2, output="out", progress=False, **SHORT)
        prompt = samples_of(record["folder"])[0]["prompt"]
        assert prompt.count("Question:") == 3 and prompt.count("####") == 2


def test_prompts_follow_the_chat_template_setting(loaded, tmp_path):
    """With the template one user's turn holds the prompt; without it the raw prompt goes in."""
    settings = {"limit": 1, "output": tmp_path, "progress": False} | SHORT
    on, off = (
        samples_of(harness.evaluate(loaded, "arithmetic-50", chat_template=chat, **settings)["folder"])[0]["prompt"]
        for chat in (True, False)
    )
    assert off.startswith("Question: ") and off.endswith("\nAnswer:")
    assert on == loaded.chat(off)


def test_accuracy_counts_right_answers(loaded, tmp_path, monkeypatch):
    """A model that gives the reference answer scores 1; a right last number without the marker is flexible alone."""
    docs = list(harness.load_tasks("arithmetic-50")["tasks"]["arithmetic-50"].eval_docs)
    texts = [docs[0]["answer"], f"It is {docs[1]['answer'].split()[-1]}.", "#### 1,234,567", "nothing"]
    answers = iter(texts)

    def perfect(loaded, prompts, options, until):
        return [completion.Completion(next(answers), "", 1, 1, 1.0, 1) for _ in prompts]

    monkeypatch.setattr(harness, "complete", perfect)
    record = harness.evaluate(loaded, "arithmetic-50", limit=4, output=tmp_path, progress=False, **SHORT)
    assert record["metrics"]["strict-match"]["value"] == 0.25
    assert record["metrics"]["flexible-extract"]["value"] == 0.5
    assert [sample["correct"]["flexible-extract"] for sample in samples_of(record["folder"])] == [1, 1, 0, 0]


@pytest.mark.parametrize("change, message", [
    ({"task": "arithmetik-50"}, "no task 'arithmetik-50': did you mean arithmetic-50"),
    ({"limit": 0}, "limit is 0; it must be an integer of at least 1"),
    ({"num_fewshot": -1}, "num_fewshot is -1"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": None}, "batch_size is None; it must be an integer of at least 1, or \"auto\""),
    ({"gen_length": 1024}, r"arithmetic-50, document 0: gen_length is 1024.* holds 1024 tokens"),
    ({"block_length": 5}, "block_length is 5; it must divide gen_length"),
    ({"treshold": 0.9}, "treshold: not a decoding setting"),
])
def test_bad_settings_are_named(loaded, tmp_path, change, message):
    """Every setting that cannot be used raises ValueError with its name and what is allowed."""
    with pytest.raises(ValueError, match=message):
        harness.evaluate(loaded, **({"task": "arithmetic-50", "output": tmp_path, "progress": False} | SHORT | change))


def test_rolling_loglikelihoods_are_refused(loaded):
    """A perplexity task must not end in a stack trace in the middle of a run."""
    with pytest.raises(ValueError, match="asks for log-likelihoods of whole documents"):
        harness.load_tasks(str(Path(__file__).parent / "data" / "perplexity.yaml"))
    with pytest.raises(NotImplementedError, match="whole documents"):
        harness.DiffusionLM(loaded, SHORT).loglikelihood_rolling([])


def test_long_prompts_are_cut_and_counted(loaded, tmp_path):
    """--prompt_limit leaves the last tokens of a prompt, and the record says how many prompts that was."""
    settings = {"limit": 3, "output": tmp_path, "progress": False} | SHORT
    record = harness.evaluate(loaded, "arithmetic-50", prompt_limit=20, **settings)
    assert record["cut_prompts"] == 3 and record["settings"]["prompt_limit"] == 20
    assert harness.evaluate(loaded, "arithmetic-50", **settings)["cut_prompts"] == 0
    text, cut = completion.cut_prompt(loaded, "Tom has 3 apples and 4 pears.", 5)
    assert "Tom has 3 apples and 4 pears.".endswith(text) and cut > 0


def test_metrics_of_tasks_and_groups():
    """An aggregated group counts as one; a group without an aggregate shows its tasks; deviations may be missing."""
    one = {"alias": "a", "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.1}
    other = {"alias": "b", "exact_match,none": 1.0, "exact_match_stderr,none": "N/A", "pass@1,create": 0.25}
    assert harness.metrics_of({"results": {"a": one}}, "a") == {"flexible-extract": {"value": 0.5, "stderr": 0.1}}
    assert harness.metrics_of({"results": {"group": one, "a": other, "b": other}}, "group").keys() == {
        "flexible-extract"
    }
    assert harness.metrics_of({"results": {"group": {"alias": "g"}, "a": one, "b": other}}, "group") == {
        "a/flexible-extract": {"value": 0.5, "stderr": 0.1},
        "b/exact_match": {"value": 1.0, "stderr": None},
        "b/pass@1,create": {"value": 0.25, "stderr": None},
    }


# --- The adapter ------------------------------------------------------------------------------------------------------


def request(prompt: str, doc: dict | None = None, until: tuple[str, ...] = (), doc_id: int = 0) -> Instance:
    return Instance("generate_until", doc or {}, (prompt, {"until": list(until)}), 0, metadata=("task", doc_id, 1))


def test_stop_strings_cut_text_but_not_humaneval_in_chat(loaded):
    """LLaDA's text ends before a stop string; HumanEval's with the chat template is left whole."""
    humaneval, stop = {"task_id": "HumanEval/0"}, ("\ndef",)

    def stops(lm):
        return [prepared.until for prepared in lm._prepare([request("f", humaneval, stop), request("f", {}, stop)])]

    raw, chat = harness.DiffusionLM(loaded, SHORT), harness.DiffusionLM(loaded, SHORT)
    chat.apply_chat_template([{"role": "user", "content": "f"}])
    assert stops(raw) == [stop, stop]
    assert stops(chat) == [(), stop]


def test_keys_tell_requests_apart(loaded):
    """An answer is reused for the very same request alone: its task, document, repeat, prompt, stops and settings."""
    def key(options=SHORT, prompt="How many?", **fields):
        return harness.DiffusionLM(loaded, options)._prepare([request(prompt, **fields)])[0].key

    changes = [
        key(), key(prompt="How old?"), key(doc_id=1), key(until=("x",)), key(SHORT | {"seed": 1}),
        key(SHORT | {"threshold": 0.5}), key(SHORT | {"suffix_sampler": WindowSampler(3)}),
    ]
    repeated = [request("How many?")] * 2
    changes += [prepared.key for prepared in harness.DiffusionLM(loaded, SHORT)._prepare(repeated)][1:]
    assert len(set(changes)) == len(changes) and key() == changes[0]


def test_repeats_of_a_document_draw_anew(loaded):
    """A task that asks for several answers gets different ones when sampling, and the first is that of a single ask."""
    lm = harness.DiffusionLM(loaded, SHORT | {"temperature": 1.0})
    once = request("How many apples?")
    first, second = lm.generate_until([once, once])
    assert first != second
    assert harness.DiffusionLM(loaded, SHORT | {"temperature": 1.0}).generate_until([once]) == [first]
    assert sorted(lm.answers) == [("task", 0, 0), ("task", 0, 1)]


def test_requests_keep_their_order(loaded):
    """Answers come back in the order asked, whatever batches their stop strings and repeats made."""
    prompts = ["How many apples?", "How old is Zoe?", "How many boxes does Tom fill with 30 pencils?"]
    requests = [request(prompt, until=(stop,), doc_id=i) for i, (prompt, stop) in enumerate(zip(prompts, "aea"))]
    alone = [harness.DiffusionLM(loaded, SHORT).generate_until([one])[0] for one in requests]
    assert harness.DiffusionLM(loaded, SHORT, batch_size=3).generate_until(requests) == alone


def test_auto_backs_off_when_memory_runs_out(loaded, monkeypatch):
    """Guards --batch_size auto: a batch that does not fit is halved until it does, and no answer is lost or changed."""
    requests = [request(f"How many apples are {number}?", doc_id=number) for number in range(7)]
    plain = harness.DiffusionLM(loaded, SHORT).generate_until(requests)
    sizes, complete = [], harness.complete

    def small_machine(model, prompts, options, until):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return complete(model, prompts, options, until)

    monkeypatch.setattr(harness, "complete", small_machine)
    lm = harness.DiffusionLM(loaded, SHORT, batch_size="auto")
    assert lm.generate_until(requests) == plain
    assert sizes == [7, 4, 2, 2, 2, 1] and lm.batch_size_used == 2
    with pytest.raises(ValueError, match="memory ran out on 4 sequences at once; finished answers are kept"):
        harness.DiffusionLM(loaded, SHORT, batch_size=4).generate_until(requests)
    monkeypatch.setattr(harness, "complete", lambda *_: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        harness.DiffusionLM(loaded, SHORT, batch_size="auto").generate_until(requests)


def test_batch_shares_its_cost(loaded):
    """What the rows of a batch are charged adds up to what the batch cost, in slots and in seconds."""
    outputs = []

    def generate(*args, **options):
        outputs.append(loaded.generate(*args, **options))
        outputs[0].tokens_processed |= 1  # odd: two rows cannot share it evenly
        return outputs[0]

    start = time.perf_counter()
    rows = completion.complete(dataclasses.replace(loaded, generate=generate), ["How many?", "How old is Zoe?"], SHORT)
    assert sum(row.tokens_processed for row in rows) == outputs[0].tokens_processed
    assert [row.forwards for row in rows] == outputs[0].forwards.tolist()
    assert rows[0].seconds == rows[1].seconds > 0 and 2 * rows[0].seconds < time.perf_counter() - start


def test_cut_counts_tokens_of_the_kept_text(loaded):
    """Tokens after the stop string and EOS do not count as an answer; the raw text shows what was there."""
    tokenizer, eos = loaded.tokenizer, loaded.model.config.eos_token_id
    ids = tokenizer("#### 12\nQuestion: what", add_special_tokens=False)["input_ids"]
    kept = tokenizer("#### 12\n", add_special_tokens=False)["input_ids"]
    text, raw, tokens = completion.cut(tokenizer, [*ids, eos, eos], eos, ["Question:", "Answer:"])
    assert (text, raw, tokens) == ("#### 12\n", "#### 12\nQuestion: what", len(kept))
    assert completion.cut(tokenizer, [eos] * 4, eos, []) == ("", "", 0)
    inside = [*kept, eos, *kept]
    assert completion.cut(tokenizer, inside, eos, [])[2] == 2 * len(kept)
    assert completion.cut(tokenizer, inside, eos, [tokenizer.eos_token])[0] == "#### 12\n"


# --- From flags to settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, expected", [
    ({}, {"steps": None, "threshold": None, "cache": "none", "suffix_sampler": None}),
    ({"threshold": 0.9}, {"steps": 8, "threshold": 0.9}),
    ({"factor": 1.0, "gen_length": 64}, {"steps": 2, "factor": 1.0}),
    ({"use_cache": True}, {"cache": "prefix"}),
    ({"dual_cache": True}, {"cache": "dual"}),
    ({"dual_cache": True, "use_cache": True}, {"cache": "dual"}),
    ({"dropout_strategy": "gaussian"}, {"suffix_sampler": GaussianSampler(256, 4.0, 2.0)}),
    ({"dropout_strategy": "gaussian", "gen_length": 128}, {"suffix_sampler": GaussianSampler(128, 4.0, 2.0)}),
    ({"dropout_strategy": "random", "num_tokens": 3}, {"suffix_sampler": UniformSampler(256, 3)}),
    ({"dropout_strategy": "window", "window": 7}, {"suffix_sampler": WindowSampler(7)}),
])
def test_flags_become_settings(flags, expected):
    """The published command line's meaning of each flag and default."""
    options = completion.decoding_options(loading.FAMILIES["llada"], **flags)
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize("flags, message", [
    ({"threshold": 1.5}, "threshold is 1.5"), ({"threshold": -0.1}, "threshold is -0.1"),
    ({"threshold": 0.9, "factor": 1.0}, "factor is 1.0 while threshold"), ({"factor": 0.0}, "factor is 0.0"),
    ({"threshold": 0.9, "steps": 8}, "steps is 8, but a threshold"), ({"steps": 7}, "steps is 7"),
    ({"steps": 512}, "steps is 512"), ({"block_length": 7}, "block_length is 7"),
    ({"gen_length": 0}, "gen_length is 0"),
    ({"dropout_strategy": "gauss"}, "dropout_strategy is 'gauss'; it must be one of null, gaussian"),
    ({"dropout_strategy": "window", "window": 257}, "window is 257"),
    ({"dropout_strategy": "window", "window": 0}, "window is 0"),
    ({"dropout_strategy": "uniform", "num_tokens": -1}, "number is -1"),
    ({"dropout_strategy": "gaussian", "k_sigma": 0.0}, "k_sigma is 0.0"),
    ({"remasking": "high"}, "remasking is 'high'"), ({"temperature": -1.0}, "temperature is -1.0"),
])
def test_bad_flags_are_refused_before_a_model_is_loaded(flags, message):
    """Each is one sentence with the name, the value and what is allowed."""
    with pytest.raises(ValueError, match=message):
        completion.decoding_options(loading.FAMILIES["llada"], **flags)
