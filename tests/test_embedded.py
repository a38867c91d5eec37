"""The embedded models solve their problems: a change of decoding or of a checkpoint that costs accuracy fails here.

    bash tests/run.sh tests/test_embedded.py
"""

import json

import pytest
from helpers import ROOT

from dpad.engine.completion import complete
from dpad.engine.configurations import CONFIGURATIONS
from dpad.engine.loading import load

PROBLEMS = [json.loads(line) for line in (ROOT / "dataset" / "arithmetic-50.jsonl").read_text().splitlines()]


def result_of(answer):
    """The number after ####, which ends a worked answer."""
    return answer.rpartition("####")[2].strip()


@pytest.mark.parametrize("name, configuration, minimum", [  # two problems below what was measured
    ("tiny", "+Parallel", 48),
    ("tiny", "+Parallel+DPad", 48),
    ("dream-tiny", "+Parallel", 47),
    ("dream-tiny", "+Parallel+DPad", 47),
])
@pytest.mark.slow
def test_an_embedded_model_solves_its_problems(name, configuration, minimum):
    """Guards accuracy, with and without DPad: all 50 problems in one batch, asked as the evaluation asks them."""
    loaded = load(name, device="cpu")
    choices = CONFIGURATIONS[configuration].choices(256) | {"early_termination": True}
    prompts = [loaded.chat(f"Question: {problem['question']}\nAnswer:") for problem in PROBLEMS]
    completions = complete(loaded, prompts, loaded.family.settings.from_choices(choices))
    results = [result_of(completion.text) for completion in completions]
    solved = sum(result == result_of(problem["answer"]) for result, problem in zip(results, PROBLEMS, strict=True))
    assert solved >= minimum
