"""The tasks of this repository: those that need no network are known, and our own coding problems can be solved.

    python -m pytest tests/test_tasks.py
"""

import json

import pytest

import postprocess_code as code
from dataset import gsm8k
from dpad import ROOT
from dpad.engine import hub, loading
from dpad.evaluation import sandbox, tasks
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


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_without_the_hub_the_tasks_that_work_are_named(name, monkeypatch):
    """Guards the list in every error about the hub: each of its tasks loads, and no other does."""
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    with pytest.raises(ValueError, match=f"^task '{name}' could not get its data: they are not in the local cache, and "
                                         "the hub is out of reach. Tasks that need no network: ") as error:
        tasks.load_tasks(name)
    promised = str(error.value).rpartition(": ")[2].split(", ")
    assert {"arithmetic-50", "arithmetic-500", "choices-local", "humaneval-local"} <= set(promised)
    assert not {"humaneval", "mbpp"} & set(promised)
    assert ("gsm8k-split" in promised) == gsm8k.OUTPUT.is_file()
    for task in set(tasks.own_tasks().all_tasks) - {"humaneval", "mbpp"}:
        if task in promised:
            assert task in tasks.load_tasks(task)["tasks"]
        else:
            with pytest.raises(ValueError):
                tasks.load_tasks(task)


def test_a_task_is_promised_when_its_data_are_there(tmp_path, monkeypatch):
    """Guards the list against being written by hand: GSM8K's file makes its task one that needs no network."""
    path = tmp_path / "gsm8k.arrow"
    gsm8k.write(gsm8k.table([{"question": "3 * 4?", "answer": "#### 12"}]), path)
    monkeypatch.setattr(gsm8k, "OUTPUT", path)
    assert "gsm8k-split" in tasks.offline_hint()
    path.unlink()
    assert "gsm8k-split" not in tasks.offline_hint()


@pytest.mark.parametrize("task, count, available", [
    ("arithmetic-50", 65, 64), ("mbpp-local", 4, 3), ("choices-local", 13, 12), ("humaneval-local", 13, 12),
])
def test_more_worked_examples_than_there_are(task, count, available):
    """Guards -s: the number that a task has is said before a model is loaded, and is one that works."""
    match = f"^num_fewshot is {count}; task '{task}' has {available} worked examples$"
    with pytest.raises(ValueError, match=match):
        tasks.load_tasks(task, count)
    loaded = tasks.load_tasks(task, available)["tasks"][task]
    loaded.build_all_requests(limit=1)
    assert len(loaded.instances) >= 1
