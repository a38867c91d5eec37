"""Text in, text out: encodes prompts, generates, times, cuts at stop strings and counts tokens, for any loaded model.

The command line's `generate` and the evaluation share it, so both measure the same thing. Imported, never run:

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"

How cost is counted, in every record:
    seconds  wall time of the generate call, with the device synchronised at both ends. Encoding, decoding text and
             loading are left out. A batch's time is shared evenly by its rows.
    tokens   of the answer, without what ends it (answer_text.py). Tokens after its end were computed, but are not part
             of it.
    forwards of the model that the row took part in (NFE).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpad.engine import cuda_graphs
from dpad.engine.checks import texts_of
from dpad.engine.loading import LoadedModel
from dpad.engine.settings import DecodingSettings


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer and what it cost.

    text: up to its end, without special tokens. full_text: the same with what follows EOS in its block, as the authors
    scored LLaDA. raw: everything that was generated, special tokens included, except the EOS tokens that fill the end.
    forwards, tokens, seconds: see the top of this file; full_tokens: those of full_text. tokens_processed: slots that
    the model computed for this row, over all forwards (a batch's total is shared evenly). blocks: that the row entered;
    kept_suffix: suffix positions that it kept in them, on average.
    """

    text: str
    full_text: str
    raw: str
    forwards: int
    tokens: int
    full_tokens: int
    seconds: float
    tokens_processed: int
    kept_suffix: float = 0.0
    blocks: int = 0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def complete(
    loaded: LoadedModel, prompts: str | Sequence[str], settings: DecodingSettings, until: str | Sequence[str] = (),
    streamer: Any = None,
) -> list[Completion]:
    """Answer a batch of prompts.

    Args:
        prompts: complete texts of any lengths, or one: `loaded.chat(...)` or `loaded.raw(...)` of what was asked.
        settings: how to decode, an object of `loaded.family.settings`.
        until: stop strings, or one; the answer ends before the first of them, or at EOS. Special tokens count as text
            here.
        streamer: passed on; it sees the denoising.

    Raises:
        ValueError: on settings or prompts that cannot be used.
    """
    prompts = texts_of("prompts", prompts)
    until = texts_of("until", until) if until else ()
    inputs = loaded.encode_text(prompts)
    device = loaded.model.device
    synchronize(device)
    start = time.perf_counter()
    output = loaded.generate(
        inputs["input_ids"], settings, attention_mask=inputs["attention_mask"], streamer=streamer
    )
    synchronize(device)
    seconds = (time.perf_counter() - start) / len(prompts)

    share, rest = divmod(output.tokens_processed, len(prompts))
    answers = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    completions = []
    costs = zip(output.forwards.tolist(), output.kept.tolist(), output.blocks.tolist(), strict=True)
    for row, (ids, (forwards, kept, blocks)) in enumerate(zip(answers, costs, strict=True)):
        text, tokens = loaded.answer_text.cut(ids, until)
        full_text, full_tokens = loaded.answer_text.cut(ids, until, after_eos="keep")
        completions.append(Completion(
            text=text, full_text=full_text, raw=loaded.answer_text.raw(ids), forwards=forwards, tokens=tokens,
            full_tokens=full_tokens, seconds=seconds, tokens_processed=share + (row < rest),
            kept_suffix=kept / blocks, blocks=blocks,
        ))
    return completions


def warm_up(loaded: LoadedModel, prompt: str, gen_length: int) -> None:
    """One forward of a whole canvas: a device's first call sets up libraries, which is not generation time."""
    prompt_ids = loaded.encode_text([prompt])["input_ids"]
    canvas = torch.nn.functional.pad(prompt_ids, (0, gen_length), value=loaded.model.config.mask_token_id)
    with torch.inference_mode():
        positions = torch.arange(canvas.shape[1], device=canvas.device)
        loaded.model.head(loaded.model.hidden_states(canvas, positions[None])[:, -1:])
    synchronize(loaded.model.device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, had no memory for what was asked."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def release_memory() -> None:
    """Give back what torch and the caches keep for later, so that smaller pieces fit."""
    cuda_graphs.forget()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
