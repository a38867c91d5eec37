"""Tests of dpad/results/charts.py and `run.py table --plot`: pictures, their names and their colours.

    bash tests/run.sh tests/test_charts.py
"""

from __future__ import annotations

import struct

import pytest
from example_records import evaluation, vanilla_and_dpad

import run
from dpad import ROOT
from dpad.engine.configurations import CONFIGURATIONS, classify
from dpad.results import charts, files
from dpad.results.records import load


@pytest.mark.parametrize("spread", [1.5, 60])
def test_bar_chart_is_a_picture(tmp_path, spread):
    path = tmp_path / "new" / "chart.png"
    pair = vanilla_and_dpad()
    pair[0]["latency_s"] = spread * pair[1]["latency_s"]
    charts.bar_chart(pair, path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1200 and height >= 300
    assert [file.name for file in path.parent.iterdir()] == ["chart.png"]


def test_bar_chart_without_accuracy(tmp_path):
    pair = vanilla_and_dpad()
    for record in pair:
        record["metrics"] = {}
    charts.bar_chart(pair, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_colours_say_what_a_configuration_is():
    """Guards against names: the settings alone decide, in evaluations and in a benchmark's rows."""
    colours = {name: charts.colour_of(configuration) for name, configuration in CONFIGURATIONS.items()}
    assert [name for name, colour in colours.items() if colour == charts.GREY] == ["Vanilla"]
    assert {name for name, colour in colours.items() if colour == charts.BLUE} == {
        name for name in CONFIGURATIONS if name.endswith("+DPad")}
    assert charts.colour_of(classify(evaluation("my DPad run", 1.0)["settings"])) == charts.GREY
    row = {"name": "mine", "dpad": True, "cache": "dual", "parallel": True, "stops": False}
    assert charts.colour_of(classify(row)) == charts.BLUE


@pytest.fixture
def folder(tmp_path):
    for number, entry in enumerate([
        evaluation("Vanilla", 20.0, task="gsm8k"), evaluation("+DPad", 8.0, task="gsm8k"),
        evaluation("Vanilla", 90.0, task="gsm8k", length=1024),
        evaluation("+Parallel+PrefixCache+DPad", 1.0, task="gsm8k", length=1024),
    ]):
        files.write_json(tmp_path / f"{number}.json", entry)
    return tmp_path


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_are_drawn(folder, tmp_path, suffix):
    """Bars: a file for each table. Length: one line. Heatmap: kept tokens follow from the sampler."""
    out = tmp_path / f"figure.{suffix}"
    assert run.main(["table", str(folder), "--plot", str(out)]) == 0
    assert (tmp_path / f"figure-gsm8k-256.{suffix}").stat().st_size > 5000
    assert (tmp_path / f"figure-gsm8k-1024.{suffix}").is_file() and not out.exists()
    assert run.main(["table", str(folder), "--figure", "length", "--plot", str(out)]) == 0
    assert out.stat().st_size > 5000
    files.write_json(tmp_path / "grid.json", [
        evaluation("a", 1.0, sampler={"name": "uniform", "window": 64, "number": 32}),
        evaluation("b", 1.0, sampler={"name": "gaussian", "window": 128, "k_sigma": 3, "scale": 1.6}, flexible=0.7),
    ])
    assert run.main(["table", str(tmp_path / "grid.json"), "--figure", "heatmap", "--plot", str(out)]) == 0
    assert out.stat().st_size > 5000


def test_every_kind_with_a_chart_gets_its_picture(tmp_path):
    names = ("demo-cpu.json", "cpu-small.json", "cpu-small-1024.json", "cpu-growth.json", "paper.json")
    records = load([ROOT / "benchmarks" / name for name in names])
    paths = charts.draw(records, tmp_path / "a.svg")
    assert [path.name for path in paths] == ["a-arithmetic-50-256.svg", "a-benchmark-2.svg", "a-benchmark-3.svg",
                                             "a-growth.svg"]
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in paths)
    with pytest.raises(ValueError, match="no chart of records of the kind 'paper'"):
        charts.draw(load([ROOT / "benchmarks" / "paper.json"]), tmp_path / "b.svg")


@pytest.mark.parametrize("sampler, kept", [
    ({"name": "uniform", "window": 256, "number": 64}, 64),
    ({"name": "gaussian", "window": 256, "k_sigma": 3, "scale": 1.6}, 68),
    ({"name": "gaussian", "window": 512, "k_sigma": 3, "scale": 3.4}, 256),
])
def test_kept_tokens(sampler, kept):
    assert charts.kept_tokens(sampler) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("arguments, message", [
    (["--figure", "heatmap", "--plot", "x.png"], "a heatmap needs records with the sampler gaussian or uniform"),
    (["--plot", "x.jpg"], "must end in .png or .svg"),
    (["--paper", "nobody"], "model is 'nobody'; the paper has"),
])
def test_what_can_not_be_drawn_is_said(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_json(tmp_path / "a.json", evaluation("Vanilla", 20.0, task="gsm8k"))
    assert run.main(["table", "a.json", *arguments]) == 2
    assert message in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["a.json"]
