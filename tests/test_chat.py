"""`run.py chat`: through a pipe, and through a pseudo-terminal as a person would use it, with and without colour.

    bash tests/run.sh tests/test_chat.py
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
from helpers import ROOT, completion_of, with_flags

from dpad.engine import completion, loading
from dpad.engine.fields import setting
from dpad.interact import chat
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
    assert values["block_size"] == "32" and values["window"] == "256"
    assert values["scale"] == "–" and values["steps"] == "none"
    assert values["cache"] == "none" and values["early_termination"] == "off" and values["history"] == "on"


@pytest.mark.parametrize("name", ["num_tokens", "number", "-nt", "--num_tokens"])
def test_settings_have_the_names_of_flags_and_keywords(checkpoint_folder, name):
    talk = make_chat(str(checkpoint_folder))
    talk.change(["-d", "uniform", name, "12"])
    assert talk.settings.suffix_sampler == UniformSampler(256, 12)


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


class Terminal:
    """A pseudo-terminal with a chat in it."""

    def __init__(self, command, **variables):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
            os.environ.pop("NO_COLOR", None)
            os.environ.update({"TERM": "xterm"} | variables)
            os.execv(command[0], command)
        self.shown = ""

    def type(self, text):
        os.write(self.file, text.encode())

    def wait(self, pattern, seconds=120):
        """Read until the pattern has appeared since the last wait; what came with it."""
        deadline, start = time.monotonic() + seconds, len(self.shown)
        while not (found := re.search(pattern, self.shown[start:])):
            assert time.monotonic() < deadline, f"{pattern!r} did not appear in {self.shown[start:]!r}"
            if select.select([self.file], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.file, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.shown[start:] if found else ""

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


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.slow
def test_on_a_terminal(plain):
    """A person asks, sees drafts with masks, reads the cost, stops an answer with Ctrl-C, and ends with Ctrl-D."""
    slow = ["-th", "0", "-l", "256"]
    talk = Terminal(line("tiny", *slow), **({"NO_COLOR": "1"} if plain else {}))
    talk.wait("lists the commands")
    os.write(talk.file, b"caf\xe9?\n/settings \xff 1\n")  # another encoding: refused, and the conversation goes on
    talk.wait(r"(?s)is not UTF-8 text.*is not UTF-8 text")
    talk.type("/settings gen_length 64 window 64\n")
    talk.wait(r"history +off")
    talk.type(QUESTION + "\n")
    shown = talk.wait(r"tokens/s · [\d.]+ s\]")
    assert "░" in shown and "####" in shown
    assert (re.search(r"\x1b\[\d+m", shown) is None) == plain
    talk.type("/settings gen_length 1024 early_termination off\n")
    talk.wait(r"history +off")
    talk.type(QUESTION + "\n")
    talk.wait("░")
    talk.type("\x03")
    talk.wait("Stopped; the question is forgotten")
    talk.type("\x04")
    assert talk.end() == 0
