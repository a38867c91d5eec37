"""The command line: measure a model on a task, let it answer prompts, time it, show results. Parses, calls, prints.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -w 256 -e     # evaluate
    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"
    python run.py bench                                                           # time decoding beside its roofline
    python run.py --help                                                          # flags; also: generate --help

Exit status: 0 done; 2 the request cannot be used, and one line says why; 1 an unexpected error (--debug shows where);
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpad.engine import hub, memory
from dpad.engine.answer_text import AFTER_EOS
from dpad.engine.checkpoint import LARGE
from dpad.engine.checks import check_integer, suggest
from dpad.engine.command_line import Parser, say, waiting_for
from dpad.engine.configurations import DPAD
from dpad.engine.fields import Setting, add_flags, integer_or_text, read_flags, settings_of
from dpad.engine.loading import AUTO, FAMILIES, NAMES, Family, family_of, find_adapter, load, placement, resolve
from dpad.engine.methods import METHODS, combine
from dpad.engine.prompts import knows_single_questions_only
from dpad.engine.quantization import SCHEMES, check_scheme
from dpad.engine.settings import PARTS, DecodingSettings
from dpad.evaluation import processes
from dpad.evaluation.sandbox import DEFAULT_LEVEL, LEVELS

if TYPE_CHECKING:
    from dpad.engine.loading import LoadedModel
    from dpad.evaluation.compare import Entry

MC_SAMPLES = 128
CHAT_TEMPLATE = {"auto": None, "on": True, "off": False}

USAGE = """\
run.py [flags]            measure a model on a task
       run.py compare [flags]    ways of decoding beside each other, on one task
       run.py generate [flags]   answer prompts
       run.py chat [flags]       talk with a model
       run.py bench [flags]      time decoding
       run.py table RECORD...    tables and figures of records
       run.py trace FILE...      show and draw recorded denoisings
       run.py attention [flags]  draw what a block attends to
       run.py train [flags]      fine-tune a model, with suffix dropout
       run.py serve [flags]      answer OpenAI's clients
       run.py models [NAME...]   the models, their sizes, and whether they fit here
Each of them has its own --help."""
DPAD_FLAGS = f"-k {DPAD['k_sigma']:g} -sc {DPAD['scale']:g}"
NOTE = f"""
The defaults of -k and -sc are the authors', which the paper has for LLaDA-8B-Instruct. For all other models the
examples, the benchmark, the demo and the web UI use {DPAD_FLAGS}, as the paper does for LLaDA-1.5.
"""
EVALUATE_EXAMPLES = """\
examples:
  python run.py -t arithmetic-50 -m tiny                               the embedded model, vanilla decoding, offline
  python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e   DPad: suffix dropout and early termination
  python run.py -t arithmetic-50 -m tiny -th 0.9 -c                    parallel decoding and prefix cache (Fast-dLLM)
  python run.py -t gsm8k -m 1.5 -s 4 -d gaussian -k 3 -sc 1.6 -th 0.9 -e     LLaDA-1.5 on GSM8K, from the hub
  python run.py generate --help                                        answers to your own prompts

The same command continues an interrupted run. Tasks that need no network: arithmetic-50, arithmetic-500, answer-first
and countdown (the last two are for models that were trained on them: run.py train).
""" + NOTE
COMPARE_EXAMPLES = """\
examples:
  python run.py compare -m tiny -t arithmetic-50                       DPad and its rivals, offline
  python run.py compare -m tiny -t arithmetic-50 --methods dpad,dpad-even,window,ssm-hard,streaming -th 0.9 --limit 10
  python run.py compare -m tiny -t arithmetic-50 --methods dpad --methods "mine=-d anchor -w 32 --stride 8 -e"
  python run.py compare -m 1.5 -t gsm8k -s 4 --methods "dpad=-w 128,ssm=-w 72,streaming=--fall 0.4" -th 0.9
  python -m dpad.engine.methods                                        all published methods

Vanilla decoding, without and with early termination, is always in the table. Decoding flags count for every method that
does not say otherwise: -th 0.9 is the threshold of all that may have one. A method that draws runs once for each seed.
The same command continues an interrupted comparison, and shows a complete one again.
"""
GENERATE_EXAMPLES = """\
examples:
  python run.py generate -m tiny --prompt "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?"
  python run.py generate -m tiny -d gaussian -k 3 -sc 1.6 -e --watch \\
      --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
  echo "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?" | python run.py generate -m tiny -th 0.9
  python run.py generate -m tiny --prompt_file dataset/arithmetic-50.jsonl --json > answers.jsonl
""" + NOTE
CHAT_EXAMPLES = """\
examples:
  python run.py chat -m tiny -d gaussian -k 3 -sc 1.6 -e             the embedded model, offline
  python run.py chat -m 1.5 -d gaussian -k 3 -sc 1.6 -th 0.9 -c -e   LLaDA-1.5, from the hub
  echo "Mia has 20 eggs. She uses 8 eggs. How many eggs does Mia have now?" | python run.py chat -m tiny

Lines are kept for the next session, readable to you alone; DPAD_CHAT_HISTORY=off keeps none.
""" + NOTE
BENCH_EXAMPLES = """\
examples:
  python run.py bench                                      eight layers of random weights: vanilla, DPad, caches
  python run.py bench -m tiny --rows figure -l 1024 --blocks 2      the seven rows of the paper's long-sequence figure
  python run.py bench --gen_lengths 256,512,1024,2048 --plot growth.png      cost of a block against answer length
  python run.py bench -m tiny --batch_size 1,8             what batches gain
  python run.py bench --profile +DPad                      where the time goes
  python run.py bench -m 8b --device cuda --prompt_length 200 -l 1024 --steps_per_block 10     LLaDA-8B's shape

The roofline is the time of the same forwards reduced to their matrix products, measured in the same process.
"""
TRAIN_EXAMPLES = """\
examples:
  python run.py train -m tiny --data my.jsonl -d gaussian --output out       then: run.py generate -m out --prompt "..."
  python run.py train -m tiny --data arithmetic -l 128:0.3,256:0.7 -d gaussian:3,null:1 -w 64,128,256 -sc 1.6,2.3 \\
      --steps 300 --eval_task arithmetic-500 --output out                    a mixture of canvases and dropouts; offline
  python run.py train -m tiny --data my.jsonl -d null --output control       the same with the whole suffix: a control
  python run.py train -m 1.5 --data my.jsonl -d gaussian --lora 64 --gradient_checkpointing --output adapter
  python run.py train --merge -m 1.5 --adapter adapter --output merged       the adapter in the weights

A line of my.jsonl: {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}.
The same command with --resume continues an interrupted run; it ends with the same weights (on a CPU to the bit).
"""
SERVE_EXAMPLES = """\
examples:
  python run.py serve -m tiny -d gaussian -k 3 -sc 1.6 -th 0.9         then http://127.0.0.1:8000/v1 is the base URL
  python run.py serve -m 1.5 --method dpad-parallel-cache --max_batch 8 --max_tokens 2048
  DPAD_API_KEY=secret python run.py serve -m instruct --host 0.0.0.0

It needs a few packages more: pip install -r dpad/serve/requirements.txt. The decoding flags count where a request does
not say otherwise. docs/server.md has the endpoints.
""" + NOTE
TABLE_EXAMPLES = """\
examples:
  python run.py table results                                         all runs, compared where they can be
  python run.py table results/main_1.5/1.5 --paper llada-1.5          measured, and beside it what papers report
  python run.py table benchmarks/cpu-small.json                       a record of run.py bench
  python run.py table record.json --format csv > table.csv
  python run.py table results/heatmap/1.5 --figure heatmap --plot heatmap.svg
"""
MODELS_EXAMPLES = """\
examples:
  python run.py models                                     all names; needs no network
  python run.py models 1.5 -l 1024 --batch_size 8 --quantize int8
  python run.py models path/to/checkpoint --json

Memory is estimated, from config.json alone, and GB are 2^30 bytes.
"""
ATTENTION_EXAMPLES = """\
examples:
  python run.py attention -m tiny --plot attention.png \\
      --prompt "Dan has 33 coins. Zoe has 5 more coins. How many coins does Zoe have?"
  python run.py attention -m tiny -t arithmetic-50 --limit 20 -d gaussian -k 3 -sc 1.6 --plot attention.png \\
      --record attention.json                              averaged over 20 problems, with and without suffix dropout
  python run.py attention -m 1.5 -t gsm8k -s 4 --limit 100 -l 512 -d gaussian -k 3 -sc 1.6 -th 0.9 --plot figure-3.svg
  python run.py attention -m tiny -t arithmetic-50 --block all --step 4     all blocks, in their fifth forward

Blocks, steps and layers count from 0. The record draws again: run.py table attention.json --plot attention.svg
"""


# --- Flags that several commands share --------------------------------------------------------------------------------


def all_settings() -> tuple[list[Setting], list[Setting]]:
    """The decoding settings of all families, each once: those of decoding itself, and those of its parts."""
    decoding = {entry.name: entry for family in FAMILIES.values() for entry in settings_of(family.settings)}
    parts = [entry for entry in DecodingSettings.choices() if entry.name not in decoding]
    return list(decoding.values()), parts


def settings_from(args: argparse.Namespace) -> DecodingSettings:
    """The decoding settings that the flags stand for; ValueError when they clash or the model has no such setting."""
    decoding, parts = all_settings()
    family = family_of(args.model) if args.model in NAMES else read_family(args)
    choices = read_flags(args, [*decoding, *parts])
    if args.method is not None:
        choices, _ = combine(METHODS[args.method], choices, {}, family.settings, args.model)
    return family.settings.from_choices(choices)


def read_family(args: argparse.Namespace) -> Family:
    """The family of the model, from its config.json; ValueError when there is none to be had."""
    checkpoint = resolve(args.model)
    try:
        with waiting_for(f"the configuration of {checkpoint}"), without_waiting_for_the_hub(checkpoint):
            return family_of(checkpoint)
    except ValueError as error:
        if "task" not in args or Path(checkpoint).is_dir() or hub.is_reachable():
            raise
        from dpad.evaluation.tasks import offline_hint

        raise ValueError(f"{error}. {offline_hint()}") from None


def without_waiting_for_the_hub(name: str, adapter: str | None = None) -> AbstractContextManager[None]:
    """Where a model, or its adapter, is none of this machine's folders, ask once whether the hub answers."""
    is_here = Path(resolve(name)).is_dir() and (adapter is None or os.path.exists(adapter))
    return nullcontext() if is_here else hub.offline_if_unreachable()


def add_shared_flags(parser: argparse.ArgumentParser, one_method: bool = True, chat_template: bool = True) -> None:
    """Which model decodes, and how. one_method, chat_template: whether --method and --chat_template may say it."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default="instruct", metavar="NAME",
                       help="tiny, dream-tiny (embedded), instruct, 1.5, base (LLaDA-8B), dream-instruct, dream-base "
                       "(Dream-7B), another name of `run.py models`, a checkpoint folder, or a hub id (default: "
                       "%(default)s)")
    add_placement_flags(group)
    group.add_argument("--quantize", choices=SCHEMES, help="keep the layers' weights in 8 or 4 bits, by torchao; "
                       "int4 computes in bfloat16 (default: as they are)")
    if chat_template:
        group.add_argument("--chat_template", choices=CHAT_TEMPLATE, default="auto",
                           help="put prompts into the model's chat template; auto: as its published numbers were "
                           "measured (default: %(default)s)")
    decoding, parts = all_settings()
    group = parser.add_argument_group("decoding")
    if one_method:
        group.add_argument("--method", choices=METHODS, metavar="NAME", help="a published way of decoding, with all of "
                           f"its settings: {', '.join(METHODS)}; other flags replace one setting each")
    add_flags(group, decoding)
    for part in PARTS:
        names = {part.selector.name, *part.settings}
        add_flags(parser.add_argument_group(part.title), [entry for entry in parts if entry.name in names])


def add_placement_flags(group: argparse._ArgumentGroup) -> None:
    """What comes with a model's name: its adapter, where it computes, and in which type."""
    group.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter of this model, as peft writes it, or its "
                       "hub id; it is merged into the weights when they are loaded")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the first GPU if there is one)")
    group.add_argument("--dtype", help="float32, bfloat16, float16, or auto: on a CPU the faster one of the first two "
                       "(default: bfloat16 on a GPU, float32 on the CPU)")
    group.add_argument("--debug", action="store_true", help="show where an error happened")


def load_libraries() -> None:
    """Import what takes seconds, and keep it from printing about itself; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with waiting_for("torch and transformers"):
        import torch  # noqa: F401
        from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def settle_dtype(args: argparse.Namespace, argv: list[str]) -> list[str]:
    """Put the type that `--dtype auto` takes here in its place, in the flags and in the command line, and say which.

    So runs, records and other processes have the type itself.
    """
    if processes.current().count > 1:
        raise ValueError("dtype is 'auto', which every process would measure for itself; give float32 or bfloat16")
    load_libraries()
    quantize = getattr(args, "quantize", None)
    device, dtype = placement(args.device, AUTO, quantize)
    args.dtype = str(dtype).removeprefix("torch.")
    if device.type == "cpu" and quantize != "int4":
        from dpad.engine.precision import bfloat16_gain

        note(f"dtype is {args.dtype}: in bfloat16 this processor multiplies matrices {bfloat16_gain():.1f} times as "
             "fast as in float32")
    flags = {AUTO: args.dtype, f"--dtype={AUTO}": f"--dtype={args.dtype}"}
    return [flags[word] if word in flags and (word != AUTO or before == "--dtype") else word
            for before, word in zip(["", *argv], argv)]


def plan_of(args: argparse.Namespace) -> memory.Plan:
    """What loading the model takes; of a hub id, only config.json is downloaded."""
    return memory.plan(args.model, args.device, args.dtype, args.quantize, args.adapter is not None)


def load_model(args: argparse.Namespace, settings: DecodingSettings) -> LoadedModel:
    """Load the model, and say first whether a large one will fit; who knows better is not held up."""
    load_libraries()
    with waiting_for(f"the model {args.model}"), without_waiting_for_the_hub(args.model, args.adapter):
        plan = plan_of(args)
        if plan.weights() > LARGE and processes.current().rank == 0:
            rows = getattr(args, "batch_size", 1)
            note(memory.describe(plan, args.model, settings, rows if isinstance(rows, int) else 1))
        return load(args.model, device=args.device, dtype=args.dtype, adapter=args.adapter, quantize=args.quantize,
                    bare=True)


def check_model(args: argparse.Namespace) -> None:
    """Raise ValueError unless the device can be used, and model and adapter can be had: before anything takes long."""
    load_libraries()
    place = placement(args.device, args.dtype, args.quantize)
    if args.quantize is not None:
        check_scheme(args.quantize, *place)
    read_family(args)
    if args.adapter is not None:
        with waiting_for(f"the adapter {args.adapter}"), without_waiting_for_the_hub(args.model, args.adapter):
            find_adapter(args.adapter)


def note(text: str) -> None:
    """Say what is no error, but may surprise."""
    _say(f"note: {text}")


@contextmanager
def one_report() -> Iterator[None]:
    """What several processes do together: of those that fail the first one reports why, and all of them leave."""
    try:
        yield
    except ValueError:
        if not processes.is_first_to_fail():
            sys.exit(2)
        raise
    finally:
        processes.leave()


# --- evaluate ---------------------------------------------------------------------------------------------------------


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    group = add_task_flags(parser)
    group.add_argument("--mc_samples", type=int, metavar="N", help="random masks for each log-likelihood, in "
                       f"multiple-choice tasks (default: {MC_SAMPLES})")
    add_shared_flags(parser)


def add_task_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is measured, and where it is kept."""
    group = parser.add_argument_group("evaluation")
    group.add_argument("-t", "--task", default="gsm8k", help="a task of this repository (arithmetic-50, "
                       "arithmetic-500, answer-first, countdown), a generation or multiple-choice task of lm-eval, or "
                       "a task file (default: %(default)s)")
    group.add_argument("-s", "--num_fewshot", type=int, default=0, metavar="N",
                       help="worked examples in the prompt (default: %(default)s)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N documents")
    group.add_argument("-n", "--name", default="", help="name of the run, in its folder's name and its record")
    group.add_argument("--output", default="results", metavar="FOLDER",
                       help="where run folders are made (default: %(default)s)")
    group.add_argument("-re", "--from_scratch", action="store_true", help="ignore saved answers")
    group.add_argument("--record", metavar="FILE", help="also write the record into this .json file; if it holds the "
                       "record of this very command already, do nothing")
    group.add_argument("--batch_size", type=integer_or_text, default=1, metavar="N",
                       help="prompts decoded together; auto: as many as memory allows (default: %(default)s)")
    group.add_argument("--prompt_limit", type=int, metavar="N", help="cut prompts to their last N tokens (default: "
                       "refuse prompts that leave no room for the answer)")
    group.add_argument("--after_eos", choices=AFTER_EOS, default="drop", help="text that the model writes after its "
                       "first EOS or end-of-turn token: drop, the answer ends there; keep, it is scored without the "
                       "special tokens, as the published LLaDA numbers were. The record has both scores (default: "
                       "%(default)s)")
    group.add_argument("--num_processes", type=int, default=1, metavar="N", help="processes that share the work, each "
                       "with its own GPU if there are any (default: %(default)s)")
    group.add_argument("-p", "--main_process_port", type=int, metavar="PORT",
                       help="TCP port at which they meet (default: a free one)")
    group.add_argument("--isolation", choices=LEVELS, help="the least isolation to accept for programs that the model "
                       f"writes (humaneval, mbpp): none accepts any risk (default: {DEFAULT_LEVEL})")
    return group


def run_evaluate(args: argparse.Namespace, argv: list[str]) -> None:
    """Measure a model on a task, in one process or several; print the record's numbers."""
    from dpad.results import evaluations, files, outputs
    from dpad.results.formatting import LAYOUT, printable

    settings = settings_from(args)  # wrong flags are reported before a model of 16 GB is loaded
    processes.check_flags(args.num_processes, args.main_process_port, note)
    command = shlex.join(["python", "run.py", *argv])
    outputs.check_folder("--output", args.output)
    if args.record is not None:
        outputs.check("--record", args.record, outputs.EVALUATION)
        if not args.from_scratch and Path(args.record).exists():
            earlier = files.read_text(args.record) and files.read_json(args.record)
            if earlier and earlier.get("command") == command:
                print(f"complete: {args.record}")
                return

    if not Path(resolve(args.model)).is_dir():
        hub.ask()  # while the libraries are imported
    load_libraries()
    with waiting_for("lm-eval"):
        from dpad.evaluation import runs, sandbox, tasks
    answering = {"batch_size": args.batch_size, "prompt_limit": args.prompt_limit,
                 "mc_samples": MC_SAMPLES if args.mc_samples is None else args.mc_samples,
                 "after_eos": args.after_eos}
    runs.check_run(num_fewshot=args.num_fewshot, limit=args.limit, **answering)
    check_model(args)
    sandbox.require_level(args.isolation)
    with waiting_for(f"the task {args.task}"):
        loaded_tasks = tasks.load_tasks(args.task, args.num_fewshot, settings.seed)
    isolated = runs.isolation_of(loaded_tasks, args.task, args.isolation)
    check_use_of_flags(args, tasks.output_types(loaded_tasks))
    if share_work(args, argv):
        return

    here = processes.join()
    with one_report():
        announce(args, here, isolated)
        record = runs.evaluate(
            load_model(args, settings), args.task, settings, tasks=loaded_tasks, num_fewshot=args.num_fewshot,
            limit=args.limit, chat_template=CHAT_TEMPLATE[args.chat_template], output=args.output, name=args.name,
            from_scratch=args.from_scratch, command=command, processes=here, note=note, isolation=args.isolation,
            **answering,
        )
    if record is None:  # the first process has it
        return
    if args.record is not None:
        files.write_json(args.record, {key: value for key, value in record.items() if key != "folder"})
    print(printable(evaluations.summarize(record), LAYOUT))


def share_work(args: argparse.Namespace, argv: list[str]) -> bool:
    """Run the command in several processes if that was asked for and this is none of them; whether it was."""
    if args.num_processes == 1 or processes.current().count > 1:
        return False
    with without_waiting_for_the_hub(args.model):
        weights = plan_of(args).weights()
    processes.check_count(args.num_processes, args.device, weights)
    processes.launch(args.num_processes, args.main_process_port, argv, args.device)
    return True


def announce(args: argparse.Namespace, here: processes.Processes, isolated: dict[str, str]) -> None:
    """Say what may surprise about a run that is about to begin, and take this process's own device."""
    if isolated and here.rank == 0:
        note(f"programs that the model writes run with {isolated['isolation']}")
    if args.num_fewshot and here.rank == 0 and knows_single_questions_only(resolve(args.model)):
        note(f"{args.model} was trained on single questions; worked examples (-s {args.num_fewshot}) confuse it")
    if here.count > 1 and args.device in (None, "cuda"):
        args.device = processes.device(here)


def check_use_of_flags(args: argparse.Namespace, types: set[str]) -> None:
    """Raise ValueError for flags that the task has no use for.

    Args:
        types: what the task asks of a model, see `tasks.output_types`.
    """
    decoding, parts = all_settings()
    if types == {"generate_until"} and args.mc_samples is not None:
        raise ValueError(f"mc_samples is {args.mc_samples}, but task {args.task} asks for no log-likelihoods")
    if "generate_until" not in types:
        unused = [entry.label for entry in (*decoding, *parts) if hasattr(args, entry.name) and entry.name != "seed"]
        unused += ["method"] * (args.method is not None)
        if unused:
            raise ValueError(f"{', '.join(unused)}: task {args.task} asks for log-likelihoods alone, for which nothing "
                             "is decoded; leave them out")


# --- compare ----------------------------------------------------------------------------------------------------------


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("comparison")
    group.add_argument("--methods", "--method", action="append", default=[], metavar="LIST", help="published methods, "
                       "all for all of them, or your own as \"mine=FLAGS\", with commas between them; may be given "
                       f"several times. They are {', '.join(METHODS)}")
    group.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds a method that draws has, from "
                       "--seed on (default: %(default)s)")
    group.add_argument("--repeats", type=int, default=1, metavar="N", help="how often everything is timed (default: "
                       "%(default)s)")
    group.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal",
                       help="how the table is printed (default: %(default)s)")
    add_task_flags(parser)
    add_shared_flags(parser, one_method=False)


def run_compare(args: argparse.Namespace, argv: list[str]) -> None:
    """Evaluate several ways of decoding in turn; print and write their table."""
    from dpad.evaluation import compare
    from dpad.results import files, outputs, tables

    processes.check_flags(args.num_processes, args.main_process_port, note)
    outputs.check_folder("--output", args.output)
    if args.record is not None:
        outputs.check("--record", args.record, outputs.COMPARISON)
    command = shlex.join(["python", "run.py", *argv])
    decoding, parts = all_settings()
    settings = [*decoding, *parts]
    shared = read_flags(args, settings)
    seed = shared.pop("seed", DecodingSettings.seed)
    is_first = processes.current().rank == 0
    family = family_of(args.model) if args.model in NAMES else read_family(args)
    entries = compare.read_methods(args.methods, shared | {"seed": seed}, family.settings, args.model, settings,
                                   note if is_first else lambda _: None)
    answering = {"num_fewshot": args.num_fewshot, "limit": args.limit, "batch_size": args.batch_size,
                 "prompt_limit": args.prompt_limit, "after_eos": args.after_eos}
    checkpoint = resolve(args.model)
    description = compare.describe(
        entries, task=args.task, model=args.model, adapter=args.adapter, seed=seed, seeds=args.seeds,
        repeats=args.repeats, device=args.device, dtype=args.dtype, chat_template=args.chat_template, **answering,
        **({} if args.quantize is None else {"quantize": args.quantize}),
    )
    folder = compare.folder_of(args.output, args.name, description)
    record = None if args.from_scratch else compare.find_complete(folder, description, checkpoint)
    is_written = record is not None and all((folder / file).exists() for file in compare.FILES)
    if record is None:
        record = make_comparison(args, argv, entries, description, answering, command)
    if record is None:  # the first process has it
        return
    if not is_written:
        compare.write(record, folder)
    if args.record is not None:
        files.write_json(args.record, record)
    print(tables.render([record], form=args.format).rstrip("\n"))
    say("run.py", f"written to {folder}: {', '.join(compare.FILES)}")


def make_comparison(
    args: argparse.Namespace, argv: list[str], entries: list[Entry], description: dict[str, Any],
    answering: dict[str, Any], command: str,
) -> dict[str, Any] | None:
    """The record of a comparison; None in every process but the first, and in one that has launched others."""
    with waiting_for("lm-eval"):
        from dpad.evaluation import compare, runs, sandbox, tasks

    runs.check_run(**answering)
    check_model(args)
    sandbox.require_level(args.isolation)
    with waiting_for(f"the task {args.task}"):
        loaded_tasks = tasks.load_tasks(args.task, args.num_fewshot, description["seeds"][0])
    if tasks.output_types(loaded_tasks) != {"generate_until"}:
        raise ValueError(f"task {args.task} asks for log-likelihoods, for which nothing is decoded: there are no ways "
                         "of decoding to compare")
    isolated = runs.isolation_of(loaded_tasks, args.task, args.isolation)
    if share_work(args, argv):
        return None
    here = processes.join()
    with one_report():
        announce(args, here, isolated)
        return compare.compare(
            load_model(args, entries[0].settings), entries, description, tasks=loaded_tasks, output=args.output,
            name=args.name, command=command, chat_template=CHAT_TEMPLATE[args.chat_template],
            from_scratch=args.from_scratch, processes=here, isolation=args.isolation, **answering,
        )


# --- generate and chat ------------------------------------------------------------------------------------------------


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts and output")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt; - reads standard input as one prompt")
    source.add_argument("--prompt_file", metavar="FILE", help="one prompt per line; in a .jsonl file, its field "
                        "\"prompt\" or \"question\"; - reads lines from standard input")
    group.add_argument("--batch_size", type=int, default=1, metavar="N",
                       help="prompts decoded together (default: %(default)s)")
    group.add_argument("--watch", action="store_true", help="show the denoising live, one prompt at a time")
    group.add_argument("--trace", metavar="FILE", help="write the whole denoising of one prompt as JSON lines "
                       "(run.py trace draws it)")
    group.add_argument("--json", action="store_true", help="print one JSON object per prompt")
    add_shared_flags(parser)


def run_generate(args: argparse.Namespace, argv: list[str]) -> None:
    """Answer prompts; show, record or print the answers."""
    if args.watch and (args.json or args.batch_size != 1):
        raise ValueError("--watch shows one prompt at a time on a terminal: leave out --json and --batch_size")
    if args.trace is not None and args.prompt_file:
        raise ValueError("--trace records one prompt: give --prompt, not --prompt_file")
    check_integer("batch_size", args.batch_size, 1)
    settings = settings_from(args)
    if args.trace is not None:
        from dpad.results import outputs

        outputs.check("--trace", args.trace, outputs.TRACE)
    load_libraries()

    from dpad.interact import answers

    prompts = answers.read_prompts(args.prompt, args.prompt_file)
    answers.answer_prompts(
        load_model(args, settings), prompts, settings, chat_template=CHAT_TEMPLATE[args.chat_template],
        batch_size=args.batch_size, watch=args.watch, trace_file=args.trace, as_json=args.json,
    )


def run_chat(args: argparse.Namespace, argv: list[str]) -> None:
    """Talk with a model on the terminal, or answer a pipe line by line."""
    settings = settings_from(args)
    load_libraries()

    from dpad.engine.prompts import check_chat_template
    from dpad.interact import terminal
    from dpad.interact.chat import Chat

    loaded = load_model(args, settings)
    use_template = check_chat_template(loaded, CHAT_TEMPLATE[args.chat_template])
    Chat(loaded, settings, use_chat_template=use_template, live=terminal.can_redraw(),
         colour=terminal.wants_colour()).run()


# --- bench, table, trace ----------------------------------------------------------------------------------------------


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    from benchmarks import bench

    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default="small", metavar="NAME",
                       help="random weights in the shape 8b (LLaDA-8B), 7b (Dream-7B), small or small-dream, or a "
                       "model as run.py takes it: tiny, ... (default: %(default)s)")
    add_placement_flags(group)
    bench.add_flags(parser)


def run_bench(args: argparse.Namespace, argv: list[str]) -> None:
    """Time decoding in one process beside the roofline of its matrix products."""
    from benchmarks import bench

    load_libraries()
    bench.run(args, shlex.join(["python", "run.py", *argv]))


def add_table_flags(parser: argparse.ArgumentParser) -> None:
    from dpad.results.charts import FIGURES

    parser.add_argument("paths", nargs="+", metavar="RECORD", help="record files, or folders, which are "
                        "searched with all their subfolders")
    parser.add_argument("--paper", metavar="MODEL", help="put what papers report for llada-instruct, llada-1.5 or "
                        "dream-base beside the measured rows: DPad's authors, SSM and its rerun of DPad, Streaming-"
                        "dLLM; MODEL/TASK or MODEL/TASK/LENGTH for less of it. With benchmarks/paper.json as the "
                        "record they stand by themselves")
    parser.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal",
                        help="how tables are written (default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="also draw a figure into this .png or .svg; several get "
                        "names of their own from it")
    parser.add_argument("--figure", choices=FIGURES, help="what --plot draws; bars: latency and accuracy of "
                        "evaluations, latency and roofline of benchmarks; heatmap: accuracy by window and kept tokens; "
                        "length: speedup against answer length (default: bars)")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")


def run_table(args: argparse.Namespace, argv: list[str]) -> None:
    """Show records as tables, and draw figures from them."""
    from dpad.results import charts, outputs, records, tables

    if args.figure and args.plot is None:
        raise ValueError(f"--figure is {args.figure!r}, but nothing is drawn without --plot FILE")
    if args.plot is not None:
        outputs.check("--plot", args.plot, outputs.PICTURE, inputs=args.paths)
    loaded_records = records.load(args.paths, note=note)
    pictures = [] if args.plot is None else charts.plan(loaded_records, args.figure or "bars", note)
    paths = charts.place(pictures, args.plot) if pictures else []
    print(tables.render(loaded_records, args.paper, args.format))
    for picture, path in zip(pictures, paths):
        picture.draw(path)
        print(f"drawn in {path}", file=sys.stderr)


def add_trace_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="FILE", help="traces")
    parser.add_argument("--gif", metavar="FILE", help="draw them into this file")
    parser.add_argument("--seconds", type=float, metavar="X", help="length of the GIF (default: 8)")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")


def run_trace(args: argparse.Namespace, argv: list[str]) -> None:
    """Show recorded denoisings, and draw them as a GIF."""
    from dpad.interact.canvas import summarize
    from dpad.interact.gif import check_gif, write_gif
    from dpad.interact.trace import read_trace
    from dpad.results import outputs
    from dpad.results.formatting import LAYOUT, printable

    if args.seconds is not None and args.gif is None:
        raise ValueError(f"--seconds is {args.seconds:g}, but nothing is drawn without --gif FILE")
    if args.gif is not None:
        outputs.check("--gif", args.gif, outputs.GIF, inputs=args.paths)
    seconds = 8.0 if args.seconds is None else args.seconds
    traces = [read_trace(path) for path in args.paths]
    if args.gif is not None:
        check_gif(traces, seconds)
    for trace in traces:
        print(printable(summarize(trace), LAYOUT), end="\n\n")
    if args.gif is not None:
        write_gif(traces, args.gif, seconds)
        print(f"drawn in {args.gif}")


# --- attention --------------------------------------------------------------------------------------------------------


def add_attention_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is looked at")
    group.add_argument("--prompt", help="a prompt; - reads standard input as one")
    group.add_argument("-t", "--task", help="instead, the average over problems of a task (see run.py --help)")
    group.add_argument("-s", "--num_fewshot", type=int, metavar="N", help="worked examples in a task's prompts "
                       "(default: 0)")
    group.add_argument("--limit", type=int, metavar="N", help="only a task's first N documents")
    group.add_argument("--block", default="0", metavar="N", help="the block whose attention it is, from 0; all: the "
                       "average over all that have a suffix, laid over each other (default: %(default)s)")
    group.add_argument("--step", type=int, default=0, metavar="N", help="the block's forward, from 0 (default: "
                       "%(default)s)")
    group.add_argument("--before", type=int, default=200, metavar="N", help="how far before the block to show, in "
                       "tokens (default: %(default)s)")
    group.add_argument("--plot", metavar="FILE", help="draw it into this .png or .svg file")
    group.add_argument("--record", metavar="FILE", help="write the record into this .json file")
    add_shared_flags(parser)


def run_attention(args: argparse.Namespace, argv: list[str]) -> None:
    """Measure what blocks attend to; print it, and write and draw the record."""
    from dpad.results import outputs

    if (args.prompt is None) == (args.task is None):
        raise ValueError("give a prompt with --prompt or a task with --task, one of the two")
    if args.task is None:
        for flag, value in (("--limit", args.limit), ("--num_fewshot", args.num_fewshot)):
            if value is not None:
                raise ValueError(f"{flag} is {value}, which --task alone uses; leave it out")
    for flag, path, kind in (("--plot", args.plot, outputs.PICTURE), ("--record", args.record, outputs.ATTENTION)):
        if path is not None:
            outputs.check(flag, path, kind)
    settings = settings_from(args)
    load_libraries()

    from dpad.interact import answers, attention

    block = attention.check_place(settings, args.block, args.step, args.before)
    about: dict[str, Any] = {"command": shlex.join(["python", "run.py", *argv])}
    chat_template = CHAT_TEMPLATE[args.chat_template]
    if args.task is None:
        questions = answers.read_prompts(args.prompt, None)
        loaded = load_model(args, settings)
        prompts = answers.complete_prompts(loaded, questions, chat_template)
        about["prompt"] = questions[0]
    else:
        about |= {"task": args.task, "num_fewshot": args.num_fewshot or 0, "limit": args.limit}
        tasks = attention.load_task(args.task, args.num_fewshot or 0, args.limit, settings.seed)
        check_model(args)
        loaded = load_model(args, settings)
        prompts = attention.prompts_of_task(loaded, tasks, settings, args.limit, chat_template)
    record = attention.measure(loaded, prompts, settings, block, args.step, args.before, about)
    attention.show(record, args.record, args.plot)


# --- models -----------------------------------------------------------------------------------------------------------


def add_models_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="names, checkpoint folders or hub ids (default: all "
                        "names)")
    parser.add_argument("--device", help="the device to fit (default: the one that would be taken)")
    parser.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default: the device's)")
    parser.add_argument("--quantize", choices=SCHEMES, help="as if the layers' weights were kept in 8 or 4 bits")
    parser.add_argument("-l", "--gen_length", type=int, default=DecodingSettings.gen_length, metavar="N",
                        help="length of the answers in tokens (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, metavar="N", help="prompts decoded together (default: "
                        "%(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")


def run_models(args: argparse.Namespace, argv: list[str]) -> None:
    """List models; nothing is downloaded but, of a hub id that is named, its config.json."""
    names = [resolve(name) and name for name in args.names]  # wrong names are reported before seconds have passed
    load_libraries()

    from dpad.interact import models

    with hub.offline_if_unreachable() if names else nullcontext():
        models.show(*models.list_models(names, args.device, args.dtype, args.quantize, args.gen_length,
                                        args.batch_size), args.json)


# --- train ------------------------------------------------------------------------------------------------------------


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    from dpad.training import command

    command.add_train_flags(parser)


def run_train(args: argparse.Namespace, argv: list[str]) -> None:
    """Fine-tune a model, or merge an adapter into it."""
    from dpad.training import command

    command.run_train(args, argv, load_libraries, note)


# --- serve ------------------------------------------------------------------------------------------------------------


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    from dpad.serve import command

    command.add_serve_flags(parser)
    add_shared_flags(parser, chat_template=False)  # a request's endpoint says that


def run_serve(args: argparse.Namespace, argv: list[str]) -> None:
    """Answer OpenAI's clients until the process is ended."""
    from dpad.serve import command

    settings = settings_from(args)
    command.run_serve(args, settings, lambda: load_model(args, settings), note)


# --- main -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command: what it does, its usage and examples, and the functions that add its flags and run it."""

    description: str
    usage: str
    examples: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], None]


COMMANDS = {
    "evaluate": Command(
        "Measure a masked diffusion language model on a task: accuracy, latency, tokens/s, forwards.",
        USAGE, EVALUATE_EXAMPLES, add_evaluate_flags, run_evaluate,
    ),
    "generate": Command(
        "Answer prompts: from --prompt, --prompt_file, or standard input.",
        "run.py generate [flags]", GENERATE_EXAMPLES, add_generate_flags, run_generate,
    ),
    "chat": Command(
        "Talk with a model; drafts appear as they are decoded. /help inside lists the commands.",
        "run.py chat [flags]", CHAT_EXAMPLES, add_shared_flags, run_chat,
    ),
    "compare": Command(
        "Ways of decoding beside each other, with one model on one task: cost and accuracy over seeds, and their plot.",
        "run.py compare [flags]", COMPARE_EXAMPLES, add_compare_flags, run_compare,
    ),
    "bench": Command(
        "Time decoding in one process, warm and synchronised, beside the roofline of its matrix products.",
        "run.py bench [flags]", BENCH_EXAMPLES, add_bench_flags, run_bench,
    ),
    "table": Command(
        "Show records as tables in the paper's shape, or draw its figures from them.",
        "run.py table RECORD... [flags]", TABLE_EXAMPLES, add_table_flags, run_table,
    ),
    "trace": Command(
        "Show denoisings that `run.py generate --trace` wrote, and draw them; several share one clock.",
        "run.py trace FILE... [flags]", "", add_trace_flags, run_trace,
    ),
    "attention": Command(
        "Show what a block attends to: the text before it, itself, and its suffix, whole and with suffix dropout.",
        "run.py attention -m NAME (--prompt TEXT | -t TASK) [flags]", ATTENTION_EXAMPLES, add_attention_flags,
        run_attention,
    ),
    "train": Command(
        "Fine-tune a masked diffusion model on what it meets when it decodes, suffix dropout included.",
        "run.py train -m NAME --data SOURCE --output FOLDER [flags]", TRAIN_EXAMPLES, add_train_flags, run_train,
    ),
    "serve": Command(
        "Answer OpenAI's clients: chat and completions, whole or as a stream, in batches.",
        "run.py serve [flags]", SERVE_EXAMPLES, add_serve_flags, run_serve,
    ),
    "models": Command(
        "List the models that have names: their sizes, whether they are on this machine, and whether they fit it.",
        "run.py models [NAME...] [flags]", MODELS_EXAMPLES, add_models_flags, run_models,
    ),
}


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command's flags."""
    command = COMMANDS[name]
    parser = Parser(
        prog="run.py" if name == "evaluate" else f"run.py {name}", usage=command.usage,
        description=command.description, epilog=command.examples, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_flags(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run a command line; the return value is the exit status."""
    processes.end_with_launcher()
    has_name = bool(argv) and not argv[0].startswith("-")
    name = argv[0] if has_name else "evaluate"
    if name not in COMMANDS:
        return _fail(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}; flags without one mean "
                     f"evaluate (see --help){suggest(name, COMMANDS)}", 2)
    args = parser_of(name).parse_args(argv[1:] if has_name else argv)
    try:
        if getattr(args, "dtype", None) == AUTO and name != "train":
            argv = settle_dtype(args, argv)
        COMMANDS[name].run(args, argv)
    except KeyboardInterrupt as interrupt:
        return _fail(interrupt if str(interrupt) else "interrupted", 130)
    except BrokenPipeError:  # the reader, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, ValueError):
            return _fail(error, 2)
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}", 1)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    return 0


def _say(message: object) -> None:
    """One line on standard error."""
    say("run.py", message)


def _fail(message: object, status: int) -> int:
    _say(message)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
