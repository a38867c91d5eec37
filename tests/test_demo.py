"""Tests of demo/ and dataset/gsm8k.py.

    bash tests/run.sh tests/test_demo.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import yaml

from dataset import gsm8k
from demo import demo
from dpad.engine.configurations import PAPER_TABLE
from dpad.evaluation import runs
from dpad.evaluation.tasks import load_tasks
from dpad.results import tables
from dpad.results.records import load

ROOT = Path(__file__).resolve().parent.parent

# The columns of gsm8k-50.arrow as it has been passed around with the paper's demo.
GSM8K_COLUMNS = [("question", "string"), ("answer", "string"), ("ans", "double")]
ROWS = [
    {"question": "What is 3 * 4?", "answer": "It is 3*4=<<3*4=12>>12.\n#### 12"},
    {"question": "What is a house worth?", "answer": "Much.\n#### 1,070,000"},
    {"question": "Half of 5?", "answer": "#### 2.5"},
]


# --- dataset/gsm8k.py ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub with three problems; the test's `hub.append(error)` puts it out of reach."""
    errors, loaded = [], []

    def load_dataset(*arguments, **options):
        if errors:
            raise errors[0]
        loaded.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield errors
    assert all(call == (("openai/gsm8k", "main"), {"split": "test"}) for call in loaded)


def test_gsm8k_file_has_the_known_columns(tmp_path, hub, capsys):
    path = tmp_path / "new" / "gsm8k.arrow"
    assert gsm8k.main(["--count", "2", "--output", str(path)]) == 0
    assert "2 problems" in capsys.readouterr().out
    with pyarrow.OSFile(str(path)) as file:
        problems = pyarrow.ipc.open_file(file).read_all()
    assert [(field.name, str(field.type)) for field in problems.schema] == GSM8K_COLUMNS
    assert problems.to_pylist() == [ROWS[0] | {"ans": 12.0}, ROWS[1] | {"ans": 1070000.0}] == gsm8k.read(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["gsm8k.arrow"]


def test_gsm8k_takes_no_more_than_there_is(tmp_path, hub):
    assert gsm8k.main(["--count", "50", "--output", str(tmp_path / "a.arrow")]) == 0
    assert len(gsm8k.read(tmp_path / "a.arrow")) == 3


def test_gsm8k_says_in_one_line_that_the_hub_is_out_of_reach(tmp_path, hub, capsys):
    hub.append(ConnectionError("no route\n to host"))
    assert gsm8k.main(["--output", str(tmp_path / "a.arrow")]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "openai/gsm8k could not be fetched" in error[-1] and "no route to host" in error[-1] and len(error) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, message", [
    (["--count", "0"], "--count is 0; it must be an integer of at least 1"),
    (["--output", "/dev/null/a.arrow"], "/dev/null"),
])
def test_gsm8k_refuses_bad_arguments(hub, arguments, message, capsys):
    assert gsm8k.main(arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_gsm8k_refuses_an_answer_without_a_number():
    with pytest.raises(ValueError, match="problem 2 does not end"):
        gsm8k.table([ROWS[0], {"question": "?", "answer": "I do not know"}])


def test_gsm8k_read_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="missing.arrow does not exist; make it with: python dataset/gsm8k.py"):
        gsm8k.read(tmp_path / "missing.arrow")
    (tmp_path / "text.arrow").write_text("no arrow")
    with pytest.raises(ValueError, match="text.arrow is not an Arrow file"):
        gsm8k.read(tmp_path / "text.arrow")
    gsm8k.write(pyarrow.table({"question": ["?"]}), tmp_path / "short.arrow")
    with pytest.raises(ValueError, match="short.arrow has no column answer, ans"):
        gsm8k.read(tmp_path / "short.arrow")


# --- The task gsm8k-split -----------------------------------------------------------------------------------------


def test_gsm8k_split_asks_and_scores_as_gsm8k_does(tmp_path, monkeypatch):
    monkeypatch.setattr(gsm8k, "OUTPUT", tmp_path / "gsm8k.arrow")
    gsm8k.write(gsm8k.table(ROWS), gsm8k.OUTPUT)
    task = load_tasks("gsm8k-split")["tasks"]["gsm8k-split"]
    documents = list(task.test_docs())
    assert [document["ans"] for document in documents] == [12, 1070000, 2.5]
    assert task.doc_to_text(documents[0]) == "Question: What is 3 * 4?\nAnswer:"
    assert task.config.num_fewshot == 0

    import lm_eval

    original = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    own = task.dump_config()
    assert own["generation_kwargs"]["until"] == original["generation_kwargs"]["until"]
    for section in ("filter_list", "metric_list"):
        assert sorted(map(json.dumps, map(canonical, own[section]))) == sorted(
            map(json.dumps, map(canonical, original[section]))
        )


def canonical(value):
    """The same structure with sorted keys, and without defaults that one of two task files spells out."""
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(entry) for entry in value] if isinstance(value, list) else value


def test_gsm8k_split_without_its_file_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gsm8k, "OUTPUT", tmp_path / "gsm8k.arrow")
    assert demo.main(["--task", "gsm8k-split", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "python dataset/gsm8k.py" in error


# --- demo/demo.py -------------------------------------------------------------------------------------------------


def test_demo_measures_shows_and_keeps(tmp_path, capsys):
    command = ["--limit", "1", "--gen_length", "64", "--output", str(tmp_path)]
    assert demo.main(command) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "arithmetic-50-tiny-64-first-1"
    records = load([folder / "records.json"])
    assert [record["name"] for record in records] == list(PAPER_TABLE)
    for line in tables.terminal_table(records).splitlines():
        assert line in out
    assert tables.caption(records) in out and str(folder / "chart.png") in out
    assert (folder / "chart.png").read_bytes().startswith(b"\x89PNG")
    vanilla, dpad = records[0], records[1]
    assert vanilla["nfe"] == 64 and vanilla["settings"]["suffix_sampler"] is None
    assert dpad["settings"]["suffix_sampler"] == {"name": "gaussian", "window": 64, "k_sigma": 3, "scale": 1.6}
    assert dpad["tokens_processed"] < vanilla["tokens_processed"]

    assert demo.main(command) == 0  # everything is there already
    assert "6 answers, and the seconds they took, are from an earlier run" in capsys.readouterr().out
    again = load([folder / "records.json"])
    assert [record["latency_s"] for record in again] == [record["latency_s"] for record in records]


def test_interrupted_demo_keeps_its_rows(tmp_path, monkeypatch, capsys):
    evaluate, started = runs.evaluate, []

    def interrupted(loaded, task, settings, *, name, **options):
        started.append(name)
        if len(started) == 3:
            raise runs.Interrupted("interrupted: go on")
        return evaluate(loaded, task, settings, name=name, **options)

    monkeypatch.setattr(runs, "evaluate", interrupted)
    assert demo.main(["--limit", "1", "--gen_length", "32", "--output", str(tmp_path)]) == 130
    assert "interrupted: go on" in capsys.readouterr().err
    kept = load([tmp_path / "arithmetic-50-tiny-32-first-1" / "records.json"])
    assert [record["name"] for record in kept] == started[:2]


@pytest.mark.parametrize("arguments, message", [
    (["--gen_length", "100"], "block_length is 32; it must divide gen_length (100)"),
    (["--limit", "0"], "--limit is 0; it must be an integer of at least 1"),
    (["--model", "no-such-model"], "model is 'no-such-model'"),
    (["--task", "no-such-task"], "there is no task 'no-such-task'"),
])
@pytest.mark.slow
def test_demo_refuses_in_one_line(arguments, message, tmp_path, capsys):
    assert demo.main([*arguments, "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and not list(tmp_path.iterdir())


# --- demo/demo.sh ---------------------------------------------------------------------------------------------------


def test_demo_help_names_every_variable():
    command = [sys.executable, ROOT / "demo" / "demo.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    header = (ROOT / "demo" / "demo.sh").read_text()
    assert done.returncode == 0
    for variable in ("MODEL", "TASK", "LIMIT", "GEN_LENGTH"):
        assert variable in done.stdout and f"\n# {variable} " in header and f"${{{variable}:+" in header


# --- demo/app.py ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_else_works_without_gradio():
    """The page says in one line what it needs; nothing but the page imports Gradio."""
    program = ("import sys; sys.modules['gradio'] = None; sys.argv = ['app.py']\n"
               "import run\n"
               "from benchmarks import bench\n"
               "from dpad.evaluation import runs\n"
               "from dpad.interact import chat\n"
               "from dpad.results import charts, documents\n"
               "from demo import app; sys.exit(app.main([]))")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "app.py: the page needs Gradio: pip install -r demo/requirements.txt"
