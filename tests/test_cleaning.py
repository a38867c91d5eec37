"""Cleaning a model's replies: the answer is found wherever it stands, with all that it needs, in bounded time.

python -m pytest tests/test_cleaning.py
"""

import json
import subprocess
import sys
import time

import pytest
from helpers import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

import postprocess_code as code
from dpad.evaluation import code_cleaning
from dpad.evaluation.code_cleaning import clean, parses

# Each program runs in a child of one bare interpreter: quick, and harmless to this process.
RUNNER = """
import json, os, sys
for program in json.load(sys.stdin):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        try:
            exec(compile(program, "<program>", "exec"), sys.modules["__main__"].__dict__)
        except BaseException:
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def outcomes(programs):
    """Whether each of these harmless programs runs to its end."""
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUNNER],
        input=json.dumps(programs),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    return [line == "0" for line in shown.split()]


def cleaned_outcomes(replies, problem):
    cleaned = [clean(reply, problem) for reply in replies]
    assert all(map(parses, cleaned))
    return dict(zip(replies, outcomes([code.program(text, problem) for text in cleaned])))


def assert_all_pass(replies, problem):
    failed = [reply for reply, passed in cleaned_outcomes(replies, problem).items() if not passed]
    assert not failed, "\n----\n".join([f"{len(failed)} fail once cleaned:", *failed, clean(failed[0], problem)])


ADD = {
    "task_id": "T/0",
    "entry_point": "add",
    "prompt": 'from typing import List\n\ndef add(a: int, b: int) -> int:\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
SQUARE = {"task_id": 1, "test_list": ["assert f(3) == 9", "assert f(2) == 4"]}
FENCE = "```"
BODY = "    return a + b\n"
WHOLE = "def add(a, b):\n    return a + b\n"
F = "def f(n):\n    return n * n\n"


# --- Where the answer stands ------------------------------------------------------------------------------------------


def test_fences_of_every_kind():
    """Guards fences: only closing, any label, attributes, line ends, indentation, tildes, nested, never closed."""
    openings = [
        "python",
        "python3",
        "PYTHON",
        "Python",
        "py",
        "py3",
        'python title="a.py"',
        "{.python}",
        "{.python .x}",
        "",
        " python ",
        "python\r",
        "ipython3",
        "pycon",
        "text",
        "c++",
    ]
    assert_all_pass(
        [
            *(f"{FENCE}{label}\n{WHOLE}{FENCE}" for label in openings),
            *(f"{FENCE}{label}\n{WHOLE}{FENCE}\nIt's done (as I said." for label in openings),
            *(f"Sure, here it's:\n\n{FENCE}{label}\n{BODY}{FENCE}" for label in openings),
            BODY + FENCE,
            BODY + FENCE + "\nThis adds the two.",
            WHOLE + FENCE + "\nThat's it.",
            WHOLE.rstrip() + FENCE,
            f"{FENCE}python\n{WHOLE}{FENCE}".replace("\n", "\r\n"),
            f"{FENCE}python\n{WHOLE}{FENCE}".replace("\n", "\r"),
            f"~~~python\n{WHOLE}~~~",
            f"~~~\n{WHOLE}~~~\nx",
            f"{FENCE}``python\n{WHOLE}{FENCE}``",
            f"{FENCE}markdown\n{FENCE}python\n{WHOLE}{FENCE}\n{FENCE}",
            f"{FENCE}python\n{WHOLE}",
            f"{FENCE}\n{BODY}",
            f"1. So:\n\n   {FENCE}python\n   def add(a, b):\n       return a + b\n   {FENCE}\n2. Done",
            f"1. {FENCE}python\n   def add(a, b):\n       return a + b\n   {FENCE}\n",
            f"    {FENCE}\n    return a + b\n    {FENCE}",
            f"> {FENCE}python\n> def add(a, b):\n>     return a + b\n> {FENCE}",
            f"{FENCE}def add(a, b): return a + b{FENCE}",
            f"def add(a, b):\n    '''\n    {FENCE}\n    add(1)\n    {FENCE}\n    '''\n    return a + b\n{FENCE}\nSo.",
            "Use `def add(a, b): return a + b`.",
            f"{FENCE}python\n\treturn a + b\n{FENCE}",
            f"{FENCE}\nreturn a + b\n{FENCE}",
        ],
        ADD,
    )


def test_several_blocks():
    """Guards the choice among blocks: the last one that gives the entry point a body, and what it lacks from others."""

    def blocks(*texts):
        return "\nThen:\n".join(text if text.startswith(FENCE) else f"{FENCE}python\n{text}{FENCE}" for text in texts)

    assert_all_pass(
        [
            blocks(f"{FENCE}bash\npip install x\nadd=1\n{FENCE}", WHOLE),
            blocks(f"{FENCE}\n3\n0\n{FENCE}", WHOLE),
            blocks(WHOLE, f"{FENCE}text\ndef add(a, b): return 0\n{FENCE}"),
            blocks('{"add": true}\n', WHOLE),
            blocks("print(add(1, 2))\nassert add(1, 2) == 4\n", WHOLE),
            blocks(">>> add(1, 2)\n3\n", WHOLE),
            blocks("def add(a, b):\n    # TODO\n    pass\n", WHOLE),
            blocks("def add(a, b):\n    return a - b\n", WHOLE),
            blocks(WHOLE, "def add(a, b):\n    ...\n"),
            blocks(WHOLE, "def add(a, b):\n    raise NotImplementedError()\n"),
            blocks(WHOLE, "from solution import add\nprint(add(1, 2))\n"),
            blocks(WHOLE, "import pytest\nassert add(1, 1) == 3\n"),
            blocks(WHOLE, "def add(a, b):\n    total = 0\n    for x in (a, b):\n        total +="),
            blocks("def plus(a, b):\n    return a + b\n", "def add(a, b):\n    return plus(a, b)\n"),
            blocks("def add(a, b):\n    return plus(a, b)\n", "def plus(a, b):\n    return a + b\n"),
            blocks(
                "def plus(a, b):\n    return a + b\ndef add(a, b):\n    return plus(a, b)\n",
                "def plus(a):\n    return 0\n",
            ),
            blocks("from operator import add as plus\n", "def add(a, b):\n    return plus(a, b)\n"),
            blocks(
                "def add(a, b):\n    return one(a, b)\n",
                "def one(a, b):\n    return two(a, b)\n",
                "def two(a, b):\n    return a + b\n",
            ),
            blocks("T = []\n", "T.append(0)\n", "def add(a, b):\n    return a + b + T[0]\n"),
            blocks(
                "T = [1]\ndef add(a, b):\n    return T[a]\n",
                "T = []\nT.append(0)\ndef add(a, b):\n    return a + b + T[0]\n",
            ),
        ],
        ADD,
    )


def test_prose_and_other_company():
    """Guards unfenced replies: long docstrings and talk do not win, stop marks and odd bytes do not hide the code."""
    long = 'def add(a, b):\n    """Adds.\n\n    First a.\n    Then b.\n    Really.\n    """\n    return a + b\n'
    assert_all_pass(
        [
            "Sure, here's the function. It doesn't do much (it adds):\n\n" + WHOLE + "\nI hope that this helps!",
            "The function below:\n\n" + long + "\nThat is all, isn't it?\n",
            '"""This is\na very long\nexplanation\nin quotes\nthat goes\non.\n"""\nHere is the code:\n'
            + WHOLE
            + "Enjoy it now.",
            "1. Code:\n    def add(a, b):\n        return a + b\n2. done",
            "- def add(a, b):\n      return a + b\n",
            "Here is the body:\n\n    return a + b\n",
            "Answer: def add(a, b): return a + b\n",
            "add: adds two\n\n" + WHOLE,
            BODY + "\nExplanation: we add the two numbers, don't we?",
            BODY + "    This adds the numbers.\n",
            "return a + b",
            "  return a + b",
            "\treturn a + b",
            "c = a\n    c += b\n    return c\n",
            "\tc = a\n\treturn c + b\n",
            "    return a + b<|endoftext|>",
            WHOLE.rstrip() + "<|eot_id|><|start_header_id|>user",
            "    return a + b</s>\nx",
            WHOLE + "<|im_end|>\n<|im_start|>user\ndef add(a, b): return 0",
            "<|startoftext|>" + WHOLE,
            "    return a + b [DONE]",
            '"""\n' + WHOLE + '"""\n',
            "'''Note\n" + WHOLE + "end\n",
            "(This is a note\n" + WHOLE + "end of it\n",
            "# \ud800\n" + WHOLE,
            "\0" + WHOLE,
            "# Solution\n" + WHOLE + "### End\nIt's all.",
            "<pre><code>\n" + WHOLE + "</code>",
            WHOLE + "\nHere, def add takes a and b.\ndef add(a, b) is its head.\n",
            BODY + "\n\ndef other(x):\n    return (x +",
            ">>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n",
            WHOLE + "else it would be wrong.\n",
            "    return a + b\n    # end\n\n    print('never')\n  bad margin\n",
            "    def add(a, b):\n        return a + b\n",
            "    def add(a: int, b: int) -> int:\n        return a + b\n\n    Hope it helps!\n",
            "   c = a\n    c += b\n    return c\n",
            "     c = a\n    c += b\n    return c\n",
            "        return a + b\n",
            "   for c in (a, b):\n        a = a + b - c + c\n        break\n    return a\n",
            "\ufeff" + WHOLE,
            "\u200bdef add(a, b):\n\u00a0\u00a0\u00a0\u00a0return a + b\n",
            "def add(a, b):\n    return a + b if \u2018x\u2019 else \u201cy\u201d\n",
            "<pre>def add(a, b):\n    return a + b if a &lt; 9 &amp; 8 or 1 else 0\n</pre>",
        ],
        ADD,
    )


def test_a_repeated_file():
    """Guards files after a prompt: `from __future__` moves to the top, so that the program compiles."""
    file = "from __future__ import annotations\nimport math\n" + WHOLE
    assert_all_pass([file, f"{FENCE}python\n{file}{FENCE}", '"""A module."""\n' + file, ADD["prompt"] + BODY], ADD)
    assert_all_pass(["from __future__ import annotations\n" + F], SQUARE | {"test_imports": ["import math"]})


def test_what_the_prompt_offers_stays():
    """Guards problems whose prompt or tests use a helper of the prompt (HumanEval/32, 38, 50)."""
    problem = {
        "task_id": "T/1",
        "entry_point": "decode",
        "prompt": 'import math\n\ndef encode(s: str):\n    """Turn it round."""\n    return s[::-1]\n\n\n'
        'def decode(s: str):\n    """Turn it back."""\n',
        "test": "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'\n    assert math.pi\n",
    }
    body = "    return s[::-1]\n"
    whole = "def decode(s):\n" + body
    assert_all_pass(
        [
            body,
            whole,
            f"{FENCE}python\n{whole}{FENCE}",
            f"{FENCE}python\n{problem['prompt']}{body}{FENCE}",
            f"{FENCE}\n{whole}{FENCE}\n\n{FENCE}\ndef encode(s):\n    return 'wrong'\n{FENCE}",
            f"{FENCE}\ndef encode(s):\n    return s[::-1]\n\n{whole}{FENCE}",
        ],
        problem,
    )


def test_mbpp_marks_and_problems():
    """Guards MBPP: its marks, a problem invented after the end, builtins' names, imports and set-up of the tests."""
    invented = "\n\nYou are an expert Python programmer.\nassert g(1) == 1\n[BEGIN]\ndef g(n):\n" + "    n += 1\n" * 50
    assert_all_pass(
        [
            F + "[DONE]" + invented + "    return n\n[DONE]",
            "[BEGIN]\n" + F + "[DONE]",
            "[BEGIN]" + F,
            F.rstrip() + "[DONE]",
            F + "[DONE]\ndef f(n):\n    return 0\n",
            F + "[DONE] def f(n): return 0\n",
            "The code is [BEGIN]\n" + F + "[DONE]",
            f"{FENCE}python\n[BEGIN]\n{F}[DONE]\n{FENCE}",
            "[DONE]\n" + F,
            "class Solution:\n    def f(self, n): pass\n\n" + F,
        ],
        SQUARE,
    )
    assert_all_pass(["def sum(a, b):\n    return a * b\n"], {"task_id": 126, "test_list": ["assert sum(2, 5) == 10"]})
    assert_all_pass(
        ["import math\ndef half(x): return x / 2\n"],
        {"task_id": 2, "test_list": ["assert math.isclose(half(3), 1.5)", "assert set([half(2)]) == {1}"]},
    )
    assert_all_pass(
        ["class Node:\n    def __init__(self, v):\n        self.v = v\ndef height(n):\n    return n.v\n"],
        {
            "task_id": 927,
            "test_list": ["assert height(root) == 1"],
            "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)",
        },
    )


# --- What the answer needs --------------------------------------------------------------------------------------------

# Programs that solve SQUARE only if the right statements at module level stay.
NEEDING = [program + "\n" for program in (ROOT / "tests/data/solutions_with_state.txt").read_text().split("\n# ---\n")]


def test_what_passes_as_it_is_passes_cleaned():
    """Guards everything at module level that a solution may need: tables, registries, imports, settings, globals."""
    assert all(outcomes([code.raw_program(reply, SQUARE) for reply in NEEDING]))
    assert_all_pass(NEEDING, SQUARE)
    assert_all_pass(
        [f"Sure, here's the code:\n\n{FENCE}python\n{reply}{FENCE}\n\nIt isn't long." for reply in NEEDING], SQUARE
    )


LINES = st.sampled_from(
    [
        "T = [0, 1]",
        "T = {}",
        "T.append(4)",
        "T += [9]",
        "T[2] = 4",
        "T.update({3: 9})",
        "K = 1",
        "K += 1",
        "K = len(T)",
        "del K",
        "for k in range(4):\n    T[k] = k * k",
        "for K in T: pass",
        "def h(n):\n    return n * K",
        "def h(n):\n    return n * n",
        "def g():\n    global K\n    K = 1",
        "g()",
        "if T: K = 1",
        "S = T",
        "S.append(9)",
        "with open('/dev/null') as K: pass",
        "K = 1; h(K)",
        "try:\n    h(2)\nexcept NameError:\n    K = 1",
        "print(K)",
        "print(f(2))",
        "assert f(2) == 4",
        "x = f(2)",
        "T[3] = h(3)",
        "import math",
        "def f(n):\n    return h(n)",
        "def f(n):\n    return n * n * K",
        "def f(n):\n    return T[n]",
        "f = h",
        "@lambda g: h\ndef f(n): pass",
        "class C:\n    K = K",
        "K = C.K",
        "def f(n):\n    return n * n * C.K",
        "C.K = 1",
        "lambda: 0",
        "push = T.append",
        "push(1)",
        "[T.append(k) for k in T[:2]]",
    ]
)


@example(["with open('/dev/null') as K: pass", "class C:\n    K = K", "def f(n):\n    return n * n * C.K"],
         "def f(n):\n    return n * n")
@given(
    st.lists(LINES, min_size=1, max_size=12),
    st.sampled_from(["def f(n):\n    return n * n", "def f(n):\n    return T[n]", "f = h", ""]),
)
@settings(max_examples=400, deadline=None)
def test_cleaning_takes_nothing_from_a_solution(lines, solution):
    """Guards the law: whatever passes as it is passes cleaned; here in this process, as the programs are harmless."""
    reply = "\n".join([*lines, solution, ""])
    if passes(code.raw_program(reply, SQUARE)):
        assert passes(code.program(clean(reply, SQUARE), SQUARE)), clean(reply, SQUARE)


def passes(program):
    try:
        exec(
            compile(program, "<program>", "exec", dont_inherit=True),
            {"__name__": "__main__", "print": lambda *values: None},
        )
    except Exception:
        return False
    return True


def test_harm_and_noise_go():
    """Guards scores: examples that fail or ask, scripts and unknown packages beside the function are left out."""
    assert_all_pass(
        [
            F + noise
            for noise in (
                "print(f(int(input())))\n",
                "assert f(2) == 5\n",
                "def main():\n    print(f(int(input())))\nmain()\n",
                "exit()\n",
                "import sys\nsys.exit(f(2))\n",
                "if __name__ == '__main__':\n    while True: pass\n",
                "import unittest\nunittest.main()\n",
                "import numpy as np\nprint(np.zeros(f(2)))\n",
                "def check(g):\n    assert g(2) == 5\ncheck(f)\n",
                "result = f('a')\n",
                "import doctest\ndoctest.testmod()\n",
                "for i in range(3):\n    print(f(int(input())))\n",
                "n = int(input())\nprint(f(n))\n",
            )
        ],
        SQUARE,
    )
    memory = "T = {}\ndef f(n):\n    T[n] = n * n\n    return T[n]\n"  # an example may have filled it, so it is tried
    assert_all_pass(
        [memory + "assert f(2) == 5\n", memory + "for i in range(3):\n    print(f(int(input())), i)\n",
         memory + "while True:\n    try: print(f(int(input())))\n    except BaseException: pass\n"], SQUARE
    )
    text = clean(
        "import math\nLIMIT = 3\nUNUSED = 4\n@staticmethod\ndef far(x):\n    return x * LIMIT\n"
        "class Box:\n    size = far(1)\ndef unused(): pass\ndef f(x):\n    return Box.size + x\nprint(f(1))\n",
        SQUARE,
    )
    assert text == (
        "import math\nLIMIT = 3\n@staticmethod\ndef far(x):\n    return x * LIMIT\nclass Box:\n    size = far(1)\n"
        "def f(x):\n    return Box.size + x"
    )


# --- Bounds -----------------------------------------------------------------------------------------------------------

HEAVY = [
    "(\n", "[\n1,\n", "x = (\n", "I think that we should do it (\n", "def f():\n", "if x:\n", "try:\n x\n", "@x\n",
    "x \\\n", "'''\n", '"""x\n', " ", "```\n", "`", "```text\n", "class A:\n def f():\n  '''\n", "foo (\nx\nx\n",
    "x = 1\n", "\n", "{1:", "f(", "not ", "a.b().", "1+", "lambda:", "f'{", "x", "\0", "\ud800", "- > 1. ",
    "[DONE]\n", "<|", "def f(n):\n  return (\n", "def add(\n", "\t", "é",
]  # fmt: skip


@pytest.mark.parametrize("piece", HEAVY, ids=ascii)
def test_the_work_is_linear(piece, monkeypatch):
    """Guards the scorer's time: the parser reads a bounded number of characters for each of the reply."""
    read = []

    def count(text, *rest, **named):
        read.append(len(text) if isinstance(text, str) else 0)
        return compile(text, *rest, **named)

    monkeypatch.setattr(code_cleaning, "compile", count, raising=False)
    for length in (1000, 8000):
        read.clear()
        assert parses(clean(piece * (length // len(piece)), ADD))
        assert sum(read) <= 9 * (code_cleaning.CHARACTERS_ANYWAY + code_cleaning.CHARACTERS_PER_CHARACTER * length)


@pytest.mark.slow
@pytest.mark.parametrize("reply", [
    "(\n" * 1000, "I think that this is so.\n" * 1000, "```python" + " " * 100_000, "foo (\nx\n" * 100_000,
    "x = 1\n" * 100_000, "\n".join(" " * depth + "if x:" for depth in range(1000)),
    "x" * 10**6, "\n" * 10**6, "def add(\n" * 100_000,
], ids=lambda reply: ascii(reply[:12]))  # fmt: skip
def test_cleaning_ends_soon(reply):
    """Guards the scorer's time by the clock, generously: megabytes of nonsense take seconds, not minutes."""
    started = time.monotonic()
    assert parses(clean(reply, ADD))
    assert time.monotonic() - started < 60


def test_a_budget_that_ends_keeps_the_best(monkeypatch):
    """Guards replies that nobody can read to the end: what was found before counts, even where garbage follows."""
    monkeypatch.setattr(code_cleaning, "CHARACTERS_ANYWAY", 2000)
    monkeypatch.setattr(code_cleaning, "CHARACTERS_PER_CHARACTER", 1)
    garbage = "foo (\nx\n" * 3000
    assert_all_pass([f"Sure, here's:\n{F}\nIt's (\n{garbage}", f"{garbage}\n{F}\nThat's it.\n"], SQUARE)


@given(st.text(max_size=200), st.sampled_from(["", "x = 1\n", "    return 1\n", "def add(a):\n", "```\n", '"""']))
@settings(deadline=None)
def test_any_reply_can_be_cleaned(reply, start):
    """Guards against replies that make cleaning raise: what is left always compiles."""
    assert parses(clean(start + reply, ADD)) and parses(clean(start + reply, SQUARE))
    assert parses(clean(start + reply, {"task_id": 1, "test_list": ["assert f(", reply]}))
