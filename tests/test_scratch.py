"""Training from random weights: which tokens the noise covers, drills that are right, and the cards.

    bash tests/run.sh tests/test_scratch.py

The loop that this training shares with `run.py train` is tested in test_training.py.
"""

import json
import random
import shutil
import sys

import pytest
import torch
from helpers import ROOT

from checkpoints import card, make
from dataset import arithmetic
from dpad.training import curriculum, scratch

TASKS = ("arithmetic", "answer-first", "countdown")


@pytest.fixture(scope="module", params=["llada", "dream"])
def lessons(request):
    _, tokenizer = make.make_model(request.param, seed=3)
    return curriculum.Curriculum(tokenizer, TASKS, 3000, 3, steps=4, blocks=(8, 32))


def test_noise_and_loss_keep_to_the_answer(lessons):
    """Guards the samples: a prompt is never masked, the loss is over masked tokens alone, its weights are positive."""
    samples = 0
    for ids, positions, targets, weights in (view for number in range(4) for view in lessons.step(number)):
        masked = ids == lessons.mask_id
        assert torch.equal(ids[~masked], targets[~masked])
        assert not (weights[~masked] != 0).any() and (weights >= 0).all()
        assert torch.equal(positions, torch.arange(len(ids)))
        first = int(masked.nonzero()[0]) if masked.any() else len(ids)
        assert "assistant" in lessons.tokenizer.decode(ids[:first])  # the prompt's last turn is there, whole
        samples += 1
    assert samples > 20


def test_step_is_a_function_of_its_number(lessons):
    """Guards resuming: the same step gives the same samples."""
    for first, second in zip(lessons.step(7), lessons.step(7)):
        assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_easy_problems_come_first(lessons, monkeypatch):
    """Guards EASY_SHARE: in its part of the run no story has more than two steps."""
    lengths = {True: [], False: []}
    encode = type(lessons).encode
    for number in (0, 3):
        def note(self, problem, rng, is_drill, number=number):
            lengths[number == 0].append(problem.get("steps", 1))
            return encode(self, problem, rng, is_drill)

        monkeypatch.setattr(type(lessons), "encode", note)
        lessons.step(number)
    assert max(lengths[True]) == 2 and max(lengths[False]) > 2


def test_results_and_their_repetitions_share_their_noise(lessons):
    """Guards `tie_results`: 48/8=<<48/8=6>>6 ties the two sixes, 5*8=<<5*8=40>>40 the forties, and nothing else."""
    ids = lessons.tokenizer("48/8=<<48/8=6>>6\n5*8=<<5*8=40>>40").input_ids
    tied = lessons.tie_results(torch.arange(len(ids), dtype=torch.float), ids).tolist()
    assert [(lessons.tokenizer.decode([ids[place]]), lessons.tokenizer.decode([ids[int(tied[place])]]))
            for place in range(len(ids)) if tied[place] != place] == [("6", "6"), ("40", "40")]


def test_samples_for_names_mask_names_alone(lessons, monkeypatch):
    """Guards the shape that teaches copying: people's names are masked, all of them at t = 1, and nothing else."""
    monkeypatch.setattr(curriculum, "NOISE_SHAPES", {"names": (1.0, 1.0)})
    monkeypatch.setattr(curriculum, "MIN_NOISE", 1.0)
    monkeypatch.setattr(curriculum, "BARE_SUMS", (0, 0))
    names, samples = set(arithmetic.GIRLS + arithmetic.BOYS), 0
    for ids, _, targets, weights in lessons.step(1):
        hidden = [lessons.tokenizer.decode([token]) for token in targets[ids == lessons.mask_id].tolist()]
        if names & set(hidden):  # a story without people has no names and is masked all over
            samples += 1
            assert set(hidden) <= names
            assert weights.sum().item() == pytest.approx(1)
    assert samples > 5


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_names_and_numbers_are_one_token_wherever_they_stand(family):
    """Guards copying: a name at the start of a line and inside one is the same token, and so is a number up to 99."""
    _, tokenizer = make.make_model(family, seed=3)
    for name in (*arithmetic.GIRLS, *arithmetic.BOYS, *map(str, range(100))):
        alone = tokenizer(name, add_special_tokens=False).input_ids
        assert len(alone) == 1
        assert alone[0] in tokenizer(f"Then {name} has", add_special_tokens=False).input_ids


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_attention_copies_from_the_start(family):
    """Guards the initial weights: what a layer's heads attend to adds to the logit of the same token."""
    model, _ = make.make_model(family, seed=3)
    tokens = torch.arange(50, 250)
    embedded = model.embed(tokens[None])
    for layer in model.layers:
        attention = getattr(layer, "self_attn", layer)
        values = attention.v_proj(model.final_norm(embedded)).unflatten(-1, (model.kv_head_count, -1))
        output = getattr(attention, "o_proj", None) or attention.attn_out
        values = values.repeat_interleave(output.in_features // model.head_size // model.kv_head_count, dim=-2)
        written = output(values.flatten(-2))
        likeliest = model.head(model.final_norm(written)).argmax(-1)
        assert (likeliest == tokens).float().mean() > 0.8


def test_bare_sums_are_right():
    """Guards the drills: every line is true, whole and within the stories' bounds."""
    rng = random.Random(1)
    for line in (line for _ in range(200) for line in curriculum.drill(rng)["answer"].splitlines()):
        text, _, result = line.partition("=")
        left, sign, right = next((text.split(s)[0], s, text.split(s)[1]) for s in "+-*/" if s in text)
        left, right, result = int(left), int(right), int(result)
        assert {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign] == result
        assert (sign != "/" or left % right == 0) and max(left, right, result) <= 99 and result >= 1


def run(folder, *extra):
    """A short run in this process; its error's one line, or None."""
    arguments = ["--output", str(folder), "--steps", "4", "--tokens_per_step", "600", "--threads", "1", "--log_every",
                 "1", "--save_every", "2", *extra]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["scratch.py", *arguments])
        patch.setattr(scratch, "EXAMPLES_PER_STEP", 3)
        patch.setattr(scratch, "HELD_OUT", 4)
        try:
            scratch.main()
        except SystemExit as stop:
            assert "\n" not in str(stop)
            return str(stop)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_run_ends_with_a_checkpoint_and_its_card(family, tmp_path, monkeypatch):
    """Guards the one command from nothing to the end: both parts of the recipe, weights that load, and the card."""
    from dpad import load

    folder = tmp_path / "made"
    assert run(folder, "--family", family) is None
    assert not (folder / "train-state.pt").exists()
    log = list(map(json.loads, (folder / "train.jsonl").read_text().splitlines()))
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    text = (folder / "README.md").read_text()
    assert "# made: a small" in text and "This command repeats the run (at the commit behind it):" in text
    assert load(str(folder)).chat_template
    assert "holds a finished run: name another folder" in run(folder)

    (folder / "README.md").unlink()
    monkeypatch.setattr(sys, "argv", ["card.py", str(folder)])
    card.main()
    assert (folder / "README.md").read_text() == text


def test_tasks_must_exist(tmp_path):
    """Guards --tasks: a misspelt one is one line, with the name that was meant."""
    assert "did you mean 'countdown'" in run(tmp_path / "x", "--tasks", "arithmetic,count-down")


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_the_embedded_models_cards_are_up_to_date(name, tmp_path):
    """Guards the cards: each is what the command writes from the files beside it."""
    folder = tmp_path / name
    folder.mkdir()
    for file in ("train.jsonl", "config.json", "records.json", "base.json"):  # the last one of fine-tuned models alone
        if (ROOT / "checkpoints" / name / file).exists():
            shutil.copy(ROOT / "checkpoints" / name / file, folder)
    card.write_card(folder)
    assert (folder / "README.md").read_text() == (ROOT / "checkpoints" / name / "README.md").read_text()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_the_embedded_models_are_as_good_with_dropout(name):
    """Guards what documents say of the committed rows: 500 problems at three lengths, vanilla at least 97 %, and no row
    with DPad more than 1.5 points below its row without; LLaDA's, as README says, not below it at all."""
    rows = json.loads((ROOT / "checkpoints" / name / "records.json").read_text())
    right = {(row["settings"]["gen_length"], row["name"]): row["metrics"]["flexible-extract"]["value"] for row in rows}
    assert {length for length, _ in right} == {256, 512, 1024} and len(right) == len(rows) == 18
    assert {row["samples"] for row in rows} == {500}
    for (length, row), value in right.items():
        if row.endswith("+DPad"):
            without = right[length, "Vanilla+EarlyTermination" if row == "+DPad" else
                            row.replace("+DPad", "+EarlyTermination")]
            assert value >= without - (0.015 if name == "dream-tiny" else 0)
        assert not row.startswith("Vanilla") or value >= 0.97
