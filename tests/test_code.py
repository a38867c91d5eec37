"""Code from a model: what cleaning keeps, and what scoring counts.

    python -m pytest tests/test_code.py
"""

import json
import subprocess
import sys

import pytest

import postprocess_code as code
from dpad import ROOT
from dpad.evaluation import sandbox

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


def test_mbpp_starts_from_what_its_tests_call():
    """Guards MBPP: no entry point is named; every definition that the tests use is one."""
    text = "helper = 0\ndef double(x):\n    return 2 * x\ndef other():\n    pass\n"
    cleaned = code.clean(text, DOUBLE)
    assert "other" not in cleaned and sandbox.run_program(code.program(cleaned, DOUBLE)) == "passed"


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
