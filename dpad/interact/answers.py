"""Answers to prompts from a flag, a file or standard input: what `run.py generate` does.

    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"
    python run.py generate -m tiny --prompt_file dataset/arithmetic-50.jsonl --json

Imported by run.py, never run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from dpad.engine import completion
from dpad.engine.checks import check_text
from dpad.engine.completion import Completion
from dpad.engine.json_text import parse_json
from dpad.engine.loading import LoadedModel
from dpad.engine.prompts import check_chat_template, check_prompt
from dpad.engine.settings import DecodingSettings
from dpad.interact import terminal
from dpad.interact.trace import Tracer
from dpad.results import files
from dpad.results.formatting import LAYOUT, json_line, printable

# --- Prompts ----------------------------------------------------------------------------------------------------------


def read_prompts(prompt: str | None, prompt_file: str | None) -> list[str]:
    """The prompts to answer: the one given, those of a file, or standard input where there is neither.

    Raises:
        ValueError: there is no prompt, one is empty, or the file cannot be read.
    """
    if prompt_file is not None:
        source = prompt_file
        prompts = _read_prompt_file(prompt_file)
    elif prompt not in (None, "-"):
        source = "--prompt"
        prompts = [prompt]
    else:
        if prompt is None and sys.stdin.isatty():
            raise ValueError("no prompt: give --prompt, --prompt_file, or pipe one in")
        source = "standard input"
        prompts = [_read_text("-").strip("\n")]
    if not prompts or not all(text.strip() for text in prompts):
        raise ValueError(f"{source}: the prompt is empty")
    for text in prompts:
        check_text(f"a prompt of {source}" if len(prompts) > 1 else f"{source}: the prompt", text)
    return prompts


def _read_prompt_file(name: str) -> list[str]:
    """One prompt for each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(_read_text(name).split("\n"), start=1) if line.strip()]
    if not name.endswith(".jsonl"):
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        fields = parse_json(line, f"{name}, line {number}")
        prompt = fields.get("prompt", fields.get("question")) if isinstance(fields, dict) else None
        if not isinstance(prompt, str):
            raise ValueError(f"{name}, line {number}: not a JSON object with a text \"prompt\" or \"question\"")
        prompts.append(prompt)
    return prompts


def complete_prompts(loaded: LoadedModel, prompts: Sequence[str], chat_template: bool | None) -> list[str]:
    """The texts that the model gets: in its chat template or as they are (None: the model's default).

    Raises:
        ValueError: there is no chat template.
    """
    use_template = check_chat_template(loaded, chat_template)
    return [loaded.chat(prompt) if use_template else loaded.raw(prompt) for prompt in prompts]


def _read_text(name: str) -> str:
    return sys.stdin.read() if name == "-" else files.read_text(name)


# --- Answers ----------------------------------------------------------------------------------------------------------


def answer_prompts(
    loaded: LoadedModel, prompts: Sequence[str], settings: DecodingSettings, *, chat_template: bool | None = None,
    batch_size: int = 1, watch: bool = False, trace_file: str | None = None, as_json: bool = False,
) -> None:
    """Answer prompts in batches and print each answer with its cost.

    Args:
        chat_template: put prompts into the chat template (None: the model's default).
        watch: show each answer while it is decoded, if standard output is a terminal.
        trace_file: write the denoising of the first prompt there.
        as_json: print one JSON object per prompt.

    Raises:
        ValueError: a prompt does not fit, or there is no chat template.
    """
    texts = complete_prompts(loaded, prompts, chat_template)
    for text in texts:
        check_prompt(loaded, text, settings.gen_length)
    completion.warm_up(loaded, texts[0], settings.gen_length)

    several = len(prompts) > 1
    live = watch and terminal.can_redraw()
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        if live and several:
            print(f"> {printable(prompts[start], LAYOUT)}")
        view = terminal.LiveView(loaded, terminal.wants_colour()) if live else None
        tracer = Tracer(loaded, prompts[0], settings, streamer=view) if trace_file else None
        answers = completion.complete(loaded, texts[batch], settings, streamer=tracer or view)
        if tracer and trace_file:
            tracer.finish(answers[0]).write(trace_file)

        for prompt, answer in zip(prompts[batch], answers):
            if as_json:
                print(_as_json(prompt, answer), flush=True)
                continue
            if view:
                view.finish(answer.text)
            else:
                text = f"> {prompt}\n{answer.text}" if several else answer.text
                print(printable(text, LAYOUT) if sys.stdout.isatty() else text)
            print(terminal.cost(answer), end="\n\n" if several else "\n", flush=True)


def _as_json(prompt: str, answer: Completion) -> str:
    line = {
        "prompt": prompt, "answer": answer.text, "forwards": answer.forwards, "tokens": answer.tokens,
        "tokens_per_second": answer.tokens_per_second, "seconds": answer.seconds,
        "tokens_processed": answer.tokens_processed,
    }
    is_utf8 = (sys.stdout.encoding or "").lower() == "utf-8"
    return json_line(line) if is_utf8 else json.dumps(line)
