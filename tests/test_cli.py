"""The command line as people use it: answers from every kind of prompt, one clear line for what cannot be used.

    python -m pytest tests/test_cli.py
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, with_flags

import run
from sampler import GaussianSampler, UniformSampler

SHORT = ["-l", "32", "-b", "16", "-th", "0.02"]
PROMPT = "Dan is 33 years old. Zoe is 38 years older than Dan. How old is Zoe?"


@pytest.fixture
def model(checkpoint_folder, monkeypatch, tmp_path):
    """Flags for a small random model; relative paths of the test land in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return ["-m", str(checkpoint_folder), "--device", "cpu"]


def start(*arguments, **options) -> subprocess.Popen:
    """run.py in a process of its own, away from the repository's folder."""
    # A shell's background job, and so its children, ignores Ctrl-C; a person's command does not.
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **options,
    )


def refused(capsys, arguments: list, status: int = 2) -> str:
    """The one line on standard error with which a command line ends."""
    try:
        code = run.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    captured = capsys.readouterr()
    assert code == status and captured.out == ""
    assert captured.err.startswith("run.py: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


# --- Help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["generate", "--help"], ["evaluate", "--help"]])
def test_help_is_fast_and_complete(arguments, tmp_path):
    """Help never waits for torch, and shows examples; it names all flags that people know."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]\n" \
           "try: runpy.run_path(sys.argv[0], run_name='__main__')\n" \
           "except SystemExit as stop: assert stop.code == 0, stop\n" \
           "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules), 'heavy imports'"
    shown = subprocess.run([sys.executable, "-c", code, str(ROOT / "run.py"), *arguments], cwd=tmp_path, text=True,
                           capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    flags = "-l --gen_length -b --block_size -th --threshold -m --model -d --dropout_strategy -w --window -k " \
            "--k_sigma -sc --scale -nt --num_tokens -c --use_cache -dc --dual_cache -e --early_termination --device " \
            "--dtype --batch_size --seed --temperature --factor --remasking --steps --chat_template"
    own = "--prompt --prompt_file --watch --json" if "generate" in arguments else \
        "-n --name -t --task -s --num_fewshot -re --from_scratch -p --main_process_port --limit --output"
    words = shown.stdout.replace(",", " ").replace("[", " ").split()
    assert [flag for flag in f"{flags} {own}".split() if flag not in words] == []
    assert "examples:" in shown.stdout


def test_published_defaults():
    """The defaults of the published run.py, short and long names alike."""
    args = run.parser_of("evaluate").parse_args([])
    expected = {"name": "", "task": "gsm8k", "num_fewshot": 0, "model": "instruct", "from_scratch": False}
    assert {name: getattr(args, name) for name in expected} == expected
    assert run.settings_from(args).as_choices().items() >= {
        "gen_length": 256, "block_length": 32, "threshold": None, "dropout_strategy": "null", "cache": "none",
        "early_termination": False}.items()
    gaussian = run.settings_from(run.parser_of("evaluate").parse_args(["-d", "gaussian"]))
    assert gaussian.suffix_sampler == GaussianSampler(window=256, k_sigma=4, scale=2.0)
    uniform = run.settings_from(run.parser_of("evaluate").parse_args(["-d", "random", "-nt", "3"]))
    assert uniform.suffix_sampler == UniformSampler(window=256, number=3)
    assert UniformSampler().number == 0
    short = "-n x -t a -l 64 -b 8 -s 1 -th 0.5 -m tiny -d random -w 32 -k 3 -sc 1.5 -nt 2 -c -dc -re -e -p 29".split()
    long = "--name x --task a --gen_length 64 --block_size 8 --num_fewshot 1 --threshold 0.5 --model tiny " \
           "--dropout_strategy random --window 32 --k_sigma 3 --scale 1.5 --num_tokens 2 --use_cache --dual_cache " \
           "--from_scratch --early_termination --main_process_port 29".split()
    assert run.parser_of("evaluate").parse_args(short) == run.parser_of("evaluate").parse_args(long)


# --- generate ---------------------------------------------------------------------------------------------------------


def answers(capsys, arguments: list) -> list[dict]:
    assert run.main(["generate", *with_flags(SHORT, [*map(str, arguments)]), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_prompt_from_flag_file_and_stdin(model, capsys, monkeypatch, tmp_path):
    """A prompt gets the same answer however it arrives."""
    [expected] = answers(capsys, [*model, "--prompt", PROMPT])
    assert expected["prompt"] == PROMPT and expected["forwards"] > 0 and expected["tokens"] > 0
    assert expected["tokens_per_second"] == pytest.approx(expected["tokens"] / expected["seconds"])
    (tmp_path / "p.txt").write_text(f"\n{PROMPT}\n\nHow many?\n")
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "{PROMPT}"}}\n{{"question": "How many?"}}\n')
    for name in ("p.txt", "p.jsonl"):
        first, second = answers(capsys, [*model, "--prompt_file", name])
        assert (first["answer"], first["forwards"]) == (expected["answer"], expected["forwards"])
        assert second["prompt"] == "How many?"
    for arguments in (["--prompt", "-"], [], ["--prompt_file", "-"]):
        with open(tmp_path / "stdin", "w+") as stdin:
            stdin.write(PROMPT + "\n")
            stdin.seek(0)
            monkeypatch.setattr(sys, "stdin", stdin)
            [answer] = answers(capsys, [*model, *arguments])
        assert (answer["prompt"], answer["answer"]) == (PROMPT, expected["answer"])


def test_batched_prompts_equal_single_prompts(model, capsys, tmp_path):
    """Five prompts of unequal length in batches of three give what each gives alone."""
    prompts = [PROMPT, "How many?", "Tom has 3 bags with 4 apples each. How many apples?", "A", "B C D E F G H"]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    single, batched = (answers(capsys, [*model, "--prompt_file", "p.txt", "--batch_size", size]) for size in (1, 3))
    keep = ("prompt", "answer", "forwards", "tokens")
    assert [[a[name] for name in keep] for a in single] == [[a[name] for name in keep] for a in batched]
    assert [a["prompt"] for a in batched] == prompts


@pytest.mark.parametrize("flags, wrapped", [([], True), (["--chat_template", "off"], False)])
def test_prompts_get_the_chat_template(model, capsys, monkeypatch, flags, wrapped):
    """A model with a chat template sees a user's turn, unless that is turned off."""
    from dpad.engine import completion

    complete, seen = completion.complete, []
    monkeypatch.setattr(completion, "complete", lambda loaded, texts, *args, **options: (
        seen.extend((text, loaded.chat(PROMPT)) for text in texts), complete(loaded, texts, *args, **options))[1])
    answers(capsys, [*model, "--prompt", PROMPT, *flags])
    [(text, chat)] = seen
    assert text == (chat if wrapped else PROMPT)


def test_text_output(model, capsys):
    """A person sees the answer, then forwards, tokens, tokens/s and seconds."""
    [expected] = answers(capsys, [*model, "--prompt", PROMPT])
    assert run.main(["generate", *model, *SHORT, "--prompt", PROMPT]) == 0
    captured = capsys.readouterr()
    text, _, statistics = captured.out.rstrip("\n").rpartition("\n")
    assert text == expected["answer"] and captured.err == ""
    assert statistics.startswith(f"[{expected['forwards']} forwards · {expected['tokens']} tokens · ")
    assert "tokens/s" in statistics


@pytest.mark.slow
def test_generate_does_not_import_lm_eval(model):
    """Answering a prompt must not wait for the evaluation harness."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run; status = run.main(sys.argv[1:]); " \
           "assert 'lm_eval' not in sys.modules; sys.exit(status)"
    done = subprocess.run([sys.executable, "-c", code, "generate", *model, *SHORT, "--prompt", PROMPT], text=True,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0 and "forwards" in done.stdout, done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--prompt", ""], "--prompt: the prompt is empty"),
    (["--prompt", "  \n"], "--prompt: the prompt is empty"),
    (["--prompt_file", "missing.txt"], "missing.txt cannot be read: No such file"),
    (["--prompt_file", "."], ". cannot be read: Is a directory"),
    (["--prompt_file", "bytes.txt"], "bytes.txt cannot be read: it is not UTF-8 text"),
    (["--prompt_file", "empty.txt"], "empty.txt: the prompt is empty"),
    (["--prompt_file", "bad.jsonl"], "bad.jsonl, line 2: not a JSON object with a text"),
    (["--prompt_file", "deep.jsonl"], "deep.jsonl, line 1 is nested deeper than 64 levels"),
    (["--prompt", "a", "--prompt_file", "b"], "not allowed with argument"),
    (["--prompt", "a", "--watch", "--json"], "--watch shows one prompt at a time"),
    (["--prompt", "a", "--batch_size", "0"], "batch_size is 0"),
    (["--prompt", "a", "-l", "1024"], "gen_length is 1024, but after a prompt of"),
    (["--prompt", "a", "--prompted", "b"], "unrecognized arguments: --prompted b"),
])
def test_bad_generate_requests_are_one_line(model, capsys, tmp_path, arguments, message):
    """No traceback, exit status 2, nothing on standard output."""
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert message in refused(capsys, ["generate", *model, *arguments])


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluation_prints_and_writes_its_record(model, capsys, tmp_path):
    """Flags alone evaluate; the summary shows the record's numbers and where they are."""
    decoding = [*SHORT, "-d", "gaussian", "-w", "16", "-e", "-dc"]
    flags = ["-t", "arithmetic-50", *model, "--limit", "3", "-n", "try", *decoding]
    assert run.main(flags) == 0
    shown = capsys.readouterr()
    [path] = tmp_path.glob("results/try-arithmetic-50-random-llada-*/record.json")
    record = json.loads(path.read_text())
    assert record["command"] == "python run.py " + " ".join(flags)
    assert (record["name"], record["samples"], record["settings"]["cache"]) == ("try", 3, "dual")
    assert f"{record['metrics']['flexible-extract']['value']:.1%}" in shown.out
    assert f"{record['nfe']:.1f} forwards" in shown.out and str(path.parent.name) in shown.out
    assert shown.err == ""
    assert run.main(["evaluate", *flags]) == 0
    assert "3 of them answered earlier" in capsys.readouterr().out


@pytest.mark.parametrize("flags, message", [
    (["-b", "7"], "block_length is 7; it must divide gen_length (32)"),
    (["--steps", "3"], "steps is 3; it must be a multiple of the number of blocks (2)"),
    (["--steps", "64"], "at most one a token"),
    (["-th", "1.01"], "threshold is 1.01"),
    (["-th", "nan"], "threshold is nan"),
    (["-th", "0.9", "--factor", "1"], "give one of the two"),
    (["-d", "window", "-w", "64"], "window is 64; it must be at most gen_length (32)"),
    (["-d", "uniform", "-w", "0"], "window is 0"),
    (["-d", "uniform", "-nt", "-1"], "num_tokens is -1"),
    (["-d", "attentive"], "dropout_strategy is 'attentive'; it must be one of"),
    (["-m", "nonsense"], "model is 'nonsense'"),
    (["-m", "./missing"], "model is './missing'"),
    (["--device", "tpu9"], "device is 'tpu9'"),
    (["--dtype", "float8"], "dtype is 'float8'; it must be one of"),
    (["-l", "many"], "argument -l/--gen_length: invalid int value: 'many'"),
    (["-d", "gaussian", "-nt", "8"], "num_tokens is 8, but dropout_strategy gaussian does not use it"),
    (["-k", "3"], "k_sigma is 3.0, but dropout_strategy null does not use it"),
    (["--top_p", "0.9"], "top_p: not a setting of LLaDA"),
    (["-t", "missing.yaml"], "there is no task file 'missing.yaml'"),
    (["--limit", "0"], "limit is 0"),
    (["--batch_size", "-2"], "batch_size is -2"),
    (["-s", "-1"], "num_fewshot is -1"),
    (["--seed", "-1"], "seed is -1"),
    (["--output", "file"], "--output is 'file', but file is not a folder"),
    (["--chat_template", "maybe"], "invalid choice: 'maybe'"),
    (["train"], "unrecognized arguments: train"),
])
def test_bad_flags_are_one_line(model, capsys, tmp_path, flags, message):
    """No traceback, a status that is not 0, and nothing half written."""
    (tmp_path / "file").write_text("in the way")
    base = ["-t", "arithmetic-50", *model, "-l", "32", "-b", "16"]
    assert message in refused(capsys, with_flags(base, flags))
    assert not list(tmp_path.glob("results/*/record.json"))


@pytest.mark.parametrize("flags, message", [
    (["-d", "uniform"], "num_tokens is 0, so that dropout_strategy uniform would keep no suffix at all; say with -nt"),
    (["-nt", "8"], "num_tokens is 8, but dropout_strategy null does not use it"),
    (["-d", "uniform", "-nt", "8", "-k", "3"], "k_sigma is 3.0, but dropout_strategy uniform does not use it"),
    (["-d", "uniform", "-nt", "-1"], "num_tokens is -1; it must be an integer of at least 0"),
    (["-th", "-0.1"], "threshold is -0.1; it must be a finite number of at least 0 and at most 1"),
    (["-p", "-1"], "main_process_port is -1; it must be an integer from 1 to 65535"),
    (["--mc_samples", "64"], "mc_samples is 64, but task arithmetic-50 asks for no log-likelihoods"),
    (["-t", "choices-local", "-th", "0.9", "-e"], "threshold, early_termination: task choices-local asks for log-like"),
    (["-t", "choices-local", "-d", "gaussian"], "dropout_strategy: task choices-local asks for log-likelihoods alone"),
    (["--device", "cuda"], "device is 'cuda', but torch sees no GPU here; leave it out, or give cpu"),
    (["--device", "cuda:7"], "device is 'cuda:7', but torch sees no GPU here"),
    (["--device", "meta"], "device is 'meta', which holds no numbers; it must be cpu, cuda or mps"),
    (["-s", "100"], "num_fewshot is 100; task 'arithmetic-50' has 64 worked examples"),
])
def test_flags_without_effect_are_refused(model, capsys, monkeypatch, flags, message):
    """Guards against runs that are not what their flags say: each is refused in one line, and nothing is answered."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert message in refused(capsys, with_flags(["-t", "arithmetic-50", *model], flags))


@pytest.mark.slow
def test_worked_examples_that_do_not_fit_are_counted(model, capsys):
    """Guards -s: the number that is said to fit is one that fits, and a few more are refused."""
    base = ["-t", "arithmetic-50", *model, *SHORT, "--limit", "2"]
    line = refused(capsys, [*base, "-s", "64"])
    count = int(re.search(r"num_fewshot is 64, and (\d+) worked examples would fit", line)[1])
    assert run.main([*base, "-s", str(count)]) == 0 and capsys.readouterr().err == ""  # no answers, no earlier run
    assert "would fit" in refused(capsys, [*base, "-s", str(count + 3), "--output", "other"])


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    """Guards --device on a machine with GPUs: those that there are, are named."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    line = refused(capsys, ["generate", "-m", "tiny", "--prompt", "a", "--device", "cuda:7"])
    assert "device is 'cuda:7', but torch sees 2 GPUs here: cuda:0, cuda:1" in line


def test_what_has_no_effect_but_does_no_harm_is_said(model, capsys):
    """Guards flags of the published command line that mean nothing in one process: they are taken, not in silence."""
    assert run.main(["-t", "arithmetic-50", *model, *SHORT, "--limit", "1", "-p", "29501"]) == 0
    assert capsys.readouterr().err == "run.py: note: main_process_port is 29501, which has no effect without " \
                                      "--num_processes\n"


@pytest.mark.parametrize("flags, warned", [([], False), (["-s", "2"], True)])
def test_worked_examples_for_a_model_of_single_questions(capsys, monkeypatch, tmp_path, flags, warned):
    """Guards a score of 0 from an embedded model that nobody could explain."""
    monkeypatch.chdir(tmp_path)
    words = ["-t", "arithmetic-50", "-m", "tiny", "--device", "cpu", "--limit", "1", *SHORT, *flags]
    assert run.main(words) == 0
    line = "run.py: note: tiny was trained on single questions; worked examples (-s 2) confuse it\n"
    assert capsys.readouterr().err == (line if warned else "")


@pytest.mark.parametrize("arguments", [["-m", "1.5"], ["-m", "someone/something"], ["-m", "tiny", "-t", "mbpp"]])
def test_every_failure_of_the_hub_says_what_works(capsys, monkeypatch, tmp_path, arguments):
    """Guards the end of each such line: the tasks whose data are here, and no others."""
    monkeypatch.setattr("dpad.engine.hub.is_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    line = refused(capsys, arguments)
    assert "the hub is out of reach" in line and "Tasks that need no network: answer-first, arithmetic-50" in line
    assert not {"mbpp", "humaneval"} & set(line.rpartition(": ")[2].replace(",", "").split())


@pytest.mark.slow
def test_without_the_hub_the_default_command_says_what_works(tmp_path):
    """Guards a newcomer's first command: offline it ends in seconds, with what works instead."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(ROOT / "run.py")], cwd=tmp_path, text=True, capture_output=True,
                              env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)})
    assert time.monotonic() - start < 30  # about 5 on an idle machine
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is not in the local cache, and the hub is out of reach; `-m tiny` works offline. Tasks that need no " \
           "network: answer-first, arithmetic-50, arithmetic-500" in done.stderr


def test_unknown_command_is_one_line(capsys):
    """A word that is no command is not taken for flags."""
    line = refused(capsys, ["chatt", "-m", "tiny"])
    assert "there is no command 'chatt'; the commands are evaluate, generate" in line


@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "model.safetensors").unlink(), "could not be loaded"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert'"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer that can be read"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "has none"),
])
def test_damaged_checkpoint_is_one_line(checkpoint_folder, tmp_path, capsys, damage, message):
    """A checkpoint folder that lacks a part says which."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in checkpoint_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    flags = ["generate", "-m", folder, "--prompt", "a", "--device", "cpu", "--chat_template", "on", *SHORT]
    assert message in refused(capsys, flags)


def test_unexpected_error_is_one_line_unless_debug(model, capsys, monkeypatch):
    """A bug ends in status 1 and one line that names --debug; with it the traceback is there."""
    def broken(*args, **options):
        raise RuntimeError("boom")

    monkeypatch.setattr("dpad.engine.completion.complete", broken)
    arguments = ["generate", *model, *SHORT, "--prompt", "a"]
    assert "RuntimeError: boom (--debug shows where)" in refused(capsys, arguments, status=1)
    with pytest.raises(RuntimeError, match="boom"):
        run.main([*arguments, "--debug"])


# --- Interruption -----------------------------------------------------------------------------------------------------


def journal_lines(folder: Path) -> list[bytes]:
    return [line for path in folder.glob("*/answers-0.jsonl") for line in path.read_bytes().splitlines(keepends=True)]


def interrupt_after(process: subprocess.Popen, folder: Path, count: int, sent: int) -> None:
    """Send a signal once `count` answers are in the journal."""
    deadline = time.monotonic() + 120
    while len(journal_lines(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no answers in two minutes"
        time.sleep(0.01)
    process.send_signal(sent)


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
@pytest.mark.slow
def test_interrupted_run_goes_on_where_it_stopped(model, tmp_path, capsys, sent, status):
    """Ctrl-C, and even a kill, in the middle of a run keeps every finished answer; the same command then ends as an
    uninterrupted run does. While it runs, a second one on its folder is refused."""
    flags = ["-t", "arithmetic-50", *model, "-l", "128", "-b", "16", "-d", "gaussian"]
    process = start(*flags, "--output", tmp_path / "parts")
    try:
        interrupt_after(process, tmp_path / "parts", 1, 0)
        assert "in use by another run" in refused(capsys, [*flags, "--output", tmp_path / "parts"])
        interrupt_after(process, tmp_path / "parts", 3, sent)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status and out == ""
    kept = [line for line in journal_lines(tmp_path / "parts") if line.endswith(b"\n")]
    if sent == signal.SIGINT:
        assert err.startswith(f"run.py: interrupted: {len(kept)} finished answers are kept in ")
        assert err.endswith("the same command goes on from there\n") and err.count("\n") == 1
    assert 3 <= len(kept) < 50, "the run ended before it was interrupted"

    limit = ["--limit", str(len(kept) + 2)]
    assert run.main([*flags, *limit, "--output", str(tmp_path / "parts")]) == 0
    assert f"{len(kept)} of them answered earlier" in capsys.readouterr().out
    assert run.main([*flags, *limit, "--output", str(tmp_path / "whole")]) == 0
    parts, whole = (
        [json.loads(line) | {"seconds": None} for line in next(tmp_path.glob(f"{name}/*/samples.jsonl")).open()]
        for name in ("parts", "whole")
    )
    assert parts == whole and len(parts) == len(kept) + 2
