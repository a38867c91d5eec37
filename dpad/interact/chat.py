"""A conversation on the terminal: live drafts, settings that can change between answers, and the cost of each answer.

    python run.py chat -m tiny              # /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends
    printf 'Question one\\nQuestion two\\n' | python run.py chat -m tiny

Imported by run.py, never run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dpad.engine import completion, prompts
from dpad.engine.checks import check_text, suggest
from dpad.engine.fields import Setting
from dpad.engine.settings import part_defaults
from dpad.interact import terminal
from dpad.interact.canvas import describe_settings
from dpad.results.formatting import LAYOUT, printable

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel
    from dpad.engine.settings import DecodingSettings

HELP = """\
Type a question. Commands:
  /settings                     show how answers are decoded
  /settings NAME VALUE ...      change settings, from the next answer on; names as in the list
  /reset                        forget the conversation
  /help, /quit                  show this text; end (also Ctrl-D)
Ctrl-C stops an answer."""
COMMANDS = ("settings", "reset", "help", "quit")
HISTORY = Setting(name="history", kind=bool, default=True, help="whether the model sees the conversation so far",
                  flags=("--history",))
BOLD = "1"
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
        self.turns: list[dict[str, str]] = []
        # A base model has no format for a conversation.
        self.history = use_chat_template and not prompts.knows_single_questions_only(loaded.checkpoint)

    # --- Input ---

    def run(self) -> None:
        """Read lines until the input ends."""
        self.note(f"{self.loaded.name}: {self.summary()}. /help lists the commands.")
        if not self.history:
            hint = " (/settings history on changes that)" if self.use_chat_template else ""
            self.note(f"The model sees each question alone, without the conversation before it{hint}.")

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

    def read_line(self) -> str | None:
        """The next line, stripped; None at the end of the input, or after Ctrl-C at the prompt."""
        interactive = sys.stdin.isatty()
        try:
            return input(self.paint("> ", BOLD) if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            if interactive:
                print()
            return None

    def obey(self, words: list[str]) -> bool:
        """Carry out a command; False if it ends the conversation."""
        name, *arguments = words or ["help"]
        if name in ("quit", "exit"):
            return False

        if name == "reset":
            self.turns.clear()
            self.note("The conversation starts over.")
        elif name == "settings":
            if arguments:
                self.change(arguments)
            self.list_settings()
        elif name == "help":
            self.note(HELP)
        else:
            raise ValueError(f"there is no command /{name}; /help lists the commands{suggest(name, COMMANDS)}")
        return True

    # --- Settings ---

    def available(self) -> list[Setting]:
        """What can be set: the settings of the model's family, and whether there is a history."""
        return [*self.loaded.family.settings.choices(), HISTORY]

    def list_settings(self) -> None:
        values = self.settings.as_choices() | {HISTORY.name: self.history}
        settings = self.available()
        width = max(len(setting.label) for setting in settings)
        for setting in settings:
            applies = setting.name in values  # parameters of other dropout strategies do not
            self.note(f"  {setting.label:<{width}}  {show_value(values[setting.name]) if applies else '–'}")

    def change(self, words: list[str]) -> None:
        """Set names to values, given in turn: all of them, or none and a ValueError."""
        if len(words) % 2:
            raise ValueError("/settings takes names with their values, such as: /settings threshold 0.9 cache prefix")

        changes = {}
        for name, text in zip(words[::2], words[1::2]):
            setting = self.find_setting(name)
            changes[setting.name] = setting.parse(text)
        history = changes.pop(HISTORY.name, self.history)
        if history and not self.use_chat_template:
            raise ValueError("history needs a chat template, which this model does not use")

        self.settings = apply_changes(self.settings, changes)
        self.history = history

    def find_setting(self, name: str) -> Setting:
        """The setting of this name: its label, its keyword in `generate`, or a flag of the command line."""
        settings = self.available()
        for setting in settings:
            if name in (setting.label, setting.name, *setting.flags):
                return setting
        labels = [setting.label for setting in settings]
        raise ValueError(f"there is no setting {name!r}; the settings are {', '.join(labels)}{suggest(name, labels)}")

    def summary(self) -> str:
        """The settings that matter most, in a line."""
        return f"{describe_settings(self.settings.to_json())}, {self.settings.gen_length} tokens"

    # --- Answers ---

    def answer(self, question: str) -> None:
        """Answer a question; show how the answer comes about and what it cost."""
        turns = [*(self.turns if self.history else []), {"role": "user", "content": question}]
        text = self.encode_turns(turns)
        prompts.check_prompt(self.loaded, text, self.settings.gen_length)

        view = terminal.LiveView(self.loaded, self.colour) if self.live else None
        try:
            [answer] = completion.complete(self.loaded, [text], self.settings, streamer=view)
        except KeyboardInterrupt:
            print()
            self.note("Stopped; the question is forgotten.")
            return

        if view:
            view.finish(answer.text)
        else:
            print(printable(answer.text, LAYOUT) if sys.stdout.isatty() else answer.text)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
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


def apply_changes(settings: DecodingSettings, changes: dict[str, object]) -> DecodingSettings:
    """The settings with some choices changed.

    Parameters of the sampler, or of another part, that have their default values keep following the defaults, such as a
    window that depends on the answer's length. The others stay, unless a new dropout strategy does not have them.

    Raises:
        ValueError: a value is not allowed, values do not fit together, or the strategy does not have a parameter.
    """
    values = settings.as_choices()
    defaults = part_defaults(values)
    new = {name: changes.get(name, value) for name, value in values.items() if name not in defaults}
    applicable = part_defaults(new)
    parameters = {name: values[name] for name in defaults.keys() & applicable if values[name] != defaults[name]}
    return type(settings).from_choices(new | parameters | changes)


def show_value(value: object) -> str:
    """A setting's value as `Setting.parse` reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
