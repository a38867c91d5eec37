r"""Lines that a person types: editing, completion, pastes, a history across sessions; and what is typed meanwhile.

    with open_lines(suggest, colour=True) as lines:
        question = lines.read()         # EOFError at the end, KeyboardInterrupt for Ctrl-C on an empty line
        with lines.away():              # what is typed now waits for the next `read`, and is not drawn
            ...

A terminal gets prompt_toolkit, and where that is not installed readline; pipes, files and terminals that cannot be
redrawn get `input()`. Imported by chat.py, never run.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dpad.engine.checks import check_text, short
from dpad.engine.fields import OFF, ON
from dpad.interact import terminal

PROMPT = "> "
BOLD = "\x1b[1m"
HISTORY_VARIABLE = "DPAD_CHAT_HISTORY"
MAX_HISTORY = 2**20  # bytes of the file that are read; it is cut to half of them when it is longer
MAX_ENTRY = 2**16  # bytes of a line that is kept


class Suggestion(NamedTuple):
    """What may take the place of the word before the cursor, and what it means."""

    text: str
    help: str = ""


Suggest = Callable[[str], tuple[str, list[Suggestion]]]
"""Of the text before the cursor: the word that is being typed, and what it may become."""


@contextmanager
def open_lines(suggest: Suggest, colour: bool) -> Iterator[Lines]:
    """The best way to read lines from standard input.

    Args:
        suggest: completes commands.
        colour: whether the prompt may be bold, and menus coloured.
    """
    if not (sys.stdin.isatty() and terminal.can_redraw()):
        yield Lines(colour)
        return
    try:
        lines = _editor(suggest, colour)
    except ImportError:  # there is neither, or no POSIX terminal
        yield Lines(colour)
        return
    with _no_echo(sys.stdin.fileno()):
        yield lines


def _editor(suggest: Suggest, colour: bool) -> Lines:
    import fcntl  # noqa: F401
    import termios  # noqa: F401

    try:
        return ToolkitLines(suggest, colour)
    except ImportError:
        return ReadlineLines(suggest, colour)


class Lines:
    """Lines as they come, without editing."""

    note = ""  # for the person, before the first line

    def __init__(self, colour: bool) -> None:
        self.interactive = sys.stdin.isatty()
        self.prompt = f"{BOLD}{PROMPT}{terminal.PLAIN}" if colour else PROMPT

    def read(self) -> str:
        """The next line.

        Raises:
            EOFError: there is none.
            KeyboardInterrupt: Ctrl-C, with nothing typed.
        """
        try:
            return input(self.prompt if self.interactive else "")
        except (EOFError, KeyboardInterrupt):
            if self.interactive:
                print()
            raise

    @contextmanager
    def away(self) -> Iterator[None]:
        """While nobody reads."""
        yield


# --- The terminal -----------------------------------------------------------------------------------------------------


@contextmanager
def _no_echo(file: int) -> Iterator[None]:
    """Nothing that is typed is drawn, or lost by Ctrl-C, unless an editor reads it."""
    import termios

    saved = termios.tcgetattr(file)
    changed = termios.tcgetattr(file)
    changed[3] = changed[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH
    changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    termios.tcsetattr(file, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, saved)


def _waiting(file: int) -> int:
    """How many bytes have been typed that nobody has read."""
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, b"\0" * 4), sys.byteorder)


class ToolkitLines(Lines):
    """Lines that are edited with prompt_toolkit.

    Enter ends a line, Alt-Enter and a paste put newlines into it. What is typed while nobody reads stands in the next
    line, to be sent or changed: an Enter in it is a newline.
    """

    def __init__(self, suggest: Suggest, colour: bool) -> None:
        super().__init__(colour)
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import get_app
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.input import create_input
        from prompt_toolkit.layout.processors import TabsProcessor
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.output.vt100 import Vt100_Output

        self.input = create_input(sys.stdin)
        output = Vt100_Output.from_pty(sys.stdout, os.environ.get("TERM"), None if colour else ColorDepth.DEPTH_1_BIT)
        output.enable_cpr = False  # the terminal's reports would stand between the keys that are typed meanwhile
        self.session: PromptSession[str] = PromptSession(
            [("bold" if colour else "", PROMPT)], prompt_continuation=" " * len(PROMPT), multiline=True,
            completer=_completer(suggest), history=_toolkit_history(KeptLines.find()), key_bindings=_bindings(),
            complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
            input_processors=[TabsProcessor(char1=" ", char2=" ")], enable_suspend=True, reserve_space_for_menu=6,
            input=self.input, output=output,
        )

    def read(self) -> str:
        return self.session.prompt()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.session.output.enable_bracketed_paste()
        self.session.output.flush()
        try:
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        """Keep what was typed for the next line, without the keys that would end it."""
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
        from prompt_toolkit.key_binding import KeyPress
        from prompt_toolkit.keys import Keys

        typed = get_typeahead(self.input)
        while _waiting(self.input.fileno()):
            typed += self.input.read_keys()
        typed = [key for key in typed if key.key not in (Keys.ControlC, Keys.ControlD, Keys.ControlZ)]
        enter = (Keys.ControlM, Keys.ControlJ)
        while typed and typed[-1].key in enter:
            typed.pop()
        newline = KeyPress(Keys.BracketedPaste, "\n")
        store_typeahead(self.input, [newline if key.key in enter else key for key in typed])


def _bindings() -> Any:
    """What Enter and Ctrl-C do; everything else is as prompt_toolkit has it, which is as in bash."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()
    editing = has_focus(DEFAULT_BUFFER)  # and not searching

    @bindings.add("enter", filter=editing)
    def send(event: Any) -> None:
        buffer = event.current_buffer
        buffer.text = buffer.text.rstrip()
        buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=editing)
    def break_line(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=editing)
    def clear(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


def _completer(suggest: Suggest) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
            word, found = suggest(document.text_before_cursor)
            for text, help in found:
                yield Completion(text, -len(word), display_meta=help)

    return Commands()


def _toolkit_history(kept: KeptLines) -> Any:
    from prompt_toolkit.history import History

    class Kept(History):
        def load_history_strings(self) -> Iterable[str]:
            return reversed(kept.read())

        def store_string(self, string: str) -> None:
            kept.add(string)

    return Kept()


class ReadlineLines(Lines):
    """Lines that are edited with readline. What is typed while nobody reads stands in the next one."""

    note = "prompt_toolkit is not installed; lines are edited with readline."

    def __init__(self, suggest: Suggest, colour: bool) -> None:
        import readline
        import termios

        super().__init__(colour)
        self.usual = termios.tcgetattr(sys.stdin.fileno())
        if colour:  # readline must know what takes no place
            self.prompt = f"\x01{BOLD}\x02{PROMPT}\x01{terminal.PLAIN}\x02"
        self.kept = KeptLines.find()
        self.typed = ""
        self.suggest = suggest
        for line in self.kept.read():
            readline.add_history(line)
        readline.set_auto_history(False)
        readline.set_completer_delims(" \n")
        readline.set_completer(self._complete)
        readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def _complete(self, word: str, index: int) -> str | None:
        import readline

        _, found = self.suggest(readline.get_line_buffer()[: readline.get_endidx()])
        return found[index].text if index < len(found) else None

    def read(self) -> str:
        import readline
        import termios

        typed, self.typed = self.typed, ""
        readline.set_startup_hook((lambda: readline.insert_text(typed)) if typed else None)
        quiet = termios.tcgetattr(sys.stdin.fileno())
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self.usual)  # readline echoes only where it may
        try:
            line = super().read()
        finally:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, quiet)
        last = readline.get_history_item(readline.get_current_history_length())
        if line.strip() and line != last:
            readline.add_history(line)
            self.kept.add(line)
        return line

    @contextmanager
    def away(self) -> Iterator[None]:
        try:
            yield
        finally:
            typed = b""
            while count := _waiting(sys.stdin.fileno()):
                typed += os.read(sys.stdin.fileno(), count)
            self.typed = _plain_text(typed.decode(errors="surrogateescape"))


def _plain_text(typed: str) -> str:
    """What keys have written, without those that move the cursor."""
    typed = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO.", "", typed.replace("\r", "\n"))
    while erased := re.search("[^\x7f\b]?[\x7f\b]", typed):
        typed = typed[: erased.start()] + typed[erased.end() :]
    return "".join(c for c in typed if c >= " " or c == "\n").strip("\n")


# --- The history ------------------------------------------------------------------------------------------------------


class KeptLines:
    """Lines of earlier sessions, in a file that nobody else can read: a JSON text a line, the newest last.

    Several chats may write at the same time. A file that cannot be read or written is left alone: lines are then kept
    for the session. path: None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def find(cls) -> KeptLines:
        """The file in the user's state directory; none where DPAD_CHAT_HISTORY is off.

        Raises:
            ValueError: the variable is neither on nor off.
        """
        choice = os.environ.get(HISTORY_VARIABLE) or "on"
        if choice.lower() not in ON + OFF:
            raise ValueError(f"{HISTORY_VARIABLE} is {short(choice)}; it must be on or off")
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():  # as its specification says
            state = Path(os.path.expanduser("~/.local/state"))
        return cls(state / "dpad" / "chat_history" if choice.lower() in ON and state.is_absolute() else None)

    def read(self) -> list[str]:
        """The lines, the oldest first; what is none is left out."""
        with self._open() as file:
            if file is None:
                return []
            size = os.fstat(file).st_size
            text = os.pread(file, MAX_HISTORY, max(0, size - MAX_HISTORY))
            if size > MAX_HISTORY:
                text = text[text.find(b"\n", MAX_HISTORY // 2) + 1 :]
                with suppress(OSError):
                    os.ftruncate(file, 0)
                    os.write(file, text)
        lines = []
        for entry in text.split(b"\n"):
            try:
                line = json.loads(entry)
                check_text("a line", line)
                lines.append(line)
            except (ValueError, RecursionError):
                pass
        return lines

    def add(self, line: str) -> None:
        """Keep a line, unless it is very long or no text."""
        try:
            check_text("the line", line)
        except ValueError:
            return
        entry = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if len(entry) > MAX_ENTRY:
            return
        with self._open() as file:
            if file is not None:
                size = os.fstat(file).st_size
                is_cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                with suppress(OSError):  # a full disk
                    os.write(file, b"\n" * is_cut + entry)

    @contextmanager
    def _open(self) -> Iterator[int | None]:
        """The file, open and locked; None where that cannot be."""
        import fcntl

        if self.path is None:
            yield None
            return
        with ExitStack() as stack:
            file = None
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
                stack.callback(os.close, file)
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise OSError("it is no file")
                os.fchmod(file, 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                file = None
            yield file
