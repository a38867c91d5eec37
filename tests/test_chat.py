"""`run.py chat`: through a pipe, and through a pseudo-terminal as a person would use it, with and without colour.

    bash tests/run.sh tests/test_chat.py
"""

import ast
import codecs
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from helpers import ROOT, completion_of, with_flags

from dpad.engine import completion, loading
from dpad.engine.fields import setting
from dpad.interact import chat
from dpad.interact.line_editor import KeptLines
from dpad.interact.trace import read_trace
from dpad.interact.typed_settings import read_words
from dpad.training.examples import load_examples
from llada.settings import LLaDASettings
from sampler import GaussianSampler, UniformSampler

QUESTION = "Mia bakes 24 rolls. She sells 9 rolls. How many rolls does Mia have now?"
FLAGS = ["-d", "gaussian", "-k", "3", "-sc", "1.6", "-e", "-th", "0.9", "-l", "64", "--device", "cpu"]


def line(model="tiny", *more):
    return [sys.executable, str(ROOT / "run.py"), "chat", "-m", str(model), *with_flags(FLAGS, [*more])]


@pytest.mark.slow
def test_questions_from_a_pipe():
    """Answers and what they cost, one after the other; no prompt sign, no colour, no drafts over each other."""
    typed = f"{QUESTION}\n/settings threshold 0.5 cache prefix window 32\n{QUESTION}\n/quit\nnever read\n"
    done = subprocess.run(line(), input=typed, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stderr == ""
    assert len(re.findall(r"\[\d+ forwards · \d+ tokens · [\d.]+ tokens/s · [\d.]+ s\]", done.stdout)) == 2
    assert "####" in done.stdout and "\x1b" not in done.stdout and "> " not in done.stdout.replace("<<", "")
    assert re.search(r"threshold +0\.5", done.stdout) and re.search(r"cache +prefix", done.stdout)


MISTAKES = [
    ("/settings threshold 2", "threshold is 2.0"),
    ("/settings window", "takes names with their values"),
    ("/settings speed 3", "there is no setting 'speed'"),
    ("/settings cache fast", "must be one of none, prefix, dual"),
    ("/settings block_size 48", "must divide gen_length"),
    ("/settings treshold 0.9", "did you mean 'threshold'?"),
    ("/settings dropout_strategy gausian", "did you mean 'gaussian'?"),
    ("/settings dropout_strategy uniform", "num_tokens is 0, so that dropout_strategy uniform would keep no suffix"),
    ("/dance", "there is no command /dance"),
    ("/setings", "did you mean 'settings'?"),
    ("/settings dropout_strategy window scale 2", "dropout_strategy window does not use it"),
    ("/settings early_termination maybe", "must be on or off"),
    ("/settings window many", "must be an integer of at least 1"),
]


@pytest.mark.slow
def test_a_mistake_changes_nothing(checkpoint_folder):
    """A wrong command gets a message, the settings stay, and the conversation goes on."""
    typed = "\n".join([command for command, _ in MISTAKES] + ["/settings", ""])
    done = subprocess.run(line(checkpoint_folder), input=typed, capture_output=True, text=True)
    said = [text for text in done.stdout.splitlines() if not text.startswith("  ")][-len(MISTAKES):]
    assert done.returncode == 0
    for text, (_, message) in zip(said, MISTAKES, strict=True):
        assert message in text
    assert re.search(r"threshold +0\.9", done.stdout) and re.search(r"cache +none", done.stdout)


def make_chat(model, **choices):
    """A chat on the CPU through the chat template, without a terminal."""
    loaded = loading.load(model, device="cpu")
    settings = loaded.family.settings.from_choices(choices)
    return chat.Chat(loaded, settings, use_chat_template=True, live=False, colour=False)


def test_the_conversation_is_remembered(checkpoint_folder, monkeypatch):
    """With history a prompt holds the turns before it, questions and answers; without, or after /reset, it does not."""
    asked = []

    def complete(loaded, prompts, *_, **__):
        asked.append(prompts[0])
        return [completion_of(f"Answer {len(asked)}.")]

    monkeypatch.setattr(completion, "complete", complete)
    talk = make_chat(str(checkpoint_folder))
    for question in ("One apple.", "Two apples."):
        talk.answer(question)
    assert [text in asked[1] for text in ("One apple.", "Answer 1.", "Two apples.")] == [True] * 3
    talk.obey(["reset"])
    talk.answer("Three apples.")
    assert "Two apples." not in asked[2] and "Answer" not in asked[2]
    talk.obey(["settings", "history", "off"])
    talk.answer("Four apples.")
    assert "Three apples." not in asked[3] and asked[3] == talk.loaded.chat("Four apples.")


def test_every_setting_is_listed(checkpoint_folder, capsys):
    """/settings shows all settings of the model's family by their labels, with a dash where one does not apply."""
    talk = make_chat(str(checkpoint_folder), dropout_strategy="window")
    talk.obey(["settings"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    labels = [setting.label for setting in talk.loaded.family.settings.choices()]
    assert [name for name, _ in lines] == [*labels, "history"]
    values = dict(lines)
    assert values["block_length"] == "32" and values["window"] == "256"
    assert values["scale"] == "–" and values["steps"] == "none"
    assert values["cache"] == "none" and values["early_termination"] == "off" and values["history"] == "on"


@pytest.mark.parametrize("words, changes", [
    ("threshold 0.9 cache prefix", {"threshold": 0.9, "cache": "prefix"}),
    ("-th 0.9 --cache prefix", {"threshold": 0.9, "cache": "prefix"}),
    ("threshold=0.9 --cache=prefix", {"threshold": 0.9, "cache": "prefix"}),
    ("-e -th 0", {"early_termination": True, "threshold": None}),
    ("-e off -l 64", {"early_termination": False, "gen_length": 64}),
    ("early_termination=off", {"early_termination": False}),
    ("-c", {"cache": "prefix"}), ("-dc -c", {"cache": "dual"}), ("--use_cache --dual_cache", {"cache": "dual"}),
    ("--no_keep_last", {"last": False}), ("--keep_last", {"last": True}),
    ("block_size 16", {"block_length": 16}), ("-b 16", {"block_length": 16}), ("block_length 16", {"block_length": 16}),
    ("-k 3 --soft_k 7", {"k_sigma": 3.0, "k": 7}), ("-nt 8", {"number": 8}), ("alg none", {"alg": None}),
    ("history off", {"history": False}), ("seed -1", "seed is -1; it must be an integer of at least 0"),
    ("k 3", "did you mean '-k'?"), ("number 8", "there is no setting 'number'"),
    ("-th 0.9 threshold 0.5", "threshold is given twice"), ("-c cache dual", "cache is given twice"),
    ("cache dual -c", "cache is given twice"), ("-c=on", "-c is given 'on'; it takes no value"),
    ("--no_keep_last=on", "it takes no value"), ("-th", "-th has no value"), ("threshold=", "threshold is ''"),
    ("early_termination", "early_termination has no value"), ("-e -x", "there is no setting '-x'"),
    ("method dpadd", "did you mean 'dpad'?"),
])
def test_settings_are_typed_as_flags_or_names(words, changes):
    """Guards the one vocabulary: what the command line takes, with or without the dashes of the long flag."""
    settings = [*LLaDASettings.choices(), chat.HISTORY, chat.METHOD]
    if isinstance(changes, str):
        with pytest.raises(ValueError, match=re.escape(changes)):
            read_words(settings, words.split())
    else:
        assert read_words(settings, words.split()) == changes


@pytest.mark.parametrize("text, expected", [
    ("/", ["/settings", "/save", "/load", "/trace", "/reset", "/help", "/quit"]), ("/s", ["/settings", "/save"]),
    ("/settings thr", ["threshold"]), ("/settings -t", ["-th"]), ("/settings --dual", ["--dual_cache"]),
    ("/settings cache ", ["none", "prefix", "dual"]), ("/settings cache=p", ["cache=prefix"]),
    ("/settings -th 0.9 cache d", ["dual"]), ("/settings -e ca", ["cache"]),
    ("/settings early_termination o", ["on", "off"]),
    ("/settings alg orig", ["origin"]), ("/settings threshold 0", []), ("/settings threshold n", ["none"]),
    ("/settings method dpad-p", ["dpad-parallel", "dpad-parallel-cache"]), ("/settings nonsense=", []),
    ("/reset ", []), ("What is th", []), ("", []), ("/save talk", ["talk one.jsonl", "talk.jsonl", "talks/"]),
    ("/load talks/", ["talks/a.json"]), ("/trace none/", []), ("/settings no_", []),
])
def test_commands_names_and_values_are_completed(checkpoint_folder, tmp_path, monkeypatch, text, expected):
    """Guards Tab: names, flags and values come from the settings' own fields."""
    (tmp_path / "talks").mkdir()
    for name in ("talk.jsonl", "talk one.jsonl", "talks/a.json", "talk.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    word, found = make_chat(str(checkpoint_folder)).suggest(text)
    assert [suggestion.text for suggestion in found] == expected
    assert text.endswith(word)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_teaches_every_command(columns):
    """Guards /help: every command is in it, and no word is broken at the end of a line."""
    text = chat.help_text(columns)
    assert all(f"/{name}" in text for name in chat.NAMES)
    for words in ("-th 0.9", "--replace", "Ctrl-C", "Ctrl-D", "Ctrl-R", "Alt-Enter", "Tab", "published method"):
        assert words in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= columns


def test_a_method_takes_all_of_its_settings(checkpoint_folder):
    """Guards `/settings method`, which keeps lengths and seed; what stands beside it counts more."""
    talk = make_chat(str(checkpoint_folder), gen_length=64, block_length=16, seed=5, temperature=0.5, rule="eb")
    talk.change("method dpad-parallel -w 32".split())
    assert talk.settings.suffix_sampler == GaussianSampler(32, 3.0, 1.6)
    assert talk.settings == LLaDASettings.from_choices({
        "dropout_strategy": "gaussian", "window": 32, "k_sigma": 3.0, "scale": 1.6, "threshold": 0.9, "gen_length": 64,
        "block_length": 16, "seed": 5, "early_termination": True,
    })
    talk.change(["--method=vanilla"])
    assert talk.settings == LLaDASettings(gen_length=64, block_length=16, seed=5)


def test_another_dropout_strategy(checkpoint_folder):
    """It keeps the parameters that it shares with the one before, drops the others and has its own defaults."""
    talk = make_chat(str(checkpoint_folder), dropout_strategy="gaussian", window=64, scale=1.6, threshold=0.9)
    with pytest.raises(ValueError, match="num_tokens is 0, so that dropout_strategy uniform would keep no suffix"):
        talk.change(["dropout_strategy", "uniform"])
    talk.change(["dropout_strategy", "uniform", "num_tokens", "8"])
    assert talk.settings.suffix_sampler == UniformSampler(64, 8) and talk.settings.threshold == 0.9
    talk.change(["dropout_strategy", "gaussian"])
    assert talk.settings.suffix_sampler == GaussianSampler(64, 4.0, 2.0)


def test_a_window_that_was_not_chosen_follows_the_length(checkpoint_folder):
    talk = make_chat(str(checkpoint_folder), dropout_strategy="gaussian", scale=1.6)
    for length, window in ((64, 64), (512, 256)):
        talk.change(["gen_length", str(length)])
        assert talk.settings.suffix_sampler == GaussianSampler(window, 4.0, 1.6)


def test_a_new_setting_needs_no_change_here(checkpoint_folder, monkeypatch, capsys):
    """A field that a settings class gains is listed and can be changed."""

    @dataclass(frozen=True, kw_only=True)
    class Extended(LLaDASettings):
        patience: int = setting(3, "steps without a change", minimum=1)

    monkeypatch.setattr("llada.settings.LLaDASettings", Extended)
    talk = make_chat(str(checkpoint_folder))
    talk.obey(["settings", "patience", "5"])
    assert talk.settings.patience == 5 and re.search(r"patience +5", capsys.readouterr().out)


def test_the_embedded_models_know_single_questions():
    """Guards their default: they were not trained on conversations."""
    talk = make_chat("tiny")
    assert talk.use_chat_template and not talk.history


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(checkpoint_folder, monkeypatch):
    """A chat whose model gives numbered answers."""
    count = itertools.count(1)
    monkeypatch.setattr(completion, "complete", lambda *_, **__: [completion_of(f"Answer {next(count)} – √.")])
    return make_chat(str(checkpoint_folder))


def turns_of(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts)]


def test_a_conversation_is_saved_and_loaded(talk, checkpoint_folder, tmp_path, capsys):
    """Guards /save and /load: the same turns come back, and the model then sees them; training reads the file."""
    path = tmp_path / "my talk.jsonl"
    with pytest.raises(ValueError, match="there is no conversation yet"):
        talk.obey(["save", str(path)])
    talk.answer("One\nquestion?")
    talk.obey(["save", *str(path).split(" ")])
    talk.answer("Another?")
    talk.obey(["save", *str(path).split(" ")])  # it holds the beginning of this conversation
    expected = turns_of("One\nquestion?", "Answer 1 – √.", "Another?", "Answer 2 – √.")
    assert json.loads(path.read_text())["messages"] == expected

    other = make_chat(str(checkpoint_folder))
    capsys.readouterr()
    other.obey(["load", *str(path).split(" ")])
    assert "> Another?\nAnswer 2 – √." in capsys.readouterr().out
    assert other.turns == expected
    other.answer("Third?")
    assert other.turns[:4] == expected and len(other.turns) == 6
    prompt, answer = load_examples(str(path), other.loaded).get(0)
    assert "One\nquestion?" in other.loaded.tokenizer.decode(prompt)
    assert "Answer 2" in other.loaded.tokenizer.decode(answer)


def test_nothing_is_overwritten_unasked(talk, tmp_path):
    """Guards other conversations, other files and the conversation that is going on."""
    path = tmp_path / "talk.jsonl"
    talk.answer("One?")
    talk.obey(["save", str(path)])
    kept = path.read_bytes()
    talk.obey(["reset"])
    talk.answer("Two?")
    with pytest.raises(ValueError, match="which exists; --replace behind its name replaces it"):
        talk.obey(["save", str(path)])
    with pytest.raises(ValueError, match="is in no file: /save FILE or /reset before /load"):
        talk.obey(["load", str(path)])
    assert path.read_bytes() == kept and talk.turns[0]["content"] == "Two?"
    talk.obey(["save", str(path), "--replace"])
    assert talk.turns == json.loads(path.read_text())["messages"]

    data = tmp_path / "data.jsonl"
    data.write_bytes(kept * 2)  # training data of two conversations
    for words in (["save", str(data), "--replace"], ["trace", str(path), "--replace"]):
        with pytest.raises(ValueError, match="existing file that is not a"):
            talk.obey(words)
    assert data.read_bytes() == kept * 2


@pytest.mark.parametrize("content, message", [
    (None, "cannot be read: No such file"), ("", "is not JSON"), ("{}", "it has no messages"),
    ('{"messages": []}', "must be a list of at least one entry"), ("[1]", "must be an object"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "each with an assistant's answer"),
    ('{"messages": [{"role": "system", "content": "a"}]}', "each with an assistant's answer"),
    ('{"messages": [{"role": "cook", "content": "a"}]}', "messages[0].role is 'cook'; it must be system, user or"),
    ('{"messages": [{"role": "user", "content": 1}]}', "messages[0].content is 1; it must be text"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ("[" * 10**5, "is nested deeper"), ('{"messages": NaN}', "out of range"),
], ids=lambda value: str(value)[:30])
def test_what_is_no_conversation_is_not_loaded(talk, tmp_path, content, message):
    """Guards the conversation against any file: one sentence, and nothing has changed."""
    path = tmp_path / "talk.jsonl"
    if content is not None:
        path.write_text(content)
    talk.turns = talk.kept = turns_of("a", "b")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        talk.obey(["load", str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert talk.turns == turns_of("a", "b")


def test_the_trace_of_the_last_answer(checkpoint_folder, tmp_path, capsys):
    """Guards /trace: the file is what `generate --trace` writes, in a pipe as well, and is not replaced unasked."""
    talk = make_chat(str(checkpoint_folder), gen_length=32, block_length=16)
    path = tmp_path / "answer.jsonl"
    with pytest.raises(ValueError, match="there is no answer yet"):
        talk.obey(["trace", str(path)])
    talk.answer("How many?")
    talk.obey(["trace", str(path)])
    trace = read_trace(path)
    assert trace.head["prompt"] == "How many?" and trace.tail["answer"] == talk.turns[-1]["content"]
    assert len(trace.forwards) == 32
    with pytest.raises(ValueError, match="which exists; --replace"):
        talk.obey(["trace", str(path)])
    with pytest.raises(ValueError, match="must end in .jsonl"):
        talk.obey(["trace", str(tmp_path / "answer.txt")])
    with pytest.raises(ValueError, match="takes the name of a file"):
        talk.obey(["trace"])


def test_an_answer_that_does_not_fit_leaves_the_conversation(talk, monkeypatch):
    """Guards what was said so far against too little memory, and says how a long conversation goes on."""
    talk.answer("One?")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(completion, "complete", fail)
    with pytest.raises(ValueError, match="not enough memory for an answer of 256 tokens"):
        talk.answer("Two?")
    talk.change(["gen_length", "1024"])
    with pytest.raises(ValueError, match="/reset forgets the conversation"):
        talk.answer("Three?")
    assert talk.turns == turns_of("One?", "Answer 1 – √.")


# --- The history ------------------------------------------------------------------------------------------------------


def test_the_history_is_private_and_shared(tmp_path, monkeypatch):
    """Guards its place, its permissions, and that chats at the same time lose nothing of each other."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("DPAD_CHAT_HISTORY", raising=False)
    assert KeptLines.find().read() == []
    path = tmp_path / "state" / "dpad" / "chat_history"
    path.chmod(0o644)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: KeptLines.find().add(f"line {number}\n" + "é" * 2000), range(50)))
    lines = KeptLines.find().read()
    assert sorted(int(line.split()[1]) for line in lines) == [*range(50)]
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("value", ["off", "OFF", "0", "no"])
def test_the_history_can_be_off(tmp_path, monkeypatch, value):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("DPAD_CHAT_HISTORY", value)
    KeptLines.find().add("a secret")
    assert KeptLines.find().read() == [] and not [*tmp_path.iterdir()]
    monkeypatch.setenv("DPAD_CHAT_HISTORY", "offf")
    with pytest.raises(ValueError, match="DPAD_CHAT_HISTORY is 'offf'; it must be on or off"):
        KeptLines.find()


def test_the_history_survives_any_file(tmp_path):
    """Guards against damaged lines, a long file, lines that are none, and places where there can be no file."""
    path = tmp_path / "history"
    path.write_bytes(b'"one"\n\xff\n[1]\n{\n"\\ud800"\n' + b"[" * 5000 + b'\n"two"\n"cut')
    kept = KeptLines(path)
    assert kept.read() == ["one", "two"]
    kept.add("half \udce9 a character")
    kept.add("x" * 10**5)
    kept.add("three")
    assert kept.read() == ["one", "two", "three"]

    path.write_text("".join(f'"{number} {"x" * 100}"\n' for number in range(20_000)))
    numbers = [int(line.split()[0]) for line in kept.read()]
    assert numbers == [*range(numbers[0], 20_000)] and 1000 < len(numbers) < 10_000
    assert path.stat().st_size <= 2**19 and len(kept.read()) == len(numbers)

    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", tmp_path, path / "below"):
        KeptLines(place).add("line")
        assert KeptLines(place).read() == []


# --- On a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal with a chat in it."""

    def __init__(self, command, state, **variables):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
            for name in ("NO_COLOR", "DPAD_CHAT_HISTORY", "INPUTRC"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm", "XDG_STATE_HOME": str(state), "PYTHONPATH": str(ROOT)} | variables)
            os.execv(command[0], command)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.shown = ""
        self.seen = 0  # characters of it

    def type(self, text):
        os.write(self.file, text.encode(errors="surrogateescape"))

    def wait(self, pattern, seconds=60):
        """Read until the pattern has appeared behind what the last wait found; everything up to its end."""
        assert self.has(pattern, seconds), f"{pattern!r} did not appear in {self.shown[self.seen :]!r}"
        start, self.seen = self.seen, self.found
        return self.shown[start : self.seen]

    def has(self, pattern, seconds):
        """Whether the pattern appears there within a time."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(f"(?s){pattern}", self.shown[self.seen :])):
            if time.monotonic() > deadline:
                return False
            if select.select([self.file], [], [], 0.2)[0]:
                try:
                    self.shown += self.decoder.decode(os.read(self.file, 65536))
                except OSError:
                    break
        self.found = self.seen + found.end() if found else len(self.shown)
        return found is not None

    def end(self):
        """The exit status."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.file)
                return os.waitstatus_to_exitcode(status)
            if select.select([self.file], [], [], 0.1)[0]:
                try:
                    os.read(self.file, 65536)
                except OSError:
                    pass
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the chat did not end")


EDITOR = """
import sys, time
from dpad.engine.command_line import use_utf8
from dpad.interact import line_editor
from dpad.interact.line_editor import Suggestion, open_lines

def suggest(text):
    return ("/se", [Suggestion("/settings", "help")]) if text == "/se" else ("", [])

use_utf8()
with open_lines(suggest, colour=False) as lines:
    print(type(lines).__name__, lines.note)
    while True:
        try:
            line = lines.read()
            print("got", ascii(line), flush=True)
            if line.startswith("away"):  # until so many bytes have been typed
                with lines.away():
                    print("away", flush=True)
                    while line_editor._waiting(0) < int(line.split()[1]):
                        time.sleep(0.01)
                print("back", flush=True)
        except EOFError:
            break
        except KeyboardInterrupt:
            print("interrupted", flush=True)
print("ended")
"""
UP, LEFT, HOME = "\x1b[A", "\x1b[D", "\x1b[H"
EDITORS = ["ToolkitLines", "ReadlineLines"]


def editor(tmp_path, kind="ToolkitLines", **variables):
    """A terminal in which every line is shown as `got` it; readline's needs a Python without prompt_toolkit."""
    if kind == "ReadlineLines":
        pytest.importorskip("readline")
        (tmp_path / "prompt_toolkit.py").write_text("raise ImportError")
        variables |= {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    lines = Terminal([sys.executable, "-c", EDITOR], tmp_path, **variables)
    shown = lines.wait(r"Lines[^\n]*\n")
    assert f"{kind} " in shown
    assert ("prompt_toolkit is not installed" in shown) == (kind == "ReadlineLines")
    lines.wait(">")
    return lines


def got(lines, typed):
    """What a line becomes that is typed when the prompt is there."""
    lines.type(typed)
    line = ast.literal_eval(re.search(r"got ('.*'|\".*\")\r?\n", lines.wait(r"got [^\n]*\n")).group(1))
    if not line.startswith("away"):
        lines.wait(">")
    return line


def interrupt(lines):
    """Ctrl-C until it is seen: Python's own input() may miss one in the moment in which it begins to wait."""
    for _ in range(20):
        lines.type("\x03")
        if lines.has("interrupted.*>", seconds=3):
            return
    raise AssertionError("Ctrl-C was not seen")


@pytest.mark.parametrize("kind", EDITORS)
def test_keys_edit_a_line(tmp_path, kind):
    """Guards arrows, Tab, words of other scripts, and that nothing is coloured where nothing may be."""
    lines = editor(tmp_path, kind)
    assert got(lines, f"wrld{LEFT * 3}o{HOME}hello \r") == "hello world"
    lines.type("/se")
    lines.wait("help" if kind == "ToolkitLines" else "/se")  # the menu is there
    lines.type("\t")
    lines.wait("ttings")
    assert got(lines, " threshold 0.9\r").split() == ["/settings", "threshold", "0.9"]
    assert got(lines, "Grüße, 世界 👩‍🚀x\x7f\r").strip() == "Grüße, 世界 👩‍🚀"
    assert got(lines, "one\n") == "one"
    assert not re.search(r"\x1b\[[\d;]*[34]\d", lines.shown.replace("\x1b[?", ""))
    lines.type("\x04")
    lines.wait("ended")
    assert lines.end() == 0


@pytest.mark.parametrize("kind", EDITORS)
def test_a_paste_is_one_line(tmp_path, kind):
    """Guards pastes of several lines, whatever ends them, which stay together until Enter."""
    lines = editor(tmp_path, kind)
    assert got(lines, "\x1b[200~first\rsecond\rthird\x1b[201~ end\r") == "first\nsecond\nthird end"
    assert got(lines, "next\r") == "next"
    if kind == "ToolkitLines":
        assert got(lines, "\x1b[200~first\r\n\tsecond\n\n\x1b[201~\r") == "first\n\tsecond"
        assert got(lines, "first\x1b\rsecond\r") == "first\nsecond"  # Alt-Enter
        long = "\n".join(f"line {number} of a long text" for number in range(300))
        assert got(lines, f"\x1b[200~{long}\x1b[201~\r") == long
    lines.type("\x04")
    assert lines.end() == 0


@pytest.mark.parametrize("kind", EDITORS)
def test_the_history_is_there_in_the_next_session(tmp_path, kind):
    """Guards the arrows across sessions, whichever editor wrote the line; none are kept or shown where it is off."""
    for name in EDITORS:
        lines = editor(tmp_path, name)
        assert got(lines, f"from {name}\r") == f"from {name}"
        lines.type("\x04")
        assert lines.end() == 0
        (tmp_path / "prompt_toolkit.py").unlink(missing_ok=True)
    lines = editor(tmp_path, kind)
    assert got(lines, f"{UP}{UP}!\r") == "from ToolkitLines!"
    assert got(lines, f"{UP}{UP}\r") == "from ReadlineLines"
    lines.type("\x04")
    assert lines.end() == 0
    lines = editor(tmp_path, kind, DPAD_CHAT_HISTORY="off")
    assert got(lines, f"{UP}secret\r") == "secret"
    lines.type("\x04")
    assert lines.end() == 0
    kept = (tmp_path / "dpad" / "chat_history").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [
        "from ToolkitLines", "from ReadlineLines", "from ToolkitLines!", "from ReadlineLines"]


@pytest.mark.parametrize("kind", EDITORS)
def test_control_c_clears_the_line(tmp_path, kind):
    """Guards Ctrl-C at the prompt: what was typed is gone, the session is not; on an empty line it is reported."""
    lines = editor(tmp_path, kind)
    lines.type("to be forgotten")
    lines.wait("forgotten")
    if kind == "ToolkitLines":
        assert got(lines, "\x03kept\r") == "kept"
    interrupt(lines)
    assert got(lines, "on\r") == "on"
    lines.type("\x04")
    assert lines.end() == 0


@pytest.mark.parametrize("kind", EDITORS)
@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_typed_meanwhile_waits(tmp_path, kind, stopped):
    """Guards type-ahead: it is not drawn into what is on the screen, not lost, and not sent before a person says so."""
    lines = editor(tmp_path, kind)
    typed = "next quesx\x7ftion?\r"
    assert got(lines, f"away {1000 if stopped else len(typed)}\r")
    lines.wait("away\r\n")
    lines.type(typed + "\x03" * stopped)
    shown = lines.wait("next question[?]")
    before = "interrupted" if stopped else "back"
    assert re.search(rf"(?s)^[^\w]*{before}\r\n.*next question[?]", shown) and "got" not in shown
    assert got(lines, " Yes?\r") == "next question? Yes?"
    lines.type("\x04")
    assert lines.end() == 0


def test_lines_that_are_typed_meanwhile_are_one(tmp_path):
    """Guards against commands that run because Enter was pressed too early, Ctrl-D, and pastes that were split."""
    lines = editor(tmp_path)
    typed = "/reset\rsecond\r\r\x04x \x1b[200~pasted\r/quit"
    assert got(lines, f"away {len(typed)}\r")
    lines.wait("away\r\n")
    lines.type(typed)
    lines.wait("back")
    assert got(lines, "\rmore\x1b[201~\r") == "/reset\nsecond\n\nx pasted\n/quit\nmore"
    lines.type("\x04")
    assert lines.end() == 0


def test_a_plain_terminal(tmp_path):
    """Guards terminals that cannot be redrawn: lines as they are, without escape sequences."""
    lines = Terminal([sys.executable, "-c", EDITOR], tmp_path, TERM="dumb")
    lines.wait(r"Lines \r\n> ")
    assert got(lines, "line\n") == "line"
    lines.type("forgotten")
    interrupt(lines)
    assert got(lines, "kept\n") == "kept"
    assert "\x1b" not in lines.shown
    lines.type("\x04")
    assert lines.end() == 0


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.slow
def test_on_a_terminal(plain, tmp_path):
    """A person asks, sees drafts with masks, reads the cost, stops an answer with Ctrl-C while the next question is
    typed, and ends with Ctrl-D."""
    slow = ["-th", "0", "-l", "256"]
    talk = Terminal(line("tiny", *slow), tmp_path, **({"NO_COLOR": "1"} if plain else {}))
    talk.wait("lists the commands")
    os.write(talk.file, b"caf\xe9?\n/settings \xff 1\n")  # another encoding: refused, and the conversation goes on
    talk.wait(r"is not UTF-8 text.*is not UTF-8 text")
    talk.type("/settings -l 64 window 64\n")
    talk.wait(r"gen_length +64.*window +64.*>")
    talk.type(QUESTION + "\n")
    shown = talk.wait(r"tokens/s · [\d.]+ s\]")
    assert "░" in shown and "####" in shown
    assert (re.search(r"\x1b\[(2|3\d)m", shown) is None) == plain
    talk.type("/settings gen_length 1024 early_termination off\n")
    talk.wait(r"early_termination +off.*>")
    talk.type(QUESTION + "\n")
    talk.wait("░")
    talk.type("And then?\r\x03")
    talk.wait("Stopped; the question is forgotten.*>.*And then[?]")
    talk.type("\x03\x03")
    talk.wait("Ctrl-D ends the chat")
    talk.type("\x04")
    assert talk.end() == 0
