"""Code from a model: what cleaning keeps, what scoring counts, and that hostile programs fail and harm nothing.

    bash tests/run.sh tests/test_code.py
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import postprocess_code as code
from dpad.engine import loading
from dpad.evaluation import harness, sandbox

ADD = {
    "task_id": "T/0", "entry_point": "add",
    "prompt": 'from typing import List\n\ndef add(a: int, b: int) -> int:\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
DOUBLE = {"task_id": 7, "test_list": ["assert double(2) == 4", "assert double(helper) == 0"]}


# --- Cleaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [
    "    return a + b\n",
    "```python\n    return a + b\n```\nThis adds the two.",
    "```python\ndef add(a, b):\n    return a + b\n```",
    "Sure! Here it is:\n\n```\ndef add(a, b):\n    return plus(a, b)\n\ndef plus(x, y):\n    return x + y\n```\nEnjoy",
    "    return a + b\n\nprint(add(1, 2))\nassert False\n",
    "    return a + b\n\ndef main():\n    while True: pass\n\nif __name__ == '__main__':\n    main()\n",
    "    return a + b\n\ndef another(x):\n    return (x +",
    "```python\ndef add(a, b):\n    return a + b",
    "    return a + b\n\nExplanation: we add the two numbers, don't we?",
])
def test_replies_that_contain_the_answer_pass_when_cleaned(reply):
    """Guards cleaning: fences, talk, helpers, scripts and cut-off endings do not hide a right function."""
    cleaned = code.clean(reply, ADD)
    assert sandbox.run_program(code.program(cleaned, ADD)) == "passed"
    assert "print" not in cleaned and "main" not in cleaned


@pytest.mark.parametrize("reply", [
    "", "    return a - b", "I cannot do that.", "```python\n```", "import os\nos._exit(0)",
])
def test_replies_without_the_answer_fail(reply):
    """Guards against passing what is not there."""
    assert sandbox.run_program(code.program(code.clean(reply, ADD), ADD)) == "failed"


def test_what_the_entry_point_reaches_is_kept():
    """Guards reachability: imports, constants, classes, decorators and chains stay, the rest goes, in order."""
    text = ("import math\nLIMIT = 3\nUNUSED = 4\n\n@staticmethod\ndef far(x):\n    return x * LIMIT\n\n"
            "class Box:\n    size = far(1)\n\ndef unused():\n    pass\n\ndef start(x):\n    return Box.size + x\n")
    kept = code.reached(text, {"start"})
    assert kept == ("import math\nLIMIT = 3\n@staticmethod\ndef far(x):\n    return x * LIMIT\n"
                    "class Box:\n    size = far(1)\ndef start(x):\n    return Box.size + x")


def test_mbpp_starts_from_what_its_tests_call():
    """Guards MBPP: no entry point is named; every definition that the tests use is one."""
    text = "helper = 0\ndef double(x):\n    return 2 * x\ndef other():\n    pass\n"
    cleaned = code.clean(text, DOUBLE)
    assert "other" not in cleaned and sandbox.run_program(code.program(cleaned, DOUBLE)) == "passed"


@given(st.text(max_size=200), st.sampled_from(["", "x = 1\n", "def f():\n    return 1\n"]))
def test_any_reply_can_be_cleaned(reply, start):
    """Guards against replies that make cleaning raise: what is left always parses."""
    assert code.parses(code.longest_code(start + reply))
    assert code.parses(code.clean(reply, ADD))


def test_longest_code_is_the_longest_run():
    """Guards the choice: more lines win, the first of equals, and a parsing prefix is not enough."""
    assert code.longest_code("a = 1\n)\nb = 2\nc = 3") == "b = 2\nc = 3"
    assert code.longest_code("a = 1\n)\nb = 2") == "a = 1"
    assert code.longest_code(")") == ""


# --- Isolation --------------------------------------------------------------------------------------------------------

FLOOD = "while True: print('x' * 10**6)"
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"


def test_an_honest_program_passes():
    """Guards the channel: the end of a program is a pass, an exception is not."""
    assert sandbox.run_program("import math, re\nassert math.sqrt(4) == 2\nprint('passed')") == "passed"
    assert sandbox.run_program("raise ValueError") == "failed"
    assert sandbox.run_program("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()") == "passed"


@pytest.mark.parametrize("program, outcome", [
    ("import sys\nsys.exit(0)\nassert False", "failed"),
    ("import os\nos._exit(0)\nassert False", "failed"),
    ("quit()", "failed"),
    ("while True: pass", "timed out"),
    ("import time\ntime.sleep(60)", "timed out"),
    (FLOOD, "timed out"),
    (BOMB, "timed out"),
    ("x = bytearray(4 * 2**30)", "failed"),
    ("x = []\nwhile True: x.append(bytearray(10**7))", "either"),  # a slow machine's time is up before its memory
    ("open('big', 'wb').write(bytes(10**8))", "failed"),
    ("import ctypes\nctypes.string_at(0)", "failed"),
    ("def f(): f()\nf()", "failed"),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", "either"),
    ("import os\nos.execv('/bin/true', ['true'])", "failed"),
    ("import subprocess\nsubprocess.run(['true'], check=True)", "failed"),
    ("import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
     "failed"),
    ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)", "failed"),
    ("\x00", "failed"),
], ids=lambda value: value.splitlines()[-1][:30] if len(value) > 9 else value)
def test_hostile_programs_end_as_failed(program, outcome):
    """Guards scoring: early exits, loops, bombs, floods and hogs do not pass, and end in time."""
    timeout = 2 if outcome == "timed out" else 20  # a busy machine needs long to start an interpreter
    started = time.monotonic()
    found = sandbox.run_program(program, timeout)
    assert found == outcome or (outcome == "either" and found != "passed")
    assert time.monotonic() - started < timeout + 10


def test_hostile_programs_harm_nothing(tmp_path):
    """Guards this machine: files stay, this process lives, no connection arrives, nothing is left running."""
    precious = tmp_path / "precious"
    precious.write_text("still here")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    port, parent = listener.getsockname()[1], os.getpid()
    attacks = [
        f"import os\nos.remove({str(precious)!r})", f"open({str(precious)!r}, 'w').close()",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})", f"import os\nos.rename({str(precious)!r}, 'mine')",
        f"import os\nos.truncate({str(precious)!r}, 0)", f"import os, signal\nos.kill({parent}, signal.SIGKILL)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
        f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\nos._exit(0)",
    ]
    for attack in attacks:
        assert sandbox.run_program(attack, timeout=20) == "failed", attack
    assert precious.read_text() == "still here"
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(file.read_bytes())
        except OSError:  # it has just ended
            continue
    assert any(b"pytest" in command for command in commands) and not any(b"--inside" in command for command in commands)


def test_environment_and_output_are_private(monkeypatch):
    """Guards secrets: a program sees no variable of this process and no argument with its pass line."""
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    program = "import os, sys\nassert 'SECRET_TOKEN' not in os.environ\nassert len(sys.argv) < 3"
    assert sandbox.run_program(program) == "passed"


def test_the_weakest_level_still_scores():
    """Guards machines that offer nothing around the interpreter: outcomes are the same, and the holes are named."""
    assert sandbox._run("pass", 20, "no wrapper") == "passed"
    assert sandbox._run("import sys; sys.exit(0)", 20, "no wrapper") == "failed"
    assert sandbox._run("while True: pass", 1, "no wrapper") == "timed out"
    bare = sandbox.Isolation("no wrapper", no_writing=False, no_network=True, no_signals=True, no_processes=False)
    assert bare.holes() == ["write files outside its folder", "start processes"]
    assert "COULD write files outside its folder, start processes" in bare.describe()


# --- Tasks ------------------------------------------------------------------------------------------------------------


def own_problems():
    return [json.loads(line) for line in (ROOT / "dataset" / "programs.jsonl").read_text().splitlines()]


def test_our_own_problems_can_be_solved():
    """Guards dataset/programs.jsonl: its solutions pass in both forms, and a wrong one does not."""
    problems = own_problems()
    assert len(problems) == len({problem["entry_point"] for problem in problems}) == 12
    for problem in problems:
        as_mbpp = {"task_id": problem["task_id"], "test_list": problem["test_list"]}
        for reply, form, outcome in ((problem["canonical_solution"], problem, "passed"),
                                     (problem["code"], as_mbpp, "passed"), ("    return 'no'", problem, "failed")):
            assert sandbox.run_program(code.program(code.clean(reply, form), form)) == outcome


@pytest.mark.parametrize("task, prompt", [
    ("humaneval-local", "def shared_letters"), ("mbpp-local", "[BEGIN]\ndef shared_letters"),
])
def test_tasks_score_a_model(checkpoint_folder, tmp_path, monkeypatch, task, prompt):
    """Guards the tasks end to end: prompts, few-shot examples, both scores, and samples that score the same again."""
    loaded = loading.load(str(checkpoint_folder))
    solutions = {problem["entry_point"]: problem for problem in own_problems()}

    def solve(lm, batch):
        """Every other answer is right, and one of those only once it is cleaned."""
        answers = []
        for request in batch:
            name = next(name for name in solutions if name in request.prompt.split("task:")[-1])
            body = solutions[name]["canonical_solution" if task == "humaneval-local" else "code"]
            text = ["    return 0", body, f"```python\n{body}```"][request.doc_id % 3]
            answers.append({"key": request.key, "task": request.task, "doc_id": request.doc_id, "repeat": 0,
                            "raw": text, "answer": text, "forwards": 1, "tokens": 1, "seconds": 1.0,
                            "tokens_processed": 1})
        return answers

    monkeypatch.setattr(harness.DiffusionLM, "_answer", solve)
    shots = 1 if task == "mbpp-local" else 0
    record = harness.evaluate(loaded, task, num_fewshot=shots, limit=6, output=tmp_path, progress=False, batch_size=6,
                              chat_template=False, gen_length=32)
    assert record["metrics"]["pass@1"]["value"] == pytest.approx(4 / 6)
    assert record["metrics"]["pass@1_raw"]["value"] == pytest.approx(2 / 6)
    samples = tmp_path / record["folder"] / "samples.jsonl"
    assert prompt in json.loads(samples.read_text().splitlines()[0])["prompt"]
    again = code.score(code.read_samples(samples))
    assert again["cleaned"]["value"] == pytest.approx(4 / 6) and again["raw"]["value"] == pytest.approx(2 / 6)


# --- Scoring ----------------------------------------------------------------------------------------------------------


def test_scores_are_means_over_problems():
    """Guards pass@1: several samples of a problem share its weight."""
    found = code.pass_at_1(["a", "a", "b"], [True, False, True])
    assert found["value"] == 0.75 and found["stderr"] == pytest.approx(0.25)
    assert code.pass_at_1(["a"], [True]) == {"value": 1.0, "stderr": None}


def test_command_line(tmp_path, capsys):
    """Guards the command: raw and cleaned side by side, and the file with what was run."""
    lines = [
        {"doc": ADD, "answer": "    return a + b\n"},
        {"doc": ADD | {"task_id": "T/1"}, "answer": "```python\ndef add(a, b):\n    return a + b\n```"},
        {"doc": ADD | {"task_id": "T/2"}, "resps": [["    return 0"]]},
        # In a string, U+2028 ends neither a line of the file nor one of the program.
        {"doc": DOUBLE, "answer": "helper = 0\nother = '\u2028'\ndef double(x): return x + x\n"},
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    assert code.main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert "pass@1 raw       50.0%" in shown and "pass@1 cleaned   75.0%" in shown and "isolation: " in shown
    written = [json.loads(line) for line in (tmp_path / "samples.jsonl.cleaned").read_text().split("\n")[:-1]]
    passed = {line["task_id"]: line["pass"] for line in written}
    assert passed == {"T/0": True, "T/1": True, "T/2": False, 7: True}
    assert "```" not in written[1]["completion"]


@pytest.mark.parametrize("content, message", [
    ("", "holds no samples"), ("{}\n", "line 1: not a sample of a coding task"), ("3\n", "line 1: not a sample"),
    ('{"doc": {"task_id": 1, "test_list": []}, "answer": 3}', "line 1: not a sample"),
    (None, "cannot be read"),
])
def test_bad_files_end_in_one_line(tmp_path, capsys, content, message):
    """Guards people: what is wrong, where."""
    file = tmp_path / "samples.jsonl"
    if content is not None:
        file.write_text(content)
    assert code.main([str(file)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("postprocess_code.py: ") and message in shown and shown.count("\n") == 1


def test_no_torch_is_needed():
    """Guards scoring on a machine without a GPU stack."""
    program = "import sys, postprocess_code; sys.exit(bool({'torch', 'transformers', 'lm_eval'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
