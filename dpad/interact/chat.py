"""A conversation on the terminal: live drafts, settings that can change between answers, and the cost of each answer.

    python run.py chat -m tiny              # /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends
    printf 'Question one\\nQuestion two\\n' | python run.py chat -m tiny

Imported by run.py, never run.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

from dpad.engine import completion, prompts
from dpad.engine.checks import check_text, suggest
from dpad.engine.fields import Setting
from dpad.engine.methods import METHODS, combine
from dpad.interact import terminal
from dpad.interact.canvas import describe_settings
from dpad.interact.conversation import Turns, check_output, read_conversation, write_conversation
from dpad.interact.line_editor import Lines, Suggestion, open_lines
from dpad.interact.trace import Trace, Tracer
from dpad.interact.typed_settings import apply_changes, read_words, show_value, suggest_word
from dpad.results import outputs
from dpad.results.formatting import LAYOUT, printable

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel
    from dpad.engine.settings import DecodingSettings

COMMANDS = (  # name, what follows it, what it does
    ("settings", "", "show how answers are decoded"),
    ("settings", "NAME VALUE ...", "change that, from the next answer on"),
    ("save", "FILE.jsonl", "keep the conversation, also as training data"),
    ("load", "FILE.jsonl", "go on with a conversation that was kept"),
    ("trace", "FILE.jsonl", "keep how the last answer was decoded (run.py trace draws it)"),
    ("reset", "", "forget the conversation"),
    ("help", "", "show this text"),
    ("quit", "", "end"),
)
NAMES = tuple(dict.fromkeys(name for name, _, _ in COMMANDS))
REPLACE = "--replace"
ADVICE = (
    "Settings have the names of their flags: /settings threshold 0.9 cache prefix, or /settings -th 0.9 --cache=prefix "
    f"-e. /settings method dpad takes all settings of a published method. {REPLACE} behind a file's name replaces it.",
    "Alt-Enter starts a new line, and a paste of several lines is one question. Arrows edit and recall, Ctrl-R "
    "searches, Tab completes. Ctrl-C stops an answer or clears the line, Ctrl-D ends. What you type during an answer "
    "waits below it.",
)
HISTORY = Setting(name="history", kind=bool, default=True, help="whether the model sees the conversation so far",
                  flags=("--history",))
METHOD = Setting(name="method", kind=str, default=None, help="a published way of decoding, with all of its settings",
                 flags=("--method",), choices=tuple(METHODS))
KEPT_BY_METHODS = ("gen_length", "block_length", "seed")
DIM = "2"


class Chat:
    """A conversation with a loaded model.

    Args:
        settings: how the first answers are decoded; `/settings` changes them.
        use_chat_template: whether questions go through the model's chat template.
        live: whether drafts may be drawn over each other (a terminal).
        colour: whether everything but the answers may be dimmed.
    """

    def __init__(
        self, loaded: LoadedModel, settings: DecodingSettings, *, use_chat_template: bool, live: bool, colour: bool
    ) -> None:
        self.loaded = loaded
        self.settings = settings
        self.use_chat_template = use_chat_template
        self.live = live
        self.colour = colour
        self.turns: Turns = []
        self.kept: Turns = []  # the turns that are in a file
        self.trace: Trace | None = None  # of the last answer
        self.lines = Lines(colour)
        # A base model has no format for a conversation.
        self.history = use_chat_template and not prompts.knows_single_questions_only(loaded.checkpoint)

    # --- Input ---

    def run(self) -> None:
        """Read lines until the input ends."""
        with open_lines(self.suggest, self.colour) as self.lines:
            self.note(f"{self.loaded.name}: {self.summary()}. /help lists the commands.")
            self.say_what_it_sees()
            if self.lines.note:
                self.note(self.lines.note)
            while (line := self.read_line()) is not None:
                try:
                    check_text("this line", line)
                    if line.startswith("/"):
                        if not self.obey(line[1:].split()):
                            return
                    elif line:
                        self.answer(line)
                except ValueError as error:
                    self.note(str(error))
                except KeyboardInterrupt:
                    if not self.lines.interactive:
                        raise
                    print()

    def read_line(self) -> str | None:
        """The next line, stripped; None at the end of the input."""
        while True:
            try:
                return self.lines.read().strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.lines.interactive:
                    return None
                self.note("Ctrl-D ends the chat.")

    def say_what_it_sees(self) -> None:
        if not self.history:
            hint = " (/settings history on changes that)" if self.use_chat_template else ""
            self.note(f"The model sees each question alone, without the conversation before it{hint}.")

    def obey(self, words: list[str]) -> bool:
        """Carry out a command; False if it ends the conversation."""
        name, *arguments = words or ["help"]
        if name in ("quit", "exit"):
            return False

        if name == "reset":
            self.turns, self.kept = [], []
            self.note("The conversation starts over.")
        elif name == "settings":
            before = self.values()
            if arguments:
                self.change(arguments)
            changed = {entry for entry, value in self.values().items() if value != before.get(entry, ...)}
            self.list_settings(changed if arguments and self.live else None)
        elif name in ("save", "load", "trace"):
            self.use_file(name, arguments)
        elif name == "help":
            self.note(help_text(shutil.get_terminal_size((100, 24)).columns))
        else:
            raise ValueError(f"there is no command /{name}; /help lists the commands{suggest(name, NAMES)}")
        return True

    # --- Files ---

    def use_file(self, command: str, words: list[str]) -> None:
        """Carry out a command about a file; ValueError when that cannot be used."""
        replace = command != "load" and words[-1:] == [REPLACE]
        name = " ".join(words[:-1] if replace else words)
        if not name:
            raise ValueError(f"/{command} takes the name of a file, such as: /{command} talk.jsonl")
        path = os.path.expanduser(name)
        try:
            if command == "save":
                write_conversation(path, self.turns, self.loaded.name, replace)
                self.kept = self.turns
                self.note(f"{len(self.turns)} turns are in {path}.")
            elif command == "load":
                self.load(path)
            else:
                self.write_trace(path, replace)
        except OSError as error:
            raise ValueError(f"/{command} is {path!r}: {error.strerror}") from error

    def load(self, path: str) -> None:
        """Go on with the conversation of a file."""
        if self.turns != self.kept:
            raise ValueError("the conversation so far is in no file: /save FILE or /reset before /load")
        self.turns = self.kept = read_conversation(path)
        question, answer = self.turns[-2:]
        self.note(f"{len(self.turns)} turns from {path}, the last ones:")
        print(printable(f"> {question['content']}\n{answer['content']}", LAYOUT), flush=True)
        self.say_what_it_sees()

    def write_trace(self, path: str, replace: bool) -> None:
        if self.trace is None:
            raise ValueError("there is no answer yet whose trace could be kept")
        check_output("/trace", path, outputs.TRACE, replace)
        self.trace.write(path)
        self.note(f"{len(self.trace.forwards)} forwards are in {path}; python run.py trace {path} shows them.")

    # --- Settings ---

    def available(self) -> list[Setting]:
        """What can be set: the settings of the model's family, whether there is a history, and many at once."""
        return [*self.loaded.family.settings.choices(), HISTORY, METHOD]

    def values(self) -> dict[str, Any]:
        """The settings that apply, by name."""
        return self.settings.as_choices() | {HISTORY.name: self.history}

    def list_settings(self, names: set[str] | None = None) -> None:
        """Show all settings, or some of them."""
        values = self.values()
        settings = [setting for setting in self.available()
                    if setting is not METHOD and (names is None or setting.name in names)]
        width = max((len(setting.label) for setting in settings), default=0)
        for setting in settings:
            applies = setting.name in values  # parameters of other dropout strategies do not
            self.note(f"  {setting.label:<{width}}  {show_value(values[setting.name]) if applies else '–'}")
        if not settings:
            self.note("  nothing has changed")

    def change(self, words: list[str]) -> None:
        """Set names or flags to values: all of them, or none and a ValueError."""
        changes = read_words(self.available(), words)
        history = changes.pop(HISTORY.name, self.history)
        if history and not self.use_chat_template:
            raise ValueError("history needs a chat template, which this model does not use")

        settings = self.settings
        if method := changes.pop(METHOD.name, None):
            kept = {name: value for name, value in self.values().items() if name in KEPT_BY_METHODS}
            values, _ = combine(METHODS[method], kept | changes, {}, type(settings), self.loaded.checkpoint)
            self.settings = type(settings).from_choices(values)
        else:
            self.settings = apply_changes(settings, changes)
        self.history = history

    # --- Completion ---

    def suggest(self, text: str) -> tuple[str, list[Suggestion]]:
        """What the last word of an unfinished command may become; see line_editor.Suggest."""
        if not text.startswith("/"):
            return "", []
        name, space, rest = text[1:].partition(" ")
        if not space:
            helps = {name: help for name, _, help in reversed(COMMANDS)}
            return text, [Suggestion(f"/{known}", helps[known]) for known in NAMES if known.startswith(name)]
        if name in ("save", "load", "trace"):
            rest = rest.lstrip()
            return rest, [Suggestion(path) for path in files_like(rest)]
        if name != "settings":
            return "", []
        *before, word = rest.split(" ")
        return word, suggest_word(self.available(), self.values(), [part for part in before if part], word)

    def summary(self) -> str:
        """The settings that matter most, in a line."""
        return f"{describe_settings(self.settings.to_json())}, {self.settings.gen_length} tokens"

    # --- Answers ---

    def answer(self, question: str) -> None:
        """Answer a question; show how the answer comes about and what it cost."""
        asked = {"role": "user", "content": question}
        text = self.encode_turns([*(self.turns if self.history else []), asked])
        try:
            prompts.check_prompt(self.loaded, text, self.settings.gen_length)
        except prompts.PromptTooLong as error:
            hint = "; /reset forgets the conversation" if self.history and self.turns else ""
            raise ValueError(f"{error}{hint}") from None

        view = terminal.LiveView(self.loaded, self.colour) if self.live else None
        tracer = Tracer(self.loaded, question, self.settings, streamer=view)
        try:
            with self.lines.away():
                [answer] = completion.complete(self.loaded, [text], self.settings, streamer=tracer)
        except KeyboardInterrupt:
            print()
            self.note("Stopped; the question is forgotten.")
            return
        except Exception as error:
            if not completion.is_out_of_memory(error):
                raise
            completion.release_memory()
            raise ValueError(f"there is not enough memory for an answer of {self.settings.gen_length} tokens after "
                             "this; the conversation goes on without it") from error

        if view:
            view.finish(answer.text)
        else:
            print(printable(answer.text, LAYOUT) if sys.stdout.isatty() else answer.text)
        self.turns = [*self.turns, asked, {"role": "assistant", "content": answer.text}]
        self.trace = tracer.finish(answer)
        self.note(terminal.cost(answer))

    def encode_turns(self, turns: list[dict[str, str]]) -> str:
        """The text of a conversation that the model continues."""
        if not self.use_chat_template:
            return self.loaded.raw(turns[-1]["content"])
        return self.loaded.chat_turns(turns)

    # --- Output ---

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def note(self, text: str) -> None:
        print(self.paint(printable(text, LAYOUT), DIM), flush=True)


def help_text(columns: int) -> str:
    """What a person can type."""
    lines = [f"  {f'/{name} {words}':<25}{help}" for name, words, help in COMMANDS]
    wrap = partial(textwrap.fill, width=min(columns, 100), break_on_hyphens=False)
    return "\n".join([wrap("Type a question, and Enter sends it. Commands:"),
                      *(wrap(line, subsequent_indent=" " * 4) for line in lines), *map(wrap, ADVICE)])


def files_like(begin: str) -> list[str]:
    """Folders and JSON files whose names begin so."""
    folder, slash, name = begin.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    return [f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries
            if entry.name.startswith(name) and (entry.is_dir() or entry.name.endswith((".json", ".jsonl")))]
