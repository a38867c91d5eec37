"""`run.py train`: fine-tune a masked diffusion model on what it meets when it decodes, or merge an adapter.

    python run.py train -m tiny --data my.jsonl -d gaussian --output out
    python run.py train -m instruct --data gsm8k -d gaussian -w 64,128,256 --lora 64 --output adapter
    python run.py train --merge -m instruct --adapter adapter --output merged

The flags of settings.py, where training's settings are, and those of data, output and measurements. Imported by run.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad import ROOT
from dpad.engine import memory
from dpad.engine.checks import check_choice, check_integer, one_line
from dpad.engine.fields import Setting, add_flags, read_flags, settings_of
from dpad.engine.loading import DTYPES, load, placement
from dpad.engine.settings import SAMPLER, DecodingSettings
from dpad.evaluation import processes
from dpad.training.settings import STRATEGY, SUFFIX_SETTINGS, Mixture, SuffixMixture, TrainingSettings

if TYPE_CHECKING:
    import torch

    from dpad.engine.loading import LoadedModel

DECODING = {entry.name: entry for entry in settings_of(DecodingSettings)}
TOO_LONG = ("refuse", "cut", "skip")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "TORCHELASTIC_", "FSDP_")  # what they set
PASSES = 3  # through the data, when nobody says how many steps
LEAST_STEPS = 200  # then, however few the data are
SMALL = 100_000_000  # parameters of a model that takes a higher rate
WAY_ON = "the same command with --resume continues from the last saved state, if there is one"
# Flags of training that are no settings, and what they are when nobody gives them.
TRAINING_ALONE = {
    "data": None, "prompt_field": None, "response_field": None, "hub_config": None, "hub_split": None,
    "chat_template": "auto", "too_long": "refuse", "resume": False, "eval_task": None, "eval_limit": None,
    "num_processes": 1, "main_process_port": None,
}
# Settings whose default depends on the model, the data or the device, and what it is.
AUTOMATIC = {
    "steps": f"{PASSES} passes through the data, but at least {LEAST_STEPS}; 500 where it is endless",
    "rate": "2e-5; 1e-4 for LoRA; 5e-4 and 2e-3 for a model of less than 0.1 billion parameters",
    "microbatch_tokens": "2048 on the CPU, 8192 on a GPU",
}


# --- Flags ------------------------------------------------------------------------------------------------------------


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and data")
    group.add_argument("-m", "--model", required=True, metavar="NAME", help="the model to start from: tiny, "
                       "dream-tiny, instruct, 1.5, base, dream-instruct, dream-base, a checkpoint folder, or a hub id")
    group.add_argument("--data", metavar="SOURCE", help="a .jsonl file with a prompt and a response (or messages) a "
                       "line; arithmetic, answer-first or countdown (generated, endless); gsm8k; or a data set on the "
                       "hub. Several with commas between them are mixed evenly")
    group.add_argument("--prompt_field", metavar="NAME", help="the field or column of the prompts")
    group.add_argument("--response_field", metavar="NAME", help="the field or column of the responses")
    group.add_argument("--hub_config", metavar="NAME", help="configuration of a data set on the hub")
    group.add_argument("--hub_split", metavar="NAME", help="its split (default: train)")
    group.add_argument("--chat_template", choices=("auto", "on", "off"), default="auto", help="put prompts into the "
                       "model's chat template; auto: as decoding does by default (default: %(default)s)")
    group.add_argument("--too_long", choices=TOO_LONG, default="refuse", help="what to do with responses that are "
                       "longer than every canvas: refuse the data, cut them, or skip them (default: %(default)s)")
    group.add_argument("--adapter", metavar="FOLDER", help="with --merge: the adapter to merge into the model")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU if there is one)")
    group.add_argument("--dtype", help="type of the weights in training (default: float32; bfloat16 for the frozen "
                       "weights under LoRA on a GPU)")

    group = parser.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="FOLDER", help="where the checkpoint, or with --lora the "
                       "adapter, is written")
    group.add_argument("--resume", action="store_true", help="continue the unfinished run in --output")
    group.add_argument("--merge", action="store_true", help="train nothing: write the model with --adapter merged into "
                       "its weights")
    group.add_argument("--eval_task", metavar="TASK", help="also measure accuracy on this task of run.py -t at every "
                       "measurement; decoding with a threshold of 0.9, early termination and the first values of the "
                       "flags below")
    group.add_argument("--eval_limit", type=int, metavar="N", help="its documents (default: 100)")
    group.add_argument("--num_processes", type=int, default=1, metavar="N", help="processes that share each step, each "
                       "with its own GPU if there are any (default: %(default)s)")
    group.add_argument("-p", "--main_process_port", type=int, metavar="PORT",
                       help="TCP port at which they meet (default: a free one)")
    group.add_argument("--debug", action="store_true", help="show where an error happened")

    add_flags(parser.add_argument_group("training"), [
        dataclasses.replace(entry, default=None, help=f"{entry.help} (default: {AUTOMATIC[entry.name]})")
        if entry.name in AUTOMATIC else entry for entry in settings_of(TrainingSettings)
    ])
    group = parser.add_argument_group(
        "canvas, block and suffix dropout (as in decoding)",
        "Each takes several values, from which every sample draws: 64,128, or with shares 64:0.3,128:0.7.",
    )
    for entry, text in mixture_flags():
        group.add_argument(*entry.flags, dest=f"mixture_{entry.name}", metavar="X,...", help=text)


def mixture_flags() -> list[tuple[Setting, str]]:
    """The settings that take mixtures, with their help."""
    texts = {
        "gen_length": "lengths that answers are padded to with EOS, in tokens (default: 256)",
        "block_length": "lengths of a block, in tokens (default: 32)",
        STRATEGY.name: f"{STRATEGY.help} (default: null)",
    }
    entries = [DECODING["gen_length"], DECODING["block_length"], STRATEGY, *SUFFIX_SETTINGS.values()]
    return [(entry, texts.get(entry.name, f"{entry.help} (default: {entry.default})").replace("%", "%%"))
            for entry in entries]


def settings_from(args: argparse.Namespace, automatic: dict[str, Any]) -> TrainingSettings:
    """The settings that the flags stand for; `automatic` gives those of AUTOMATIC that were not typed.

    Raises:
        ValueError: naming the flag, its value and what is allowed.
    """
    mixtures = {}
    for entry, _ in mixture_flags():
        text = getattr(args, f"mixture_{entry.name}")
        if text is not None:
            mixtures[entry.name] = Mixture.parse(entry, text)
    lengths = mixtures.pop("gen_length", Mixture((256,)))
    blocks = mixtures.pop("block_length", Mixture((DECODING["block_length"].default,)))
    suffix = SuffixMixture(mixtures.pop(STRATEGY.name, Mixture((STRATEGY.default,))), mixtures)
    settings = TrainingSettings(**automatic | read_flags(args, settings_of(TrainingSettings)), gen_lengths=lengths,
                                block_lengths=blocks, suffix=suffix)
    if settings.objective == "full" and args.mixture_block_length is not None:
        raise ValueError(f"block_length is {blocks}, but objective full has no blocks; leave it out")
    return settings


# --- The command ------------------------------------------------------------------------------------------------------


def run_train(args: argparse.Namespace, argv: Sequence[str], load_libraries: Callable[[], None],
              note: Callable[[str], None]) -> None:
    """Train, or merge.

    Args:
        load_libraries: imports torch and transformers.
        note: says one line to the person who waits.

    Raises:
        ValueError: one sentence about the flags, the data, the model or the folder.
    """
    if args.dtype is not None:
        check_choice("dtype", args.dtype, DTYPES)
    if args.merge:
        merge(args, load_libraries)
        return
    if args.adapter is not None:
        raise ValueError(f"adapter is {args.adapter!r}, but training starts from a whole checkpoint, which --merge "
                         "writes")
    if args.data is None:
        raise ValueError("data is missing: a .jsonl file, arithmetic, answer-first, countdown, gsm8k or a data set on "
                         "the hub")
    settings = settings_from(args, {})  # wrong flags are reported before anything is loaded
    processes.check_flags(args.num_processes, args.main_process_port, note)
    if args.dtype == "float16":
        raise ValueError("dtype is 'float16', in which gradients overflow; to train, it must be float32 or bfloat16")
    if args.eval_limit is not None:
        check_integer("eval_limit", args.eval_limit, 1)
        if args.eval_task is None:
            raise ValueError(f"eval_limit is {args.eval_limit}, but nothing is measured without eval_task")
    if args.eval_task is not None and importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"eval_task is {args.eval_task!r}, which needs the Python package lm_eval")
    load_libraries()
    if args.num_processes > 1 and processes.current().count == 1:
        weights = memory.plan(args.model, args.device, "float32").weights()
        processes.check_count(args.num_processes, args.device, 4 * weights)  # with gradients and the optimizer's state
        processes.launch(args.num_processes, args.main_process_port, argv, args.device, WAY_ON)
        return
    try:
        _train(args, argv, settings, note)
    except KeyboardInterrupt:
        if processes.current().rank:
            sys.exit(130)
        raise KeyboardInterrupt(f"interrupted: {WAY_ON}") from None
    except Exception as error:  # where one process fails, the others meet its end instead
        import torch

        if not processes.is_first_to_fail():
            sys.exit(2)
        if isinstance(error, torch.OutOfMemoryError):
            raise ValueError("memory ran out; a smaller --microbatch_tokens, --gradient_checkpointing or --lora takes "
                             f"less ({one_line(error)})") from error
        raise
    finally:
        processes.leave()


def merge(args: argparse.Namespace, load_libraries: Callable[[], None]) -> None:
    """Write the model with the adapter merged into its weights, as a checkpoint of its own."""
    unused = [name for name, default in TRAINING_ALONE.items() if getattr(args, name) != default]
    unused += [entry.label for entry in settings_of(TrainingSettings) if hasattr(args, entry.name)]
    unused += [entry.label for entry, _ in mixture_flags() if getattr(args, f"mixture_{entry.name}") is not None]
    if unused:
        raise ValueError(f"{', '.join(unused)}: nothing is trained with --merge; leave it out")
    if args.adapter is None:
        raise ValueError("merge needs --adapter FOLDER, the adapter to merge")
    load_libraries()
    from dpad.training.adapters import check_new_folder, merge_adapter

    check_new_folder("output", args.output)
    device, dtype = placement(args.device or "cpu", args.dtype or "float32")  # rounded once, when it is written
    loaded = load(args.model, device=device, dtype=dtype, adapter=args.adapter)
    merge_adapter(loaded, args.output, None if args.dtype is None else dtype)
    print(f"{args.output}: {args.model} with {args.adapter} merged; run.py takes it as -m {args.output}")


def _train(args: argparse.Namespace, argv: Sequence[str], settings: TrainingSettings,
           note: Callable[[str], None]) -> None:
    """Load, prepare and train, in this process."""
    import torch

    from dpad.training import output
    from dpad.training.adapters import fingerprint_of
    from dpad.training.examples import load_examples
    from dpad.training.source import ExampleViews, fitting, held_out_views
    from dpad.training.trainer import Job, check_folder, make_accelerator, train

    device, _ = placement(args.device, None)
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise ValueError(f"{here} processes were launched on this machine, which has {gpus} GPU{'s' * (gpus > 1)}; "
                         "each needs its own")
    accelerator = make_accelerator(device)
    leads = accelerator.is_main_process
    if leads:
        check_folder(Path(args.output), args.resume)
        if args.eval_task is not None:
            from dpad.evaluation import tasks

            tasks.load_tasks(args.eval_task)
    loaded = load_model(args, settings, device, accelerator)
    model = loaded.model
    automatic = {
        "rate": default_rate(sum(weight.numel() for weight in model.parameters()), settings.lora is not None),
        "microbatch_tokens": 2048 if device.type == "cpu" else 8192,
    }
    template = {"auto": None, "on": True, "off": False}[args.chat_template]
    options = {"seed": settings.seed, "chat_template": template, "prompt_field": args.prompt_field,
               "response_field": args.response_field, "hub_config": args.hub_config, "hub_split": args.hub_split}
    examples = fitting(load_examples(args.data, loaded, **options), max(settings.gen_lengths.values),
                       model.max_positions, args.too_long, note if leads else lambda text: None)
    held_out = None
    spared = examples.spare(settings.held_out)
    if spared:
        examples, held_out = examples.split(spared)
    if examples.size is not None:
        automatic["steps"] = max(LEAST_STEPS, math.ceil(PASSES * examples.size / settings.batch_size))
    settings = settings_from(args, automatic)

    torch.manual_seed(settings.seed)
    target, save = output.prepare(loaded, settings, Path(args.output), template)
    job = Job(
        model=target,
        source=ExampleViews(examples, settings, loaded),
        settings=settings,
        folder=Path(args.output),
        save=save,
        eos=model.config.eos_token_id,
        held_out=held_out_views(held_out, settings, loaded) if held_out else [],
        measure=None if args.eval_task is None else lambda done: measure(args, settings, done),
        identity={"model": fingerprint_of(loaded.checkpoint), "dtype": str(model.dtype), "too_long": args.too_long,
                  "device": device.type},
        command=shlex.join(["python", "run.py", *argv]),
    )
    if leads:
        count = "endless examples" if examples.size is None else f"{examples.size} example{'s' * (examples.size > 1)}"
        note(f"{count}, {settings.steps} steps of {settings.batch_size}, rate {settings.rate:g}, canvas "
             f"{settings.gen_lengths}, block {settings.block_lengths}, suffix {settings.suffix.strategies}")
    train(job, accelerator, args.resume)
    if leads:
        use = f"-m {args.model} --adapter {args.output}" if settings.lora else f"-m {args.output}"
        print(f"{args.output}: trained for {settings.steps} steps; run.py takes it as {use}")


def load_model(args: argparse.Namespace, settings: TrainingSettings, device: torch.device,
               accelerator: Any) -> LoadedModel:
    """The model to train, on this process's device, with float32 weights unless they are frozen or --dtype says so."""
    from accelerate.utils import DistributedType

    place: Any = device
    if accelerator.distributed_type == DistributedType.FSDP:
        if args.eval_task is not None:
            raise ValueError("eval_task cannot be measured while FSDP has the weights in parts; leave it out")
        place = "cpu"  # FSDP moves each process's part
    elif accelerator.num_processes > 1 and device.type == "cuda":
        place = accelerator.device
    dtype = args.dtype or ("bfloat16" if settings.lora and device.type == "cuda" else "float32")
    loaded = load(args.model, device=place, dtype=dtype)
    if loaded.quantize is not None:
        raise ValueError(f"model is {args.model!r}, which has quantized weights ({loaded.quantize}); train the model "
                         "that it was made from, and quantize the result")
    if device.type == "cpu" and settings.precision == "bfloat16":
        loaded.pretrained.set_attn_implementation("eager")  # the faster of the two there
    return loaded


def default_rate(parameters: int, lora: bool) -> float:
    """See AUTOMATIC."""
    if parameters < SMALL:
        return 2e-3 if lora else 5e-4
    return 1e-4 if lora else 2e-5


def decoding_flags(settings: TrainingSettings) -> list[Any]:
    """The flags of run.py that decode as a run trains: the commonest canvas, and the first values of its mixtures."""
    length = max(zip(settings.gen_lengths.shares, settings.gen_lengths.values))[1]
    strategy = settings.suffix.strategies.values[0]
    flags = ["-l", length, "-b", settings.block_lengths.values[0], "-d", strategy]
    for name, mixture in settings.suffix.parameters.items():
        if name in SAMPLER.defaults({STRATEGY.name: strategy}):
            value = min(mixture.values[0], length) if name == "window" else mixture.values[0]
            entry = SUFFIX_SETTINGS[name]
            if entry.kind is bool:
                flags.append((entry.flags if value else entry.negation)[0])
            else:
                flags += [entry.flags[0], value]
    return flags


def measure(args: argparse.Namespace, settings: TrainingSettings, done: int) -> dict[str, Any]:
    """Accuracy of the weights that have just been saved, by run.py in a process of its own."""
    from dpad.results import files

    limit = 100 if args.eval_limit is None else args.eval_limit
    flags = ["-t", args.eval_task, "--limit", limit, "-th", 0.9, "-e", "--batch_size", 8, *decoding_flags(settings)]
    flags += ["-m", args.model, "--adapter", args.output] if settings.lora else ["-m", args.output]
    flags += [] if args.device is None else ["--device", args.device]
    folder = Path(args.output) / "evaluations" / f"step-{done:06}"
    record = folder / "record.json"
    command = [sys.executable, str(ROOT / "run.py"), *map(str, flags), "--output", str(folder),
               "--record", str(record)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    ended = subprocess.run(command, env=kept, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"eval_task {args.eval_task} could not be measured: {ended.stderr.strip().splitlines()[-1]}")
    scores = files.read_json(record)["metrics"]
    return {"task": args.eval_task, "limit": limit,
            "accuracy": {name: score["value"] for name, score in scores.items()}}
