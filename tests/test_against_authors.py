"""Beside the authors' code: tokens are really compared, ratios are of what was timed, and failures are named.

    bash tests/run.sh tests/test_against_authors.py

A stand-in for their clone (tests/data/authors_clone) decodes in a textbook way from the checkpoint that it is given.
"""

import ast
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, ROOT, with_flags
from safetensors.torch import load_file

from benchmarks import against_authors, authors, authors_worker, measurement
from benchmarks.measurement import Subject
from benchmarks.progress import Progress
from benchmarks.workload import ROWS, Workload, choose_rows
from dpad.engine import loading
from dpad.results import files, outputs, records, tables
from dpad.results.documents import render_document
from sampler import GaussianSampler

STAND_IN = ROOT / "tests" / "data" / "authors_clone"
TOKENS = {"vocab_size": 300, "mask_token_id": 298, "eos_token_id": 297, "pad_token_id": 297}
TINY = {
    "small": ("llada", {"d_model": 32, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 48} | TOKENS),
    "small-dream": ("dream", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 296} | TOKENS),
}
WORK = ["--prompt_length", "9", "-l", "64", "-b", "16", "--repeats", "2"]
BASELINE = "llada/generate_baseline.py"


@pytest.fixture
def clone(tmp_path):
    """The stand-in, in a folder where it may be changed."""
    shutil.copytree(STAND_IN, tmp_path / "DPad")
    return tmp_path / "DPad"


@pytest.fixture(autouse=True)
def tiny_shapes(monkeypatch):
    for name, shape in TINY.items():
        monkeypatch.setitem(measurement.SHAPES, name, shape)


def run(clone, *flags):
    return against_authors.main([str(clone), *with_flags(WORK, [str(flag) for flag in flags])])


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- With the stand-in, in a process ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_equal_tokens_end_well(clone, tmp_path, capsys, monkeypatch):
    """Guards the whole: both families, every row, a record that makes a table, and a clone that nothing has touched."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = content(clone)
    assert run(clone, "--output", tmp_path / "record.json") == 0
    assert content(clone) == before
    assert not list((tmp_path / "temporary").iterdir())

    [record] = records.load([tmp_path / "record.json"])
    assert [(row["family"], row["name"]) for row in record["rows"]] == [
        (family, name) for family in ("llada", "dream") for name in ROWS["caches"]]
    for row in record["rows"]:
        assert row["equal_tokens"] == 64 and row["first_difference"] is None
        assert len(row["theirs_s"]) == len(row["ours_s"]) == len(row["floor_s"]) == len(row["torch_floor_s"]) == 2
    theirs = record["theirs"]
    assert theirs["commit"] == "unknown" and theirs["torch"] == torch.__version__
    assert "files by their hashes in the record" in tables.markdown_table([record])
    imported = {name for names in authors.FILES.values() for name in names} | {"sampler.py", "textbook.py"}
    assert theirs["files"] == {name: hashlib.sha256((clone / name).read_bytes()).hexdigest() for name in imported}
    assert theirs["threads"] == record["environment"]["hardware"]["threads"] == torch.get_num_threads()
    assert record["settings"]["seed"] == 1234 and record["command"].startswith("python benchmarks/against_authors.py ")

    text = capsys.readouterr().out
    assert "small-dream" in text and "64 of 64" in text and "The tokens are equal in every row" in text
    mark, changes = render_document("<!-- table: record.json -->\n<!-- /table -->", tmp_path)
    assert changes == ["record.json"] and "| +DualCache+DPad | small-dream |" in mark
    assert "Model small, small-dream, prompt 9, G = 64, blocks of 16 in 4 steps" in mark


@pytest.mark.parametrize("row, place", [("Vanilla", 5), pytest.param("+DPad", 63, marks=pytest.mark.slow)])
def test_a_token_that_differs_is_named(clone, tmp_path, capsys, row, place):
    """Guards the comparison: one other token of one row is enough, the record is written, and the status is 1."""
    path = clone / "llada" / ("generate_dropout.py" if "DPad" in row else "generate_baseline.py")
    path.write_text(path.read_text() + f"""
_right = generate
def generate(*arguments, **keywords):
    sequences, forwards = _right(*arguments, **keywords)
    sequences[0, 9 + {place}] = (sequences[0, 9 + {place}] + 1) % 290
    return sequences, forwards
""")
    output = tmp_path / "record.json"
    assert run(clone, "--family", "llada", "--only", f"{row},+DualCache", "--output", output) == 1
    printed = capsys.readouterr()
    assert f"{row} of llada: the tokens differ, first at position {place} of the answer (from 0)" in printed.err
    assert printed.err.count("differ") == 1 and "The tokens differ in 1 rows" in printed.out
    [record] = records.load([output])
    assert [(r["equal_tokens"], r.get("first_difference")) for r in record["rows"]] == [(63, place), (64, None)]


@pytest.mark.slow
@pytest.mark.parametrize("family, name, old, new, message", [
    ("llada", BASELINE, "generate_with_dual_cache = ", "other = ",
     "cannot load llada with {python} (docs/speed.md says what it needs): AttributeError: module 'generate_baseline' "
     "has no attribute 'generate_with_dual_cache'"),
    ("llada", BASELINE, 'print("decoded a block")', 'raise RuntimeError("one\\nand the last line")',
     f"cannot decode Vanilla with llada: {BASELINE}, line 9: RuntimeError: one and the last line"),
    ("llada", BASELINE, 'print("decoded a block")', "import os; os._exit(7)",
     "cannot decode Vanilla with llada: its process ended with status 7"),
    ("llada", "sampler.py", "class Gaussian", "import nothing_of_this_name\nclass Gaussian",
     "sampler.py, line 8: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("llada", "textbook.py", "return dict(self.weights)", "return dict(list(self.weights.items())[1:])",
     "their model has not taken the weights model.transformer."),
    ("dream", "textbook.py", "return dict(self.weights)", 'return self.weights | {"more": torch.ones(1)}',
     "ValueError: their model has weights that the checkpoint has not: more"),
    ("dream", "dream/model/generation_utils_block.py", "def diffusion_generate", "def generate",
     "has no attribute 'diffusion_generate'"),
    ("dream", "textbook.py", "return sequence[None]", "return sequence[None, :-1]",
     "the authors' code gives an answer of 63 tokens where 64 were asked for"),
])
def test_what_fails_in_their_code_is_named(clone, capsys, family, name, old, new, message):
    """Guards one clear sentence, with the last line of their error, wherever it happens."""
    text = (clone / name).read_text()
    assert text.count(old) >= 1
    (clone / name).write_text(text.replace(old, new, 1))
    assert run(clone, "--family", family, "--only", "Vanilla,+DPad") == 2
    line = last_line(capsys)
    assert line.startswith("against_authors.py: the authors' code ")
    assert message.format(python=sys.executable) in line


@pytest.mark.slow
def test_a_family_that_fails_takes_nothing_from_the_other(clone, tmp_path, capsys):
    """Guards minutes of measuring: what LLaDA's rows gave is in the record although Dream's cannot be run."""
    (clone / "dream" / "model" / "modeling_dream.py").unlink()
    assert run(clone, "--only", "Vanilla", "--output", tmp_path / "record.json") == 2
    assert "it has no dream/model/modeling_dream.py" in capsys.readouterr().err
    [record] = records.load([tmp_path / "record.json"])
    assert [row["family"] for row in record["rows"]] == ["llada"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left(clone, tmp_path, number):
    """Guards Ctrl-C and kill: their process ends with ours, even in the middle of an answer."""
    note = tmp_path / "process"
    path = clone / BASELINE
    path.write_text(path.read_text() + f"""
def generate(*arguments, **keywords):
    import os, pathlib, time
    pathlib.Path({str(note) + "-"!r}).write_text(str(os.getpid()))
    os.rename({str(note) + "-"!r}, {str(note)!r})
    time.sleep(600)
""")
    program = ("import sys\nfrom benchmarks import against_authors, measurement\n"
               f"measurement.SHAPES |= {TINY!r}\nsys.exit(against_authors.main(sys.argv[1:]))")
    ours = subprocess.Popen(
        [sys.executable, "-c", program, str(clone), *WORK, "--family", "llada"], cwd=ROOT, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as for a person
    )
    try:
        wait_until(note.exists, 120)
        theirs = int(note.read_text())
        assert is_running(theirs)
        ours.send_signal(number)
        _, printed = ours.communicate(timeout=300)
        wait_until(lambda: not is_running(theirs), 20)
    finally:
        ours.kill()
    if number == signal.SIGINT:
        assert ours.returncode == 130 and printed.strip().splitlines()[-1] == "against_authors.py: interrupted"


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_running(number):
    """Whether a process computes or waits; one that has ended and was not asked for its status does neither."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# --- A Python that cannot, a clone that is none -----------------------------------------------------------------------


@pytest.mark.parametrize("script, message", [
    (f"exec {sys.executable} -S \"$@\"", "ModuleNotFoundError: No module named 'torch'"),
    ("exit 3", "its process ended with status 3"),
    ("echo first >&2; echo the last words >&2; echo >&2; exit 3", "its process ended with status 3: the last words"),
])
def test_a_python_that_cannot_run_their_code(clone, tmp_path, capsys, script, message):
    """Guards --their_python: an interpreter without torch, or a program that is none, ends in one sentence."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert run(clone, "--family", "llada", "--their_python", program) == 2
    line = last_line(capsys)
    assert line.startswith(f"against_authors.py: the authors' code cannot load llada with {program} ")
    assert line.endswith(message)


def test_a_program_that_cannot_be_started(clone, tmp_path, capsys):
    program = tmp_path / "python"
    program.write_text("#!/nowhere/python\n")
    program.chmod(0o755)
    assert run(clone, "--family", "llada", "--their_python", program) == 2
    assert last_line(capsys) == f"against_authors.py: {program} cannot be started: No such file or directory"


@pytest.mark.parametrize("flags, message", [
    (["--their_python", "no-such"], "--their_python is 'no-such'; it must be a Python that can be started"),
    (["--only", "Vanila"], "row is 'Vanila'; it must be one of Vanilla, "),
    (["--only", ""], "row is ''; it must be one of Vanilla, "),
    (["--family", "llda"], "argument --family: invalid choice: 'llda'"),
    (["--threshold", "0.9"], "unrecognized arguments: --threshold 0.9"),
    (["-b", "48"], "block_length is 48; it must divide gen_length (64)"),
    (["--dtype", "float31"], "dtype is 'float31'"),
    (["--device", "tpu"], "device is 'tpu'"),
    (["--output", "record.txt"], "--output is 'record.txt'; the name must end in .json"),
])
def test_bad_flags_end_in_one_line(clone, capsys, monkeypatch, flags, message):
    """A mistake in the flags ends in one line that names it, with status 2, before their code is started."""
    monkeypatch.setattr(authors, "compare", lambda *_: pytest.fail("the work began"))
    try:
        status = run(clone, *flags)
    except SystemExit as end:
        status = end.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_clone_that_is_none(tmp_path, capsys):
    """Guards the argument: a folder that is missing, and one without the authors' files, which are named."""
    assert run(tmp_path / "nothing") == 2
    assert "it must be a folder with the authors' code" in last_line(capsys)
    assert run(tmp_path, "--family", "llada") == 2
    assert last_line(capsys).endswith(
        f"{tmp_path} is not as the authors' code is expected to be: it has no llada/generate_baseline.py, "
        "llada/generate_dropout.py, llada/model/configuration_llada.py, llada/model/modeling_llada.py")


# --- What is compared, without a process ------------------------------------------------------------------------------


class Canned:
    """In the place of `Authors`: the same tokens as ours, except for what `spoil` changes, and made-up seconds."""

    def __init__(self, subject, rows, work, spoil=lambda call, tokens: tokens):
        self.subject, self.rows, self.work, self.spoil = subject, rows, work, spoil
        self.calls = []

    def decode(self, name, request):
        self.calls.append((name, request))
        output = measurement.run(self.subject, self.rows[name], self.work)
        tokens = output.sequences[0, self.work.prompt_length :].tolist()
        return {"tokens": self.spoil(len(self.calls), tokens), "seconds": 10.0 * len(self.calls)}


@pytest.fixture
def subject():
    subject = measurement.make_subject("small", "cpu", "float32")
    authors.make_decisive(subject)
    return subject


@pytest.fixture
def work():
    return Workload(prompt_length=9, gen_length=64, block_length=16)


@pytest.mark.parametrize("call", [1, 2, 3, None])
def test_every_run_is_compared(subject, work, call):
    """Guards the comparison: a token that differs in the first run, or in any timed one, is a difference."""

    def spoil(number, tokens):
        return [-1 if number == call and place in (7, 20) else token for place, token in enumerate(tokens)]

    rows = choose_rows("caches", ["+DPad"])
    canned = Canned(subject, rows, work, spoil)
    [row] = authors.measure(canned, subject, rows, work, 2, Progress(3, "run"))
    assert len(canned.calls) == 3
    assert (row["first_difference"], row["equal_tokens"]) == ((None, 64) if call is None else (7, 62))


def test_both_take_turns_and_ratios_are_of_what_was_timed(subject, work, monkeypatch):
    """Guards the numbers: rows in turn, and quotients of the times of the same repeat."""
    monkeypatch.setattr(authors, "timed", lambda device, call, *arguments: call(*arguments) or 4.0)
    monkeypatch.setattr(authors.Products, "seconds", lambda self, forwards: 2.0)
    rows = choose_rows("caches", ["Vanilla", "+DPad"])
    canned = Canned(subject, rows, work)
    vanilla, dpad = authors.measure(canned, subject, rows, work, 2, Progress(6, "run"))
    assert [name for name, _ in canned.calls] == ["Vanilla", "+DPad"] * 3
    assert vanilla["theirs_s"] == [30.0, 50.0] and dpad["theirs_s"] == [40.0, 60.0]
    assert vanilla["ratio"] == (30 / 4 + 50 / 4) / 2
    assert vanilla["allowed"] == vanilla["allowed_by_torch"] == 2 * vanilla["ratio"]

    request = canned.calls[1][1]
    assert request["sampler"] == {"sigma": 3.0, "scale": 1.6, "window": 64} and request["dpad"]
    assert request["steps"] == 16 and len(request["prompt"]) == 9 and request["seed"] == 1234


def test_weights_decide(subject):
    """Guards random weights by which rounding would decide: probabilities are far from uniform; no mask and no EOS."""
    with torch.no_grad():
        logits = subject.model(torch.randint(0, 290, (1, 40))).logits[0]
    assert 2 < logits.std() < 6
    assert not torch.isin(logits.argmax(-1), torch.tensor([297, 298])).any()


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_checkpoint_is_in_the_hubs_layout(family, tmp_path, random_llada, random_dream):
    """Guards what the authors' configuration classes ask for: every field that the recorded models' files have."""
    model, golden = (random_llada, "llada-mha") if family == "llada" else (random_dream, "dream-gqa")
    authors.write_checkpoint(Subject("random", model, loading.FAMILIES[family]), tmp_path)
    written = files.read_json(tmp_path / "config.json")
    expected = files.read_json(GOLDEN / golden / "config.json")
    for name in ("auto_map", "transformers_version"):  # names code on the hub, and what wrote the file
        del expected[name]
    assert {name: written.get(name, "missing") for name in expected} == expected
    assert files.read_json(tmp_path / "generation_config.json")["mask_token_id"] == 510

    weights = load_file(GOLDEN / golden / "model.safetensors")
    authors_worker.check_weights(SimpleNamespace(state_dict=lambda: weights), str(tmp_path))


def test_their_sampler_gets_this_device_and_the_cpus_draws(monkeypatch):
    """Guards the one thing of theirs that is changed, at run time: a device that their sampler names."""
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.delitem(sys.modules, "sampler")
    import sampler as theirs

    try:
        authors_worker.patch_sampler(str(STAND_IN), torch.device("cpu"))
        torch.manual_seed(3)
        kept = theirs.GaussianSampler(64, 3.0, 1.6, 64).sample(torch.arange(100, 150))
    finally:
        del sys.modules["sampler"]
    expected = GaussianSampler(64, 3.0, 1.6).sample(torch.arange(100, 150), torch.Generator().manual_seed(3))
    assert torch.equal(kept, expected)


def test_the_worker_imports_nothing_of_this_project():
    """Guards an environment of theirs in which this project's packages are missing, and Python is older."""
    tree = ast.parse((ROOT / "benchmarks" / "authors_worker.py").read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"torch", "safetensors"}


# --- Records and the command ------------------------------------------------------------------------------------------


def record_of(**row):
    base = {"model": "small", "family": "llada", "name": "Vanilla", "dpad": False, "cache": "none", "forwards": 32,
            "theirs_s": [8.0, 9.0], "ours_s": [2.0, 2.0], "floor_s": [1.8, 1.8], "torch_floor_s": [2.5, 2.5],
            "ratio": 4.25, "allowed": 4.6, "allowed_by_torch": 4.7, "equal_tokens": 256, "first_difference": None}
    return {
        "kind": "authors", "model": "small", "repeats": 2, "rows": [base | row],
        "settings": Workload().to_json() | {"device": "cpu", "dtype": "float32"},
        "theirs": {"commit": "abc+", "python": "3.10.1", "torch": "2.6.0", "transformers": "4.49.0", "threads": 2},
    }


def test_a_record_says_what_is_reached(tmp_path):
    """Guards the table: the ratio, what the roofline allows, whether nine tenths of it are reached, and differences."""
    reached, missed = record_of(), record_of(name="+DPad", ratio=4.0, equal_tokens=255, first_difference=3)
    files.write_json(tmp_path / "record.json", reached | {"rows": reached["rows"] + missed["rows"]})
    text = tables.markdown_table(records.load([tmp_path / "record.json"]))
    assert "| Vanilla | 8.50 | 2.00 | 4.25× | ±6% | 4.70× | 4.60× | 92 | 256 of 256 |" in text
    assert "| +DPad | 8.50 | 2.00 | 4.00× | ±6% | 4.70× | 4.60× | 87 | 255 of 256 |" in text
    assert "commit abc+, python 3.10.1, torch 2.6.0, transformers 4.49.0, 2 threads" in text
    assert "The tokens differ in 1 rows; 90 % of what the roofline allows is reached in 1 of 2 rows" in text
    assert "reached in 1 of 2 rows, with torch's own products in 1." in text
    outputs.check("--output", tmp_path / "record.json", outputs.AUTHORS)
    files.write_json(tmp_path / "record.json", record_of(ours_s=[]))
    with pytest.raises(ValueError, match="ours_s is .*; it must be a list of at least one entry"):
        records.load([tmp_path / "record.json"])


def test_the_clones_commit_is_theirs(tmp_path):
    """Guards the record: the commit of the clone, and a + where its files were changed."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*who, "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert head.startswith(records.commit(tmp_path)) and len(records.commit(tmp_path)) >= 7
    (tmp_path / "file").write_text("x")
    subprocess.run(["git", "add", "file"], cwd=tmp_path, check=True)
    assert records.commit(tmp_path).endswith("+")


@pytest.mark.parametrize("command", [["benchmarks/against_authors.py"], ["-m", "benchmarks.against_authors"]])
def test_help_needs_no_torch(command):
    """Guards both ways to call it, and a fast --help."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [sys.executable, "-X", "importtime", *command, "--help"]
    printed = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--their_python" in printed.stdout
    assert re.search(r"\| +argparse$", printed.stderr, re.MULTILINE)
    assert not re.search(r"\| +torch$", printed.stderr, re.MULTILINE)


def test_their_environment_has_the_same_torch():
    """Guards the commands in docs/speed.md: a ratio must compare the code, not two versions of torch."""
    [line] = [line for line in (ROOT / "docs" / "speed.md").read_text().splitlines() if "theirs/bin/pip" in line]
    pinned = (ROOT / "requirements.txt").read_text().split()
    assert [word for word in line.split() if word.startswith("torch==")] == [
        word for word in pinned if word.startswith("torch==")]
