"""Training examples: they are what decoding gets and gives, whatever they come from, and bad data end in one sentence.

    python -m pytest tests/test_examples.py
"""

import copy
import dataclasses
import json
import re
import subprocess
import sys
import time
import unicodedata

import datasets
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dataset import arithmetic
from dpad import ROOT
from dpad.engine import hub, loading
from dpad.training import examples
from dpad.training.examples import count_too_long, load_examples

PAIR = {"prompt": "How many?", "response": "Ben has 12 nuts."}
QUESTION, ANSWER = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Ben has 12 nuts."}
END = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}


@pytest.fixture(scope="module", params=["tiny", "dream-tiny"])
def loaded(request):
    return loading.load(request.param)


@pytest.fixture(scope="module")
def tiny():
    return loading.load("tiny")


@pytest.fixture
def write(tmp_path):
    """A file my.jsonl of these records (or of this text), and its path."""
    def write(*records, name="my.jsonl"):
        text = "".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
        (tmp_path / name).write_bytes(text.encode())
        return str(tmp_path / name)
    return write


@pytest.fixture
def rows(monkeypatch):
    """A hub whose one data set has the rows that the test puts in; the calls that it got are in `rows.calls`."""
    class Rows(list):
        calls: list = []

    found = Rows()
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: found.calls.append((a, k)) or
                        datasets.Dataset.from_list(list(found)))
    found.calls.clear()
    return found


def with_template(loaded, template):
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(loaded, tokenizer=tokenizer, chat_template=template is not None)


def all_of(found):
    return [found.get(index) for index in range(len(found))]


# --- What decoding gets and gives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, True, False])
def test_prompts_are_those_of_decoding(loaded, write, template):
    """Guards training against another prompt than the one that is decoded: the ids are LoadedModel.encode's."""
    questions = ["How many?", "  Tom has 3 bags.\n\n", "Größe 数 🙂 <b>", "a\u2028b\r\nc",
                 "Use <|eot_id|> and <|im_end|>."]
    found = load_examples(write(*({"prompt": q, "response": "12"} for q in questions)), loaded, chat_template=template)
    for question, example in zip(questions, all_of(found)):
        assert example.prompt == loaded.encode(question, template)["input_ids"][0].tolist()


@settings(max_examples=60, deadline=None)
@given(answer=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip()))
@pytest.mark.parametrize("template", [True, False])
def test_answers_decode_to_the_response(loaded, answer, template):
    """Guards the target: it ends with the turn's end, holds no EOS, and decoding it gives the response back."""
    special = loaded.tokenizer.convert_ids_to_tokens(list(loaded.answer_text.hidden))
    assume(not any(token in answer for token in special))
    example = examples.Encoder(loaded, template).encode("How many?", answer)
    text = loaded.tokenizer.decode(example.answer)
    assert loaded.model.config.eos_token_id not in example.answer
    assert text.endswith(END[loaded.family.name]) == template
    expected = answer.strip() if template else answer
    if loaded.family.name == "dream":  # whose tokenizer composes characters and their accents
        expected = unicodedata.normalize("NFC", expected)
    assert loaded.answer_text.decode(example.answer) == expected


def test_earlier_turns_are_context(loaded, write):
    """Guards messages: the prompt is the conversation up to the answer, as chat decoding renders it."""
    turns = [{"role": "system", "content": "Be short."}, QUESTION, ANSWER, {"role": "user", "content": "And Tom?"}]
    [example] = all_of(load_examples(write({"messages": [*turns, ANSWER]}), loaded))
    assert example.prompt == loaded.encode_text(loaded.chat_turns(turns))["input_ids"][0].tolist()
    assert loaded.tokenizer.decode(example.answer) == ANSWER["content"] + END[loaded.family.name]
    [alone] = all_of(load_examples(write({"messages": [QUESTION, ANSWER]}), loaded))
    assert alone == load_examples(write(PAIR), loaded).get(0)


@pytest.mark.parametrize("template, expected", [
    ("{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}assistant: ", "12<|eot_id|>"),
    ("{% for m in messages %}{{ m.content }}\n<|eot_id|>\n{% endfor %}", "12\n<|eot_id|>"),
    ("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}", "12"),
    ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "12"),
])
def test_other_templates(tiny, template, expected):
    """Guards the search for the turn's end: it may follow a newline, be EOS, be missing, and text may follow it."""
    example = examples.Encoder(with_template(tiny, template)).encode("How many?", "12")
    assert tiny.tokenizer.decode(example.answer) == expected


@pytest.mark.parametrize("template, message", [
    ("{{ messages[0].content }}{{ messages[-1].content | upper }}", "which changes what was said"),
    ("{% for m in messages %}{{ m.content }}{% endfor %}{% if messages | length > 1 %}{{ raise_exception('one only') }}"
     "{% endif %}", r"does not suit the chat template \(one only\)"),
    ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "which changes what was said"),
])
def test_templates_that_cannot_show_an_answer(tiny, write, template, message):
    """Guards against an answer that is silently another one: the template is blamed, with the line."""
    with pytest.raises(ValueError, match=f"my.jsonl, line 1 does not suit the chat template.*{message}|{message}"):
        load_examples(write({"prompt": "a", "response": "b"}), with_template(tiny, template))


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "{0}\n{1}\n", "{0}\n{1}", "\ufeff{0}\r\n{1}\r\n", "{0}\n{1}\n\n \r\n\n", "{0}\n\n{1}\n",
])
def test_forms_of_a_file(tiny, write, text):
    """Guards harmless differences: byte order mark, CRLF, no last newline, blank lines."""
    path = write(text.format(json.dumps(PAIR), json.dumps(PAIR | {"prompt": "Größe\u2028?"}, ensure_ascii=False)))
    found = load_examples(path, tiny)
    assert len(found) == 2 and found.get(0) == load_examples(write(PAIR, name="one.jsonl"), tiny).get(0)
    assert found.get(1).prompt == tiny.encode("Größe\u2028?")["input_ids"][0].tolist()


@pytest.mark.parametrize("record, options", [
    ({"question": "How many?", "answer": ANSWER["content"]}, {}),
    ({"instruction": "How many?", "input": "", "output": ANSWER["content"]}, {}),
    ({"prompt": "How many?", "answer": ANSWER["content"], "id": 7, "tags": [None, 1e300]}, {}),
    ({"q": "How many?", "a": ANSWER["content"]}, {"prompt_field": "q", "response_field": "a"}),
    ({"q": "How many?", "response": ANSWER["content"], "prompt": "no"}, {"prompt_field": "q"}),
    ({"prompt": "How many?", "chosen": ANSWER["content"], "response": "no"}, {"response_field": "chosen"}),
    ({"messages": [QUESTION, ANSWER], "prompt": "no"}, {}),
    ({"talk": [QUESTION, ANSWER]}, {"prompt_field": "talk"}),
])
def test_names_of_fields(tiny, write, record, options):
    """Guards the names that files commonly use, and those that are given."""
    assert load_examples(write(record), tiny, **options).get(0) == load_examples(write(PAIR), tiny).get(0)


def test_the_input_of_an_instruction_counts(tiny, write):
    """Guards data in Alpaca's form: the input is part of the prompt, not left out in silence."""
    path = write({"instruction": "Add.", "input": "3 and 4", "output": "7"})
    assert load_examples(path, tiny).get(0).prompt == tiny.encode("Add.\n\n3 and 4")["input_ids"][0].tolist()


def test_a_very_long_line(tiny, write):
    """Guards long documents: a line may have any length."""
    [example] = all_of(load_examples(write({"prompt": "a " * 2**18, "response": "12 " * 2**16}), tiny))
    assert len(example.answer) > 2**16


BAD_LINES = [
    ("{", "is not JSON"), ("not json\n", "is not JSON"), ('["a"]\n', "is not an object"), ("3\n", "is not an object"),
    ("null\n", "is not an object"), ('{"prompt": "a", "response": "b"} {}\n', "is not JSON"),
    ("{}\n", "has no prompt: no field prompt, question, instruction, messages; it has no fields"),
    ({"response": "b", "x": 1}, "has no prompt: no field .*; it has response, x"),
    ({"prompt": "a", "completion": "b"}, "has no response: no field response, answer, output; it has prompt, comp"),
    ({"prompt": "a", "response": ""}, "has an empty response"), ({"prompt": "a", "response": " \n"}, "has an empty re"),
    ({"prompt": "", "response": "b"}, "has an empty prompt"),
    ({"prompt": "a", "response": None}, "has None as its response; it must be text"),
    ({"prompt": "a", "response": 12}, "has 12 as its response; it must be text"),
    ({"prompt": ["a"], "response": "b"}, r"has \['a'\] as its prompt; it must be text"),
    ({"question": {"a": 1}, "answer": "b"}, "as its question; it must be text"),
    ({"instruction": "a", "input": 3, "output": "b"}, "has 3 as its input; it must be text"),
    ({"prompt": "a", "response": "12<|mdm_mask|>"}, r"has <\|mdm_mask\|> in its response"),
    ({"prompt": "a", "response": "12<|endoftext|>"}, r"has <\|endoftext\|> in its response"),
    ({"prompt": "a", "response": "12<|eot_id|>more"}, r"has <\|eot_id\|> in its response, .*a special token"),
    ({"prompt": "a<|mdm_mask|>", "response": "12"}, r"has <\|mdm_mask\|> in its prompt"),
    ('{"prompt": "\\ud800", "response": "b"}\n', "holds half of a surrogate pair"),
    ('{"prompt": ' * 100 + "1" + "}" * 100 + "\n", "is nested deeper"),
    ({"messages": []}, "whose last turn is not the assistant's answer"),
    ({"messages": "a"}, "has 'a' as its messages; it must be a list"), ({"messages": None}, "has None as its messages"),
    ({"messages": [QUESTION, "a"]}, "it must be a list of"), ({"messages": [{"content": "a"}]}, "it must be a list of"),
    ({"messages": [QUESTION]}, "whose last turn is not the assistant's answer"),
    ({"messages": [QUESTION, ANSWER, QUESTION]}, "whose last turn is not the assistant's answer"),
    ({"messages": [ANSWER]}, "with nothing before the assistant's answer"),
    ({"messages": [{"role": "usr", "content": "a"}, ANSWER]}, "a turn of the role 'usr'; .*did you mean 'user'"),
    ({"messages": [{"role": ["user"], "content": "a"}, ANSWER]}, r"a turn of the role \['user'\]"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "as the content of a turn; it must be"),
    ({"messages": [{"role": "user"}, ANSWER]}, "has None as the content of a turn"),
    ({"messages": [QUESTION, ANSWER | {"content": ""}]}, "has an empty response"),
    ({"messages": [QUESTION, ANSWER | {"content": "<|mdm_mask|>"}]}, r"has <\|mdm_mask\|> in its response"),
]


@pytest.mark.parametrize("line, message", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named(tiny, write, line, message):
    """Guards every way a line can be bad: one sentence with the file, the number of the line and what is wrong."""
    path = write(PAIR, "\n", line, *[] if line == "{" else [PAIR])
    with pytest.raises(ValueError, match=f"^{re.escape(path)}, line 3 .*{message}") as error:
        load_examples(path, tiny)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


TEXTS = st.lists(st.sampled_from(["a", "12", " ", "\n", "é", "<|mdm_", "mask|>", "<|eot_id|>", "<|end"]), max_size=4)
WORDS = TEXTS.map("".join)
TURNS = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS})
RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["prompt", "response", "messages", "role", "content", "instruction", "input", "output"]), inner, max_size=4),
    max_leaves=12)
RECORDS = RECORDS | st.fixed_dictionaries({"prompt": WORDS, "response": WORDS}) | st.lists(TURNS, max_size=3).map(
    lambda turns: {"messages": [*turns, {"role": "assistant", "content": "12"}]})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.lists(RECORDS, min_size=1, max_size=3).map(
    lambda records: "\n".join(map(json.dumps, records)).encode()))
def test_whatever_a_file_holds(tiny, tmp_path, content):
    """Guards every other file: it is read, or refused in one sentence that names it; no answer holds a mask."""
    path = tmp_path / "any.jsonl"
    path.write_bytes(content)
    try:
        found = all_of(load_examples(str(path), tiny))
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error).removeprefix(str(path))
    else:
        assert not any(tiny.model.config.mask_token_id in ids for example in found for ids in example)


def test_files_that_cannot_be_read(tiny, write, tmp_path, monkeypatch):
    """Guards what is wrong with a file as a whole."""
    path = write(PAIR)
    for source, message in [
        (str(tmp_path / "mj.jsonl"), f"mj.jsonl', which does not exist; did you mean '{path}'"),
        (str(tmp_path / "no" / "my.jsonl"), "which does not exist$"), (str(tmp_path), "which is a folder; it must be"),
        (write("", name="empty.jsonl"), "empty.jsonl has no examples"),
        (write("\ufeff\n \n", name="blank.jsonl"), "blank.jsonl has no examples"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_examples(source, tiny)
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match="^.*my.jsonl cannot be read: Permission denied$"):
        load_examples(path, tiny)
    monkeypatch.undo()
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(PAIR, ensure_ascii=False).encode() + b'\n{"prompt": "\xe4"}\n')
    with pytest.raises(ValueError, match="latin.jsonl, line 2 is not UTF-8 text"):
        load_examples(str(tmp_path / "latin.jsonl"), tiny)


def test_messages_need_a_chat_template(tiny, write):
    """Guards base models: a conversation cannot be shown to them, and the sentence says why."""
    path = write({"messages": [QUESTION, ANSWER]})
    with pytest.raises(ValueError, match="has messages, which need a chat template, and the tokenizer has none$"):
        load_examples(path, with_template(tiny, None))
    with pytest.raises(ValueError, match="which need a chat template, and chat_template is off$"):
        load_examples(path, tiny, chat_template=False)
    with pytest.raises(ValueError, match="chat_template is on, but the tokenizer of tiny has none"):
        load_examples(path, with_template(tiny, None), chat_template=True)


def test_an_unknown_token_is_no_answer(tiny, write, monkeypatch):
    """Guards against tokenizers that cannot spell a text: its unknown token is special, and is refused."""
    encoder = examples.Encoder(tiny)
    monkeypatch.setattr(encoder, "_ids", lambda text: [tiny.tokenizer.bos_token_id])
    with pytest.raises(examples.Misfit, match=r"has <\|startoftext\|> in its response"):
        encoder.encode("a", "b")


# --- Built-in sources and the hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arithmetic", "answer-first", "countdown"])
def test_half_of_the_questions_have_the_harness_words(tiny, name):
    """Guards models that know the question in one form only: the other half is asked as the harness asks."""
    found = load_examples(name, tiny, seed=3)
    generator = examples.GENERATORS[name]
    plain = 0
    for index in range(200):
        question, answer = (generator(3, index, "train")[key] for key in ("question", "answer"))
        forms = [tiny.encode(text)["input_ids"][0].tolist() for text in (question, f"Question: {question}\nAnswer:")]
        prompt, ids = found.get(index)
        plain += forms.index(prompt) == 0
        assert tiny.answer_text.decode(ids) == answer
    assert 75 < plain < 125


def test_the_harness_words_are_the_harness_words():
    """Guards the copy of the harness's prompt that training uses."""
    form = yaml.safe_load((ROOT / "dataset" / "tasks" / "gsm8k_format.inc").read_text())
    assert form["doc_to_text"] == examples.HARNESS_PROMPT.format("{{question}}")


@pytest.mark.slow
def test_an_example_is_the_same_after_a_restart(tiny):
    """Guards exact resume: an index gives the same example in another process, in whatever order it is asked."""
    source = "arithmetic,answer-first,countdown"
    program = ("from dpad import load; from dpad.training.examples import load_examples as l;"
               f"e = l({source!r}, load('tiny'), seed=5); print([e.get(i) for i in (10**9, 4, 7)], e.fingerprint)")
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = load_examples(source, tiny, seed=5)
    backwards = [found.get(index) for index in (7, 4, 10**9)][::-1]
    assert said.strip() == f"{backwards} {found.fingerprint}"
    assert load_examples(source, tiny, seed=6).fingerprint != found.fingerprint


def test_gsm8k_comes_from_the_hub(tiny, rows):
    """Guards gsm8k: the training split of openai/gsm8k, every second question in the harness's words."""
    rows += [{"question": f"How many {n}?", "answer": f"#### {n}"} for n in range(6)]
    found = load_examples("gsm8k", tiny)
    assert rows.calls == [(("openai/gsm8k", "main"), {"split": "train"})] and len(found) == 6
    assert found.get(2).prompt == tiny.encode("How many 2?")["input_ids"][0].tolist()
    assert found.get(3).prompt == tiny.encode("Question: How many 3?\nAnswer:")["input_ids"][0].tolist()


def test_a_data_set_of_the_hub(tiny, rows):
    """Guards hub ids: configuration, split and columns are passed on, and a missing column is named."""
    rows += [{"ask": "How many?", "reply": ANSWER["content"]}] * 3
    columns = {"prompt_field": "ask", "response_field": "reply"}
    found = load_examples("some/data", tiny, hub_config="en", hub_split="train[:3]", **columns)
    assert rows.calls == [(("some/data", "en"), {"split": "train[:3]"})] and len(found) == 3
    assert tiny.answer_text.decode(found.get(1).answer) == ANSWER["content"]
    with pytest.raises(ValueError, match="^some/data, row 0 has no response: no field answer; it has ask, reply$"):
        load_examples("some/data", tiny, prompt_field="ask", response_field="answer")
    rows.append({"ask": "How many?", "reply": None})
    with pytest.raises(ValueError, match="^some/data, row 3 has None as its reply; it must be text$"):
        load_examples("some/data", tiny, **columns)


def test_the_hub_out_of_reach(tiny, monkeypatch):
    """Guards a machine without network: one sentence, without half a minute of retries."""
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    for source in ("gsm8k", "nobody/nothing"):
        begin = time.monotonic()
        with pytest.raises(ValueError, match="could not be fetched from the hub .*is this machine online") as error:
            load_examples(source, tiny)
        assert "\n" not in str(error.value) and time.monotonic() - begin < 20


def test_without_the_package_datasets(tiny, monkeypatch):
    """Guards machines that train without datasets: generators and files work, the hub says what is missing."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_examples("countdown", tiny).get(0)
    with pytest.raises(ValueError, match="openai/gsm8k needs the Python package 'datasets', which is not installed"):
        load_examples("gsm8k", tiny)


@pytest.mark.parametrize("source, options, message", [
    ("arithmetics", {}, "data is 'arithmetics'; it must be a .jsonl file, arithmetic, .*; did you mean 'arithmetic'"),
    ("count-down", {}, "did you mean 'countdown'"), ("", {}, "data is ''; it must be"),
    (3, {}, "data is 3; it must be text"),
    ("arithmetic,", {}, "data is ''"), ("arithmetic,arithmetic", {}, "data names arithmetic twice"),
    ("arithmetic,no.jsonl", {}, "data is 'no.jsonl', which does not exist"), ("../x/y", {}, "data is '../x/y'"),
    ("countdown", {"split": "dev"}, "split is 'dev'; it must be one of train, test"),
    ("countdown", {"seed": -1}, "seed is -1"), ("countdown", {"seed": 1.5}, "seed is 1.5"),
    ("countdown", {"prompt_field": "q"}, "prompt_field is 'q', but the data are not a file or a data set of the hub"),
    ("gsm8k", {"response_field": "q"}, "response_field is 'q', but the data are not a file"),
    ("gsm8k,countdown", {"hub_split": "x"}, "hub_split is 'x', but the data are not a data set of the hub"),
])
def test_bad_sources(tiny, source, options, message):
    """Guards names: a mistyped one is told from the known ones, and no option is ignored in silence."""
    with pytest.raises(ValueError, match=message):
        load_examples(source, tiny, **options)


# --- Sets -------------------------------------------------------------------------------------------------------------


def numbered(write, count, name="my.jsonl"):
    return write(*({"prompt": f"Number {n}?", "response": f"{name} {n}"} for n in range(count)), name=name)


def texts(tiny, found, count=None):
    return [tiny.answer_text.decode(found.get(index).answer) for index in range(len(found) if count is None else count)]


@pytest.mark.parametrize("count", [1, 7, 19])
def test_held_out_examples_are_not_trained_on(tiny, write, count):
    """Guards the held-out loss: nothing is in both parts, nothing is lost, and the parts are always the same."""
    found = load_examples(numbered(write, 20), tiny, seed=4)
    kept, held_out = found.split(count)
    assert len(held_out) == count and len(kept) == 20 - count
    assert sorted(texts(tiny, kept) + texts(tiny, held_out)) == sorted(texts(tiny, found))
    again = load_examples(numbered(write, 20), tiny, seed=4).split(count)
    assert [part.fingerprint for part in again] == [kept.fingerprint, held_out.fingerprint]
    assert texts(tiny, again[1]) == texts(tiny, held_out) and kept.fingerprint != held_out.fingerprint
    assert "held out" in held_out.name
    for wrong in (0, 20, 21, 2.5):
        with pytest.raises(ValueError, match=f"held-out count is {wrong}"):
            found.split(wrong)


def test_held_out_problems_are_of_the_other_split(tiny):
    """Guards generators: what is held out shares no story with what is trained on."""
    kept, held_out = load_examples("arithmetic", tiny, seed=2).split(5)
    assert kept.size is None and len(held_out) == 5
    assert texts(tiny, held_out) == [arithmetic.problem(2, index, "test")["answer"] for index in range(5)]
    with pytest.raises(IndexError):
        held_out.get(5)
    with pytest.raises(TypeError, match="arithmetic has no end"):
        len(kept)


def test_a_mixture_has_even_shares(tiny, write):
    """Guards mixtures: the parts take turns, a finite one is shuffled anew in each pass, held-out parts are even."""
    found = load_examples(f"countdown,{numbered(write, 5)}", tiny, seed=1)
    assert found.size is None and bool(found) and found.name.startswith("countdown,")
    passes = [[texts(tiny, found, 60)[2 * (5 * number + place) + 1] for place in range(5)] for number in range(6)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes) and len({tuple(one) for one in passes}) > 1
    assert texts(tiny, found, 60)[::2] == [examples.GENERATORS["countdown"](1, n, "train")["answer"] for n in range(30)]
    assert len(list(found.lengths())) == examples.SAMPLE + 5
    kept, held_out = found.split(3)
    assert len(held_out) == 3 and len({*texts(tiny, held_out)}) == 3
    assert not {*texts(tiny, held_out)} & {*texts(tiny, kept, 60)}
    with pytest.raises(ValueError, match="held-out count is 1; it must be an integer of at least 2"):
        found.split(1)


def test_fingerprints_tell_data_apart(tiny, write):
    """Guards resume: data that differ in one character, in their order or in their prompts' form have another hash."""
    other = PAIR | {"response": "Ben has 13 nuts."}
    prints = [load_examples(write(*records), tiny, chat_template=template).fingerprint for records, template in [
        ([PAIR, other], None), ([other, PAIR], None), ([PAIR], None), ([other], None), ([PAIR], False)]]
    assert len(set(prints)) == 5 and all(re.fullmatch("[0-9a-f]{64}", one) for one in prints)
    assert prints[0] == load_examples(write(PAIR, other, name="b.jsonl"), tiny).fingerprint


def test_too_long_examples_are_counted(tiny, write):
    """Guards the count at its edges: an answer fits with its EOS, a prompt with the longest canvas."""
    found = load_examples(write(PAIR, {"prompt": "a " * 50, "response": "12 " * 40}), tiny, chat_template=False)
    (short, answer), (long, longer) = found.lengths()
    assert [len(ids) for example in all_of(found) for ids in example] == [short, answer, long, longer]
    for canvas, positions, expected in [
        (longer + 1, 4096, (2, 0, 0)), (longer, 4096, (2, 1, 0)), (answer + 1, 4096, (2, 1, 0)),
        (answer, 4096, (2, 2, 0)),
        (64, long + 64, (2, longer >= 64, 0)), (64, long + 63, (2, longer >= 64, 1)),
        (64, short + 63, (2, longer >= 64, 2)),
    ]:
        assert count_too_long(found, canvas, positions) == expected
    assert count_too_long(load_examples("countdown", tiny), 64, 4096) == (examples.SAMPLE, 0, 0)
    assert count_too_long(found.split(1)[1], 1, 4096).answers == 1


def test_progress_is_shown_when_it_takes_long(tiny, write, monkeypatch, capsys):
    """Guards large files: a terminal gets a bar after a while; a pipe, and a short file, get nothing."""
    path = numbered(write, 3000)
    load_examples(path, tiny)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    load_examples(path, tiny)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(examples, "PATIENCE", 0.001)
    load_examples(path, tiny)
    assert "/3000" in capsys.readouterr().err


def test_the_file_is_imported_without_what_it_may_not_need():
    """Guards machines without datasets and lm-eval, and a quick start."""
    program = ("import sys, dpad.training.examples;"
               "print([m for m in ('datasets', 'pyarrow', 'lm_eval') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
