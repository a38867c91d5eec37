"""The command line: measure a model on a task, let it answer prompts, time it, show results. Parses, calls, prints.

    python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -w 256 -e     # evaluate
    python run.py generate -m tiny --prompt "Tom has 3 bags with 4 apples each. How many apples does he have?"
    python run.py bench                                                           # time decoding against its floor
    python run.py --help                                                          # flags; also: generate --help

Exit status: 0 done; 2 something in the request cannot be used, said in one line; 1 an unexpected error (--debug shows
where); 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

USAGE = """\
run.py [flags]            measure a model on a task
       run.py generate [flags]   answer prompts
       run.py chat [flags]       talk with a model
       run.py bench [flags]      time decoding
       run.py table RECORD...    tables and figures of records
       run.py trace FILE...      a recorded denoising as a GIF
Each of them has its own --help."""
EVALUATE_EXAMPLES = """\
examples:
  python run.py -t arithmetic-50 -m tiny                               the embedded model, vanilla decoding, offline
  python run.py -t arithmetic-50 -m tiny -d gaussian -k 3 -sc 1.6 -e   DPad: suffix dropout and early termination
  python run.py -t arithmetic-50 -m tiny -th 0.9 -c                    parallel decoding and prefix cache (Fast-dLLM)
  python run.py -t gsm8k -m instruct -s 4 -l 1024 -d gaussian -k 3 -sc 1.6 -th 0.9 -e     LLaDA-8B, from the hub
  python run.py generate -m tiny --watch --prompt "..."                answers to your own prompts (generate --help)

The same command goes on where an interrupted one stopped. Own tasks: arithmetic-50, arithmetic-500 (offline).
"""
GENERATE_EXAMPLES = """\
examples:
  python run.py generate -m tiny --prompt "Dan is 33 years old. Zoe is 38 years older than Dan. How old is Zoe?"
  python run.py generate -m tiny -d gaussian -e --watch --prompt "..."   watch the masks being decoded
  echo "..." | python run.py generate -m tiny -th 0.9                    the prompt from standard input
  python run.py generate -m tiny --prompt_file dataset/arithmetic-50.jsonl --json > answers.jsonl
"""
BENCH_EXAMPLES = """\
examples:
  python run.py bench                                      eight layers of random weights: vanilla, DPad, caches
  python run.py bench -m tiny --rows figure -l 1024 --blocks 2      the seven rows of the paper's long-sequence figure
  python run.py bench --gen_lengths 256,512,1024,2048 --plot growth.png      cost of a block against answer length
  python run.py bench -m tiny --batch_size 1,8             what batches gain
  python run.py bench --profile +DPad                      where the time goes
  python run.py bench -m 8b --device cuda --prompt_length 200 -l 1024 --steps_per_block 10     LLaDA-8B's shape

The floor is the same forwards as their matrix products alone, timed in the same process.
"""


CHAT_EXAMPLES = """\
examples:
  python run.py chat -m tiny -d gaussian -k 3 -sc 1.6 -e             the embedded model, offline
  python run.py chat -m instruct -d gaussian -th 0.9 -c -e           LLaDA-8B, from the hub
  echo "Dan is 33 years old. Zoe is twice as old as Dan. How old is Zoe?" | python run.py chat -m tiny
"""
TABLE_EXAMPLES = """\
examples:
  python run.py table results/main_1.5/1.5 --paper llada-1.5          measured, and beside it what the authors report
  python run.py table record.json --format csv > table.csv
  python run.py table results/heatmap/1.5 --figure heatmap --plot heatmap.svg
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """End with one line; argparse would print the usage before it."""
        self.exit(2, f"run.py: {message} (see --help)\n")


def batch_size(text: str) -> int | str:
    """The value of --batch_size."""
    return text if text == "auto" else int(text)


# --- Flags ------------------------------------------------------------------------------------------------------------


def add_placement_flags(group) -> None:
    """Where a model computes, and what an error shows: the same for every command."""
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU if there is one)")
    group.add_argument("--dtype", help="float32, bfloat16 or float16 (default: bfloat16 on a GPU, float32 on the CPU)")
    group.add_argument("--debug", action="store_true", help="show where an error happened")


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Which model decodes, and how: the same for evaluation and generate."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default="instruct", metavar="NAME",
                       help="tiny, dream-tiny (embedded), instruct, 1.5, base (LLaDA-8B), dream-instruct, dream-base "
                       "(Dream-7B), a checkpoint folder, or a hub id (default: %(default)s)")
    add_placement_flags(group)
    group.add_argument("--chat_template", choices=("auto", "on", "off"), default="auto",
                       help="put prompts into the model's chat template; auto: as its published numbers were measured "
                       "(default: %(default)s)")
    group.add_argument("--batch_size", type=batch_size, default=1, help="prompts decoded together; auto: as many as "
                       "memory allows, in an evaluation (default: %(default)s)")
    from dpad.engine.fields import add_flags
    from dream.generate import DreamSettings
    from llada.generate import LLaDASettings

    group = parser.add_argument_group("decoding")
    settings = {entry.name: entry for cls in (LLaDASettings, DreamSettings) for entry in cls.choices()}
    add_flags(group, settings.values())


def evaluate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=USAGE,
        description="Measure a masked diffusion language model on a task: accuracy, latency, tokens/s, forwards.",
        epilog=EVALUATE_EXAMPLES,
    )
    group = parser.add_argument_group("evaluation")
    group.add_argument("-t", "--task", default="gsm8k", help="a task of this repository (arithmetic-50, "
                       "arithmetic-500), a generation task of lm-eval, or a task file (default: %(default)s)")
    group.add_argument("-s", "--num_fewshot", type=int, default=0, help="worked examples in the prompt "
                       "(default: %(default)s)")
    group.add_argument("--limit", type=int, help="only the first so many documents")
    group.add_argument("-n", "--name", default="", help="of the run, in its folder's name and record")
    group.add_argument("--output", default="results", metavar="FOLDER", help="where run folders are made "
                       "(default: %(default)s)")
    group.add_argument("-re", "--from_scratch", action="store_true", help="ignore saved answers")
    group.add_argument("--record", metavar="FILE", help="write the record into this .json file as well; where it "
                       "holds this very command's already, do nothing")
    group.add_argument("--prompt_limit", type=int, help="cut prompts to their last so many tokens (default: refuse "
                       "those that leave no room for the answer)")
    group.add_argument("--mc_samples", type=int, default=128, help="random masks behind each log-likelihood, in "
                       "multiple-choice tasks (default: %(default)s)")
    group.add_argument("--num_processes", type=int, default=1, help="processes that share the work, each with its own "
                       "GPU if there are any (default: %(default)s)")
    group.add_argument("-p", "--main_process_port", type=int, help="TCP port they meet at (default: a free one)")
    add_shared_flags(parser)
    return parser


def generate_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py generate", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py generate [flags]", epilog=GENERATE_EXAMPLES,
        description="Answer prompts: from --prompt, --prompt_file, or standard input.",
    )
    group = parser.add_argument_group("prompts and output")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="the prompt; - reads standard input as one prompt")
    source.add_argument("--prompt_file", metavar="FILE", help="one prompt per line; in a .jsonl file, its field "
                        "\"prompt\" or \"question\"; - reads lines from standard input")
    group.add_argument("--watch", action="store_true", help="show the denoising live, one prompt at a time")
    group.add_argument("--trace", metavar="FILE", help="write the whole denoising of one prompt as JSON lines "
                       "(run.py trace draws it)")
    group.add_argument("--json", action="store_true", help="print one JSON object per prompt")
    add_shared_flags(parser)
    return parser


def chat_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py chat", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py chat [flags]", epilog=CHAT_EXAMPLES,
        description="Talk with a model; drafts appear as they are decoded. /help inside lists the commands.",
    )
    add_shared_flags(parser)
    return parser


def trace_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py trace", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py trace FILE... [flags]",
        description="Show a denoising that `run.py generate --trace` wrote, and draw it; several share one clock.",
    )
    parser.add_argument("paths", nargs="+", metavar="FILE", help="traces")
    parser.add_argument("--gif", metavar="FILE", help="draw them into this file")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the GIF (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")
    return parser


def bench_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py bench", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py bench [flags]", epilog=BENCH_EXAMPLES,
        description="Time decoding in one process, warm and synchronised, against the floor of its matrix products.",
    )
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", default="small", metavar="NAME",
                       help="random weights in the shape 8b (LLaDA-8B), 7b (Dream-7B) or small, or a model as run.py "
                       "takes it: tiny, ... (default: %(default)s)")
    add_placement_flags(group)
    group = parser.add_argument_group("work")
    group.add_argument("--prompt_length", type=int, default=128, help="prompt tokens (default: %(default)s)")
    group.add_argument("-l", "--gen_length", type=int, default=256, help="answer tokens (default: %(default)s)")
    group.add_argument("-b", "--block_size", dest="block_length", type=int, default=32,
                       help="tokens a block (default: %(default)s)")
    group.add_argument("--steps_per_block", type=int, default=4, help="forwards a block (default: %(default)s)")
    group.add_argument("-th", "--threshold", type=float, help="as many as the confidences need instead")
    group.add_argument("--batch_size", default="1", metavar="N,...", help="rows decoded together; several sizes are "
                       "compared (default: %(default)s)")
    group.add_argument("--blocks", type=int, help="rows with early termination end after so many blocks")
    group.add_argument("-w", "--window", type=int, help="DPad's window (default: 256, or --gen_length if shorter)")
    group.add_argument("-k", "--k_sigma", type=float, default=3.0, help="DPad's k (default: %(default)s)")
    group.add_argument("-sc", "--scale", type=float, default=1.6, help="DPad's scale (default: %(default)s)")
    group.add_argument("--seed", type=int, default=1234, help="of prompts and draws (default: %(default)s)")
    group = parser.add_argument_group("measurement")
    group.add_argument("--rows", choices=("caches", "figure"), default="caches",
                       help="which settings: vanilla and DPad with each cache, or the paper's long-sequence figure "
                       "(default: %(default)s)")
    group.add_argument("--graphs", choices=("auto", "on", "off"), default="auto", help="replay cached steps as CUDA "
                       "graphs; auto: on a GPU (default: %(default)s)")
    group.add_argument("--only", metavar="ROW,...", help="of these, only the rows of these names")
    group.add_argument("--repeats", type=int, default=5, help="timed runs of every row (default: %(default)s)")
    group.add_argument("--gen_lengths", metavar="G,...", help="instead: the cost of the first --blocks blocks (4) of "
                       "Vanilla and +DPad at these answer lengths")
    group.add_argument("--profile", metavar="ROW", help="instead: where the time of this row goes")
    group.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    group.add_argument("--plot", metavar="PNG", help="draw the record into this file")
    return parser


def table_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run.py table", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="run.py table RECORD... [flags]", epilog=TABLE_EXAMPLES,
        description="Show records of evaluations as tables in the paper's shape, or draw its figures from them.",
    )
    parser.add_argument("paths", nargs="+", metavar="RECORD", help="record files, or folders of them")
    parser.add_argument("--paper", metavar="MODEL", help="put the authors' numbers for llada-instruct, llada-1.5 or "
                        "dream-base beside the measured ones")
    parser.add_argument("--format", choices=("terminal", "markdown", "csv"), default="terminal",
                        help="(default: %(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="also draw a figure into this .png or .svg")
    parser.add_argument("--figure", choices=("bars", "heatmap", "length"), default="bars", help="which: latency and "
                        "accuracy, accuracy by window and kept tokens, or speedup against answer length "
                        "(default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show where an error happened")
    return parser


def decoding_from(args: argparse.Namespace):
    """The decoding settings that the flags stand for; ValueError when they clash."""
    from dpad.engine import loading
    from dpad.engine.fields import given_settings
    from dream.generate import DreamSettings
    from llada.generate import LLaDASettings

    choices = {entry.name: entry for cls in (LLaDASettings, DreamSettings) for entry in cls.choices()}
    return loading.family_of(args.model).settings.from_choices(given_settings(args, choices.values()))


def load_model(args: argparse.Namespace):
    from dpad.engine import loading

    loaded = loading.load(args.model, device=args.device, dtype=args.dtype)
    return loaded, {"auto": None, "on": True, "off": False}[args.chat_template]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def run_evaluate(args: argparse.Namespace, argv: list[str]) -> None:
    from dpad.evaluation import processes
    from dpad.results import records

    options = decoding_from(args)  # what is wrong with the flags is said before a model of 16 GB is loaded
    if args.num_processes < 1:
        raise ValueError(f"num_processes is {args.num_processes}; it must be at least 1")
    command = shlex.join(["python", "run.py", *argv])
    if args.record and not args.from_scratch and Path(args.record).exists():
        if records.read_json(args.record).get("command") == command:
            print(f"complete: {args.record}")
            return
    from dpad.evaluation import harness

    harness.check_counts(num_fewshot=args.num_fewshot, limit=args.limit, batch_size=args.batch_size,
                         prompt_limit=args.prompt_limit, mc_samples=args.mc_samples)
    tasks = harness.load_tasks(args.task, args.num_fewshot, args.seed)
    if args.num_processes > 1 and processes.current().count == 1:
        processes.launch(args.num_processes, args.main_process_port, argv, args.device)
        return
    here = processes.join()
    try:
        if here.count > 1 and args.device in (None, "cuda"):
            args.device = processes.device(here)
        loaded, chat_template = load_model(args)
        record = harness.evaluate(
            loaded, args.task, tasks=tasks, num_fewshot=args.num_fewshot, batch_size=args.batch_size,
            limit=args.limit, chat_template=chat_template, output=args.output, name=args.name,
            from_scratch=args.from_scratch, command=command, processes=here, prompt_limit=args.prompt_limit,
            mc_samples=args.mc_samples, **options,
        )
    finally:
        processes.leave()
    if record is None:  # process 0 has it
        return
    if args.record:
        records.write_json(args.record, {key: value for key, value in record.items() if key != "folder"})
    print(summary(record))


def summary(record: dict) -> str:
    """A record as the few lines that a person wants to read first."""
    from dpad.results import report

    reused = f", {record['reused']} of them answered earlier" if record["reused"] else ""
    rows = [
        (name, " ± ".join("–" if score[part] is None else
                          f"{report.scale(score) * score[part]:.1f}{'%' * (report.scale(score) == 100)}"
                          for part in ("value", "stderr") if part == "value" or score[part] is not None))
        for name, score in record["metrics"].items()
    ]
    rows += [
        ("latency", f"{record['latency_s']:.3f} s a sample (median {record['latency_median_s']:.3f} s)"),
        ("throughput", f"{record['tps']:.1f} answer tokens/s"),
        ("NFE", f"{record['nfe']:.1f} forwards a sample"),
    ]
    rows += [(label, f"{record[key]} of {record['samples']}") for label, key in
             (("empty answers", "empty_answers"), ("prompts cut", "cut_prompts")) if record[key]]
    width = max(len(label) for label, _ in rows)
    lines = [f"{record['task']} · {record['model']} · {report.counted(record['samples'])}{reused}"]
    lines += [f"  {label:<{width}}  {value}" for label, value in rows]
    return "\n".join([*lines, f"written to {record['folder']}: record.json, samples.jsonl"])


# --- generate ---------------------------------------------------------------------------------------------------------


def run_generate(args: argparse.Namespace, argv: list[str]) -> None:
    if args.watch and (args.json or args.batch_size != 1):
        raise ValueError("--watch shows one prompt at a time on a terminal: leave out --json and --batch_size")
    if args.trace and args.prompt_file:
        raise ValueError("--trace is of one prompt: give --prompt, not --prompt_file")
    if args.batch_size == "auto" or args.batch_size < 1:
        raise ValueError(f"batch_size is {args.batch_size}; for generate it must be an integer of at least 1")
    settings = decoding_from(args)
    prompts = read_prompts(args)
    from dpad.engine import completion
    from dpad.engine.prompts import check_chat_template, check_prompt
    from dpad.interact import terminal
    from dpad.interact.trace import Tracer

    loaded, wanted = load_model(args)
    chat_template = check_chat_template(loaded, wanted)
    texts = [loaded.chat(prompt) if chat_template else loaded.raw(prompt) for prompt in prompts]
    for text in texts:
        check_prompt(loaded, text, settings.gen_length)
    completion.warm_up(loaded, texts[0], settings.gen_length)
    for start in range(0, len(prompts), args.batch_size):
        chosen = slice(start, start + args.batch_size)
        if args.watch and len(prompts) > 1:
            print(f"> {prompts[start]}")
        streamer = terminal.live_view(loaded, terminal.wants_colour()) if args.watch else None
        if args.trace:
            streamer = Tracer(loaded, prompts[0], settings, streamer=streamer)
        answers = completion.complete(loaded, texts[chosen], settings, until=[loaded.eos], streamer=streamer)
        if args.trace:
            streamer.finish(answers[0]).write(args.trace)
        for prompt, answer in zip(prompts[chosen], answers):
            show(args, prompt, answer, several=len(prompts) > 1)


def show(args: argparse.Namespace, prompt: str, answer, several: bool) -> None:
    """Print an answer and what it cost."""
    rate = answer.tokens / answer.seconds
    if args.json:
        line = {"prompt": prompt, "answer": answer.text, "forwards": answer.forwards, "tokens": answer.tokens,
                "tokens_per_second": rate, "seconds": answer.seconds, "tokens_processed": answer.tokens_processed}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    if not args.watch:
        print(f"> {prompt}\n{answer.text}" if several else answer.text)
    print(f"[{answer.forwards} forwards · {answer.tokens} tokens · {rate:.1f} tokens/s · {answer.seconds:.2f} s]",
          end="\n\n" if several else "\n", flush=True)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags or standard input give; ValueError when there is none."""
    if args.prompt_file is not None:
        prompts = read_prompt_file(args.prompt_file)
        source = args.prompt_file
    elif args.prompt not in (None, "-"):
        prompts, source = [args.prompt], "--prompt"
    else:
        if args.prompt is None and sys.stdin.isatty():
            raise ValueError("no prompt: give --prompt, --prompt_file, or pipe one in")
        prompts, source = [read_text("-").strip("\n")], "standard input"
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"{source}: the prompt is empty")
    return prompts


def read_prompt_file(name: str) -> list[str]:
    """One prompt for each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(read_text(name).split("\n"), start=1) if line.strip()]
    if not name.endswith(".jsonl"):
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            fields = json.loads(line)
            prompt = fields["prompt"] if "prompt" in fields else fields["question"]
        except (ValueError, TypeError, KeyError):
            prompt = None
        if not isinstance(prompt, str):
            raise ValueError(f"{name}, line {number}: not a JSON object with a text \"prompt\" or \"question\"")
        prompts.append(prompt)
    return prompts


def read_text(name: str) -> str:
    from dpad.results import records

    if name != "-":
        return records.read_text(name)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError("standard input cannot be read: it is not UTF-8 text") from error


# --- bench ------------------------------------------------------------------------------------------------------------


def run_bench(args: argparse.Namespace, argv: list[str]) -> None:
    from benchmarks import bench
    from dpad.engine import cuda_graphs
    from dpad.results import records, report
    from sampler import GaussianSampler

    lengths = [args.gen_length] if args.gen_lengths is None else integers("--gen_lengths", args.gen_lengths)
    names = ("Vanilla", "+DPad") if args.gen_lengths else args.only.split(",") if args.only else None
    chosen = bench.choose_rows(args.rows, [args.profile] if args.profile else names)
    given = {field: getattr(args, field) for field in ("prompt_length", "block_length", "steps_per_block", "threshold",
                                                       "blocks", "seed")}
    if args.gen_lengths and args.blocks is None:
        given["blocks"] = 4
    sizes = integers("--batch_size", args.batch_size)
    if len(sizes) > 1 and (args.gen_lengths or args.profile):
        raise ValueError(f"--batch_size is {args.batch_size!r}; it must be one number with "
                         f"{'--gen_lengths' if args.gen_lengths else '--profile'}")
    works = [
        bench.Workload(gen_length=length, batch_size=size, **given, sampler=GaussianSampler(
            min(256, length) if args.window is None else args.window, args.k_sigma, args.scale))
        for length in lengths for size in sizes
    ]
    model, family = bench.make_model(args.model, args.device, args.dtype)
    measured = (args.model, model, family, chosen)
    command = shlex.join(["python", "run.py", *argv])
    with cuda_graphs.use(args.graphs):
        if args.profile:
            print(bench.profile(model, family, chosen[0], works[0]))
            return
        if args.gen_lengths:
            record = bench.growth(*measured, works, args.repeats, command)
        else:
            record = bench.measure(*measured, works, args.repeats, command)
    print(f"{report.terminal_table([record])}\n\n{report.caption([record])}")
    if args.output:
        records.write_json(args.output, record)
        print(f"written to {args.output}")
    if args.plot:
        report.draw([record], args.plot)
        print(f"drawn in {args.plot}")
    print(json.dumps(report.summary_of(record)))


def integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be whole numbers with commas between them") from None


# --- chat -------------------------------------------------------------------------------------------------------------


def run_chat(args: argparse.Namespace, argv: list[str]) -> None:
    from dpad.engine.prompts import check_chat_template
    from dpad.interact import terminal
    from dpad.interact.chat import Chat

    settings = decoding_from(args)
    loaded, wanted = load_model(args)
    Chat(loaded, settings, use_chat_template=check_chat_template(loaded, wanted), live=terminal.can_redraw(),
         colour=terminal.wants_colour()).run()


# --- trace ------------------------------------------------------------------------------------------------------------


def run_trace(args: argparse.Namespace, argv: list[str]) -> None:
    from dpad.interact.canvas import summarize
    from dpad.interact.gif import write_gif
    from dpad.interact.trace import read_trace
    from dpad.results import report

    traces = [read_trace(path) for path in args.paths]
    for trace in traces:
        print(f"{summarize(trace)}; {report.hardware_line(trace.head)}\n{trace.tail['answer']}\n")
    if args.gif:
        write_gif(traces, args.gif, args.seconds)
        print(f"drawn in {args.gif}")


# --- table ------------------------------------------------------------------------------------------------------------


def run_table(args: argparse.Namespace, argv: list[str]) -> None:
    from dpad.results import paper, report

    records = report.load(args.paths)
    print(paper.render(records, args.paper, args.format))
    for path in paper.draw(records, args.figure, args.plot) if args.plot else ():
        print(f"drawn in {path}", file=sys.stderr)


# --- main -------------------------------------------------------------------------------------------------------------

COMMANDS = {"evaluate": (evaluate_parser, run_evaluate), "generate": (generate_parser, run_generate),
            "chat": (chat_parser, run_chat), "bench": (bench_parser, run_bench), "table": (table_parser, run_table),
            "trace": (trace_parser, run_trace)}


def main(argv: list[str]) -> int:
    """Run a command line; the return value is the exit status."""
    named = bool(argv) and not argv[0].startswith("-")
    if named and argv[0] not in COMMANDS:
        print(f"run.py: there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}, and flags alone "
              "evaluate (see --help)", file=sys.stderr)
        return 2
    parser, command = COMMANDS[argv[0] if named else "evaluate"]
    args = parser().parse_args(argv[1:] if named else argv)
    try:
        calm()
        command(args, argv)
    except KeyboardInterrupt as interrupt:
        return fail(interrupt if str(interrupt) else "interrupted", 130)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        if isinstance(error, ValueError):
            return fail(error, 2)
        if isinstance(error, OSError) and error.filename:
            return fail(f"{error.filename}: {error.strerror}", 1)
        return fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    return 0


def calm() -> None:
    """Silence what libraries print about themselves; errors stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def fail(message: object, status: int) -> int:
    print("run.py:", " ".join(str(message).split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
