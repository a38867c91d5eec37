"""Tests of dpad/results/formatting.py: what is printed cannot steer a terminal, and stays readable.

    bash tests/run.sh tests/test_formatting.py
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from dpad.results.formatting import LAYOUT, json_line, printable

STEERING = "\x00\x07\x08\r\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066"


@given(st.text() | st.text(STEERING + LAYOUT + "aß中"))
def test_nothing_printed_steers_a_terminal(text):
    """Guards against bells, colours, titles and reordered text, in lines and in JSON, which reads back as it was."""
    assert not set(printable(text)) & set(STEERING + LAYOUT)
    assert not set(printable(text, LAYOUT)) & set(STEERING)
    line = json_line({"text": text})
    assert not set(line) & set(STEERING + LAYOUT) and json.loads(line) == {"text": text}


def test_other_scripts_stay_as_they_are():
    """Guards joiners, spaces and signs that people use."""
    text = "Straße 中文 \u200d👩\u200d🔬 می\u200cخواهم a\u00a0b \ufeff"
    assert printable(text) == text and text[:8] in json_line(text)
    assert printable("one\n\ttwo\x1b[2J", LAYOUT) == "one\n\ttwo\\x1b[2J"
