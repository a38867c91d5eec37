"""A conversation on the terminal: live drafts, settings that change between turns, what each answer cost.

    python run.py chat -m tiny              # /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends
    printf 'Question one\\nQuestion two\\n' | python run.py chat -m tiny

Imported by run.py, never run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dpad import ROOT
from dpad.engine import completion
from dpad.engine.decoding import CACHE_MODES

HELP = """\
Type a question. Commands:
  /settings                     show how answers are decoded
  /settings NAME VALUE ...      change that, from the next answer on; names as in the list
  /reset                        forget the conversation
  /help, /quit                  this text; the end (also Ctrl-D)
Ctrl-C stops an answer."""
ON, OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")
EMBEDDED = ROOT / "checkpoints"


class Chat:
    """A conversation with a loaded model.

    args: the flags of `run.py chat`; `decode` turns them into keyword arguments of the model's generate call.
    show: whether drafts may be drawn over each other (a terminal). colour: dim what is not the answer.
    """

    def __init__(self, loaded, args: argparse.Namespace, decode: Callable[[argparse.Namespace], dict], watcher,
                 *, show: bool, colour: bool):
        self.loaded, self.args, self.decode, self.watcher = loaded, args, decode, watcher
        self.show, self.colour = show, colour
        self.turns: list[dict[str, str]] = []
        self.template = completion.check_chat_template(loaded, {"auto": None, "on": True, "off": False}[
            args.chat_template])
        # The embedded models were trained on single questions; a base model has no form for a conversation.
        self.history = self.template and not Path(loaded.checkpoint).is_relative_to(EMBEDDED)

    # --- What the user types ---

    def run(self) -> None:
        """Read lines until the input ends."""
        self.note(f"{self.loaded.name}: {self.summary()}. /help lists the commands.")
        if not self.history:
            self.note("Each question stands alone: this model knows no conversations" +
                      (" (/settings history on)." if self.template else "."))
        while (line := self.read()) is not None:
            try:
                if line.startswith("/"):
                    if not self.command(line[1:].split()):
                        return
                elif line:
                    self.answer(line)
            except ValueError as error:
                self.note(str(error))

    def read(self) -> str | None:
        """The next line without its spaces around; None at the end of the input, or after Ctrl-C at the prompt."""
        try:
            return input(self.painted("> ", "1") if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                print()
            return None

    def command(self, words: list[str]) -> bool:
        """Obey a command; False when it ends the conversation."""
        name, *rest = words or ["help"]
        if name in ("quit", "exit"):
            return False
        if name == "reset":
            self.turns.clear()
            self.note("The conversation starts anew.")
        elif name == "settings":
            if rest:
                self.change(rest)
            for key, value in self.settings().items():
                self.note(f"  {key:<18} {value}")
        elif name == "help":
            self.note(HELP)
        else:
            raise ValueError(f"there is no command /{name}; /help lists them")
        return True

    # --- Settings ---

    def settings(self) -> dict[str, object]:
        args = self.args
        return {
            "sampler": args.dropout_strategy, "window": args.window or min(256, args.gen_length),
            "k_sigma": args.k_sigma, "scale": args.scale, "num_tokens": args.num_tokens, "threshold": args.threshold,
            "cache": "dual" if args.dual_cache else "prefix" if args.use_cache else "none",
            "early_termination": "on" if args.early_termination else "off", "gen_length": args.gen_length,
            "block_size": args.block_length, "temperature": args.temperature, "seed": args.seed,
            "history": "on" if self.history else "off",
        }

    def change(self, words: list[str]) -> None:
        """Set name after name to value after value; all of them, or none and a ValueError."""
        if len(words) % 2:
            raise ValueError("/settings takes names with their values, such as: /settings threshold 0.9 cache prefix")
        changed, history = argparse.Namespace(**vars(self.args)), self.history
        for name, text in zip(words[::2], words[1::2]):
            if name not in self.settings():
                raise ValueError(f"there is no setting {name!r}; those are {', '.join(self.settings())}")
            value = self.parsed(name, text)
            if name == "history":
                if value and not self.template:
                    raise ValueError("history needs a chat template, which this model does not use")
                history = value
            elif name == "cache":
                changed.use_cache, changed.dual_cache = value == "prefix", value == "dual"
            else:
                target = {"sampler": "dropout_strategy", "block_size": "block_length"}.get(name, name)
                setattr(changed, target, value)
        self.decode(changed)  # says what does not go together
        self.args, self.history = changed, history

    @staticmethod
    def parsed(name: str, text: str):
        try:
            if name in ("history", "early_termination"):
                if text.lower() not in ON + OFF:
                    raise ValueError
                return text.lower() in ON
            if name == "cache":
                return CACHE_MODES[CACHE_MODES.index(text)]
            if name == "sampler":
                return text
            if name in ("k_sigma", "scale", "threshold", "temperature"):
                return float(text)
            return int(text)
        except ValueError:
            allowed = {"history": "on or off", "early_termination": "on or off", "cache": ", ".join(CACHE_MODES)}
            raise ValueError(f"{name} is {text!r}; it must be {allowed.get(name, 'a number')}") from None

    def summary(self) -> str:
        """The settings that matter most, in a line."""
        now = self.settings()
        sampler = {"null": "the whole suffix", "gaussian": f"DPad with a window of {now['window']}"}.get(
            now["sampler"], f"{now['sampler']} suffix, window {now['window']}")
        parallel = f"threshold {now['threshold']:g}" if now["threshold"] else "one token a forward"
        return f"{sampler}, {parallel}, cache {now['cache']}, {now['gen_length']} tokens"

    # --- Answers ---

    def answer(self, question: str) -> None:
        """Answer a question, show how it comes about, and what it cost."""
        turns = [*(self.turns if self.history else []), {"role": "user", "content": question}]
        tokenizer = self.loaded.tokenizer
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) if self.template \
            else self.loaded.raw(question)
        completion.check_prompt(self.loaded, text, self.args.gen_length)
        eos = tokenizer.convert_ids_to_tokens(self.loaded.model.config.eos_token_id)
        try:
            [found] = completion.complete(self.loaded, [text], self.decode(self.args), until=[eos],
                                          streamer=self.watcher(self.loaded, self.colour) if self.show else None)
        except KeyboardInterrupt:
            print()
            self.note("Stopped; the question is forgotten.")
            return
        if not self.show:
            print(found.text)
        self.turns = [*turns, {"role": "assistant", "content": found.text}]
        rate = found.tokens / found.seconds
        self.note(f"[{found.forwards} forwards · {found.tokens} tokens · {rate:.1f} tokens/s · {found.seconds:.2f} s]")

    # --- The terminal ---

    def painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def note(self, text: str) -> None:
        print(self.painted(text, "2"), flush=True)
