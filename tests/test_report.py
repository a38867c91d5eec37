"""Tests of records.py and report.py, and of what a reader finds at the top of the repository.

    bash tests/run.sh tests/test_report.py
"""

import ast
import csv
import io
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpad.results import records as record_files
from dpad.results import report

ROOT = Path(__file__).resolve().parent.parent


def evaluation(name, latency, *, flexible=0.8, strict=0.5, task="arithmetic-50", length=256, cores=2, **more):
    """A record as dpad/evaluation/harness.py writes it, with the numbers that the tables show."""
    return {
        "kind": "evaluation", "name": name, "task": task, "model": "tiny", "samples": 50,
        "settings": {"gen_length": length, "dtype": "float32", "device": "cpu", "num_fewshot": 0, "batch_size": 1},
        "metrics": {"flexible-extract": {"value": flexible, "stderr": 0.05},
                    "strict-match": {"value": strict, "stderr": 0.06}},
        "latency_s": latency, "tps": 12.34, "nfe": 256.0,
        "environment": {"commit": "abc1234", "hardware": {"processor": "Test(R) CPU", "cores": cores, "gpus": []}},
    } | more


@pytest.fixture
def pair():
    return [evaluation("Vanilla", 2.0), evaluation("+DPad", 0.483, flexible=0.82)]


# --- records.py ---------------------------------------------------------------------------------------------------


def test_environment_says_what_ran():
    import torch
    import transformers

    found = record_files.environment()
    assert found["torch"] == torch.__version__ and found["transformers"] == transformers.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["processor"]
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()
    assert found["commit"] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert record_files.version("a-package-that-nobody-made") is None


def test_records_need_neither_torch_nor_lm_eval():
    program = "import sys, records, report; sys.exit(bool({'torch', 'lm_eval', 'matplotlib'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_commit_is_marked_when_the_tree_differs(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True,
                       capture_output=True)

    monkeypatch.setattr(record_files, "ROOT", tmp_path)
    assert record_files.commit() == "unknown"
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    clean = record_files.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("2")
    assert record_files.commit() == clean + "+"
    inner = tmp_path / "unpacked"  # an archive inside somebody else's repository has no commit
    inner.mkdir()
    monkeypatch.setattr(record_files, "ROOT", inner)
    assert record_files.commit() == "unknown"


# --- Rows and tables ----------------------------------------------------------------------------------------------


def test_rows_hold_the_records_numbers(pair):
    vanilla, dpad = report.rows(pair)
    assert vanilla["speedup"] == 1 and dpad["speedup"] == pytest.approx(2.0 / 0.483)
    assert dpad["metrics"] == {"flexible": pytest.approx(82), "strict": pytest.approx(50)}
    assert (dpad["latency_s"], dpad["tps"], dpad["nfe"]) == (0.483, 12.34, 256.0)


@pytest.mark.parametrize("other", [{"task": "gsm8k-split"}, {"length": 512}, {"cores": 8}, {"model": "1.5"}])
def test_speedup_compares_like_with_like(other):
    fast = evaluation("+DPad", 0.5, **other)
    assert report.rows([evaluation("Vanilla", 2.0), fast])[1]["speedup"] is None
    own = [evaluation("Vanilla", 2.0), fast, evaluation("Vanilla", 3.0, **other)]
    assert report.rows(own)[1]["speedup"] == pytest.approx(6.0)


def test_two_baselines_are_refused(pair):
    with pytest.raises(ValueError, match="two records named Vanilla"):
        report.rows([*pair, evaluation("Vanilla", 1.0)])
    with pytest.raises(ValueError, match="no records"):
        report.rows([])


def test_markdown_table(pair):
    lines = report.markdown_table(pair).splitlines()
    assert lines[0] == "| configuration | latency (s) | speedup | TPS | NFE | flexible (%) | strict (%) |"
    assert lines[3] == "| +DPad | 0.48 | 4.14× | 12.3 | 256.0 | 82.0 | 50.0 |"
    for part in ("tiny", "arithmetic-50", "50 samples", "G = 256", "Test CPU, 2 cores", "float32", "abc1234", "0-shot"):
        assert part in lines[-1]


def test_columns_follow_the_metrics_and_what_varies():
    records = [evaluation("Vanilla", 2.0, metrics={"pass@1": {"value": 0.25, "stderr": None}}),
               evaluation("Vanilla", 4.0, length=512, metrics={"exact": {"value": None}})]
    lines = report.markdown_table(records).splitlines()
    assert lines[0] == "| configuration | G | latency (s) | speedup | TPS | NFE | pass@1 (%) | exact (%) |"
    assert lines[2] == "| Vanilla | 256 | 2.00 | 1.00× | 12.3 | 256.0 | 25.0 | – |"
    assert lines[3] == "| Vanilla | 512 | 4.00 | 1.00× | 12.3 | 256.0 | – | – |"


def test_terminal_table_is_aligned_and_narrow(pair):
    names = ["Vanilla", "+DPad", "+Parallel+PrefixCache+DPad"]
    table = [evaluation("Vanilla", 127.41, tps=1180.3, nfe=1024.0), evaluation("+Parallel+PrefixCache+DPad", 2.07)]
    lines = report.terminal_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 100
    # A table that grows row by row keeps its columns when it is told the names to come.
    growing = [report.terminal_table(pair[: count + 1], names).splitlines() for count in range(2)]
    assert growing[0] == growing[1][:3] and "4.14×" in growing[1][3]


def test_csv_has_full_precision(pair):
    rows = list(csv.DictReader(io.StringIO(report.csv_table(pair))))
    assert float(rows[1]["speedup"]) == 2.0 / 0.483 and rows[1]["name"] == "+DPad"
    assert rows[0]["hardware"] == "Test CPU, 2 cores" and float(rows[1]["flexible"]) == pytest.approx(82)


def test_the_device_that_computed_is_named():
    hardware = {"processor": "Test CPU", "cores": 1, "gpus": [{"name": "NVIDIA H200", "memory_gb": 139.8}]}
    record = evaluation("Vanilla", 1.0, environment={"hardware": hardware})
    assert report.hardware_line(record) == "Test CPU, 1 core"
    record["environment"]["hardware"]["threads"] = 4
    assert report.hardware_line(record) == "Test CPU, 1 core, 4 threads"
    record["settings"]["device"] = "cuda:0"
    assert report.hardware_line(record) == "NVIDIA H200 (140 GB)"


@pytest.mark.parametrize("spread", [1.5, 60])
def test_bar_chart_is_a_picture(tmp_path, pair, spread):
    path = tmp_path / "new" / "chart.png"
    pair[0]["latency_s"] = spread * pair[1]["latency_s"]
    report.bar_chart(pair, path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1200 and height >= 300
    assert [file.name for file in path.parent.iterdir()] == ["chart.png"]


def test_bar_chart_without_accuracy(tmp_path, pair):
    for record in pair:
        record["metrics"] = {}
    report.bar_chart(pair, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


# --- Files and documents ------------------------------------------------------------------------------------------


def test_load_takes_files_lists_and_folders(tmp_path, pair):
    record_files.write_json(tmp_path / "all.json", pair)
    record_files.write_json(tmp_path / "folder" / "b.json", pair[1])
    record_files.write_json(tmp_path / "folder" / "a.json", pair[0])
    assert report.load(["all.json"], tmp_path) == pair == report.load([tmp_path / "folder"])


@pytest.mark.parametrize("content, message", [
    ({"kind": "other"}, "not a record of a run"), ([3], "not a record of a run"),
    ({"kind": "evaluation", "name": "x", "task": "t", "model": "m", "settings": {}, "metrics": {}}, "latency_s"),
])
def test_load_refuses_what_is_no_record(tmp_path, content, message):
    record_files.write_json(tmp_path / "x.json", content)
    with pytest.raises(ValueError, match=message):
        report.load([tmp_path / "x.json"])


def test_load_refuses_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no .json file"):
        report.load([tmp_path])


DOCUMENT = "# Title\n\n<!-- table: r/a.json -->\n{}<!-- /table -->\n\nText.\n"


def test_document_is_renewed_and_checked(tmp_path, pair, capsys):
    record_files.write_json(tmp_path / "r" / "a.json", pair)
    path = tmp_path / "page.md"
    path.write_text(DOCUMENT.format("old\n"), encoding="utf-8")
    assert report.main(["--check", str(path)]) == 1 and "r/a.json" in capsys.readouterr().err
    assert report.main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == DOCUMENT.format(report.markdown_table(pair) + "\n")
    assert report.main(["--check", str(path)]) == 0
    path.write_text(path.read_text(encoding="utf-8").replace("4.14×", "4.15×"), encoding="utf-8")
    assert report.main(["--check", str(path)]) == 1
    pair[1]["latency_s"] = 0.1
    record_files.write_json(tmp_path / "r" / "a.json", pair)
    assert report.main(["--check", str(path)]) == 1
    assert report.main([str(path)]) == 0 and "20.00×" in path.read_text(encoding="utf-8")


def test_document_with_the_authors_numbers_beside(tmp_path, pair):
    """Guards `beside`: the paper's numbers stand in columns of their own, named as the authors'."""
    for record in pair:
        record |= {"task": "arithmetic-50", "settings": record["settings"] | {"gen_length": 1024}}
    record_files.write_json(tmp_path / "a.json", pair)
    text, changed = report.render_document("<!-- table: a.json beside llada-1.5 -->\n<!-- /table -->", tmp_path)
    assert changed == ["a.json"] and "| paper: latency (s) |" in text and "as reported by the authors" in text
    dpad = next(line for line in text.splitlines() if line.startswith("| +DPad |"))
    assert "6.28" in dpad and report.caption(pair) in text
    assert report.render_document(text, tmp_path) == (text, [])
    with pytest.raises(ValueError, match="model is 'llada-9'; the paper has llada-instruct, llada-1.5, dream-base"):
        report.render_document(text.replace("beside llada-1.5", "beside llada-9"), tmp_path)


@pytest.mark.parametrize("text, message", [
    ("<!-- table: gone.json --> <!-- /table -->", "gone.json cannot be read"),
    ("<!-- table: -->\n<!-- /table -->", "names no records"),
    ("<!-- table: a.json -->\n| 1 |\n", "has no <!-- /table -->"),
    ("<!-- table: a.json -->\n<!-- table: b.json -->\n<!-- /table -->", "a.json has no <!-- /table -->"),
    ("no marks at all", "has no table marks"),
])
def test_faulty_documents_change_nothing(tmp_path, text, message, capsys):
    path = tmp_path / "page.md"
    path.write_text(text)
    assert report.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and path.read_text() == text


def test_command_line(tmp_path, pair, capsys):
    file = tmp_path / "a.json"
    record_files.write_json(file, pair)
    for style, part in (("terminal", "─"), ("markdown", "| +DPad |"), ("csv", "latency_s")):
        assert report.main([str(file), "--format", style]) == 0 and part in capsys.readouterr().out
    assert report.main([str(file), "--plot", str(tmp_path / "a.png")]) == 0 and (tmp_path / "a.png").exists()
    assert report.main([str(file), "page.md"]) == 1 and "not both" in capsys.readouterr().err
    assert report.main(["--check", str(file)]) == 1 and "takes documents" in capsys.readouterr().err


# --- The repository -----------------------------------------------------------------------------------------------


def test_readme_shows_the_committed_records():
    command = [sys.executable, "-m", "dpad.results.report", "--check", "README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python_files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True,
                            text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    found = [ROOT / name for name in names] or [
        path for path in ROOT.rglob("*.py") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in found if path.exists()]


def test_requirements_are_what_is_imported():
    """Imports that nobody listed fail on a stranger's machine; packages that nobody imports are minutes of download."""
    # A command; and what lm-eval's minerva_math imports.
    unimported = {"ruff", "math_verify", "antlr4_python3_runtime", "sympy"}
    package = {"yaml": "PyYAML", "PIL": "pillow"}  # where its name is not the module's
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    imported = set()
    for path in python_files():
        own.add(path.stem)  # files beside a script are importable from it by name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    needed = {package.get(name, name) for name in imported - own - set(sys.stdlib_module_names)}
    files = (ROOT / "requirements.txt", ROOT / "demo" / "requirements.txt")
    lines = [line.split("#")[0].strip() for file in files for line in file.read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line)
    assert {name.replace("-", "_") for name in pinned} - unimported == needed
    optional = files[1].read_text()  # the page's packages may be missing
    for name, version in pinned.items():
        installed = record_files.version(name)
        if installed is not None or f"{name}==" not in optional:
            assert str(installed).split("+")[0] == version, f"{name} is not the version that is tested here"


def test_license_and_citation():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:100]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0" and citation["authors"]
    assert "Suffix Dropout" in paper["title"] and "2508.14148" in json.dumps(paper) and len(paper["authors"]) == 8
