"""Tests of dpad/results/charts.py and `run.py table --plot`: pictures, their names and their colours.

    bash tests/run.sh tests/test_charts.py
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys

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
    assert (tmp_path / f"figure-gsm8k-tiny-256.{suffix}").stat().st_size > 5000
    assert (tmp_path / f"figure-gsm8k-tiny-1024.{suffix}").is_file() and not out.exists()
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
    assert [path.name for path in paths] == ["a-arithmetic-50-tiny-256.svg", "a-benchmark-small-256.svg",
                                             "a-benchmark-small-1024.svg", "a-growth-small.svg"]
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


def test_numbers_in_a_heatmap_of_equal_values_can_be_read(tmp_path, monkeypatch):
    """Guards against white numbers on the brightest colour, which one accuracy in all cells has."""
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda self, *place, color, **options: drawn.append(color))
    charts.heatmap({"uniform": {(16, 2): 100.0, (32, 2): 100.0}}, "strict", "title", tmp_path / "x.svg")
    assert drawn == ["black", "black"]


def test_a_heatmap_says_how_many_tokens_are_kept():
    """Guards samplers outside of the paper's grid: their own numbers stand on the axis, not the nearest of the grid."""
    records = [evaluation("+DPad", 1.0, sampler={"name": "uniform", "window": window, "number": number})
               for window, number in ((64, 4), (64, 30), (128, 64), (1024, 900))]
    _, panels = charts._heatmap_panels(records)
    assert list(panels["uniform"]) == [(64, 4), (64, 32), (128, 64), (1024, 900)]


@pytest.mark.parametrize("arguments, message", [
    (["--figure", "heatmap", "--plot", "x.png"], "a heatmap needs records with the sampler gaussian or uniform"),
    (["--plot", "x.jpg"], "must end in .png or .svg"),
    (["--paper", "nobody"], "model is 'nobody'; the paper has"),
])
def test_what_can_not_be_drawn_is_said(tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_json(tmp_path / "a.json", evaluation("Vanilla", 20.0, task="gsm8k"))
    assert run.main(["table", "a.json", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


# --- What may stand in one picture ------------------------------------------------------------------------------------


def several_models_and_lengths():
    return [
        evaluation(name, latency, model=model, length=length, samples=samples)
        for model, length, samples in (("tiny", 64, 50), ("org/dream", 64, 50), ("tiny", 128, 50), ("tiny", 64, 3))
        for name, latency in (("Vanilla", 2.0), ("+DPad", 0.5))
    ]


def titles_of(pictures, path, monkeypatch):
    """Draw pictures and return the figures' titles and bars' colours by file name."""
    from matplotlib.figure import Figure

    titles = []
    original = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **more: (
        titles.append(text) or original(self, text, **more)))
    paths = charts.place(pictures, path)
    for entry, target in zip(pictures, paths):
        entry.draw(target)
    return dict(zip([path.name for path in paths], titles, strict=True))


def test_bars_never_mix_models_lengths_or_samples(tmp_path, monkeypatch):
    """Guards comparisons of what cannot be compared: a picture for each, whose title and name say what it is."""
    titles = titles_of(charts.plan(several_models_and_lengths()), tmp_path / "x.svg", monkeypatch)
    assert list(titles) == ["x-arithmetic-50-tiny-64-0-shot-50-samples.svg", "x-arithmetic-50-dream-64.svg",
                            "x-arithmetic-50-tiny-128.svg", "x-arithmetic-50-tiny-64-0-shot-3-samples.svg"]
    assert len(set(titles.values())) == 4
    assert "org/dream" in titles["x-arithmetic-50-dream-64.svg"] and "G = 128" in titles["x-arithmetic-50-tiny-128.svg"]
    assert "3 samples" in titles["x-arithmetic-50-tiny-64-0-shot-3-samples.svg"]


def test_heatmaps_never_mix(tmp_path, monkeypatch):
    samplers = [{"name": "uniform", "window": window, "number": 32} for window in (64, 128)]
    records = [record | {"settings": record["settings"] | {"suffix_sampler": sampler}}
               for record in several_models_and_lengths() if record["name"] == "+DPad" for sampler in samplers]
    records.append(evaluation("+Parallel+DPad", 1.0, sampler=samplers[0]))
    titles = titles_of(charts.plan(records, "heatmap"), tmp_path / "x.svg", monkeypatch)
    assert len(titles) == 4 == len(set(titles.values())) and all("+DPad: " in title for title in titles.values())
    with pytest.raises(ValueError, match="two records have the same cell of a heatmap: sampler uniform, window 64"):
        charts.plan([records[0], records[1], records[0] | {"latency_s": 9.0}], "heatmap")
    with pytest.raises(ValueError, match="a heatmap needs at least two windows or numbers of kept tokens"):
        charts.plan(records[:1], "heatmap")


def test_lines_of_lengths_never_mix(tmp_path, monkeypatch):
    """Guards speedups averaged over models or tasks: a picture for each."""
    records = [record for record in several_models_and_lengths() if record["samples"] == 50]
    records += [record | {"task": "gsm8k"} for record in records if record["model"] == "tiny"]
    titles = titles_of(charts.plan(records, "length"), tmp_path / "x.svg", monkeypatch)
    assert list(titles) == ["x-arithmetic-50-tiny.svg", "x-gsm8k-tiny.svg"]
    with pytest.raises(ValueError, match="two answer lengths at least"):
        charts.plan(records[:2], "length")
    with pytest.raises(ValueError, match="no record has one of Vanilla"):
        charts.plan(records[1:2], "length")


def test_a_configuration_has_one_colour_in_every_figure(tmp_path, monkeypatch):
    """Guards readers of two pictures: bars, lines of lengths and lines of growth draw a configuration alike."""
    from matplotlib.axes import Axes

    lines = {}
    original = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *values, **more: (
        lines.setdefault(more["label"].split("  ")[0], set()).add(more["color"]) or original(self, *values, **more)))
    records = several_models_and_lengths()
    charts.draw([records[0], records[1], records[4], records[5]], tmp_path / "a.png", "length")
    charts.draw(load([ROOT / "benchmarks" / "cpu-growth.json"]), tmp_path / "b.png")
    assert lines == {"+DPad": {charts.BLUE}, "Vanilla": {charts.GREY}}
    assert not {colour for colour, _ in charts.METRIC_STYLES} & {charts.BLUE, charts.ORANGE, charts.GREY}
    styles = [tuple(charts.line_style(configuration).values()) for configuration in CONFIGURATIONS.values()
              if configuration.name != "+DPad"]
    assert len(set(styles)) == len(styles), "lines of one colour are told apart"


def test_error_bars_are_the_intervals_of_the_tables(tmp_path, monkeypatch):
    """Guards three right answers of three, drawn without any doubt."""
    from matplotlib.axes import Axes

    drawn = []
    original = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda self, *values, **more: (
        drawn.append(more["xerr"]) or original(self, *values, **more)))
    records = [evaluation(name, 1.0, samples=3, flexible=1.0, strict=1.0) for name in ("Vanilla", "+DPad")]
    charts.draw(records, tmp_path / "a.png")
    below, above = drawn[0]
    assert below == pytest.approx([56.1, 56.1], abs=0.1) and above == [0, 0]


def test_single_rows_are_not_drawn(tmp_path, capsys):
    """Guards charts that compare nothing: refused, or left out and said where there are others."""
    files.write_json(tmp_path / "a.json", evaluation("Vanilla", 1.0))
    out = tmp_path / "x.png"
    assert run.main(["table", str(tmp_path / "a.json"), "--plot", str(out)]) == 2
    output, error = capsys.readouterr()
    assert "a chart needs at least two rows to compare" in error and error.count("\n") == 1 and not output
    files.write_json(tmp_path / "b.json", [*vanilla_and_dpad(), evaluation("Vanilla", 1.0, model="other")])
    assert run.main(["table", str(tmp_path / "b.json"), "--plot", str(out)]) == 0
    assert "not drawn: 1 table with nothing to compare" in capsys.readouterr().err and out.is_file()


@pytest.mark.parametrize("latency", [1.9, 0.9, 0.1, 0.001])
def test_axes_have_numbers(tmp_path, latency, monkeypatch):
    """Guards logarithmic axes: no formula stands beside them, whatever they span."""
    monkeypatch.setitem(charts.quiet_matplotlib().rcParams, "svg.fonttype", "none")  # text stays text
    records = [evaluation(name, value, length=length) for length, fast in ((64, 2.3), (128, latency))
               for name, value in (("Vanilla", 2.0), ("+DPad", fast))]
    for figure in ("length", "bars"):
        for path in charts.draw(records, tmp_path / f"{figure}.svg", figure):
            text = path.read_text(encoding="utf-8")
            assert "mathdefault" not in text and "times10" not in text


def test_names_are_only_names(tmp_path, capsys, recwarn):
    """Guards formulas, signs without a glyph and paths in names."""
    pair = vanilla_and_dpad()
    for record in pair:
        record |= {"model": "../a$b$ \u4e2d", "task": "x/../../y.yaml"}
    more = [record | {"model": "other"} for record in pair]
    paths = charts.draw([*pair, *more], tmp_path / "sub" / "x.png")
    assert [path.parent for path in paths] == [tmp_path / "sub"] * 2 and not recwarn.list


def test_matplotlib_is_quiet_without_a_home(tmp_path):
    """Guards the terminal of users whose home folder cannot be written."""
    files.write_json(tmp_path / "a.json", vanilla_and_dpad())
    home = tmp_path / "home"
    home.write_text("not a folder")
    environment = os.environ | {"HOME": str(home), "MPLCONFIGDIR": str(home / "x"), "XDG_CONFIG_HOME": str(home),
                                "XDG_CACHE_HOME": str(home), "HF_HOME": str(tmp_path / "hf")}
    program = ("from pathlib import Path\nfrom dpad.results import charts\nfrom dpad.results.records import load\n"
               "from dpad.interact import gif\ngif._font(9)\ncharts.draw(load(['a.json']), 'a.png')")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
