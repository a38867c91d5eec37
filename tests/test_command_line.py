"""What the command lines share: one line for every mistake, suggestions, text in any encoding, a sign while loading.

    bash tests/run.sh tests/test_command_line.py
"""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

import run
from dpad.engine import command_line, hub
from dpad.engine.checks import check_text, suggest

QUESTION = "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"


def said(capsys, arguments: list[str], status: int = 2) -> str:
    """The one line that a command line ends with."""
    try:
        code = run.main(arguments)
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    assert code == status and shown.out == "" and shown.err.count("\n") == 1, shown
    return shown.err


# --- Words that mean nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, suggestion", [
    (["-m", "tny"], "'tiny'"), (["-m", "drem-tiny"], "'dream-tiny'"), (["-m", "Tiny"], "'tiny'"),
    (["-m", "tiny", "-t", "arithmetic50"], "'arithmetic-50'"), (["-m", "tiny", "-d", "gausian"], "'gaussian'"),
    (["--cahce", "prefix"], "'--cache'"), (["--threshhold=0.9"], "'--threshold'"), (["-name", "x"], "'--name'"),
    (["-nt8"], "'-nt 8'"), (["-th0.9"], "'-th 0.9'"), (["-sc1.6"], "'-sc 1.6'"), (["generat"], "'generate'"),
    (["caht"], "'chat'"), (["-m", "tiny", "--cache", "prefx"], "'prefix'"), (["--chat_template", "of"], "'off'"),
    (["-m", "tiny", "--device", "cdua"], "'cuda'"), (["-m", "tiny", "--dtype", "bfloat"], "'bfloat16'"),
    (["-m", "tiny", "--remasking", "low-confidence"], "'low_confidence'"), (["bench", "--rows", "figur"], "'figure'"),
])
def test_a_typo_gets_a_suggestion(capsys, arguments, suggestion):
    """Guards every word that a person types: what is close to one that exists is named."""
    assert f"did you mean {suggestion}" in said(capsys, arguments)


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_suggestions_are_among_the_choices(word, choices):
    """Guards `suggest`: nothing, or a choice, whatever was typed."""
    hint = suggest(word, choices)
    assert hint == "" or any(hint == f"; did you mean {choice!r}?" for choice in choices)


def test_help_says_which_caches_go_together():
    """Guards against -c beside -dc looking like one of two flags that is ignored."""
    assert "short for --cache dual, with or without -c" in " ".join(run.parser_of("chat").format_help().split())


@pytest.mark.parametrize("arguments, message", [
    (["generate", "-m", "tiny", "--prompt", "a", "--prompt", "b"], "argument --prompt: given twice"),
    (["-th", "0.9", "-th", "0.5"], "argument -th/--threshold: given twice"),
    (["-m", "tiny", "--model", "1.5"], "argument -m/--model: given twice"),
    (["-s", "4", "-s", "0"], "argument -s/--num_fewshot: given twice"),
    (["-c", "--cache", "none"], "argument --cache: given beside --use_cache"),
    (["--cache", "none", "-dc"], "argument -dc/--dual_cache: given beside --cache"),
    (["table", "a.json", "--format", "csv", "--format", "csv"], "argument --format: given twice"),
])
def test_a_flag_with_one_value_is_given_once(capsys, arguments, message):
    """Guards against the first of two values being dropped in silence."""
    assert message in said(capsys, arguments)


def test_values_that_look_like_flags_are_left_alone():
    """Guards negative numbers, prompts that begin with a dash and short flags with their value attached."""
    args = run.parser_of("generate").parse_args(["-mtiny", "-l64", "--prompt", "-th is a flag", "--top_k", "-1"])
    assert (args.model, args.gen_length, args.prompt, args.top_k) == ("tiny", 64, "-th is a flag", -1)
    assert run.parser_of("evaluate").parse_args(["-e", "-e", "-c", "-dc", "-c"]).cache == "dual"


def test_a_parser_can_parse_again():
    """Guards what is remembered of one command line: it does not count for the next."""
    parser = run.parser_of("generate")
    assert [parser.parse_args(["--prompt", word]).prompt for word in "ab"] == ["a", "b"]


# --- Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    ["generate", "-m", "tiny", "--prompt"], ["-n"], ["-t"], ["-m"], ["--output"], ["table"],
])
def test_words_that_are_not_utf8_are_one_line(capsys, arguments):
    """Guards every text on the command line against bytes of another encoding."""
    line = said(capsys, [*arguments, os.fsdecode(b"caf\xe9")])
    assert "is not UTF-8 text" in line and (arguments[-1] if arguments[-1][0] == "-" else "an argument") in line


@pytest.mark.parametrize("text", ["\udce9", "a\ud800b"])
def test_lone_surrogates_are_no_text(text):
    """Guards prompts that JSON or a terminal let through, which a tokenizer refuses with a TypeError."""
    with pytest.raises(ValueError, match="^prompt is not UTF-8 text$"):
        check_text("prompt", text)
    check_text("prompt", "Grüße, 東京 🎉\x00")


def test_what_programs_say_cannot_steer_a_terminal(capsys):
    """Guards terminals, and people's time, against names and values from files and flags in a program's errors."""
    command_line.say("x.py", ValueError("one\x1b[2J\ntwo\x07\u202e" + "z" * 10**6))
    error = capsys.readouterr().err
    assert error.startswith(r"x.py: one\x1b[2J two\x07\u202ezzz") and error.endswith("z...\n") and len(error) < 5000
    assert r"\x1b]0;title\x07" in said(capsys, ["--\x1b]0;title\x07"])


def start(*arguments: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], input=stdin, capture_output=True, timeout=120, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
                                       {"PYTHONIOENCODING": "latin-1"}], ids=lambda value: next(iter(value)))
def test_a_poor_terminal_shows_what_it_can(variables, tmp_path):
    """Guards answers, notes and JSON against terminals without their characters, and UTF-8 questions from a pipe."""
    asked = "¿Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?".encode()
    done = start("run.py", "generate", "-m", "tiny", "-th", "0.9", stdin=asked, **variables)
    assert done.returncode == 0 and b"tokens/s" in done.stdout, done.stderr
    done = start("run.py", "chat", "-m", "tiny", "-th", "0.9", stdin=b"\xff\xfe?\n" + QUESTION.encode(), **variables)
    assert done.returncode == 0 and done.stdout.count(b"is not UTF-8 text") == 1 and b"#### 38" in done.stdout
    assert done.stderr == b""


@pytest.mark.slow
def test_json_stays_json_on_a_poor_terminal():
    """Guards data in a pipe: characters are escaped there, not replaced."""
    done = start("run.py", "generate", "-m", "tiny", "-th", "0.9", "--json", stdin="½ of 8?".encode(),
                 PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["prompt"] == "½ of 8?", done.stderr


@pytest.mark.parametrize("content, message", [
    (b"fine\ncaf\xe9\n", "standard input: the prompt is not UTF-8 text"), (b"", "standard input: the prompt is empty"),
])
def test_standard_input_that_is_no_text_is_one_line(capsys, monkeypatch, content, message):
    """Guards a prompt from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert message in said(capsys, ["generate", "-m", "tiny"])


def test_surrogates_in_json_prompts_are_one_line(capsys, tmp_path):
    """Guards prompt files: JSON can spell what no text may hold."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "\\ud800"}\n')
    line = said(capsys, ["generate", "-m", "tiny", "--prompt_file", str(tmp_path / "p.jsonl")])
    assert "p.jsonl, line 2 holds half of a surrogate pair, which is no text" in line


# --- Waiting ----------------------------------------------------------------------------------------------------------


def on_a_terminal(code: str) -> str:
    """What a program shows on a terminal's standard error."""
    terminal, other = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", code], stderr=other, cwd=ROOT, env=os.environ | {"TERM": "xterm"})
    os.close(other)
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(terminal)
    assert done.wait(30) == 0
    return shown.decode()


WAIT = "import time\nfrom dpad.engine import command_line as c\nc.PATIENCE = 0.05\n" \
       "with c.waiting_for('the model'):\n    time.sleep({})"


def test_waiting_is_explained_on_a_terminal():
    """Guards the silence of a start that takes seconds: one line, which disappears; none for what is quick."""
    assert on_a_terminal(WAIT.format(0.5)) == "loading the model ...\r\x1b[K"
    assert on_a_terminal(WAIT.format(0)) == ""


def test_a_pipe_is_told_nothing(capsys, monkeypatch):
    """Guards logs and scripts against transient lines."""
    monkeypatch.setattr(command_line, "PATIENCE", 0.0)
    with command_line.waiting_for("the model"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ["generate", "-m", "tiny", "-th", "0.9", "-l", "32", "--prompt", QUESTION], ["chat", "-m", "tiny"],
    ["-t", "arithmetic-50", "-m", "tiny", "-th", "0.9", "-l", "32", "--limit", "1"],
])
def test_a_start_says_what_it_loads(arguments, tmp_path):
    """Guards a person's first seconds with the commands that load a model."""
    words = arguments + (["--output", str(tmp_path)] if "-t" in arguments else [])
    code = f"import sys, io\nsys.stdin = io.StringIO()\nfrom dpad.engine import command_line\n" \
           f"command_line.PATIENCE = 0.01\nimport run\nsys.stdout = io.StringIO()\nsys.exit(run.main({words!r}))"
    shown = on_a_terminal(code)
    assert "loading torch and transformers ...\r\x1b[K" in shown
    assert shown.count("loading ") <= shown.count("\r\x1b[K")


@pytest.mark.parametrize("command", ["table", "trace"])
def test_showing_results_needs_no_torch(command, tmp_path):
    """Guards commands that only read files from waiting for torch and transformers."""
    (tmp_path / "empty.json").write_text("{}")
    code = "import sys, run\nstatus = run.main(sys.argv[1:])\n" \
           "assert status == 2 and not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    done = start("-c", code, command, str(tmp_path / "empty.json"), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


# --- The hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_out_of_reach_is_noticed_at_once(variables):
    """Guards the question that decides: it ends in seconds, and only then the libraries are told to stay offline."""
    code = "import time, datasets\nfrom huggingface_hub import constants\nfrom dpad.engine import hub\n" \
           "before, start = constants.HF_HUB_OFFLINE, time.monotonic()\nassert not hub.is_reachable()\n" \
           "assert time.monotonic() - start < hub.MAX_WAIT + 1\n" \
           "with hub.offline_if_unreachable():\n" \
           "    assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE\n" \
           "assert constants.HF_HUB_OFFLINE == before"
    done = start("-c", code, PYTHONPATH=str(ROOT), **variables)
    assert done.returncode == 0, done.stderr


def test_a_hub_that_answers_is_used(monkeypatch):
    """Guards the libraries' settings where the hub is there."""
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    before = constants.HF_HUB_OFFLINE
    with hub.offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE is before
