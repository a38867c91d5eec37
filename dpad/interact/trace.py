r"""The trace of one answer: what every forward decoded, recorded while it happens and kept as JSON lines.

    python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --trace dpad.jsonl \
        --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
    python run.py trace dpad.jsonl

The first line of a trace holds the prompt and the settings, the last one the answer and its cost. Each line between
them is one forward:

    block      the block being decoded, counted from 0
    seconds    since generation began
    computed   slots that the forward computed: prompt, answer so far, block, kept suffix (fewer with a cache)
    kept       in a block's first forward: the places of the answer after the block that the block may see
    attention  in a block's first forward, where it was asked for: by layer, what the block pays to each place of the
               answer, mean over heads and its positions; the rest up to 1 goes to the prompt
    decided    [place in the answer, token id, text, confidence] of every token that was decoded; the confidence is the
               model's probability, or what the unmasking rule uses instead of it
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine.checkpoint import listing
from dpad.results import files, forms
from dpad.results.files import write_text
from dpad.results.records import environment

if TYPE_CHECKING:
    from torch import Tensor

    from dpad.engine.attention import Moment, Moments
    from dpad.engine.completion import Completion
    from dpad.engine.loading import LoadedModel
    from dpad.engine.settings import DecodingSettings

FORWARD_FIELDS = {"block", "seconds", "computed", "kept", "attention", "decided"}
# Of a file that is read:
MAX_SIZE = 2**26  # bytes
MAX_LENGTH = 2**17  # tokens of the answer, a block or the prompt
MAX_STEPS = 2  # forwards for each token of the answer
MAX_LAYERS = 256


@dataclass
class Trace:
    """The lines of a trace: `head` is the first one, `tail` the last one, empty until the answer is complete."""

    head: dict[str, Any]
    forwards: list[dict[str, Any]] = field(default_factory=list)
    tail: dict[str, Any] = field(default_factory=dict)

    @property
    def gen_length(self) -> int:
        return self.head["gen_length"]

    @property
    def block_length(self) -> int:
        return self.head["block_length"]

    @property
    def ends(self) -> list[str]:
        """The texts of the tokens that end an answer."""
        return self.head.get("ends", [])

    @property
    def seconds(self) -> float:
        """From the beginning to the last forward."""
        return self.forwards[-1]["seconds"] if self.forwards else 0.0

    def forwards_by(self, seconds: float) -> int:
        """How many forwards were done by this time."""
        return sum(forward["seconds"] <= seconds for forward in self.forwards)

    def write(self, path: str | Path) -> None:
        """Write the trace as JSON lines; the file is either the old one or the complete new one."""
        lines = [self.head, *self.forwards, self.tail]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


# --- Recording --------------------------------------------------------------------------------------------------------


class Tracer:
    """A streamer that records every forward of one answer.

        tracer = Tracer(loaded, "Tom has 3 bags ...", settings)
        [completion] = complete(loaded, [text], settings, streamer=tracer)
        tracer.finish(completion).write("dpad.jsonl")

    Args:
        prompt: the question as it was asked, for the trace's first line.
        listener: called after every forward, with the trace so far; what it raises ends the generation.
        streamer: another streamer, which receives everything that this one receives.
        attention: also record what each block attends to, which takes one more forward a block; the trace's clock
            stands still meanwhile.
    """

    def __init__(
        self, loaded: LoadedModel, prompt: str, settings: DecodingSettings, *,
        listener: Callable[[Trace], None] | None = None, streamer: Any = None, attention: bool = False,
    ) -> None:
        self.loaded = loaded
        self.trace = Trace(_head(loaded, prompt, settings))
        self.listener = listener
        self.streamer = streamer
        self.prompt_tokens = 0  # known when generation begins
        self.block = -1
        self.start = time.perf_counter()
        self.paused = 0.0  # seconds that attention took
        self.moments: Moments | None = None
        if attention:
            from dpad.engine.attention import Moments, check_plain  # reading a trace does not wait for torch

            check_plain(settings)
            self.moments = Moments(loaded.model.config.mask_token_id, settings.gen_length, settings.block_length)

    def put(self, value: Tensor) -> None:
        """Receive the prompt, int64 [1, P], and after it each finished block."""
        if not self.prompt_tokens:
            if len(value) != 1:
                raise ValueError(f"the batch has {len(value)} prompts; a trace can record only one")
            self.prompt_tokens = value.shape[1]
            self.trace.head["prompt_tokens"] = self.prompt_tokens
            self.start = time.perf_counter()
            self.paused = 0.0
        for follower in filter(None, (self.moments, self.streamer)):
            follower.put(value)

    def put_draft(self, value: Tensor) -> None:
        """Receive the block as it stands after a forward, int64 [1, L]."""
        if self.streamer:
            self.streamer.put_draft(value)

    def put_step(self, block: int, columns: Tensor, chosen: Tensor, candidates: Tensor, confidence: Tensor) -> None:
        """Receive a forward: its columns [S], and of the block's positions [1, L] which were decoded, to what, how
        confidently."""
        begin = block * self.trace.block_length
        forward: dict[str, Any] = {
            "block": block,
            "seconds": round(time.perf_counter() - self.start - self.paused, 4),
            "computed": len(columns),
        }

        if block > self.block:
            self.block = block
            places = columns - self.prompt_tokens
            forward["kept"] = places[places >= begin + self.trace.block_length].tolist()

        offsets = chosen[0].nonzero().flatten()
        tokens = candidates[0, offsets].tolist()
        confidences = confidence[0, offsets].tolist()
        forward["decided"] = [
            [begin + offset, token, self.text_of(token), round(probability, 4)]
            for offset, token, probability in zip(offsets.tolist(), tokens, confidences)
        ]

        if self.moments:
            before = time.perf_counter()
            self.moments.put_step(block, columns, chosen, candidates, confidence)
            if "kept" in forward:
                assert self.moments.last is not None
                forward["attention"] = self._attention_at(self.moments.last)
            self.paused += time.perf_counter() - before
        self.trace.forwards.append(forward)
        if self.listener:
            self.listener(self.trace)

    def _attention_at(self, moment: Moment) -> list[list[float]]:
        """By layer, what the block pays to each place of the answer; 0 to those that it does not see."""
        from dpad.engine.attention import heads_at

        mean = heads_at(self.loaded.model, moment, moment.columns).mean(dim=1)  # [layers, S]
        places = mean.new_zeros(len(mean), len(moment.tokens))
        places[:, moment.columns] = mean
        return [[round(weight, 5) for weight in layer] for layer in places[:, self.prompt_tokens :].tolist()]

    def text_of(self, token: int) -> str:
        return self.loaded.tokenizer.decode([token], clean_up_tokenization_spaces=False)

    def end(self) -> None:
        if self.streamer:
            self.streamer.end()

    def finish(self, completion: Completion) -> Trace:
        """The complete trace, with the answer and its cost as its last line."""
        self.trace.tail = {
            "answer": completion.text, "forwards": completion.forwards, "tokens": completion.tokens,
            "seconds": round(completion.seconds - self.paused, 4), "tokens_processed": completion.tokens_processed,
        }
        return self.trace


def _head(loaded: LoadedModel, prompt: str, settings: DecodingSettings) -> dict[str, Any]:
    return {
        "kind": "trace", "model": loaded.name, "prompt": prompt,
        "gen_length": settings.gen_length, "block_length": settings.block_length,
        "settings": settings.to_json() | {"device": str(loaded.model.device)},
        "ends": loaded.answer_text.end_texts, "environment": environment(),
    }


# --- Reading ----------------------------------------------------------------------------------------------------------

INTEGER = forms.Leaf("an integer", lambda value: isinstance(value, int))
PLACE = forms.Leaf("a place of the answer", lambda value: forms.ZERO_OR_MORE.fits(value) and value < MAX_LENGTH)
LENGTH = forms.Leaf(f"an integer from 1 to {MAX_LENGTH}", lambda value: forms.COUNT.fits(value) and value <= MAX_LENGTH)
TEXT = forms.Leaf("text", lambda value: isinstance(value, str))
DECIDED = forms.Leaf("[place, token id, text, confidence]", lambda value: (
    isinstance(value, list) and len(value) == 4 and PLACE.fits(value[0]) and INTEGER.fits(value[1])
    and isinstance(value[2], str) and forms.NUMBER.fits(value[3])))
HEAD = {
    "kind": forms.Leaf("'trace'", lambda value: value == "trace"),
    "gen_length": LENGTH, "block_length": LENGTH, "prompt_tokens": LENGTH, "ends?": forms.Several(TEXT),
    "prompt?": TEXT, "model?": forms.TEXT,
    "settings?": {"suffix_sampler?": {"name?": forms.TEXT}, "soft_suffix?": {}, "rule?": {"name?": forms.TEXT},
                  "threshold?": forms.NUMBER, "factor?": forms.NUMBER, "alg?": forms.TEXT, "cache?": forms.TEXT,
                  "device?": forms.TEXT},
    "environment?": forms.ENVIRONMENT,
}
FORWARD = {
    "block": PLACE, "seconds": forms.AMOUNT, "computed": forms.ZERO_OR_MORE, "kept?": forms.Several(PLACE),
    "attention?": [forms.Several(forms.SHARE)], "decided": forms.Several(DECIDED),
}


def read_trace(path: str | Path) -> Trace:
    """Read a trace from its file, which may come from anywhere: every field that is used later is checked.

    Raises:
        ValueError: the file cannot be read, is larger than MAX_SIZE or is no trace; the message names file and line.
    """
    entries: list[dict[str, Any]] = []
    try:
        for number, entry in files.read_json_lines(path, max_size=MAX_SIZE):
            fault = _fault_of_line(entry, entries)
            if fault:
                raise files.LineError(path, number, fault.strip())
            entries.append({key: value for key, value in entry.items() if value is not None})
    except files.LineError as error:
        raise ValueError(f"{path}, line {error.number}: not a line of a trace (run.py generate --trace writes one): "
                         f"{error.reason}") from None

    if len(entries) < 2 or "answer" not in entries[-1]:
        raise ValueError(f"{path} is not a complete trace: its last line is missing")
    return Trace(entries[0], entries[1:-1], entries[-1])


def _fault_of_line(entry: Any, before: list[dict[str, Any]]) -> str | None:
    """What keeps a line from being the next one of a trace, after the lines before it; None where nothing does."""
    if not before:
        return forms.fault(entry, HEAD)
    if "answer" in before[-1]:
        return "it follows the answer, which ends a trace"
    if isinstance(entry, dict) and "answer" in entry:
        return forms.fault(entry, {"answer": TEXT})
    if len(before) > MAX_STEPS * before[0]["gen_length"]:
        return f"there are more than {MAX_STEPS} forwards for each token"
    unknown = entry.keys() - FORWARD_FIELDS if isinstance(entry, dict) else ()
    fault = forms.fault(entry, FORWARD) or (f"it has {listing(unknown)}" if unknown else None)
    if fault:
        return fault
    layers = entry.get("attention") or ()
    if len(layers) > MAX_LAYERS or any(len(layer) != before[0]["gen_length"] for layer in layers):
        return f"its attention is not of at most {MAX_LAYERS} layers and all places of the answer"
    longest = max(len(entry["decided"]), len(entry.get("kept") or ()))
    return f"it names {longest} places; the answer has fewer" if longest > before[0]["gen_length"] else None
