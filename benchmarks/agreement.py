"""Compare decoding on a device with the plain path on the CPU: tokens in float32, and how many agree in bfloat16.

    python -m benchmarks.agreement --device cuda --output benchmarks/agreement.json     # part of benchmarks/gpu.sh
    python -m benchmarks.agreement --device cpu --limit 2                               # tries the script itself

Both embedded models answer the embedded problems, in batches of prompts of unequal lengths: with every cache mode, with
DPad and without, with a fixed schedule and with a threshold. They do so in both dtypes on the device, without graphs
and with graphs, twice, so that the graphs are replayed; and so with compiled steps (dpad/engine/fused.py). The exit
status is 1 if an answer in float32 differs from the plain path's.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from torch import Tensor

from benchmarks.progress import Progress
from dataset import read_problems
from dpad.engine import cuda_graphs, fused, loading
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser
from dpad.engine.settings import CACHE_MODES
from dpad.results import files, outputs, records
from sampler import GaussianSampler

SETTINGS: list[dict[str, Any]] = [
    {"cache": cache, "suffix_sampler": sampler, **schedule}
    for cache in CACHE_MODES
    for sampler in (None, GaussianSampler(96, 3, 1.6))
    for schedule in ({"steps": 24}, {"threshold": 0.9})
]


def answer(loaded: loading.LoadedModel, prompts: list[str], settings: dict) -> Tensor:
    """The answers' tokens [R, 96], on the CPU."""
    batch = loaded.encode(prompts)
    output = loaded.generate(**batch, gen_length=96, block_length=32, **settings)
    return output.sequences[:, batch.input_ids.shape[1] :].cpu()


def compare(name: str, device: str, prompts: list[str], progress: Progress) -> list[dict]:
    """For every setting and every way of decoding, the share of answers, and of tokens, that are as expected.

    Expected are the answers of the plain path (float32 on the CPU); of bfloat16 with graphs, those of bfloat16 without.
    """
    fused.forget()
    plain = loading.load(name, device="cpu", dtype="float32")
    exact = loading.load(name, device=device, dtype="float32")
    rounded = loading.load(name, device=device, dtype="bfloat16")
    on_gpu = exact.model.device.type == "cuda"  # elsewhere compiling takes minutes
    rows = []
    for number, settings in enumerate(SETTINGS, start=1):
        progress.announce(f"{name}: setting {number} of {len(SETTINGS)}")
        with cuda_graphs.use("off"):
            expected = answer(plain, prompts, settings)
            rounded_answers = answer(rounded, prompts, settings)
            runs = {
                "float32": (answer(exact, prompts, settings), expected),
                "bfloat16": (rounded_answers, expected),
            }
        with cuda_graphs.use("on"):
            for run in ("graphs", "graphs again"):
                runs[f"float32, {run}"] = (answer(exact, prompts, settings), expected)
                runs[f"bfloat16, {run}"] = (answer(rounded, prompts, settings), rounded_answers)
            with fused.use("on"):
                for run in ("graphs of compiled steps", "graphs of compiled steps again") if on_gpu else ():
                    runs[f"float32, {run}"] = (answer(exact, prompts, settings), expected)
                    runs[f"bfloat16, {run}"] = (answer(rounded, prompts, settings), rounded_answers)

        row: dict[str, Any] = {"model": name, **settings, "suffix_sampler": str(settings["suffix_sampler"])}
        for run, (tokens, expected_tokens) in runs.items():
            same = tokens == expected_tokens
            row[run] = {"answers": same.all(1).float().mean().item(), "tokens": same.float().mean().item()}
        rows.append(row)
        progress.advance()
    return rows


def main() -> int:
    parser = Parser(prog="python -m benchmarks.agreement", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="the device to compare with the CPU (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=16, metavar="N", help="problems (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    options = parser.parse_args()
    try:
        check_integer("--limit", options.limit, 1)
        if options.output is not None:
            outputs.check("--output", options.output, outputs.AGREEMENT)
    except ValueError as error:
        print(f"agreement.py: {error}", file=sys.stderr)
        return 2

    problems = read_problems("arithmetic-50.jsonl")[: options.limit]
    prompts = [f"Question: {problem['question']}\nAnswer:" for problem in problems]
    names = ("tiny", "dream-tiny")
    try:
        loading.placement(options.device, None)
    except ValueError as error:
        parser.error(f"{str(error).partition(';')[0]}; --device cpu tries the script itself")
    with Progress(len(names) * len(SETTINGS), "setting") as progress:
        rows = [row for name in names for row in compare(name, options.device, prompts, progress)]

    exact = [run for row in rows for key, run in row.items() if key.startswith("float32")]
    wrong = sum(run["answers"] < 1 for run in exact)
    rounded = statistics.fmean(row["bfloat16"]["answers"] for row in rows)
    replayed = statistics.fmean(row["bfloat16, graphs again"]["answers"] for row in rows)
    print(f"{options.device}: float32 equals the plain path in {len(exact) - wrong} of {len(exact)} runs of "
          f"{len(prompts)} answers; in bfloat16 {rounded:.1%} of the answers equal the plain path's, and with graphs "
          f"{replayed:.1%} equal those of bfloat16 without")
    if options.output is not None:
        files.write_json(options.output, {
            "kind": "agreement", "device": options.device, "problems": len(prompts), "rows": rows,
            "environment": records.environment(),
        })
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
