"""A denoising, forward by forward: recorded while it happens, kept as JSON lines, drawn as a GIF.

    python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --trace dpad.jsonl --prompt "Tom has 3 bags ..."
    python run.py trace dpad.jsonl --gif dpad.gif
    python run.py trace vanilla.jsonl dpad.jsonl --gif both.gif        # one clock, one above the other

The first line of a trace says what was asked, the last what came of it; each line between is one forward:

    block      the block being decoded, counted from 0
    seconds    since generation began
    computed   slots that the forward computed: prompt, answer so far, block, kept suffix (less with a cache)
    kept       in a block's first forward: the places of the answer after the block that it may see
    decided    [place in the answer, token id, text, confidence] of every token decoded; confidence is the model's
               probability, or what the unmasking rule goes by instead
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dpad.results.records import environment, read_lines

FIELDS = {"block", "seconds", "computed", "kept", "decided"}


@dataclass
class Trace:
    """head and tail: the first and the last line; forwards: those between."""

    head: dict[str, Any]
    forwards: list[dict[str, Any]] = field(default_factory=list)
    tail: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        lines = [self.head, *self.forwards, self.tail]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


class Tracer:
    """A streamer of one row that records every forward; another one may listen with it.

    head: what the trace's first line should say. loaded: a models.LoadedModel. listener: called with the trace after
    every forward. streamer: gets everything that a streamer gets.
    """

    def __init__(self, head: dict, loaded, listener=None, streamer=None):
        self.trace = Trace(head)
        self.loaded, self.listener, self.streamer = loaded, listener, streamer
        self.prompt, self.block = None, -1
        self.started = time.perf_counter()

    def put(self, value: Tensor) -> None:
        if self.prompt is None:
            if len(value) != 1:
                raise ValueError(f"a trace is of one prompt; there are {len(value)}")
            self.prompt, self.started = value.shape[1], time.perf_counter()
            self.trace.head["prompt_tokens"] = self.prompt
        if self.streamer:
            self.streamer.put(value)

    def put_draft(self, value: Tensor) -> None:
        if self.streamer:
            self.streamer.put_draft(value)

    def put_step(self, block: int, columns: Tensor, chosen: Tensor, candidates: Tensor, confidence: Tensor) -> None:
        length = self.trace.head["block_length"]
        end = self.prompt + (block + 1) * length
        entry = {"block": block, "seconds": round(time.perf_counter() - self.started, 4), "computed": len(columns)}
        if block > self.block:
            self.block = block
            entry["kept"] = (columns[columns >= end] - self.prompt).tolist()
        places = chosen[0].nonzero().flatten()
        entry["decided"] = [
            [block * length + place, token, self.text_of(token), round(sure, 4)] for place, token, sure in
            zip(places.tolist(), candidates[0, places].tolist(), confidence[0, places].tolist())
        ]
        self.trace.forwards.append(entry)
        if self.listener:
            self.listener(self.trace)

    def text_of(self, token: int) -> str:
        return self.loaded.tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def end(self) -> None:
        if self.streamer:
            self.streamer.end()

    def finish(self, answer) -> Trace:
        """The whole trace, with what a completion.Completion says at its end."""
        self.trace.tail = {"answer": answer.text, "forwards": answer.forwards, "tokens": answer.tokens,
                           "seconds": round(answer.seconds, 4), "tokens_processed": answer.tokens_processed}
        return self.trace


def head_of(loaded, prompt: str, options: dict) -> dict:
    """The first line of a trace: the question, the settings, and with what it was answered."""
    from dpad.engine.completion import describe_decoding

    settings = describe_decoding(loaded.generate, options) | {"device": str(loaded.model.device)}
    tokenizer, config = loaded.tokenizer, loaded.model.config
    return {"kind": "trace", "model": loaded.name, "prompt": prompt, "gen_length": settings["gen_length"],
            "block_length": settings["block_length"], "settings": settings,
            "eos": tokenizer.convert_ids_to_tokens(config.eos_token_id), "environment": environment()}


def read(path: str | Path) -> Trace:
    """A trace from its file.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names it and the line.
    """
    lines, entries = read_lines(path), []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        middle = 1 < number < len(lines)
        if not isinstance(entry, dict) or number == 1 and not _is_head(entry) or middle and not _is_forward(entry):
            raise ValueError(f"{path}, line {number}: not a line of a trace (run.py generate --trace writes one)")
        entries.append(entry)
    if len(entries) < 2 or not isinstance(entries[-1].get("answer"), str):
        raise ValueError(f"{path} is no whole trace: its last line is missing")
    return Trace(entries[0], entries[1:-1], entries[-1])


def _is_head(entry: dict) -> bool:
    lengths = [entry.get(name) for name in ("gen_length", "block_length", "prompt_tokens")]
    settings = entry.get("settings", {})
    return (
        entry.get("kind") == "trace" and all(isinstance(length, int) and 0 < length < 2**20 for length in lengths)
        and isinstance(settings, dict) and isinstance(settings.get("suffix_sampler") or {}, dict)
        and isinstance(settings.get("threshold") or 0, (int, float)) and isinstance(entry.get("environment", {}), dict)
    )


def _is_forward(entry: dict) -> bool:
    decided = entry.get("decided")
    return (
        entry.keys() <= FIELDS and isinstance(entry.get("block"), int) and isinstance(entry.get("computed"), int)
        and isinstance(entry.get("seconds"), (int, float)) and isinstance(decided, list)
        and all(isinstance(one, list) and len(one) == 4 and isinstance(one[0], int) and isinstance(one[2], str)
                and isinstance(one[3], (int, float)) for one in decided)
        and all(isinstance(place, int) for place in entry.get("kept", []))
    )
