"""OpenAI's protocol: what a request may ask for, and the objects that answer it. No server in here.

    query = RequestReader(loaded, settings, Limits()).read(CHAT, {"messages": [{"role": "user", "content": "Hi"}]})

A field is one of OpenAI's that this server has; one of OpenAI's that it lacks, which may only have a value that asks
for nothing; or a decoding setting of the model's family, whose names, kinds and bounds come from the settings' fields.
Any other is refused, so that nothing is ignored in silence. Imported, never run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpad.engine.checks import MAX_INTEGER, check_integer, check_text, one_line, short, suggest
from dpad.engine.fields import Setting
from dpad.engine.loading import LoadedModel
from dpad.engine.methods import combine
from dpad.engine.prompts import check_room
from dpad.engine.settings import DecodingSettings
from dpad.serve.limits import Limits

# --- Errors -----------------------------------------------------------------------------------------------------------


class ApiError(Exception):
    """An error as OpenAI's clients expect it. retry_after: seconds after which to try again."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None,
                 retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": one_line(self, 1000), "type": kind, "param": self.param, "code": self.code}}


# --- Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Endpoint:
    """One of the two ways to ask.

    name: of the address. prefix: of the answers' ids. whole, piece: their `object`, and that of a stream's. fields: its
    own ones.
    """

    name: str
    prefix: str
    whole: str
    piece: str
    fields: tuple[str, ...]


CHAT = Endpoint("chat/completions", "chatcmpl-", "chat.completion", "chat.completion.chunk",
                ("messages", "max_completion_tokens"))
TEXT = Endpoint("completions", "cmpl-", "text_completion", "text_completion", ("prompt", "echo"))
SHARED = ("model", "max_tokens", "stop", "stream", "stream_options", "drafts")

# OpenAI's fields that this server lacks, and the values that ask for nothing; null never does.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "top_p": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},),
    "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",), "store": (False,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "service_tier": ("auto", "default"),
    "audio": (), "prediction": (), "reasoning_effort": ("none",), "verbosity": (), "web_search_options": (),
}
ABOUT_THE_CLIENT = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # information that changes no answer

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MARGIN = 4  # a tokenizer may make one character of so many, such as of letters and their accents
MAX_STOPS = 16
MAX_STOP = 500  # characters of a stop string


@dataclass(frozen=True)
class Query:
    """A request that has been checked.

    prompts: token ids. echoes: what comes before each answer. max_tokens: of an answer; its canvas may be longer.
    drafts: whether a stream has them.
    """

    endpoint: Endpoint
    prompts: list[list[int]]
    echoes: list[str]
    settings: DecodingSettings
    max_tokens: int
    stop: list[str]
    stream: bool
    include_usage: bool
    drafts: bool


class RequestReader:
    """Reads requests to one model.

    Args:
        loaded: the model. Its tokenizer is used, so requests must be read one at a time.
        settings: how to decode where a request does not say. limits: see there.
    """

    def __init__(self, loaded: LoadedModel, settings: DecodingSettings, limits: Limits) -> None:
        self.loaded = loaded
        self.settings = settings
        self.limits = limits
        self.entries: dict[str, Setting] = {entry.name: entry for entry in loaded.family.settings.choices()}
        longest = max(map(len, loaded.tokenizer.get_vocab()))
        self.max_characters = MARGIN * longest * loaded.model.max_positions  # of what may fit into the model
        loaded.tokenizer("", add_special_tokens=False)  # takes back what padding has changed in it, while it is unused

    def read(self, endpoint: Endpoint, body: Any) -> Query:
        """What a request asks for.

        Raises:
            ApiError: naming the field, its value and what is allowed.
        """
        if not isinstance(body, dict):
            raise ApiError(400, f"the request is {short(body)}; it must be a JSON object")
        body = {name: value for name, value in body.items() if value is not None}
        try:
            self._check_fields(endpoint, body)
            settings, max_tokens = self._read_settings(endpoint, body)
            stop = self._read_stop(body.get("stop", []))
            stream, include_usage, drafts = self._read_stream(body)
            texts: Sequence[str | list[int]] = (
                [self._read_messages(body)] if endpoint is CHAT else self._read_prompts(body)
            )
            echo = _flag("echo", body.get("echo", False))
            prompts = [self._encode(endpoint, text) for text in texts]
            for ids in prompts:
                self._check_length(ids, settings, "messages" if endpoint is CHAT else "prompt")
        except ValueError as error:
            raise self._as_api_error(error, {*body, *SHARED, *endpoint.fields}) from None
        echoes = [self._echo(text) if echo else "" for text in texts]
        return Query(endpoint, prompts, echoes, settings, max_tokens, stop, stream, include_usage, drafts)

    def _as_api_error(self, error: ValueError, fields: set[str]) -> ApiError:
        """The sentence with the setting's name instead of its flag's."""
        label, _, rest = str(error).partition(" ")
        names = {entry.label: name for name, entry in self.entries.items()} | {name: name for name in fields}
        param = names.get(label.partition("[")[0])
        return ApiError(400, f"{label if param is None or label.startswith(param) else param} {rest}", param)

    def _check_fields(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        known = {*SHARED, *endpoint.fields, *self.entries, *ABOUT_THE_CLIENT}
        for name, value in body.items():
            if name in known:
                continue
            if name not in NEUTRAL:
                raise ApiError(400, f"{short(name)} is no field that this server knows for {endpoint.name}"
                                    f"{suggest(name, known)}", one_line(name, 60), "unknown_parameter")
            allowed = NEUTRAL[name]
            if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
                       for neutral in allowed):
                choice = f"; it must be {' or '.join(map(json.dumps, allowed))}" if allowed else ""
                raise ApiError(400, f"{name} is {short(value)}, which this server does not support{choice}; leave it "
                                    "out", name, "unsupported_parameter")
        model = body.get("model", self.loaded.name)
        if model != self.loaded.name:
            raise ApiError(404, f"model is {short(model)}; this server has {self.loaded.name}", "model",
                           "model_not_found")

    def _read_settings(self, endpoint: Endpoint, body: dict[str, Any]) -> tuple[DecodingSettings, int]:
        """How to decode, and the longest answer. Its canvas is rounded up to whole blocks."""
        own = {name: value for name, value in body.items() if name in self.entries}
        for name in own:
            own[name] = self.entries[name].check(own[name], name)
        names = [name for name in ("max_completion_tokens", "max_tokens") if name in body and
                 name in (*SHARED, *endpoint.fields)]
        for name in names:
            check_integer(name, body[name], 1, self.limits.max_tokens)
        if len({body[name] for name in names}) > 1:
            raise ValueError(f"max_tokens is {body['max_tokens']}, but max_completion_tokens is "
                             f"{body['max_completion_tokens']}; give one of the two")
        for name in ("gen_length", "block_length"):
            if name in own:
                check_integer(name, own[name], 1, self.limits.max_tokens)

        base = self.settings
        block_length = own.get("block_length", base.block_length)
        if names and "gen_length" not in own:
            own["gen_length"] = -(-body[names[0]] // block_length) * block_length
        gen_length = own.get("gen_length", base.gen_length)
        max_tokens = body[names[0]] if names else gen_length
        if max_tokens > gen_length:
            raise ValueError(f"{names[0]} is {max_tokens}; it must be at most gen_length ({gen_length})")
        return self._combine(own, gen_length, block_length), max_tokens

    def _combine(self, own: dict[str, Any], gen_length: int, block_length: int) -> DecodingSettings:
        """The request's settings over the operator's. Those of the operator's follow the request's answer length: a
        window is at most as long, and the steps of a block stay."""
        family = self.loaded.family.settings
        shared = {name: value for name, value in self.settings.as_choices().items() if value is not None}
        if "window" in shared:
            shared["window"] = min(shared["window"], gen_length)
        if "steps" in shared:
            shared["steps"] = self.settings.steps_per_block * (gen_length // block_length)
        values, _ = combine(None, own, shared, family)
        return family.from_choices(values)

    @staticmethod
    def _read_stop(stop: Any) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or len(stops) > MAX_STOPS:
            raise ValueError(f"stop is {short(stop)}; it must be text, or a list of at most {MAX_STOPS} texts")
        for index, text in enumerate(stops):
            check_text(f"stop[{index}]", text)
            if not 0 < len(text) <= MAX_STOP:
                raise ValueError(f"stop[{index}] has {len(text)} characters; it must have 1 to {MAX_STOP}")
        return stops

    @staticmethod
    def _read_stream(body: dict[str, Any]) -> tuple[bool, bool, bool]:
        stream = _flag("stream", body.get("stream", False))
        drafts = _flag("drafts", body.get("drafts", False))
        options = body.get("stream_options", {})
        if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
            raise ValueError(f'stream_options is {short(options)}; it must be {{"include_usage": true}} or the like')
        include_usage = _flag("stream_options.include_usage", options.get("include_usage") or False)
        for name in ("drafts", "stream_options"):
            if body.get(name) and not stream:
                raise ValueError(f"{name} is {short(body[name])}, which only a stream has; set stream to true")
        return stream, include_usage, drafts

    def _read_messages(self, body: dict[str, Any]) -> str:
        """The conversation as the text that the model continues."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError(f'messages is {short(messages)}; it must be a list of one or more {{"role": text, '
                             '"content": text}')
        if self.loaded.tokenizer.chat_template is None:
            raise ValueError(f"messages cannot be used: {self.loaded.name} has no chat template; ask /v1/completions")
        turns = [_read_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
        try:
            return self.loaded.chat_turns(turns)
        except Exception as error:  # a template's own complaint, such as that roles must alternate
            raise ValueError(f"messages do not fit the model's chat template: {one_line(error)}") from None

    def _read_prompts(self, body: dict[str, Any]) -> list[str | list[int]]:
        """Prompts as texts or as token ids."""
        prompt = body.get("prompt")
        is_ids = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], (str, list))
        prompts = [prompt] if isinstance(prompt, str) or is_ids else prompt
        if not isinstance(prompts, list) or not prompts:
            raise ValueError(f"prompt is {short(prompt)}; it must be text, a list of texts, or token ids")
        if len(prompts) > self.limits.max_queue:
            raise ValueError(f"prompt is a list of {len(prompts)}; it must have at most {self.limits.max_queue}")
        read: list[str | list[int]] = []
        for index, entry in enumerate(prompts):
            name = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
            if isinstance(entry, str) and entry.strip():
                read.append(entry)
            elif isinstance(entry, list) and entry:
                for token in entry:
                    check_integer(name, token, 0, self.loaded.model.vocabulary_size - 1)
                read.append(entry)
            else:
                raise ValueError(f"{name} is {short(entry)}; it must be text of at least one word, or token ids")
        return read

    def _encode(self, endpoint: Endpoint, text: str | list[int]) -> list[int]:
        if not isinstance(text, str):
            return text
        if len(text) > self.max_characters:
            raise ApiError(400, f"{endpoint.fields[0]} has {len(text)} characters; {self.loaded.name} holds "
                                f"{self.loaded.model.max_positions} tokens", endpoint.fields[0],
                           "context_length_exceeded")
        complete = text if endpoint is CHAT else self.loaded.raw(text)
        return self.loaded.tokenizer(complete, add_special_tokens=False)["input_ids"]

    def _check_length(self, ids: list[int], settings: DecodingSettings, name: str) -> None:
        maximum = MAX_INTEGER if self.limits.max_prompt is None else self.limits.max_prompt
        try:
            if len(ids) > maximum:
                raise ValueError(f"{name} has {len(ids)} tokens; it must have at most {maximum}")
            check_room(self.loaded, len(ids), settings.gen_length)
        except ValueError as error:
            raise ApiError(400, str(error), name, "context_length_exceeded") from None

    def _echo(self, text: str | list[int]) -> str:
        if isinstance(text, str):
            return text
        return self.loaded.tokenizer.decode(text, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _read_message(name: str, message: Any) -> dict[str, str]:
    """One turn, as the chat template takes it."""
    if not isinstance(message, dict):
        raise ValueError(f'{name} is {short(message)}; it must be {{"role": text, "content": text}}')
    message = {key: value for key, value in message.items() if value is not None}
    unknown = sorted(message.keys() - {"role", "content", "name", "type"})
    if unknown or message.get("type", "text") != "text":
        raise ValueError(f"{name} has {short((unknown or ['type'])[0])}, which this server does not support; it has "
                         "role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{name} has the role {short(role)}; it must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part["text"] for part in content
                 if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else content
    if not isinstance(content, str):
        raise ValueError(f"{name} has the content {short(content)}; it must be text")
    return {"role": ROLES[role], "content": content}


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {short(value)}; it must be true or false")
    return value


# --- Answers ----------------------------------------------------------------------------------------------------------


class Response:
    """The objects that answer one query: the whole answer, or the pieces of a stream."""

    def __init__(self, query: Query, model: str, name: str) -> None:
        self.query = query
        self.endpoint = query.endpoint
        self.shared = {"id": self.endpoint.prefix + name, "created": int(time.time()), "model": model}

    def whole(self, texts: Sequence[str], reasons: Sequence[str], tokens: int) -> dict[str, Any]:
        choices = []
        for index, (text, reason) in enumerate(zip(texts, reasons)):
            answer = {"message": {"role": "assistant", "content": text, "refusal": None}} \
                if self.endpoint is CHAT else {"text": self.query.echoes[index] + text}
            choices.append({"index": index, **answer, "logprobs": None, "finish_reason": reason})
        return {**self.shared, "object": self.endpoint.whole, "choices": choices, "usage": self.usage(tokens)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first piece of an answer, where there is one before its text."""
        if self.endpoint is CHAT:
            return self._piece({"index": index, "delta": {"role": "assistant", "content": ""}})
        echo = self.query.echoes[index]
        return self.text(index, echo) if echo else None

    def text(self, index: int, text: str) -> dict[str, Any]:
        return self._piece({"index": index, **({"delta": {"content": text}} if self.endpoint is CHAT
                                               else {"text": text})})

    def draft(self, index: int, draft: str) -> dict[str, Any]:
        """An extension: what stands behind the text so far while a block is decoded."""
        return self._piece({"index": index, **({"delta": {}} if self.endpoint is CHAT else {"text": ""}),
                            "draft": draft})

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return self._piece({"index": index, **({"delta": {}} if self.endpoint is CHAT else {"text": ""}),
                            "finish_reason": reason})

    def usage_piece(self, tokens: int) -> dict[str, Any]:
        return {**self.shared, "object": self.endpoint.piece, "choices": [], "usage": self.usage(tokens)}

    def _piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.query.include_usage else {}
        choice = {"logprobs": None, "finish_reason": None} | choice
        return {**self.shared, "object": self.endpoint.piece, "choices": [choice], **usage}

    def usage(self, tokens: int) -> dict[str, int]:
        prompt = sum(map(len, self.query.prompts))
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def model_object(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "dpad"}
