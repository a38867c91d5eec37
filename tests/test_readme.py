"""README.md and docs/: their commands are accepted, their links lead somewhere, their numbers are those of the records.

    bash tests/run.sh tests/test_readme.py
"""

from __future__ import annotations

import io
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import run
from dpad.engine.configurations import dpad_parameters
from dpad.results import documents
from dpad.training import command as training_command

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAX_WORDS = 1500
PROGRAMS = {"accelerate", "bash", "pip", "python", "source", "torchrun"}  # a line that begins with one is a command


def commands_of(document: Path) -> list[str]:
    """The commands of a document: the lines of its bash blocks, and what stands between backticks like one."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return lines + [code for code in inline if " " in code and program_of(code) in PROGRAMS]


def words_of(command: str) -> list[str]:
    """A command's words, without a comment behind it and without the variables before it."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def program_of(command: str) -> str:
    try:
        return (words_of(command) or [""])[0]
    except ValueError:  # prose with an apostrophe
        return ""


COMMANDS = sorted({(command, document.name) for document in DOCUMENTS for command in commands_of(document)})


def test_there_are_commands():
    assert len(COMMANDS) >= 20 and len(DOCUMENTS) >= 6
    assert {program_of(command) for command, _ in COMMANDS} <= PROGRAMS


@pytest.mark.parametrize("command, document", COMMANDS)
def test_a_command_is_accepted(command, document):
    """Guards against flags and files that were renamed: a newcomer's first line must not fail."""
    program, *words = words_of(command)
    if program == "accelerate":
        words = words[words.index("run.py"):]
    if program == "source" or words == ["install", "-e", "."]:
        return  # .venv is made by the set-up; the repository itself is what -e installs
    if program == "pip":
        assert (ROOT / words[words.index("-r") + 1]).is_file()
    elif words[0] == "-m":
        assert find_spec(words[1]), f"there is no module {words[1]}"
    elif words[0] == "run.py":
        check_run(words[1:])
    else:
        assert (ROOT / words[0]).is_file(), f"there is no file {words[0]}"


def check_run(words: list[str]) -> None:
    """Parse a command line of run.py, as far as that goes without loading a model."""
    if words == ["--help"]:
        return
    name = "evaluate" if words[0].startswith("-") else words[0]
    args = run.parser_of(name).parse_args(words if name != words[0] else words[1:])
    if name in ("evaluate", "generate", "chat") and args.model.islower():  # capitals stand for a name of one's own
        assert run.settings_from(args).gen_length > 0
    if name == "train" and not args.merge:
        assert training_command.settings_from(args, {}).steps > 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    """Guards files and headings that were moved; addresses on the web are not visited."""
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for target in filter(None, (link for pair in links for link in pair)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8").lower(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document):
    """Guards paths in the text, such as `dpad/engine/decoding.py`."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"(benchmarks|checkpoints|dataset|demo|dpad|dream|llada|tests)/[\w/.-]*", code):
            assert (ROOT / code).exists(), code


def test_every_document_is_linked():
    """Guards documents that nobody would find."""
    text = README.read_text(encoding="utf-8")
    for document in DOCUMENTS[1:]:
        assert f"docs/{document.name}" in text


def test_numbers_are_those_of_the_records(capsys):
    """Guards tables and values that somebody typed, or that a new record has left behind."""
    marked = [str(path) for path in DOCUMENTS if "<!-- table:" in path.read_text(encoding="utf-8")]
    assert documents.main(["--check", *marked]) == 0, capsys.readouterr().err


def test_readme_is_short():
    """Guards the minute in which a stranger reads it; rendered tables are not counted."""
    text = re.sub(r"<!-- table:.*?<!-- /table -->", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(re.findall(r"\S*\w\S*", text)) <= MAX_WORDS


def python_examples(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_python_examples_run(capsys):
    """Guards the interfaces that the README shows."""
    ours, theirs = python_examples(README)
    exec(compile(ours, "README.md", "exec"), {})
    output = capsys.readouterr().out
    assert output.count("#### 12") == 2, "both questions have the answer 12"
    assert "tensor" in output
    names: dict[str, Any] = {}
    exec(compile(theirs, "README.md", "exec"), names)
    assert names["tokens"].shape[1] == names["inputs"].input_ids.shape[1] + 256


def test_the_example_with_transformers_answers(capsys):
    [example] = python_examples(ROOT / "docs" / "transformers.md")
    exec(compile(example, "docs/transformers.md", "exec"), {})
    assert capsys.readouterr().out.rstrip().endswith("#### 12")


# What we show to type: README, docs, the help of every command, the first lines of every file.
HELP = [run.USAGE, *(command.examples for command in run.COMMANDS.values())]
FOLDERS = ("", "benchmarks/", "checkpoints/", "dataset/", "demo/", "dpad/", "dream/", "llada/")
SOURCES = [path for folder in FOLDERS for kind in ("py", "sh", "md")
           for path in ROOT.glob(f"{folder}**/*.{kind}" if folder else f"*.{kind}")]
TEXTS = "\n".join([*HELP, *(path.read_text(encoding="utf-8") for path in [*DOCUMENTS, *SOURCES])])
TEXTS = re.sub(r"\\+\n *", "", TEXTS)  # commands on two lines

# The questions in them, and their results.
RESULTS = {
    "Tom has 3 bags with 4 apples each. How many apples does Tom have?": 12,
    "Tom has 3 bags with 4 apples each. How many apples does he have?": 12,
    "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?": 38,
    "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?": 12,
}
PROMPTS = set(re.findall(
    r'(python run\.py generate [^"`\n]*--prompt +"[^"\n]*"|echo "[^"\n]*" \| python run\.py \w+ [^\n#]*\w)', TEXTS
))
QUESTIONS = sorted(command for command in PROMPTS if re.search(r"-m (dream-)?tiny", command))
EVALUATIONS = sorted(set(re.findall(r"python run\.py -t [\w-]+ -m (?:dream-)?tiny(?: -\w+(?: [\w.]+)?)*", TEXTS)))
DROPOUTS = sorted({
    command for command in re.findall(r"python [^`\n]*(?:-d |dropout_strategy=)gaussian[^`\n]*", TEXTS)
    if "run.py train" not in command  # which takes mixtures
})


def test_there_are_questions():
    """Guards this file: it finds what is shown, and what is shown are questions, not "..."."""
    assert len(QUESTIONS) >= 8 and len(EVALUATIONS) >= 6
    assert not [command for command in PROMPTS if "..." in command]


@pytest.mark.slow
@pytest.mark.parametrize("command", QUESTIONS)
def test_an_example_is_answered_right(command, capsys, monkeypatch, tmp_path):
    """Guards a newcomer's first answer: the embedded models get the examples that we show right."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    [question] = [word for word in words if word in RESULTS]
    if words[0] == "echo":
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    assert run.main([*words[words.index("run.py") + 1 :], "--device", "cpu"]) == 0
    assert f"#### {RESULTS[question]}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", EVALUATIONS)
def test_an_example_of_an_evaluation_runs(command, capsys, monkeypatch, tmp_path):
    """Guards the tasks that we show with an embedded model, on two of their documents, and its answers on its own."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[2:]
    quick = [] if "-th" in words or "choices-local" in words or "-l" in words else ["-th", "0.9"]
    limit = [] if "--limit" in words else ["--limit", "2"]
    assert run.main([*words, *quick, *limit, "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    if "arithmetic" in command:
        assert re.search(r"strict-match +(50|100)\.0%", shown.out), shown.out


@pytest.mark.parametrize("command", DROPOUTS)
def test_examples_of_suffix_dropout_use_one_set_of_parameters(command):
    """Guards -k and -sc wherever we choose them: the ones that configurations.py has for the model."""
    words = {"-k": "k_sigma", "-sc": "scale", "-m": "model", "checkpoint": "model"}
    typed = re.split(r"[ =,]+", command)
    found = {words.get(word, word): value for word, value in zip(typed, typed[1:])}
    parameters = {"k_sigma": float(found.get("k_sigma", 4)), "scale": float(found.get("scale", 2))}
    assert parameters == dpad_parameters(found.get("model", "instruct"))
