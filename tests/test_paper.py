"""`run.py table` and paper.py: the authors' numbers beside the right rows, intervals, and the three figures.

    bash tests/run.sh tests/test_paper.py
"""

import csv
import io
import json

import pytest

import run
from dpad.results import files, paper


def record(name, latency, task="gsm8k", length=256, value=0.5, sampler=None, samples=50):
    return {
        "kind": "evaluation", "name": name, "task": task, "model": "1.5", "latency_s": latency, "samples": samples,
        "tps": 10.0, "nfe": 32.0, "metrics": {
            "flexible-extract": {"value": value, "stderr": 0.01}, "strict-match": {"value": value / 2, "stderr": 0.01}},
        "settings": {"gen_length": length, "dtype": "float32", "device": "cpu", "num_fewshot": 4, "batch_size": 1,
                     "suffix_sampler": sampler},
        "environment": {"hardware": {"processor": "A processor", "cores": 2, "threads": 2, "gpus": []}, "commit": "c"},
    }


@pytest.fixture
def folder(tmp_path):
    for number, entry in enumerate([
        record("Vanilla", 20.0), record("+DPad", 8.0, value=0.6), record("Vanilla", 90.0, length=1024),
        record("+Parallel+PrefixCache+DPad", 1.0, length=1024),
    ]):
        files.write_json(tmp_path / f"{number}.json", entry)
    return tmp_path


def test_the_authors_headline_ratios():
    """Guards the file of the paper's numbers by the ratios that the abstract and the text state."""
    llada, dream = paper.reported("llada-1.5"), paper.reported("dream-base")
    assert llada["gsm8k", 1024, "+Parallel+PrefixCache+DPad"]["speedup"] == pytest.approx(61.39, abs=0.1)
    assert dream["humaneval", 2048, "+Parallel+PrefixCache+DPad"]["speedup"] == pytest.approx(97.32, abs=0.6)
    assert paper.reported("llada-instruct")["mbpp", 512, "+Parallel+DPad"]["speedup"] == pytest.approx(10.32, abs=0.01)
    with pytest.raises(ValueError, match="model is 'gpt'; the paper has llada-instruct"):
        paper.reported("gpt")


@pytest.mark.parametrize("share, count, low, high", [(0.5, 10, 0.2366, 0.7634), (0, 20, 0, 0.1611), (1, 20, 0.8389, 1)])
def test_interval(share, count, low, high):
    """Guards the formula by values from published tables of Wilson's interval."""
    assert paper.interval(share, count) == pytest.approx((low, high), abs=5e-4)


def test_measured_rows_stand_beside_the_authors(folder, capsys):
    """Each row gets the authors' row of the same benchmark, length and configuration, and its own speedup."""
    assert run.main(["table", str(folder), "--paper", "llada-1.5"]) == 0
    shown = capsys.readouterr().out
    first, second = shown.split("\n\n")[:2]
    assert "G = 256" in first and "G = 1024" in second
    [line] = [line for line in first.splitlines() if line.startswith("+DPad")]
    assert line.split() == ["+DPad", "8.00", "2.50×", "10.0", "32.0", "60.0", "[46.2,", "72.4]", "30.0", "[19.1,",
                            "43.8]", "18.26", "1.51×", "80.14", "78.47"]
    assert "90.00×" in second and "61.35×" in second
    assert "as reported by the authors for LLaDA-1.5 on an NVIDIA A100-PCIe-80GB" in shown


def test_a_metric_that_is_no_share_stays_as_it_is(tmp_path, capsys):
    """Guards tasks such as translation: a BLEU of 27.3 ± 0.5 is neither 2730% nor a share with an interval."""
    entry = record("Vanilla", 20.0) | {"metrics": {"bleu": {"value": 27.3, "stderr": 0.5}}, "reused": 0, "folder": "f",
                                       "latency_median_s": 20.0, "empty_answers": 0, "cut_prompts": 0}
    files.write_json(tmp_path / "0.json", entry)
    assert run.main(["table", str(tmp_path)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Vanilla")]
    assert line.split()[-1] == "27.3"
    assert "bleu        27.3 ± 0.5\n" in run.summary(entry)
    entry["metrics"] = {"exact": {"value": 0.5, "stderr": 0.07}}
    assert "exact       50.0% ± 7.0%\n" in run.summary(entry)


def test_rows_come_in_the_papers_order():
    """Guards folders, whose files are read by name; rows that the paper does not have come last."""
    given = [record(name, 1.0) for name in ("+Parallel+DPad", "mine", "+DPad", "Vanilla")]
    [table] = paper.groups(given)
    assert [row["name"] for row in table] == ["Vanilla", "+DPad", "+Parallel+DPad", "mine"]


def test_csv_and_markdown(folder, capsys):
    assert run.main(["table", str(folder), "--paper", "llada-1.5", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 and float(rows[1]["paper_latency_s"]) == 18.26 and float(rows[1]["speedup"]) == 2.5
    assert float(rows[1]["flexible_low"]) < 60 < float(rows[1]["flexible_high"])
    assert run.main(["table", str(folder), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    assert "| +DPad | 8.00 | 2.50× |" in shown and "paper" not in shown


def test_stand_ins_are_compared_with_what_they_stand_for(tmp_path, capsys):
    files.write_json(tmp_path / "a.json", record("Vanilla", 2.0, task="arithmetic-50"))
    assert run.main(["table", str(tmp_path / "a.json"), "--paper", "llada-1.5"]) == 0
    assert "27.61" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_drawn(folder, tmp_path, suffix, capsys):
    """Bars: a file for each table. Length: one line. Heatmap: kept tokens follow from the sampler."""
    out = tmp_path / f"figure.{suffix}"
    assert run.main(["table", str(folder), "--plot", str(out)]) == 0
    assert (tmp_path / f"figure-gsm8k-256.{suffix}").stat().st_size > 5000
    assert (tmp_path / f"figure-gsm8k-1024.{suffix}").is_file() and not out.exists()
    assert run.main(["table", str(folder), "--figure", "length", "--plot", str(out)]) == 0
    assert out.stat().st_size > 5000
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps([
        record("a", 1.0, sampler={"name": "uniform", "window": 64, "number": 32}),
        record("b", 1.0, sampler={"name": "gaussian", "window": 128, "k_sigma": 3, "scale": 1.6}, value=0.7),
    ]))
    assert run.main(["table", str(grid), "--figure", "heatmap", "--plot", str(out)]) == 0
    assert out.stat().st_size > 5000


@pytest.mark.parametrize("sampler, kept", [
    ({"name": "uniform", "window": 256, "number": 64}, 64),
    ({"name": "gaussian", "window": 256, "k_sigma": 3, "scale": 1.6}, 68),
    ({"name": "gaussian", "window": 512, "k_sigma": 3, "scale": 3.4}, 256),
])
def test_kept_tokens(sampler, kept):
    assert paper.kept_tokens(sampler) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("arguments, message", [
    (["--figure", "heatmap", "--plot", "x.png"], "a heatmap needs records with the sampler gaussian or uniform"),
    (["--plot", "x.jpg"], "must end in .png or .svg"),
    (["--paper", "nobody"], "model is 'nobody'; the paper has"),
])
def test_what_can_not_be_drawn_is_said(folder, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run.main(["table", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
