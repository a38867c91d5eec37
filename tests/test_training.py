"""`run.py train`: what it refuses, runs that were killed and resumed, several processes, and a stranger's first run.

    bash tests/run.sh tests/test_training.py

Samples and the loss are tested in test_views.py, data in test_examples.py, adapters in test_adapters.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, with_flags
from safetensors.torch import load_file

import run as command_line
from dpad.training import command, output, source, trainer
from dpad.training.settings import Mixture, SuffixMixture, TrainingSettings
from dpad.training.state import State, claim

BASE = ["-l", "16", "-b", "4", "-d", "gaussian", "-w", "8", "--steps", "6", "--batch_size", "4", "--log_every", "1",
        "--save_every", "2", "--eval_every", "3", "--held_out", "2"]


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty examples of a few words."""
    path = tmp_path_factory.mktemp("data") / "my.jsonl"
    lines = [{"prompt": f"How many are {number}?", "response": f"There are {number}."} for number in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def train(data, checkpoint_folder, capsys):
    """A function that runs `run.py train` in this process, with more flags, and returns the status and what it said."""

    def call(folder, *flags):
        base = ["train", "-m", str(checkpoint_folder), "--data", str(data), "--output", str(folder), *BASE]
        capsys.readouterr()
        status = command_line.main(with_flags(base, [str(flag) for flag in flags]))
        said = capsys.readouterr().err.splitlines()
        return status, said[-1:] if status else []

    return call


def weights(folder):
    return load_file(folder / "model.safetensors")


def entries(folder):
    return list(map(json.loads, (folder / "train.jsonl").read_text().splitlines()))


def losses(folder):
    return [entry["loss"] for entry in entries(folder) if "loss" in entry]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, checkpoint_folder):
    """A run of six steps without a break."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    base = ["train", "-m", str(checkpoint_folder), "--data", str(data), "--output", str(folder), *BASE]
    assert command_line.main(base) == 0
    return folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, data, checkpoint_folder):
    """The same run, killed in its fifth step: the states after steps 2 and 4 are there."""
    folder = tmp_path_factory.mktemp("runs") / "unfinished"
    step = source.ExampleViews.step

    def stop(self, number):
        if number == 4:
            raise Killed
        return step(self, number)

    base = ["train", "-m", str(checkpoint_folder), "--data", str(data), "--output", str(folder), *BASE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source.ExampleViews, "step", stop)
        with pytest.raises(Killed):
            command_line.main(base)
    state = State(folder)
    assert state.path.exists() and state.before.exists()
    return folder


@pytest.fixture
def copy(unfinished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(unfinished, folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def is_like(folder, whole):
    """Whether a folder holds what the whole run left: the same files, weights to the bit, and losses."""
    same = all(torch.equal(weight, weights(folder)[name]) for name, weight in weights(whole).items())
    return same and losses(folder) == losses(whole) and contents(folder).keys() == contents(whole).keys()


# --- A run ------------------------------------------------------------------------------------------------------------


def test_the_log_says_what_happened(whole):
    """Guards train.jsonl: the start with its settings, every step, and the measurements on the held-out examples."""
    start, *lines = entries(whole)
    assert start["settings"]["suffix"] == {"dropout_strategy": "gaussian", "window": "8"}
    assert start["settings"]["gen_lengths"] == "16" and start["from_step"] == 0
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    measured = [line for line in lines if "held_out_loss" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert all(line["tokens_per_second"] > 0 and line["rate"] > 0 for line in lines if "loss" in line)
    assert not (whole / "train-state.pt").exists() and not (whole / "train.lock").exists()


def test_a_checkpoint_is_for_everyone_who_may_read_new_files(whole, checkpoint_folder):
    """Guards colleagues: the weights are as readable as the other files, and the tokenizer is the model's own."""
    modes = {path.stat().st_mode & 0o777 for path in whole.iterdir() if path.is_file()}
    assert len(modes) == 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (whole / name).read_bytes() == (checkpoint_folder / name).read_bytes()


def test_a_stranger_trains_and_generates(train, tmp_path, capsys):
    """Guards the first lines of the help: training on a file teaches its answers, and generate takes the folder."""
    data = tmp_path / "one.jsonl"
    data.write_text('{"prompt": "Who is it?", "response": "Mia"}\n')
    assert train(tmp_path / "out", "--data", data, "--steps", "60", "--rate", "0.02", "--save_every", "60",
                 "--eval_every", "60")[0] == 0
    flags = ["-l", "16", "-b", "4", "-d", "gaussian", "-w", "8", "-k", "3", "-sc", "1.6", "-e"]
    assert command_line.main(["generate", "-m", str(tmp_path / "out"), "--prompt", "Who is it?", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "Mia"


def test_mixtures_reach_the_samples(train, tmp_path, monkeypatch):
    """Guards the flags: what is drawn has the lengths, blocks and samplers that were typed, and no others."""
    seen = set()
    step_of = trainer.Run._step

    def note(self, step, batches):
        seen.add(str(self.settings.suffix.to_json()))
        seen.update((self.settings.gen_lengths.values, self.settings.block_lengths.values))
        return step_of(self, step, batches)

    monkeypatch.setattr(trainer.Run, "_step", note)
    flags = ["-l", "16:1,32:3", "-b", "4,8", "-d", "gaussian:3,null:1", "-w", "8,16", "-k", "3,4", "-sc", "1.6,2.3"]
    assert train(tmp_path / "out", *flags, "--steps", "2")[0] == 0
    assert (16, 32) in seen and (4, 8) in seen
    [text] = [entry for entry in seen if isinstance(entry, str)]
    assert "gaussian:3,null:1" in text and "'scale': '1.6,2.3'" in text


@pytest.mark.slow
def test_accuracy_on_a_task_is_measured_through_the_harness(train, tmp_path):
    """Guards --eval_task: the log has the scores of the saved weights, at every measurement."""
    folder = tmp_path / "out"
    status, said = train(folder, "--eval_task", "arithmetic-50", "--eval_limit", "2", "--steps", "2", "--eval_every",
                         "2", "-l", "16")
    assert status == 0, said
    [line] = [entry for entry in entries(folder) if "task" in entry]
    assert line["task"] == "arithmetic-50" and set(line["accuracy"]) == {"strict-match", "flexible-extract"}
    assert (folder / "evaluations" / "step-000002" / "record.json").exists()


@pytest.mark.filterwarnings("error::FutureWarning")
def test_full_objective_and_checkpointing_run(data, checkpoint_folder, tmp_path):
    """Guards the other objective, and that recomputing layers changes nothing: the same losses."""
    flags = ["-l", "16", "--objective", "full", "--steps", "2", "--precision", "float32", "--log_every", "1"]
    plain, recomputed = tmp_path / "plain", tmp_path / "recomputed"
    for folder, more in ((plain, []), (recomputed, ["--gradient_checkpointing"])):
        base = ["train", "-m", str(checkpoint_folder), "--data", str(data), "--output", str(folder)]
        assert command_line.main([*base, *flags, *more]) == 0
    assert losses(plain) == losses(recomputed)


# --- Resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_one_without_a_break(copy, whole, train):
    """Guards resuming after a kill: the weights are the same to the bit, and so are all losses."""
    before = contents(copy)
    status, said = train(copy)
    assert status == 2 and "holds an unfinished run: add --resume" in said[0] and contents(copy) == before
    assert train(copy, "--resume")[0] == 0
    assert is_like(copy, whole)
    for flags in ([], ["--resume"]):
        status, said = train(copy, *flags)
        assert status == 2 and "holds a finished run: name another folder" in said[0]


def test_dropout_of_lora_is_resumed_too(train, tmp_path, monkeypatch):
    """Guards runs with random numbers in the model: those of a step are the same after a restart."""
    flags = ["--lora", "2", "--lora_dropout", "0.5"]
    assert train(tmp_path / "whole", *flags)[0] == 0
    step = source.ExampleViews.step

    def stop(self, number):
        if number == 4:
            raise Killed
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(source.ExampleViews, "step", stop)
        with pytest.raises(Killed):
            train(tmp_path / "broken", *flags)
    assert train(tmp_path / "broken", *flags, "--resume")[0] == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.slow
def test_a_run_killed_from_outside_is_resumed(tmp_path, whole, data, checkpoint_folder):
    """Guards kill -9 at a moment of its own: whatever was on the disk, the resumed run ends like the whole one."""
    folder = tmp_path / "killed"
    command = [sys.executable, str(ROOT / "run.py"), "train", "-m", str(checkpoint_folder), "--data", str(data),
               "--output", str(folder), *BASE]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not State(folder).exists and process.poll() is None:
        pass
    process.kill()
    process.wait()
    if State(folder).exists:
        subprocess.run([*command, "--resume"], env=environment, check=True, capture_output=True)
    assert is_like(folder, whole)


@pytest.mark.parametrize("flags, message", [
    (["--seed", "5"], "seed is 5, but the run to continue has 1234"),
    (["--rate", "0.1"], "rate is 0.1, but the run to continue has 0.0005"),
    (["--batch_size", "5"], "batch_size is 5, but the run to continue has 4"),
    (["-w", "16"], "but the run to continue has {'dropout_strategy': 'gaussian', 'window': '8'}"),
    (["-l", "32"], "gen_lengths is 32, but the run to continue has 16"),
    (["--lora", "2"], "lora is 2, but the run to continue has None"),
    (["--steps", "5"], "steps is 5, but the run to continue has 6"),
])
def test_a_run_is_resumed_with_its_own_settings(copy, train, flags, message):
    """Guards a run against being continued as another one: it is refused, and nothing is touched."""
    before = contents(copy)
    status, said = train(copy, "--resume", *flags)
    assert status == 2 and message in said[0] and contents(copy) == before


def test_other_data_are_refused(copy, train, tmp_path):
    """Guards a run against being continued on other examples."""
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a", "response": "b"}\n' * 20)
    status, said = train(copy, "--resume", "--data", other)
    assert status == 2 and "data is " in said[0] and "but the run to continue has" in said[0]


def test_a_damaged_state_is_one_line_and_the_one_before_is_kept(copy, whole, train):
    """Guards states that are cut off anywhere, or are something else: one sentence says how to go on, and it works."""
    state = copy / "train-state.pt"
    content = state.read_bytes()
    foreign = io.BytesIO()
    torch.save({"step": 2}, foreign)
    for damaged in (b"", content[:10], content[: len(content) // 2], b"text", foreign.getvalue()):
        state.write_bytes(damaged)
        status, said = train(copy, "--resume")
        assert status == 2 and "is damaged and cannot be continued from: delete it, and --resume" in said[0]
    state.unlink()
    assert train(copy, "--resume")[0] == 0 and is_like(copy, whole)


def test_a_damaged_log_is_one_line(copy, train):
    """Guards train.jsonl: a line that is none of its own is named; one that a kill cut off is dropped."""
    log = copy / "train.jsonl"
    lines = log.read_text().splitlines()
    for damage in ("{", "[]", '{"step": 1}', "[" * 100_000):
        log.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        status, said = train(copy, "--resume")
        assert status == 2 and "line 2: not a line of a training log" in said[0]
    log.write_text("\n".join(lines) + '\n{"step": 5, "los')
    assert train(copy, "--resume")[0] == 0 and len(losses(copy)) == 6


def test_two_trainers_do_not_share_a_folder(copy, train):
    """Guards a run against a second one that would write into it."""
    with claim(copy):
        status, said = train(copy, "--resume")
    assert status == 2 and "is in use by another run: name another folder" in said[0]


@pytest.mark.parametrize("owner, moment", [(State, "save"), (output, "write_checkpoint"), (State, "remove")])
def test_a_kill_near_the_end_leaves_a_run_that_can_be_finished(copy, whole, train, monkeypatch, owner, moment):
    """Guards the moments around the last weights: the run can be resumed, and ends as it should."""
    original = getattr(owner, moment)

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(owner, moment, kill)
    with pytest.raises(Killed):
        train(copy, "--resume")
    monkeypatch.setattr(owner, moment, original)
    status, said = train(copy)
    assert status == 2 and "holds an unfinished run: add --resume" in said[0]
    assert train(copy, "--resume")[0] == 0 and is_like(copy, whole)


def test_a_measurement_that_was_interrupted_is_made_up_for(train, tmp_path, monkeypatch):
    """Guards --eval_task: a run that was killed while it measured has all measurements in the end, each once."""
    pytest.importorskip("lm_eval")
    calls = []

    def measure(args, settings, done):
        calls.append(done)
        if len(calls) == 2:
            raise Killed
        return {"task": args.eval_task, "accuracy": {}}

    monkeypatch.setattr(command, "measure", measure)
    with pytest.raises(Killed):
        train(tmp_path / "out", "--eval_task", "arithmetic-50")
    assert train(tmp_path / "out", "--eval_task", "arithmetic-50", "--resume")[0] == 0
    assert [entry["step"] for entry in entries(tmp_path / "out") if "task" in entry] == [3, 6] and calls == [3, 6, 6]


@pytest.mark.parametrize("first", [True, False])
def test_a_kill_while_the_state_is_written_leaves_nothing_in_the_way(copy, whole, train, monkeypatch, first):
    """Guards the minutes in which a large state is written: what there is of it is removed by the next start, and a run
    that had none before it begins anew."""
    if first:
        shutil.rmtree(copy)

    def kill(content, file):
        file.write(b"begun")
        file.flush()
        monkeypatch.setattr(Path, "unlink", lambda path, **options: None)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", kill)
        with pytest.raises(Killed):
            train(copy, *[] if first else ["--resume"])
    monkeypatch.undo()
    assert any(path.suffix == ".part" for path in copy.iterdir())
    assert train(copy, *[] if first else ["--resume"])[0] == 0
    assert is_like(copy, whole)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, message", [
    (["-b", "5"], "block_length is 5; it must divide every gen_length (16)"),
    (["-l", "16,x"], "gen_length is 'x'; it must be an integer"),
    (["-l", "16:0,32"], "it must be different values separated by commas"),
    (["-l", "16,16"], "it must be different values separated by commas"),
    (["-d", "gausian"], "did you mean 'gaussian'"),
    (["-d", "null"], "window is 8, but dropout_strategy null does not use it"),
    (["-d", "uniform"], "number is 0, so that dropout_strategy uniform would keep no suffix at all"),
    (["--noise_min", "0.5", "--noise_max", "0.4"], "noise_max is 0.4; it must be at least noise_min (0.5)"),
    (["--objective", "full"], "dropout_strategy is gaussian, but objective full shows the whole canvas"),
    (["--lora_alpha", "3"], "lora_alpha is 3, but no adapter is trained without lora"),
    (["--lora", "2", "--optimizer", "muon"], "optimizer is 'muon'"),
    (["--rate", "0"], "rate is 0.0; it must be"),
    (["--steps", "0"], "steps is 0; it must be"),
    (["--data", "missing.jsonl"], "missing.jsonl"),
    (["--adapter", "x"], "training starts from a whole checkpoint"),
    (["--merge"], "nothing is trained with --merge"),
    (["-l", "4"], "responses of"),
    (["--data", "arithmetic", "-l", "256", "-b", "32", "--too_long", "skip"], "but arithmetic has no end"),
    (["--dtype", "float16"], "to train, it must be float32 or bfloat16"),
    (["--eval_limit", "5"], "eval_limit is 5, but nothing is measured without eval_task"),
    (["--eval_task", "arithmetik-50"], "there is no task 'arithmetik-50'"),
    (["-p", "0"], "main_process_port is 0"),
    (["-d", "uniform", "-w", "8", "-nt", "5,0"], "number is 0"),
    (["--num_processes", "100"], "num_processes is 100; it must be at most"),
    (["--eval_limit", "0"], "eval_limit is 0"),
    (["--resume"], "no state to continue from: leave out --resume"),
    (["-m", "nothing-here"], "model is 'nothing-here'"),
])
def test_what_cannot_be_used_is_one_line(train, tmp_path, flags, message):
    """Guards people: one sentence names the flag, its value and what is allowed, and no folder is left behind."""
    status, said = train(tmp_path / "out", *flags)
    assert status == 2 and len(said) == 1 and message in said[0], said
    assert not (tmp_path / "out").exists()


def test_flags_without_an_effect_are_refused(tmp_path, capsys, data, checkpoint_folder):
    """Guards people against flags that are ignored in silence: of blocks without blocks, of training while merging."""
    base = ["train", "-m", str(checkpoint_folder), "--output", str(tmp_path / "out")]
    merge = [*base, "--merge", "--adapter", "x"]
    for flags in (["--prompt_field", "a"], ["--too_long", "cut"], ["--chat_template", "off"], ["--eval_limit", "3"],
                  ["--num_processes", "2"], ["-p", "3000"], ["--resume"], ["--data", str(data)], ["--steps", "3"]):
        assert command_line.main([*merge, *flags]) == 2
        assert "nothing is trained with --merge; leave it out" in capsys.readouterr().err
    assert command_line.main([*base, "--data", str(data), "--objective", "full", "-b", "8"]) == 2
    assert "block_length is 8, but objective full has no blocks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(train, monkeypatch):
    """Guards the time that loading takes."""
    monkeypatch.setattr(command, "load_model", None)
    for folder in ("/dev/null/out", "/proc/out"):
        status, said = train(folder)
        assert status == 2 and "--output is" in said[0]


def test_an_interrupted_run_says_how_it_goes_on(train, tmp_path, monkeypatch):
    """Guards Ctrl-C: one line, with the flag that continues the run."""
    def interrupt(self, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(source.ExampleViews, "step", interrupt)
    status, said = train(tmp_path / "out")
    assert status == 130 and "--resume continues from the last saved state" in said[0]


def test_small_files_can_be_mixed(train, tmp_path, data):
    """Guards --held_out of several sources: as many as the smallest can spare."""
    one = tmp_path / "one.jsonl"
    one.write_text('{"prompt": "a", "response": "b"}\n')
    for other, held_out in ((one, False), ("arithmetic", True)):
        folder = tmp_path / Path(other).stem
        assert train(folder, "--data", f"{data},{other}", "-l", "256", "-b", "32", "-w", "64", "--steps", "1",
                     "--held_out", "128")[0] == 0
        assert any("held_out_loss" in entry for entry in entries(folder)) == held_out


def test_a_measurement_decodes_as_the_run_trains():
    """Guards --eval_task with several strategies: the first one gets the parameters that it has, and no others."""
    suffix = SuffixMixture(Mixture(("null", "gaussian")), {"window": Mixture((64,))})
    settings = TrainingSettings(gen_lengths=Mixture((128, 256), (3, 1)), suffix=suffix)
    assert command.decoding_flags(settings) == ["-l", 128, "-b", 32, "-d", "null"]
    suffix = SuffixMixture(Mixture(("gaussian", "null")), {"window": Mixture((512,))})
    settings = TrainingSettings(suffix=suffix)
    assert command.decoding_flags(settings) == ["-l", 256, "-b", 32, "-d", "gaussian", "-w", 256]


def test_answers_that_are_too_long_are_cut_or_skipped_as_asked(train, tmp_path):
    """Guards --too_long: how many there are is said, and a run without them, or with a part of each, works."""
    data = tmp_path / "long.jsonl"
    long = "Mia has 3 apples and 4 eggs and 5 cards and 6 coins and 7 stamps."
    data.write_text("".join(json.dumps({"prompt": "What?", "response": text}) + "\n" for text in ["Mia", long] * 5))
    status, said = train(tmp_path / "out", "--data", data)
    assert status == 2 and "5 of 10 responses" in said[0] and "too_long" in said[0]
    for choice in ("cut", "skip"):
        assert train(tmp_path / choice, "--data", data, "--too_long", choice, "--steps", "2")[0] == 0
        assert len(losses(tmp_path / choice)) == 2


@pytest.mark.parametrize("content", ["file", "notes.txt"])
def test_a_folder_that_holds_something_else_is_refused(train, tmp_path, content):
    """Guards what is not ours: a file, or a folder with other files, is left as it is."""
    target = tmp_path / "out"
    if content == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / content).write_text("mine")
    status, said = train(target)
    assert status == 2 and ("is not a folder" in said[0] or "holds other files, such as" in said[0])
    assert (target if content == "file" else target / content).read_text() == "mine"


def test_data_in_the_output_folder_are_not_taken_for_a_log(train, tmp_path, data):
    """Guards a person's train.jsonl, a common name of data, alone in the folder that is given as --output."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(data, folder / "train.jsonl")
    status, said = train(folder, "--data", folder / "train.jsonl")
    assert status == 2 and "holds other files, such as train.jsonl" in said[0]
    assert (folder / "train.jsonl").read_bytes() == data.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(train, tmp_path, monkeypatch, value):
    """Guards NaN: one sentence, and what was saved before it is what is left, and is finite."""
    folder = tmp_path / "out"
    backward = trainer.Accelerator.backward
    calls = []

    def poison(self, loss, **options):
        calls.append(loss)
        return backward(self, loss * (value if len(calls) > 5 else 1.0), **options)

    monkeypatch.setattr(trainer.Accelerator, "backward", poison)
    status, said = train(folder, "--save_every", "1")
    assert status == 2 and "keeps the weights that were saved last" in said[0] and "a lower --rate" in said[0]
    assert State(folder).load()["step"] == 5
    assert all(weight.isfinite().all() for weight in weights(folder).values())


def test_there_are_never_more_processes_than_examples(whole, monkeypatch):
    """Guards several processes: each needs an example in every step."""
    class Many:
        num_processes = 8

    class Settings:
        batch_size = 4

    class Job:
        settings = Settings

    with pytest.raises(ValueError, match="batch_size is 4; it must be at least the number of processes \\(8\\)"):
        trainer.train(Job, Many)


def test_memory_that_runs_out_is_one_sentence(train, tmp_path, monkeypatch):
    """Guards large models: what takes less memory is said."""
    def fail(self, step, batches):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB.")

    monkeypatch.setattr(trainer.Run, "_step", fail)
    status, said = train(tmp_path / "out")
    assert status == 2 and "memory ran out; a smaller --microbatch_tokens" in said[0] and "20 GiB" in said[0]


def test_there_are_never_more_processes_than_gpus(train, tmp_path, monkeypatch):
    """Guards accelerate's and torchrun's own numbers of processes, which --num_processes does not see."""
    monkeypatch.setattr(command, "placement", lambda device, dtype: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    status, said = train(tmp_path / "out")
    assert status == 2 and "8 processes were launched on this machine, which has 1 GPU; each needs its own" in said[0]


# --- Several processes ------------------------------------------------------------------------------------------------


def launched(folder, data, checkpoint, *launcher, flags=()):
    flags = with_flags(BASE, ["--precision", "float32", *flags])
    command = [sys.executable, "-m", *launcher, str(ROOT / "run.py"), "train", "-m", str(checkpoint), "--data",
               str(data), "--output", str(folder), "--device", "cpu", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})


CONFIGS = ROOT / "benchmarks" / "training"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torchrun", "ddp", "fsdp"])
def test_two_processes_equal_one(way, tmp_path, data, checkpoint_folder, train):
    """Guards several processes, replicated (DDP) and with the weights in parts (FSDP): the run of one, to rounding."""
    alone = tmp_path / "alone"
    small = ["--microbatch_tokens", "50"]  # several forwards a step
    assert train(alone, "--precision", "float32", *small)[0] == 0
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    if way != "torchrun":
        launcher = ["accelerate.commands.launch", "--config_file", str(CONFIGS / f"{way}.yaml"), "--num_processes", "2",
                    "--mixed_precision", "no"]
    shared = tmp_path / "shared"
    done = launched(shared, data, checkpoint_folder, *launcher, flags=small)
    assert done.returncode == 0, done.stderr[-2000:]
    start = entries(shared)[0]
    assert start["processes"] == 2 and start["sharing"] == ("FSDP" if way == "fsdp" else "MULTI_CPU")
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-3)
    before, one, two = weights(checkpoint_folder), weights(alone), weights(shared)
    moved = sum(float((one[name] - before[name]).float().square().sum()) for name in one)
    apart = sum(float((one[name] - two[name]).float().square().sum()) for name in one)
    assert moved > 0 and apart < 1e-4 * moved  # a hundredth of the way
