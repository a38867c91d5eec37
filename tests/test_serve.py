"""The server's parts without a network: the growing text, batches in the decoding thread, what requests may ask for.

    bash tests/run.sh tests/test_serve.py
"""

from __future__ import annotations

import json
import random
import threading
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from serving import alone, wait_until

import run
from dpad.engine import loading
from dpad.engine.prompts import count_tokens
from dpad.serve import command
from dpad.serve.decoder import Decoder, Draft, Failed, Finished, Job, Text
from dpad.serve.limits import Limits
from dpad.serve.protocol import CHAT, NEUTRAL, TEXT, ApiError, RequestReader, Response
from dpad.serve.text import GrowingAnswer
from llada.settings import LLaDASettings
from sampler import GaussianSampler

TINY = loading.load("tiny", device="cpu")
VOCABULARY = len(TINY.tokenizer)


@pytest.fixture(scope="module")
def loaded(checkpoint_folder):
    """A model of random weights, whose answers are of any tokens and long."""
    return loading.load(str(checkpoint_folder), device="cpu")


# --- Text -------------------------------------------------------------------------------------------------------------


def expected_text(ids, max_tokens, stops, block):
    """The text and the reason of an answer that is known as a whole: the definition that streams must keep. What stands
    in blocks behind the one that reaches `max_tokens` is not decoded, and tells nothing."""
    known = ids[: -(-max_tokens // block) * block]
    length = TINY.answer_text.length(known)
    text = TINY.answer_text.decode(ids[:max_tokens])
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    if ends:
        return text[: ends[0][1]], "stop"
    return text, "stop" if length < len(known) and length <= max_tokens else "length"


def grow(ids, block_length, max_tokens, stops):
    """The pieces of an answer, and the answer after its last block."""
    answer = GrowingAnswer(TINY.answer_text, max_tokens, stops)
    pieces = []
    for start in range(0, len(ids), block_length):
        pieces.append(answer.add(ids[start : start + block_length], last=start + block_length >= len(ids)))
        if answer.finish_reason:
            break
    return pieces, answer


EURO = TINY.tokenizer("€ 12 ☃ é", add_special_tokens=False)["input_ids"]
SOME_IDS = st.lists(st.one_of(st.integers(0, VOCABULARY - 1), st.sampled_from(EURO)), min_size=8, max_size=64)


@example(ids=[0, 1, 0, 0, 0, 0, 0, 0], block=1, max_tokens=1, data=None)  # an end right behind the last token
@given(ids=SOME_IDS, block=st.sampled_from([1, 3, 8, 64]), max_tokens=st.integers(1, 64), data=st.data())
def test_pieces_of_a_stream_are_the_answer(ids, block, max_tokens, data):
    """Guards against text that is sent too early: half of a character, the beginning of a stop string, too much."""
    text = TINY.answer_text.decode(ids)
    stops = []
    for _ in range(data.draw(st.integers(0, 3)) if data else 0):
        start = data.draw(st.integers(0, max(0, len(text) - 1)))
        stop = text[start : start + data.draw(st.integers(1, 6))]
        if stop and "\ufffd" not in stop:
            stops.append(stop)
    pieces, answer = grow(ids, block, max_tokens, stops)
    assert ("".join(pieces), answer.finish_reason) == expected_text(ids, max_tokens, stops, block)
    assert answer.text == "".join(pieces) and 0 <= answer.tokens <= min(max_tokens, len(ids))


def test_half_a_character_is_held_back():
    """Guards the law above: it meets characters of several tokens."""
    assert len(EURO) > len("€ 12 ☃ é")
    pieces, _ = grow(EURO, 1, 64, [])
    assert "".join(pieces) == "€ 12 ☃ é" and not any("\ufffd" in piece for piece in pieces)


def test_a_begun_stop_string_is_held_back():
    ids = TINY.tokenizer("one two three four", add_special_tokens=False)["input_ids"]
    pieces, answer = grow(ids, 1, 64, ["two three", "thr"])
    assert "".join(pieces) == "one two " and answer.finish_reason == "stop"  # the one that is complete first
    assert 0 < answer.tokens < len(ids)
    pieces, answer = grow(ids, 1, 64, ["two thrice"])
    assert "".join(pieces) == "one two three four" and answer.finish_reason == "length"


def test_tokens_are_counted_up_to_the_end_of_the_answer():
    eos = TINY.answer_text.eos_id
    ids = TINY.tokenizer("one two three", add_special_tokens=False)["input_ids"]
    _, answer = grow([*ids, eos, *ids], 4, 64, [])
    assert (answer.tokens, answer.finish_reason) == (len(ids), "stop")
    _, answer = grow([*ids, eos], 4, 3, [])
    assert (answer.tokens, answer.finish_reason) == (3, "length")
    _, answer = grow([*ids, eos], 64, len(ids), [])  # the end is known, and nothing was cut
    assert answer.finish_reason == "stop"


def test_a_draft_goes_on_where_the_text_ends():
    ids = TINY.tokenizer("one two", add_special_tokens=False)["input_ids"]
    answer = GrowingAnswer(TINY.answer_text, 64)
    answer.add(ids, last=False)
    assert answer.draft([TINY.answer_text.mask_id, *ids]) == "░one two"


# --- Batches ----------------------------------------------------------------------------------------------------------


class Listener:
    """What one job has said."""

    def __init__(self):
        self.events = []
        self.over = threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, (Finished, Failed)):
            self.over.set()

    @property
    def text(self):
        return "".join(event.text for event in self.events if isinstance(event, Text))


@contextmanager
def decoding(loaded, jobs=(), **limits):
    """A decoder that begins when all of the jobs are there; afterwards the sizes of its batches are in `batches`."""
    decoder = Decoder(loaded, Limits(**limits), on_batch=lambda rows, seconds: decoder.batches.append(rows))
    decoder.batches = []
    for job in jobs:
        decoder.submit(job)
    decoder.start()
    try:
        yield decoder
    finally:
        decoder.close(RuntimeError("closed"))
        decoder.join(20)
        assert not decoder.is_alive()


def job_of(loaded, ids, settings, max_tokens=None, stop=(), **options):
    answer = GrowingAnswer(loaded.answer_text, max_tokens or settings.gen_length, stop)
    return Job(ids, settings, answer, Listener(), **options)


def random_ids(loaded, generator, low=3, high=60):
    return [generator.randrange(5, 300) for _ in range(generator.randint(low, high))]


MIXTURE = [
    LLaDASettings(gen_length=96, threshold=0.1),
    LLaDASettings(gen_length=96, threshold=0.1, cache="prefix", suffix_sampler=GaussianSampler(96, 3, 1.6)),
    LLaDASettings(gen_length=64, steps=16, temperature=0.7, cache="dual", early_termination=True),
    LLaDASettings(gen_length=64, steps=16, temperature=0.7, cache="dual", early_termination=True, seed=7),
]


@pytest.mark.parametrize("seed", range(2))
def test_in_any_mixture_everybody_gets_the_answer_of_being_alone(loaded, seed):
    """Guards the promise of batches: lengths, settings, seeds, token limits and stop strings of others change nothing.
    """
    generator = random.Random(seed)
    jobs, expected = [], []
    for _ in range(12):
        ids = random_ids(loaded, generator)
        settings = generator.choice(MIXTURE)
        max_tokens = generator.choice([settings.gen_length, generator.randint(1, settings.gen_length)])
        answer = alone(loaded, ids, settings)
        text = loaded.answer_text.decode(answer)
        stop = [text[10:12]] if generator.random() < 0.5 and len(text) > 12 and "\ufffd" not in text[10:12] else []
        single = GrowingAnswer(loaded.answer_text, max_tokens, stop)
        single.add(answer, last=True)
        expected.append((single.text, single.finish_reason, single.tokens))
        jobs.append(job_of(loaded, ids, settings, max_tokens, stop))
    with decoding(loaded, jobs, max_batch=8) as decoder:
        for job in jobs:
            assert job.listener.over.wait(60)
        wait_until(lambda: sum(decoder.batches) == len(jobs))
        assert max(decoder.batches) > 1
    assert [(job.listener.text, job.listener.events[-1].reason, job.answer.tokens) for job in jobs] == expected
    assert len({text for text, *_ in expected}) > 6, "the answers differ, or nothing is tested"


def test_only_prompts_with_equal_settings_share_a_batch(loaded):
    generator = random.Random(0)
    jobs = [job_of(loaded, random_ids(loaded, generator), settings) for settings in MIXTURE * 3]
    jobs += [job_of(loaded, random_ids(loaded, generator), MIXTURE[0]) for _ in range(4)]
    with decoding(loaded, jobs, max_batch=5) as decoder:
        wait_until(lambda: sum(decoder.batches) == len(jobs), 60)
        assert decoder.batches == [5, 3, 3, 3, 2]  # the oldest first, and at most five


def test_a_first_prompt_waits_a_moment_for_others(loaded):
    """Guards requests that arrive together while nothing is decoded: each is not decoded by itself."""
    generator = random.Random(0)
    with decoding(loaded, max_batch=3, batch_wait=2000) as decoder:
        for _ in range(3):
            decoder.submit(job_of(loaded, random_ids(loaded, generator), MIXTURE[0]))
        wait_until(lambda: decoder.batches)
        assert decoder.batches == [3]


def test_rows_that_are_complete_leave_the_batch(loaded):
    """Guards computing for nobody: of two rows one wants a single block of four."""
    settings = LLaDASettings(gen_length=128, steps=128)
    forwards = []

    class Counting:
        def __getattr__(self, name):
            return getattr(loaded, name)

        def generate(self, *arguments, **keywords):
            output = loaded.generate(*arguments, **keywords)
            forwards.extend(output.forwards.tolist())
            return output

    jobs = [job_of(loaded, [5, 6, 7], settings, max_tokens=20), job_of(loaded, [5, 6, 8, 9], settings)]
    for job in jobs:
        job.answer.answer_text = NeverEnding(loaded.answer_text)
    with decoding(Counting(), jobs, max_batch=2) as decoder:
        wait_until(lambda: decoder.batches == [2], 60)
    assert forwards == [32, 128]


class NeverEnding:
    """An answer text in which no token ends an answer."""

    def __init__(self, answer_text):
        self.decode, self.decode_draft = answer_text.decode, answer_text.decode_draft

    def length(self, ids):
        return len(ids)


def test_decoding_ends_when_nobody_waits(loaded):
    """Guards the work for clients that have gone, and those who wait behind them."""
    long = LLaDASettings(gen_length=768, steps=768)
    jobs = [job_of(loaded, [5, 6, 7], long), job_of(loaded, [8, 9], long)]
    after = job_of(loaded, [5, 6], MIXTURE[0])
    with decoding(loaded, jobs) as decoder:
        wait_until(lambda: decoder.decoding)
        decoder.submit(after)
        jobs[0].cancel()
        assert not after.listener.over.wait(0.2)
        jobs[1].cancel()
        assert after.listener.over.wait(10) and isinstance(after.listener.events[-1], Finished)
        assert decoder.batches in ([], [1])  # the deserted batch does not count
    assert not any(isinstance(event, Finished) for job in jobs for event in job.listener.events)


def test_a_prompt_that_was_cancelled_while_it_waited_is_not_decoded(loaded):
    jobs = [job_of(loaded, [5, 6, 7], MIXTURE[0]) for _ in range(3)]
    jobs[1].cancel()
    with decoding(loaded, jobs) as decoder:
        wait_until(lambda: decoder.batches)
        assert decoder.batches == [2] and not jobs[1].listener.events


@pytest.mark.parametrize("fault", [ValueError("logits are NaN"), torch.OutOfMemoryError("too large")])
def test_a_prompt_that_fails_takes_no_other_with_it(loaded, fault):
    """Guards a batch against one of its rows; text that a stream has already had is not repeated."""
    generator = random.Random(3)
    prompts = [random_ids(loaded, generator) for _ in range(5)]
    settings = LLaDASettings(gen_length=96, threshold=0.1)

    class Faulty:
        def __getattr__(self, name):
            return getattr(loaded, name)

        def generate(self, input_ids, settings, *, streamer, on_forward, attention_mask):
            def fail_later(block, first):
                if block == 1 and any(row[-len(prompts[2]) :] == prompts[2] for row in input_ids.tolist()):
                    raise fault
                on_forward(block, first)

            return loaded.generate(input_ids, settings, streamer=streamer, on_forward=fail_later,
                                   attention_mask=attention_mask)

    expected = [loaded.answer_text.decode(alone(loaded, ids, settings)) for ids in prompts]
    jobs = [job_of(loaded, ids, settings) for ids in prompts]
    for job in jobs:
        job.answer.answer_text = loaded.answer_text
    with decoding(Faulty(), jobs):
        for job in jobs:
            assert job.listener.over.wait(60)
    failed = [isinstance(job.listener.events[-1], Failed) for job in jobs]
    ended_before = len(expected[2]) and loaded.answer_text.length(alone(loaded, prompts[2], settings)) < 32
    assert failed == [False, False, not ended_before, False, False]
    assert not ended_before, "choose another seed: the answer must reach the second block"
    assert [job.listener.text for job, ok in zip(jobs, failed) if not ok] == [
        text for text, ok in zip(expected, failed) if not ok]


def test_drafts_do_not_pile_up(loaded):
    """Guards the memory of a slow reader: one draft is on its way at a time, and it is the latest."""
    job = job_of(loaded, [5, 6, 7], LLaDASettings(gen_length=64, steps=64), wants_drafts=True)
    job.answer.answer_text = NeverEnding(loaded.answer_text)
    with decoding(loaded, [job]):
        assert job.listener.over.wait(30)
    assert sum(isinstance(event, Draft) for event in job.listener.events) == 1
    assert job.read_draft() and "░" not in job.draft


def test_closing_fails_what_waits_and_what_is_decoded(loaded):
    long = LLaDASettings(gen_length=768, steps=768)
    jobs = [job_of(loaded, [5, 6, 7], long), job_of(loaded, [5, 6, 7], MIXTURE[0])]
    with decoding(loaded, jobs, batch_wait=0) as decoder:
        wait_until(lambda: decoder.decoding)
    assert all(isinstance(job.listener.events[-1], Failed) for job in jobs)


@pytest.mark.parametrize("fault", [None, RuntimeError("broken")])
def test_nobody_waits_for_a_decoder_that_has_ended(loaded, fault):
    """Guards a request that comes while the server ends, and all of them when the thread itself is at fault."""
    def fail(rows, seconds):
        raise fault

    decoder = Decoder(loaded, Limits(), on_batch=fail)
    decoder.start()
    job = job_of(loaded, [5, 6, 7], MIXTURE[0])
    if fault is None:
        decoder.close(RuntimeError("closed"))
    else:
        decoder.submit(job_of(loaded, [5, 6], MIXTURE[0]))
    decoder.join(20)
    decoder.submit(job)
    assert not decoder.is_alive() and isinstance(job.listener.events[-1], Failed)


# --- Requests ---------------------------------------------------------------------------------------------------------

HELLO = [{"role": "user", "content": "How many?"}]
READER = RequestReader(TINY, LLaDASettings(gen_length=128), Limits(max_tokens=256, max_prompt=200))


def read_chat(**fields):
    return READER.read(CHAT, {"messages": HELLO} | fields)


def read_text(**fields):
    return READER.read(TEXT, {"prompt": "How many?"} | fields)


def refused(call):
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def test_a_chat_goes_through_the_template_and_a_prompt_does_not():
    [ids] = read_chat().prompts
    assert TINY.tokenizer.decode(ids) == TINY.chat("How many?")
    assert len(ids) == count_tokens(TINY, TINY.chat("How many?"))
    [ids] = read_text().prompts
    assert TINY.tokenizer.decode(ids) == "How many?"
    model = loading.load("dream-tiny", device="cpu")
    dream = RequestReader(model, model.family.settings(), Limits())
    query = dream.read(TEXT, {"prompt": "How many?", "echo": True, "top_p": 0.9, "temperature": 1})
    assert query.prompts[0][0] == dream.loaded.tokenizer.bos_token_id and query.echoes == ["How many?"]
    assert (query.settings.top_p, query.settings.temperature) == (0.9, 1.0)


def test_contents_in_parts_and_developers_are_understood():
    parts = [{"role": "developer", "content": "Be brief."},
             {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    assert TINY.tokenizer.decode(read_chat(messages=parts).prompts[0]) == TINY.chat_turns(turns)


def test_prompts_may_be_lists_and_tokens():
    both = [read_text(prompt=text).prompts[0] for text in ("How?", "Why?")]
    assert read_text(prompt=["How?", "Why?"]).prompts == both
    ids = read_text().prompts[0]
    assert read_text(prompt=ids, echo=True).echoes == ["How many?"]
    assert read_text(prompt=[ids, [5]]).prompts == [ids, [5]]


@pytest.mark.parametrize("fields, gen_length, max_tokens", [
    ({}, 128, 128), ({"max_tokens": 100}, 128, 100), ({"max_tokens": 5}, 32, 5), ({"max_tokens": 256}, 256, 256),
    ({"max_completion_tokens": 33}, 64, 33), ({"max_tokens": 33, "max_completion_tokens": 33}, 64, 33),
    ({"gen_length": 192}, 192, 192), ({"gen_length": 192, "max_tokens": 7}, 192, 7),
    ({"max_tokens": 10, "block_length": 8}, 16, 10), ({"max_tokens": None}, 128, 128),
])
def test_an_answers_length_is_rounded_up_to_blocks(fields, gen_length, max_tokens):
    query = read_chat(**fields)
    assert (query.settings.gen_length, query.max_tokens) == (gen_length, max_tokens)


def test_every_decoding_setting_is_a_field():
    """Guards settings that come later: they are derived, not written a second time."""
    assert set(READER.entries) == {entry.name for entry in LLaDASettings.choices()}
    settings = read_chat(threshold=0.8, cache="dual", dropout_strategy="gaussian", window=64, k_sigma=3, scale=1.6,
                         early_termination=True, seed=5, temperature=0.5, block_length=16).settings
    assert settings == LLaDASettings(
        gen_length=128, block_length=16, threshold=0.8, cache="dual", early_termination=True, seed=5, temperature=0.5,
        suffix_sampler=GaussianSampler(64, 3, 1.6),
    )
    assert read_chat(rule="eb", threshold=None).settings.parallel


def test_the_operators_settings_follow_the_length_and_give_way():
    """Guards requests that say little: a window of 128 is too long for 32 tokens, and so are 64 steps."""
    operator = LLaDASettings(gen_length=128, steps=64, suffix_sampler=GaussianSampler(128, 3, 1.6), seed=9)
    reader = RequestReader(TINY, operator, Limits())
    settings = reader.read(CHAT, {"messages": HELLO, "max_tokens": 20}).settings
    assert settings == LLaDASettings(gen_length=32, steps=16, suffix_sampler=GaussianSampler(32, 3, 1.6), seed=9)
    settings = reader.read(CHAT, {"messages": HELLO, "threshold": 0.9, "dropout_strategy": "null"}).settings
    assert settings == LLaDASettings(gen_length=128, threshold=0.9, seed=9)
    assert reader.read(CHAT, {"messages": HELLO, "dropout_strategy": "window"}).settings.suffix_sampler.window == 128
    operator = LLaDASettings(gen_length=128, threshold=0.9)
    reader = RequestReader(TINY, operator, Limits())
    assert reader.read(CHAT, {"messages": HELLO, "steps": 64}).settings == LLaDASettings(gen_length=128, steps=64)
    assert reader.read(CHAT, {"messages": HELLO, "rule": "eb"}).settings.threshold is None


@pytest.mark.parametrize("fields", [
    {"n": 1}, {"top_p": 1}, {"top_p": 1.0}, {"presence_penalty": 0.0}, {"logit_bias": {}}, {"logprobs": False},
    {"tools": []}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}}, {"user": "me"}, {"store": False},
    {"metadata": {"a": "b"}}, {"logprobs": None, "n": None, "tools": None}, {"parallel_tool_calls": True},
])
def test_fields_of_openai_that_ask_for_nothing_are_accepted(fields):
    assert read_chat(**fields).settings == READER.settings


@pytest.mark.parametrize("fields, param", [
    ({"n": 2}, "n"), ({"n": True}, "n"), ({"top_p": 0.5}, "top_p"), ({"logprobs": True}, "logprobs"),
    ({"logprobs": 0}, "logprobs"), ({"tools": [{}]}, "tools"), ({"response_format": {"type": "json_object"}},
     "response_format"), ({"frequency_penalty": 1}, "frequency_penalty"), ({"audio": {}}, "audio"),
    ({"max_token": 3}, "max_token"), ({"prompt": "Hi"}, "prompt"), ({"top_k": 5, "x": 1}, "x"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 257}, "max_tokens"), ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"max_tokens": 10**18}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"), ({"max_completion_tokens": -1},
                                                                    "max_completion_tokens"),
    ({"gen_length": 512}, "gen_length"), ({"gen_length": 64, "max_tokens": 65}, "max_tokens"),
    ({"block_length": 10**9}, "block_length"), ({"block_length": 7}, "block_length"), ({"block_length": 0},
                                                                                       "block_length"),
    ({"seed": -1}, "seed"), ({"seed": "x"}, "seed"), ({"seed": 2**63}, "seed"), ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"), ({"threshold": 2}, "threshold"), ({"cache": "big"}, "cache"),
    ({"dropout_strategy": "gausian"}, "dropout_strategy"), ({"window": 9}, "window"), ({"steps": 3}, "steps"),
    ({"dropout_strategy": ["null"]}, "dropout_strategy"), ({"cache": {}}, "cache"), ({"early_termination": 1},
                                                                                     "early_termination"),
    ({"threshold": 0.9, "rule": "eb"}, None), ({"threshold": 0.9, "steps": 64}, "steps"),
    ({"stop": 3}, "stop"), ({"stop": [3]}, "stop"), ({"stop": ""}, "stop"), ({"stop": ["x"] * 17}, "stop"),
    ({"stop": {"a": 1}}, "stop"), ({"stop": "x" * 501}, "stop"), ({"stream": 1}, "stream"), ({"stream": "yes"},
                                                                                           "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"drafts": True}, "drafts"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options"), ({"stream": True, "drafts": "no"},
                                                                              "drafts"),
    ({"model": 5}, "model"), ({"messages": []}, "messages"), ({"messages": "Hi"}, "messages"), ({"messages": None},
                                                                                               "messages"),
    ({"messages": ["Hi"]}, "messages"), ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages"), ({"messages": [{"role": ["user"], "content": "x"}]},
                                                                     "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
])
def test_what_cannot_be_done_is_refused_in_a_sentence(fields, param):
    """Guards against a field that is ignored in silence, and against a traceback for one of another kind."""
    error = refused(lambda: read_chat(**fields))
    assert error.status == (404 if param == "model" else 400)
    if param is not None:
        assert error.param == param and param in str(error)
    body = json.loads(json.dumps(error.body()))["error"]
    assert set(body) == {"message", "type", "param", "code"} and body["type"] == "invalid_request_error"
    assert len(body["message"]) < 1001 and "\n" not in body["message"]


@pytest.mark.parametrize("prompt", [
    "", "  ", [], [""], [[]], [5, "x"], ["x", 5], [-1], [VOCABULARY + 10**6], [1.5], [True], {"a": 1}, 5, None, [[[1]]],
    [["x"]], "word " * 300, ["x"] * 300,
])
def test_prompts_that_cannot_be_used(prompt):
    error = refused(lambda: read_text(prompt=prompt))
    assert error.status == 400 and error.param == "prompt"


@pytest.mark.parametrize("body", [[], "x", 5, None, True, [{}]])
def test_a_body_that_is_no_object(body):
    assert refused(lambda: READER.read(CHAT, body)).status == 400


def test_a_prompt_that_leaves_no_room_says_how_much_there_is():
    reader = RequestReader(TINY, LLaDASettings(gen_length=128), Limits(max_tokens=2**20))
    error = refused(lambda: reader.read(CHAT, {"messages": HELLO, "max_tokens": TINY.model.max_positions}))
    assert error.code == "context_length_exceeded" and "there is room for" in str(error)


def test_a_model_without_a_template_has_no_chat(loaded, monkeypatch):
    monkeypatch.setattr(loaded.tokenizer, "chat_template", None)
    reader = RequestReader(loaded, LLaDASettings(), Limits())
    assert "no chat template" in str(refused(lambda: reader.read(CHAT, {"messages": HELLO})))
    assert reader.read(TEXT, {"prompt": "Hi"}).prompts


def test_every_neutral_value_is_one_that_openai_has():
    """Guards the table: a field is not in it and among the server's own at once, except for settings of a family."""
    assert not NEUTRAL.keys() & {"model", "messages", "prompt", "echo", "stop", "stream", "seed", "temperature"}


def test_usage_adds_up():
    query = read_text(prompt=["How many?", "Why?"])
    usage = Response(query, "tiny", "1").usage(7)
    assert usage["prompt_tokens"] == sum(map(len, query.prompts))
    assert usage["total_tokens"] == 7 + usage["prompt_tokens"]


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
    (["--port", "65536"], "port is 65536"), (["--port", "-1"], "port is -1"), (["--max_batch", "0"], "max_batch"),
    (["--timeout", "0"], "timeout"), (["--max_tokens", "100"], "gen_length is 256; it must be at most max_tokens"),
    (["--api_key", ""], "api_key must have"), (["--api_key", "ключ"], "api_key must have"),
    (["--host", "no.such.host.invalid"], "host is 'no.such.host.invalid'"), (["-th", "2"], "threshold is 2"),
    (["--chat_template", "on"], "unrecognized arguments"),
])
def test_flags_that_cannot_be_used(flags, message, capsys):
    """Guards the time until a person hears of a mistake: before the model is loaded, in one line."""
    try:
        status = run.main(["serve", "-m", "tiny", *flags])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1


def test_without_its_packages_the_server_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "fastapi" else object())
    assert run.main(["serve", "-m", "tiny"]) == 2
    assert capsys.readouterr().err == (
        "run.py: the server needs fastapi: pip install -r dpad/serve/requirements.txt\n")
