"""Tests of dpad/results/paper.py: the file of the authors' numbers gives the ratios that their paper states.

    bash tests/run.sh tests/test_paper.py
"""

from __future__ import annotations

import pytest

from dpad.engine.configurations import LONG_SEQUENCES
from dpad.results import paper


def test_the_authors_headline_ratios():
    """Guards the file of the paper's numbers by the ratios that the abstract and the text state."""
    llada, dream = paper.reported("llada-1.5"), paper.reported("dream-base")
    assert llada["gsm8k", 1024, "+Parallel+PrefixCache+DPad"]["speedup"] == pytest.approx(61.39, abs=0.1)
    assert dream["humaneval", 2048, "+Parallel+PrefixCache+DPad"]["speedup"] == pytest.approx(97.32, abs=0.6)
    assert paper.reported("llada-instruct")["mbpp", 512, "+Parallel+DPad"]["speedup"] == pytest.approx(10.32, abs=0.01)
    with pytest.raises(ValueError, match="model is 'gpt'; the paper has llada-instruct"):
        paper.reported("gpt")


def test_rows_have_the_names_of_configurations():
    names = {name for model in paper.read()["models"] for _, _, name in paper.reported(model)}
    assert names == set(LONG_SEQUENCES)
