"""The tasks of this repository: our own coding problems can be solved, and both their forms are asked and scored.

    python -m pytest tests/test_tasks.py
"""

import json

import pytest

import postprocess_code as code
from dpad import ROOT
from dpad.engine import loading
from dpad.evaluation import sandbox
from dpad.evaluation.adapter import DiffusionLM
from dpad.evaluation.journal import Answer
from dpad.evaluation.runs import evaluate
from llada.settings import LLaDASettings


def own_problems():
    return [json.loads(line) for line in (ROOT / "dataset" / "programs.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_our_own_problems_can_be_solved():
    """Guards dataset/programs.jsonl: its solutions pass in both forms, and a wrong one does not."""
    problems = own_problems()
    assert len(problems) == len({problem["entry_point"] for problem in problems}) == 12
    for problem in problems:
        as_mbpp = {"task_id": problem["task_id"], "test_list": problem["test_list"]}
        for reply, form, outcome in ((problem["canonical_solution"], problem, "passed"),
                                     (problem["code"], as_mbpp, "passed"), ("    return 'no'", problem, "failed")):
            assert sandbox.run_program(code.program(code.clean(reply, form), form)) == outcome


@pytest.mark.parametrize("task, prompt", [
    ("humaneval-local", "def shared_letters"), ("mbpp-local", "[BEGIN]\ndef shared_letters"),
])
def test_tasks_score_a_model(checkpoint_folder, tmp_path, monkeypatch, task, prompt):
    """Guards the tasks end to end: prompts, few-shot examples, both scores, and samples that score the same again."""
    loaded = loading.load(str(checkpoint_folder))
    solutions = {problem["entry_point"]: problem for problem in own_problems()}

    def solve(lm, batch):
        """Two of three answers are right, and one of those only once it is cleaned."""
        answers = []
        for request in batch:
            name = next(name for name in solutions if name in request.prompt.split("task:")[-1])
            body = solutions[name]["canonical_solution" if task == "humaneval-local" else "code"]
            text = ["    return 0", body, f"```python\n{body}```"][request.doc_id % 3]
            answers.append(Answer(key=request.key, task=request.task, doc_id=request.doc_id, repeat=0, answer=text,
                                  full_answer=text, raw=text, forwards=1, tokens=1, full_tokens=1, seconds=1.0,
                                  tokens_processed=1))
        return answers

    monkeypatch.setattr(DiffusionLM, "_generate", solve)
    shots = 1 if task == "mbpp-local" else 0
    record = evaluate(loaded, task, LLaDASettings(gen_length=32), num_fewshot=shots, limit=6, output=tmp_path,
                      progress=False, batch_size=6, chat_template=False)
    assert record["metrics"]["pass@1"]["value"] == pytest.approx(4 / 6)
    assert record["metrics"]["pass@1_raw"]["value"] == pytest.approx(2 / 6)
    samples = tmp_path / record["folder"] / "samples.jsonl"
    assert prompt in json.loads(samples.read_text().splitlines()[0])["prompt"]
    again = code.score(code.read_samples(samples))
    assert again["cleaned"]["value"] == pytest.approx(4 / 6) and again["raw"]["value"] == pytest.approx(2 / 6)
