"""Training: which tokens the noise covers, drills that are right, resumed runs that equal whole ones, and the cards.

    bash tests/run.sh tests/test_train.py
"""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from checkpoints import card, make
from dataset import arithmetic
from dpad.training import data


@pytest.fixture(scope="module", params=["llada", "dream"])
def stream(request):
    _, tokenizer = make.make_model(request.param, seed=3)
    return data.Stream(tokenizer, 3000, 3, "train", lesson_steps=1)


def test_noise_and_loss_keep_to_the_answer(stream):
    """Guards the batches: a prompt is never masked, the loss is over masked tokens alone, its weights are positive."""
    rows = 0
    for noisy, target, weight in (batch for number in range(4) for batch in stream.step(number)):
        masked = noisy == stream.mask_id
        assert torch.equal(noisy[~masked], target[~masked])
        assert not (weight[~masked] != 0).any() and (weight >= 0).all()
        for row in range(len(noisy)):
            first = int(masked[row].nonzero()[0]) if masked[row].any() else len(masked[row])
            text = stream.tokenizer.decode(noisy[row, :first])
            assert "assistant" in text  # the prompt's last turn is there, whole
            rows += 1
    assert rows > 20


def test_step_is_a_function_of_its_number(stream):
    """Guards resuming: the same step gives the same batches."""
    for first, second in zip(stream.step(7), stream.step(7)):
        assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_results_and_their_repetitions_share_their_noise(stream):
    """Guards `tie_results`: 48/8=<<48/8=6>>6 ties the two sixes, 5*8=<<5*8=40>>40 the forties, and nothing else."""
    ids = stream.tokenizer("48/8=<<48/8=6>>6\n5*8=<<5*8=40>>40").input_ids
    tied = stream.tie_results(torch.arange(len(ids), dtype=torch.float), ids).tolist()
    assert [(stream.tokenizer.decode([ids[place]]), stream.tokenizer.decode([ids[int(tied[place])]]))
            for place in range(len(ids)) if tied[place] != place] == [("6", "6"), ("40", "40")]


def test_samples_for_names_mask_names_alone(stream, monkeypatch):
    """Guards the shape that teaches copying: people's names are masked, all of them at t = 1, and nothing else."""
    monkeypatch.setattr(data, "NOISE_SHAPES", {"names": (1.0, 1.0)})
    monkeypatch.setattr(data, "MIN_NOISE", 1.0)
    monkeypatch.setattr(data, "BARE_SUMS", (0, 0))
    names, samples = set(arithmetic.GIRLS + arithmetic.BOYS), 0
    for noisy, target, weight in stream.step(1):
        for row in range(len(noisy)):
            masked = noisy[row] == stream.mask_id
            hidden = [stream.tokenizer.decode([token]) for token in target[row][masked].tolist()]
            if names & set(hidden):  # a story without people has no names and is masked all over
                samples += 1
                assert set(hidden) <= names
                assert weight[row].sum().item() == pytest.approx(1)
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
    for line in (line for _ in range(200) for line in data.drill(rng)["answer"].splitlines()):
        text, _, result = line.partition("=")
        left, sign, right = next((text.split(s)[0], s, text.split(s)[1]) for s in "+-*/" if s in text)
        left, right, result = int(left), int(right), int(result)
        assert {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign] == result
        assert (sign != "/" or left % right == 0) and max(left, right, result) <= 99 and result >= 1


def run(folder, *extra, processes=1):
    command = ["-m", "dpad.training.train", "--output", str(folder), "--tokens_per_step", "600", "--threads", "1",
               "--log_every", "1", *extra]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *command], capture_output=True, text=True,
        cwd=folder.parent, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def losses(folder):
    lines = map(json.loads, (folder / "train.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_resumed_and_shared_runs_equal_one_run(tmp_path):
    """Guards resuming after a kill and several processes: the same losses as one run without a break."""
    whole, broken, shared = tmp_path / "whole", tmp_path / "broken", tmp_path / "shared"
    assert run(whole, "--steps", "3").returncode == 0
    code = ("import sys, os; from dpad.training import train; step = train.Stream.step\n"
            "def stop(self, number):\n"
            "    if number == 2 and self.split == 'train': os._exit(9)\n"
            "    return step(self, number)\n"
            "train.Stream.step = stop; train.main()")
    arguments = ["--output", str(broken), "--steps", "3", "--tokens_per_step", "600", "--threads", "1",
                 "--log_every", "1"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True)
    assert killed.returncode == 9 and (broken / "train-state.pt").exists()
    refused = run(broken, "--steps", "3")
    assert refused.returncode == 1 and "holds an unfinished run: add --resume" in refused.stderr
    assert run(broken, "--steps", "3", "--resume").returncode == 0
    assert losses(broken) == losses(whole) and len(losses(whole)) == 3
    assert run(shared, "--steps", "3", processes=2).returncode == 0
    assert losses(shared) == pytest.approx(losses(whole), abs=2e-3)
    assert not (whole / "train-state.pt").exists() and "# whole" in (whole / "README.md").read_text()
    finished = run(whole, "--steps", "3")
    assert finished.returncode == 1 and "holds a finished checkpoint" in finished.stderr


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_the_embedded_models_cards_are_up_to_date(name, tmp_path):
    """Guards the cards: each is what the command writes from the files beside it."""
    folder = tmp_path / name
    folder.mkdir()
    for file in ("train.jsonl", "config.json", "records.json"):
        shutil.copy(ROOT / "checkpoints" / name / file, folder)
    card.write_card(folder)
    assert (folder / "README.md").read_text() == (ROOT / "checkpoints" / name / "README.md").read_text()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
