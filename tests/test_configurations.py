"""Tests of dpad/engine/configurations.py: the configurations are the paper's, and settings say which one they are.

    bash tests/run.sh tests/test_configurations.py
"""

from __future__ import annotations

import json

import pytest

from dpad import ROOT
from dpad.engine.configurations import (
    CACHES,
    CONFIGURATIONS,
    LONG_SEQUENCES,
    PAPER_TABLE,
    Configuration,
    classify,
    dpad_parameters,
    names_for,
)


def test_configurations_are_the_papers():
    by_name = {name: CONFIGURATIONS[name].choices(512) for name in names_for(512)}
    assert list(by_name) == ["Vanilla", "+DPad", "+Parallel", "+Parallel+DPad", "+Parallel+PrefixCache",
                             "+Parallel+PrefixCache+DPad"]
    for name, choices in by_name.items():
        assert (choices["block_length"], choices["gen_length"]) == (32, 512)
        assert choices.get("threshold") == (0.9 if "Parallel" in name else None)
        assert choices["cache"] == ("prefix" if "Cache" in name else "none")
        assert choices["early_termination"] == ("DPad" in name)
        if "DPad" in name:
            sampler = [choices[key] for key in ("dropout_strategy", "k_sigma", "scale", "window")]
            assert sampler == ["gaussian", 3, 1.6, 256]
        else:
            assert "dropout_strategy" not in choices


def test_long_answers_have_the_row_of_the_figure_as_well():
    assert names_for(1024) == LONG_SEQUENCES and names_for(992) == PAPER_TABLE
    assert set(LONG_SEQUENCES) - set(PAPER_TABLE) == {"Vanilla+EarlyTermination"}
    assert CONFIGURATIONS["Vanilla+EarlyTermination"].choices(1024)["early_termination"]
    assert {*LONG_SEQUENCES, *CACHES} == CONFIGURATIONS.keys()


@pytest.mark.parametrize("model, k_sigma, scale", [
    ("instruct", 4, 2.0), ("GSAI-ML/LLaDA-8B-Instruct", 4, 2.0), ("1.5", 3, 1.6), ("instruct/other", 3, 1.6),
])
def test_instruct_has_its_own_dropout(model, k_sigma, scale):
    choices = CONFIGURATIONS["+DPad"].choices(128, **dpad_parameters(model))
    assert (choices["k_sigma"], choices["scale"], choices["window"]) == (k_sigma, scale, 128)


def test_committed_records_are_what_their_names_say():
    for file in ("demo-cpu.json", "demo-dream-cpu.json", "long-cpu.json"):
        for record in json.loads((ROOT / "benchmarks" / file).read_text(encoding="utf-8")):
            assert classify(record["settings"]) == CONFIGURATIONS[record["name"]]


def test_settings_without_a_name_are_classified():
    assert classify({}).is_baseline and classify({"threshold": None, "cache": "none"}).is_baseline
    assert classify({"factor": 1.0, "cache": "dual"}).name == "+Parallel+DualCache"
    assert classify({"suffix_sampler": {"name": "uniform"}}) == Configuration(dpad=True)
    row = {"name": "mine", "dpad": True, "cache": "prefix", "parallel": False, "stops": True}
    assert classify(row) == CONFIGURATIONS["+PrefixCache+DPad"]


def test_every_configuration_says_what_it_is():
    """Guards the words: no two configurations are described alike."""
    assert len({configuration.help for configuration in CONFIGURATIONS.values()}) == len(CONFIGURATIONS)
    assert CONFIGURATIONS["+Parallel+PrefixCache+DPad"].help == (
        "tokens above the threshold at once, prefix cache, suffix dropout, early termination")
