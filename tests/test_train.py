"""Training: which tokens the noise covers, drills that are right, resumed runs that equal whole ones, and the cards.

    bash tests/run.sh tests/test_train.py
"""

import io
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, with_flags

from checkpoints import card, make
from dataset import arithmetic
from dpad.training import data, train


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


# --- Crashes, and what may be continued -------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


def here(folder, *extra):
    """A run of three steps in this process, which saves the imports; its error's one line, or None."""
    arguments = ["--output", folder, "--steps", "3", "--tokens_per_step", "600", "--threads", "1", "--log_every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *with_flags([*map(str, arguments)], [*extra])])
        try:
            train.main()
        except SystemExit as stop:
            assert "\n" not in str(stop)
            return str(stop)
    return None


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A run that was killed after two of three steps."""
    folder = tmp_path_factory.mktemp("training") / "unfinished"
    step = data.Stream.step

    def stop(self, number):
        if number == 2 and self.split == "train":
            raise Killed
        return step(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Stream, "step", stop)
        with pytest.raises(Killed):
            here(folder)
    assert (folder / "train-state.pt").exists() and (folder / "train-state-before.pt").exists()
    return folder


@pytest.fixture(scope="module")
def whole(unfinished):
    """The same run to its end, resumed."""
    folder = unfinished.parent / "whole"
    shutil.copytree(unfinished, folder)
    assert here(folder, "--resume") is None
    return folder


@pytest.fixture
def copy(unfinished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unfinished, folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_finished(folder, whole):
    """Whether a folder holds what the whole run left, and nothing else."""
    same = ("model.safetensors", "config.json", "tokenizer.json")
    return set(contents(folder)) == set(contents(whole)) and "train-state.pt" not in contents(folder) and \
        losses(folder) == losses(whole) and all(contents(folder)[name] == contents(whole)[name] for name in same)


@pytest.mark.slow
@pytest.mark.parametrize("place", [
    (train.State, "save"), (card, "write_card"), (card, "draw_curve"), (train.State, "remove"),
])
def test_a_kill_near_the_end_leaves_a_run_that_can_be_finished(copy, whole, monkeypatch, place):
    """Guards the moments around the last weights and the card: the folder says how to finish, and that works."""
    owner, name = place
    original = getattr(owner, name)

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(owner, name, kill)
    with pytest.raises(Killed):
        here(copy, "--resume")
    monkeypatch.setattr(owner, name, original)
    assert "holds an unfinished run: add --resume to continue it" in here(copy)
    assert here(copy, "--resume") is None and is_finished(copy, whole)
    assert "holds a finished checkpoint" in here(copy, "--resume")


@pytest.mark.slow
def test_a_checkpoint_without_its_card_says_how_to_get_it(whole, tmp_path, monkeypatch):
    """Guards folders whose card was lost: the command that is named writes it."""
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    (folder / "README.md").unlink()
    assert f"`python -m checkpoints.card {folder}` writes it" in here(folder)
    monkeypatch.setattr(sys, "argv", ["card.py", str(folder)])
    card.main()
    assert contents(folder)["README.md"] == contents(whole)["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("flags, message", [
    (["--seed", "5"], "--seed is 5, but the run to continue has 1234"),
    (["--rate", "0.1"], "--rate is 0.1, but the run to continue has 0.0015"),
    (["--tokens_per_step", "601"], "--tokens_per_step is 601, but the run to continue has 600"),
    (["--family", "dream"], "--family is dream, but the run to continue has llada"),
    (["--steps", "1"], "--steps is 1, but the run to continue has 2 behind it"),
])
def test_a_run_is_resumed_with_its_own_settings(copy, flags, message):
    """Guards a curve against being continued as another run: it is refused, and nothing is touched."""
    before = contents(copy)
    assert message in here(copy, "--resume", *flags)
    assert contents(copy) == before


@pytest.mark.slow
def test_two_trainers_do_not_share_a_folder(copy):
    """Guards a run against a second one that would write into it."""
    before = contents(copy)
    with train.claim(copy):
        for flags in ([], ["--resume"]):
            assert "is in use by another run: name another folder" in here(copy, *flags)
    assert contents(copy) == before


@pytest.mark.slow
def test_a_damaged_state_is_one_line_and_the_one_before_is_kept(copy, whole):
    """Guards states that are cut off anywhere, or are something else: one sentence says how to go on, and it works."""
    state = copy / "train-state.pt"
    content = state.read_bytes()
    foreign = io.BytesIO()
    torch.save({"step": 2}, foreign)
    wrong = io.BytesIO()
    torch.save(torch.load(state, weights_only=True) | {"step": "two"}, wrong)
    for damaged in (b"", content[:10], content[: len(content) // 2], content[:-1], b"text", foreign.getvalue(),
                    wrong.getvalue()):
        state.write_bytes(damaged)
        assert f"{state} is damaged and cannot be continued from: delete it, and --resume" in here(copy, "--resume")
    state.unlink()
    assert "holds an unfinished run: add --resume" in here(copy)
    assert here(copy, "--resume") is None and is_finished(copy, whole)


@pytest.mark.slow
def test_a_damaged_log_is_one_line(copy):
    """Guards train.jsonl, which the card is made of."""
    log = copy / "train.jsonl"
    lines = log.read_text().splitlines()
    for damage in ("{", "[]", '{"step": 1}', "[" * 100_000):
        log.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        assert f"{log}, line 2: not a line of a training log" in here(copy, "--resume")


@pytest.mark.slow
def test_there_must_be_something_to_resume(tmp_path):
    """Guards a misspelt folder, and a run that was killed before its first saved state."""
    assert "where there is no run to resume" in here(tmp_path / "missing", "--resume")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no state to continue from: leave out --resume" in here(tmp_path / "empty", "--resume")
    assert not list((tmp_path / "empty").iterdir())


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
