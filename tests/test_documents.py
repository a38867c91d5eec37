"""Tests of dpad/results/documents.py: marked tables and values of Markdown files are renewed from records and checked.

    bash tests/run.sh tests/test_documents.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from example_records import vanilla_and_dpad

from dpad import ROOT
from dpad.results import documents, files
from dpad.results.documents import render_document
from dpad.results.tables import caption, markdown_table

DOCUMENT = "# Title\n\n<!-- table: r/a.json -->\n{}<!-- /table -->\n\nText.\n"
VALUE = "DPad is <!-- value: r/a.json +DPad speedup -->{}<!-- /value --> faster.\n"


@pytest.fixture
def pair():
    return vanilla_and_dpad()


def test_document_is_renewed_and_checked(tmp_path, pair, capsys):
    files.write_json(tmp_path / "r" / "a.json", pair)
    path = tmp_path / "page.md"
    path.write_text(DOCUMENT.format("old\n"), encoding="utf-8")
    assert documents.main(["--check", str(path)]) == 1 and "r/a.json" in capsys.readouterr().err
    assert documents.main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == DOCUMENT.format(markdown_table(pair) + "\n")
    assert documents.main(["--check", str(path)]) == 0
    path.write_text(path.read_text(encoding="utf-8").replace("4.14×", "4.15×"), encoding="utf-8")
    assert documents.main(["--check", str(path)]) == 1
    pair[1]["latency_s"] = 0.1
    files.write_json(tmp_path / "r" / "a.json", pair)
    assert documents.main(["--check", str(path)]) == 1
    assert documents.main([str(path)]) == 0 and "20.00×" in path.read_text(encoding="utf-8")


def test_document_with_the_authors_numbers_beside(tmp_path, pair):
    """Guards `beside`: the papers' numbers stand in rows of their own, which say whose they are."""
    for record in pair:
        record |= {"task": "arithmetic-50", "settings": record["settings"] | {"gen_length": 1024}}
    files.write_json(tmp_path / "a.json", pair)
    text, changes = render_document("<!-- table: a.json beside llada-1.5 -->\n<!-- /table -->", tmp_path)
    assert changes == ["a.json"] and "NVIDIA A100-PCIe-80GB, batch size 1" in text and caption(pair) in text
    ours, theirs = [line for line in text.splitlines() if line.startswith("| +DPad |")]
    assert ours.startswith("| +DPad | measured | – | 0 | 0.48 |")
    assert theirs.startswith("| +DPad | DPad (authors, A100) | long | 1 | 6.28 | 20.22× |")
    assert render_document(text, tmp_path) == (text, [])
    with pytest.raises(ValueError, match="model is 'llada-9'; the paper has llada-instruct, llada-1.5, dream-base"):
        render_document(text.replace("beside llada-1.5", "beside llada-9"), tmp_path)


def test_document_with_what_papers_report():
    """Guards `of`: reported numbers by themselves, without a record of ours or the table of scripts."""
    text, changes = render_document(
        "<!-- table: benchmarks/paper.json of llada-1.5/gsm8k/1024 -->\n<!-- /table -->", ROOT)
    assert changes == ["benchmarks/paper.json"] and "hours" not in text and "measured" not in text
    for source in ("DPad (authors, A100)", "SSM's rerun of DPad (A800)", "Streaming-dLLM (authors, A800)"):
        assert source in text
    assert render_document(text, ROOT) == (text, [])
    with pytest.raises(ValueError, match="gen_length is '2000'; for llada-1.5/gsm8k papers report 256, 512, 1024, 204"):
        render_document(text.replace("/1024", "/2000"), ROOT)


def test_values_in_prose_are_renewed_and_checked(tmp_path, pair, capsys):
    files.write_json(tmp_path / "r" / "a.json", pair)
    path = tmp_path / "page.md"
    path.write_text(VALUE.format("9.99×"), encoding="utf-8")
    assert documents.main(["--check", str(path)]) == 1 and "r/a.json +DPad speedup" in capsys.readouterr().err
    assert documents.main([str(path)]) == 0
    assert path.read_text(encoding="utf-8") == VALUE.format("4.14×")
    assert documents.main(["--check", str(path)]) == 0


def test_values_may_name_further_cells_and_spaced_headings():
    text, changes = render_document(
        "<!-- value: benchmarks/cpu-batch.json +DPad,8 × roofline --><!-- /value --> "
        "<!-- value: benchmarks/cpu-growth.json 2048 Vanilla growth --><!-- /value -->", ROOT)
    values = re.findall("-->([^<]*)<!--", text)
    row = next(row for row in json.loads((ROOT / "benchmarks/cpu-batch.json").read_text())["rows"]
               if row["name"] == "+DPad" and row["batch_size"] == 8)
    assert values[0] == f"{row['ratio']:.2f}" and re.fullmatch(r"\d+\.\d\d×", values[-1]) and len(changes) == 2


def test_line_ends_are_kept(tmp_path, pair):
    files.write_json(tmp_path / "r" / "a.json", pair)
    path = tmp_path / "page.md"
    path.write_bytes(b"Windows\r\n" + VALUE.format("").encode())
    assert documents.main([str(path)]) == 0 and path.read_bytes().startswith(b"Windows\r\nDPad")


@pytest.mark.parametrize("text, message", [
    ("<!-- table: gone.json --> <!-- /table -->", "gone.json cannot be read"),
    ("<!-- table: -->\n<!-- /table -->", "names no records"),
    ("<!-- table: a.json -->\n| 1 |\n", "has no <!-- /table -->"),
    ("<!-- table: a.json -->\n<!-- table: b.json -->\n<!-- /table -->", "a.json has no <!-- /table -->"),
    ("no marks at all", "has no table marks"),
    ("<!-- value: a.json +DPad speedup -->1", "a.json +DPad speedup has no <!-- /value -->"),
    ("<!-- value: a.json +DPad --><!-- /value -->", "must name a file, a row and a column"),
    ("<!-- value: a.json +DPad speed --><!-- /value -->", "a.json has no column 'speed'; it has configuration, "),
    ("<!-- value: a.json DPad speedup --><!-- /value -->", "a.json has 0 rows 'DPad'; "),
])
def test_faulty_documents_change_nothing(tmp_path, pair, text, message, capsys):
    if "value" in text:
        files.write_json(tmp_path / "a.json", pair)
    path = tmp_path / "page.md"
    path.write_text(text)
    assert documents.main([str(path)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and path.read_text() == text


def test_documents_without_marks_may_stand_beside_others(tmp_path, pair, capsys):
    """Guards `docs/*.md`: not every document has numbers from records."""
    files.write_json(tmp_path / "r" / "a.json", pair)
    for name, text in (("a.md", VALUE.format("4.14×")), ("b.md", "no marks\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert documents.main(["--check", str(tmp_path / "a.md"), str(tmp_path / "b.md")]) == 0


def test_the_documents_show_the_committed_records():
    paths = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))]
    command = [sys.executable, "-m", "dpad.results.documents", "--check", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
