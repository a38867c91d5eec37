"""What a model is trained on: prompts and answers as token ids, from files, from the hub or from a generator.

    examples = load_examples("my.jsonl", load("tiny"))
    prompt, answer = examples.get(0)

A file has one JSON object a line: a prompt and a response (or question and answer, or instruction, input and output),
or `messages`, whose last turn is the answer. docs/file-formats.md describes it. Imported, never run.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataset import GSM8K, answer_first, arithmetic, countdown, fetch_rows
from dpad.engine.answer_text import AnswerText
from dpad.engine.checkpoint import is_hub_id
from dpad.engine.checks import check_choice, check_integer, check_text, one_line, short, suggest
from dpad.engine.json_text import parse_json
from dpad.engine.prompts import check_chat_template

GENERATORS: dict[str, Callable[[int, int, str], dict]] = {  # of (seed, index, split)
    "arithmetic": arithmetic.problem, "answer-first": answer_first.problem, "countdown": countdown.problem,
}
BUILT_IN = (*GENERATORS, "gsm8k")
FIELDS = {"prompt": "response", "question": "answer", "instruction": "output"}
ROLES = ("system", "user", "assistant")
HARNESS_PROMPT = "Question: {}\nAnswer:"  # how the harness asks: dataset/tasks/gsm8k_format.inc
FILE_ENDINGS = (".jsonl", ".json", ".txt", ".csv", ".parquet")
PATIENCE = 2.0  # seconds before a progress bar appears
SAMPLE = 1000  # examples of an endless set that stand for all


class Example(NamedTuple):
    """Token ids: what decoding gets as its prompt, and what the model is to write before EOS fills the canvas."""

    prompt: list[int]
    answer: list[int]


# --- Sets of examples -------------------------------------------------------------------------------------------------


class ExampleSet:
    """Examples by index.

    Attributes:
        name: for records.
        size: how many there are; None: any number.
        fingerprint: a hash of the token ids, hexadecimal; of an endless set, of its first ones.
        seed: of what is held out and mixed.
    """

    name: str
    size: int | None
    fingerprint: str
    seed: int = 0

    def get(self, index: int) -> Example:
        """Example `index` from 0: the same in every process and after every restart. IndexError beyond the last."""
        raise NotImplementedError

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        """The same examples without `count` of them, and those: always the same ones, for a held-out loss.

        Raises:
            ValueError: so many cannot be spared.
        """
        raise NotImplementedError

    def spare(self, count: int) -> int:
        """How many of `count` examples can be held out: at most a tenth of those that there are."""
        return count if self.size is None else min(count, self.size // 10)

    def lengths(self) -> Iterator[tuple[int, int]]:
        """The number of tokens of each prompt and answer; of what has no end, of the first SAMPLE."""
        for index in range(SAMPLE if self.size is None else self.size):
            prompt, answer = self.get(index)
            yield len(prompt), len(answer)

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError(f"{self.name} has no end")
        return self.size

    def __bool__(self) -> bool:
        return True

    def _check(self, index: int) -> None:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"{self.name} has no example {index}")


class Stored(ExampleSet):
    """Examples that are kept, in four bytes a token.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, name: str, examples: Iterable[Example], seed: int) -> None:
        self.name = name
        self.seed = seed
        self.tokens = array("i")
        self.bounds = array("q", [0])  # begin of prompt 0, of answer 0, of prompt 1, ...
        for example in examples:
            for ids in example:
                self.tokens.extend(ids)
                self.bounds.append(len(self.tokens))
        self.size = len(self.bounds) // 2
        if not self.size:
            raise ValueError(f"{name} has no examples")
        self.fingerprint = _hash(self.tokens, self.bounds)

    def get(self, index: int) -> Example:
        self._check(index)
        begin, middle, end = self.bounds[2 * index : 2 * index + 3]
        return Example(self.tokens[begin:middle].tolist(), self.tokens[middle:end].tolist())

    def lengths(self) -> Iterator[tuple[int, int]]:
        for place in range(0, len(self.bounds) - 1, 2):
            begin, middle, end = self.bounds[place : place + 3]
            yield middle - begin, end - middle

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        return _split(self, count)


class Subset(ExampleSet):
    """Some examples of a set, by their indices there."""

    def __init__(self, whole: ExampleSet, indices: Sequence[int], name: str | None = None) -> None:
        self.whole = whole
        self.indices = indices
        self.name = name or whole.name
        self.seed = whole.seed
        self.size = len(indices)
        self.fingerprint = _hash(whole.fingerprint.encode(), array("q", indices))

    def get(self, index: int) -> Example:
        self._check(index)
        return self.whole.get(self.indices[index])

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        return _split(self, count)


class Generated(ExampleSet):
    """The endless problems of one of GENERATORS; half of the questions are put as the harness puts them.

    What is held out comes from the other split, with which these problems share nothing.
    """

    def __init__(self, name: str, encoder: Encoder, split: str, seed: int) -> None:
        check_choice("split", split, arithmetic.SPLITS)
        self.name = name
        self.size = None
        self.encoder = encoder
        self.problems = split
        self.seed = seed

    @functools.cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # made when it is asked for
        return Stored(self.name, map(self.get, range(SAMPLE // 10)), self.seed).fingerprint

    def get(self, index: int) -> Example:
        self._check(index)
        problem = GENERATORS[self.name](self.seed, index, self.problems)
        is_plain = random.Random(f"{self.seed}-wording-{index}").random() < 0.5
        question = problem["question"]
        return self.encoder.encode(question if is_plain else HARNESS_PROMPT.format(question), problem["answer"])

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        check_integer("held-out count", count, 1)
        other = next(split for split in arithmetic.SPLITS if split != self.problems)
        held_out = Generated(self.name, self.encoder, other, self.seed)
        return self, Subset(held_out, range(count), f"{self.name}, held out")


class Mixed(ExampleSet):
    """Sets in turn, each with the same share, without end: a finite one begins anew in another order."""

    def __init__(self, parts: Sequence[ExampleSet], seed: int) -> None:
        self.parts = parts
        self.seed = seed
        self.name = ",".join(part.name for part in parts)
        self.size = None
        self.fingerprint = _hash(*(part.fingerprint.encode() for part in parts))

    def get(self, index: int) -> Example:
        self._check(index)
        index, number = divmod(index, len(self.parts))
        part = self.parts[number]
        if part.size is not None:
            passes, index = divmod(index, part.size)
            index = shuffled(part.size, self.seed, passes)[index]
        return part.get(index)

    def spare(self, count: int) -> int:
        share = -(-count // len(self.parts))
        return min(count, len(self.parts) * min(part.spare(share) for part in self.parts))

    def lengths(self) -> Iterator[tuple[int, int]]:
        for part in self.parts:
            yield from part.lengths()

    def split(self, count: int) -> tuple[ExampleSet, ExampleSet]:
        check_integer("held-out count", count, len(self.parts))
        shares = [count // len(self.parts) + (number < count % len(self.parts)) for number in range(len(self.parts))]
        kept, held_out = zip(*(part.split(share) for part, share in zip(self.parts, shares)))
        return Mixed(kept, self.seed), Subset(Mixed(held_out, self.seed), range(count), f"{self.name}, held out")


@functools.lru_cache(maxsize=16)
def shuffled(size: int, seed: int, passes: int) -> Sequence[int]:
    """The order of 0..size-1 in pass number `passes` over them, the same for the same arguments."""
    order = array("q", range(size))
    random.Random(f"{seed}-pass-{passes}").shuffle(order)
    return order


def _split(whole: Stored | Subset, count: int) -> tuple[ExampleSet, ExampleSet]:
    size = len(whole)
    check_integer("held-out count", count, 1)
    if count >= size:
        raise ValueError(f"held-out count is {count}, but {whole.name} has {size} example{'s' * (size > 1)}")
    order = shuffled(size, whole.seed, -1)
    kept, held_out = (array("q", sorted(part)) for part in (order[count:], order[:count]))
    return Subset(whole, kept), Subset(whole, held_out, f"{whole.name}, held out")


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class TooLong(NamedTuple):
    """Of `checked` examples, how many answers, with one EOS, exceed a canvas, and how many prompts leave no room for
    it."""

    checked: int
    answers: int
    prompts: int


def count_too_long(examples: ExampleSet, canvas: int, positions: int) -> TooLong:
    """Count what does not fit; of what has no end, among the first SAMPLE.

    canvas: the longest one, in tokens. positions: how many tokens the model holds, prompt and canvas together.
    """
    checked = answers = prompts = 0
    for prompt, answer in examples.lengths():
        checked += 1
        answers += answer + 1 > canvas
        prompts += prompt + canvas > positions
    return TooLong(checked, answers, prompts)


# --- From text to token ids -------------------------------------------------------------------------------------------


class Misfit(ValueError):
    """Why a record is no example, as the end of a sentence that begins with the record's place."""


class Encoder:
    """Turns conversations into examples, with the prompts that decoding would get.

    Args:
        loaded: a LoadedModel, or what has its tokenizer, chat_template, chat_turns and raw.
        chat_template: whether the chat template is used; None: the model's default.

    Raises:
        ValueError: the chat template shall be used and there is none.
    """

    def __init__(self, loaded: Any, chat_template: bool | None = None) -> None:
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.use_template = check_chat_template(loaded, chat_template)
        ids = getattr(getattr(loaded, "model", None), "config", self.tokenizer)
        self.eos_id, self.mask_id = ids.eos_token_id, ids.mask_token_id
        self.special = AnswerText(self.tokenizer, self.eos_id, self.mask_id).hidden

    def encode(self, context: str | list[dict[str, str]], response: str) -> Example:
        """The example of a prompt, or of the turns of a conversation, and the assistant's response to it.

        With the chat template, the answer ends with the token that ends the assistant's turn, if the template has one.

        Raises:
            Misfit: the response holds the text of a special token, or the prompt that of the mask; turns are given and
                there is no chat template; or the template changes or refuses the conversation.
        """
        if self.use_template:
            turns = [{"role": "user", "content": context}] if isinstance(context, str) else context
            prompt, answer, end = self._render(turns, response)
        elif isinstance(context, str):
            prompt, answer, end = self.loaded.raw(context), response, ""
        else:
            reason = "the tokenizer has none" if self.tokenizer.chat_template is None else "chat_template is off"
            raise Misfit(f"has messages, which need a chat template, and {reason}")
        example = Example(self._ids(prompt), self._ids(answer))
        for name, ids, forbidden in (("response", example.answer, self.special),
                                     ("prompt", example.prompt, {self.mask_id})):
            if not forbidden.isdisjoint(ids):
                token = self.tokenizer.convert_ids_to_tokens(next(token for token in ids if token in forbidden))
                raise Misfit(f"has {token} in its {name}, which the tokenizer takes for a special token; leave it out")
        return Example(example.prompt, example.answer + self._end(end))

    def _render(self, turns: list[dict[str, str]], response: str) -> tuple[str, str, str]:
        """The text before the answer, the answer (most templates strip it) and what the template puts after it."""
        try:
            prompt = self.loaded.chat_turns(turns)
            whole = self.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": response}], tokenize=False)
        except Exception as error:  # a template may raise whatever it likes
            raise Misfit(f"does not suit the chat template ({one_line(error)})") from error
        rest = whole.removeprefix(prompt)
        for answer in (response, response.strip()):
            if whole.startswith(prompt) and rest.startswith(answer):
                return prompt, answer, rest.removeprefix(answer)
        raise Misfit("does not suit the chat template, which changes what was said")

    def _end(self, text: str) -> list[int]:
        """The tokens up to the first special one, unless that is EOS, which fills the canvas anyway."""
        ids = self._ids(text)
        place = next((place for place, token in enumerate(ids) if token in self.special), None)
        return [] if place is None or ids[place] == self.eos_id else ids[: place + 1]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


# --- Records: files and the hub ---------------------------------------------------------------------------------------


def conversation(record: Any, prompt_field: str | None, response_field: str | None) -> tuple[str | list[dict], str]:
    """A record's prompt (text, or the turns before the answer) and its response; Misfit says what it lacks."""
    if not isinstance(record, dict):
        raise Misfit('is not an object, such as {"prompt": "...", "response": "..."}')
    if response_field is None:
        name = prompt_field or "messages"
        if isinstance(record.get(name), list) or (prompt_field is None and "messages" in record):
            return _turns(name, record[name])
    prompt_name = _field(record, "prompt", prompt_field, [*FIELDS])
    partner = FIELDS.get(prompt_name)
    response_name = _field(record, "response", response_field, [partner] if partner in record else [*FIELDS.values()])
    prompt = _text(prompt_name, record[prompt_name])
    if prompt_name == "instruction" and record.get("input"):
        prompt = f"{prompt}\n\n{_text('input', record['input'])}"
    return prompt, _text(response_name, record[response_name])


def _field(record: dict, role: str, chosen: str | None, names: list) -> str:
    """The name of the field with a record's prompt or response."""
    names = [chosen] if chosen is not None else names
    found = next((name for name in names if name in record), None)
    if found is None:
        fields = one_line(", ".join(map(str, record)) or "no fields")
        others = ["messages"] if role == "prompt" and chosen is None else []
        raise Misfit(f"has no {role}: no field {', '.join([*names, *others])}; it has {fields}")
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise Misfit(f"has {short(value)} as its {name}; it must be text")
    if not value.strip():
        raise Misfit(f"has an empty {name}")
    return value


def _turns(name: str, value: object) -> tuple[list[dict], str]:
    """The turns before the assistant's answer, and the answer."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        raise Misfit(f'has {short(value)} as its {name}; it must be a list of {{"role": "...", "content": "..."}}')
    turns = []
    for turn in value:
        role = turn["role"]
        if role not in ROLES:
            raise Misfit(f"has a turn of the role {short(role)}; a role is {', '.join(ROLES)}{suggest(role, ROLES)}")
        content = turn.get("content")
        if not isinstance(content, str):
            raise Misfit(f"has {short(content)} as the content of a turn; it must be text")
        turns.append({"role": role, "content": content})
    if not turns or turns[-1]["role"] != "assistant":
        raise Misfit("has messages whose last turn is not the assistant's answer")
    if len(turns) == 1:
        raise Misfit("has messages with nothing before the assistant's answer")
    return turns[:-1], _text("response", turns[-1]["content"])


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _read_lines(path: str) -> Iterator[tuple[str, Any]]:
    """The place (`my.jsonl, line 3`) and the record of each line that is not blank; a line may be of any length."""
    for number, line in enumerate(_lines(path), start=1):
        place = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{place} is not UTF-8 text") from None
        if text.strip():
            yield place, parse_json(text, place, largest=None)


def _encoded(encoder: Encoder, name: str, records: Iterable[tuple[str, Any]], total: int,
             fields: tuple[str | None, str | None], wordings: Sequence[str] = ("{}",)) -> Iterator[Example]:
    """The examples of records with their places; the wordings of the prompts take turns."""
    from tqdm import tqdm

    hide = True if os.environ.get("RANK", "0") != "0" else None  # None: unless it is a terminal
    bar = tqdm(records, desc=f"reading {name}", total=total, unit="example", delay=PATIENCE, leave=False, disable=hide)
    for number, (place, record) in enumerate(bar):
        try:
            context, response = conversation(record, *fields)
            if isinstance(context, str):
                context = wordings[number % len(wordings)].replace("{}", context)
            yield encoder.encode(context, response)
        except Misfit as error:
            raise ValueError(f"{place} {error}") from error


# --- By name ----------------------------------------------------------------------------------------------------------


def load_examples(
    source: str, loaded: Any, *, split: str = "train", seed: int = 1234, chat_template: bool | None = None,
    prompt_field: str | None = None, response_field: str | None = None, hub_config: str | None = None,
    hub_split: str | None = None,
) -> ExampleSet:
    """Examples by the name that people give: a .jsonl file, one of BUILT_IN, or a data set of the hub (owner/name).

    Args:
        source: several names, with commas between them, are mixed evenly.
        loaded: see Encoder.
        split: of what is generated or comes from the hub: train or test.
        seed: of what is generated, held out and mixed.
        chat_template: see Encoder.
        prompt_field, response_field: the names of the fields or columns; None: the first of FIELDS, or messages.
        hub_config, hub_split: of a data set of the hub; None: its only configuration, and `split`.

    Raises:
        ValueError: one sentence that says what is wrong, with the number of the line or row.
    """
    check_text("data", source)
    check_integer("seed", seed, 0)
    encoder = Encoder(loaded, chat_template)
    names = [source] if os.path.exists(source) else [name.strip() for name in source.split(",")]
    for name in names:
        _check_source(name)
        if names.count(name) > 1:
            raise ValueError(f"data names {name} twice")
    fields = {"prompt_field": prompt_field, "response_field": response_field}
    of_hub = {"hub_config": hub_config, "hub_split": hub_split}
    _check_used(fields, [name for name in names if name not in BUILT_IN], "a file or a data set of the hub")
    _check_used(of_hub, [name for name in names if _is_of_hub(name)], "a data set of the hub")

    def load(name: str) -> ExampleSet:
        if name in GENERATORS:
            return Generated(name, encoder, split, seed)
        if os.path.isfile(name):
            return Stored(name, _encoded(encoder, name, _read_lines(name), sum(1 for _ in _lines(name)),
                                         (prompt_field, response_field)), seed)
        is_gsm8k = name == "gsm8k"
        rows = fetch_rows(*(GSM8K if is_gsm8k else (name, hub_config)), split if is_gsm8k else hub_split or split)
        columns = (None, None) if is_gsm8k else (prompt_field, response_field)
        places = ((f"{name}, row {number}", row) for number, row in enumerate(rows))
        wordings = ("{}", HARNESS_PROMPT) if is_gsm8k else ("{}",)
        return Stored(name, _encoded(encoder, name, places, len(rows), columns, wordings), seed)

    parts = [load(name) for name in names]
    return parts[0] if len(parts) == 1 else Mixed(parts, seed)


def _is_of_hub(name: str) -> bool:
    return name not in BUILT_IN and not os.path.exists(name)


def _check_source(name: str) -> None:
    """Raise ValueError unless a name stands for examples."""
    if name in BUILT_IN or os.path.isfile(name):
        return
    if os.path.isdir(name):
        raise ValueError(f"data is {short(name, 200)}, which is a folder; it must be a file of JSON lines")
    if name.endswith(FILE_ENDINGS):
        folder = Path(name).parent
        files = [str(path) for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
        raise ValueError(f"data is {short(name, 200)}, which does not exist{suggest(name, files)}")
    if not is_hub_id(name) or name.startswith((".", "-", "/")):
        raise ValueError(f"data is {short(name)}; it must be a .jsonl file, {', '.join(BUILT_IN)}, or a data set of "
                         f"the hub (owner/name){suggest(name, BUILT_IN)}")


def _check_used(options: dict[str, str | None], users: Sequence[str], what: str) -> None:
    """Raise ValueError when an option is given that nothing uses."""
    for option, value in options.items():
        if value is not None:
            check_text(option, value)
            if not users:
                raise ValueError(f"{option} is {short(value)}, but the data are not {what}")
