"""What the numbers that a model computes with change: answers and tokens that stay the same, right ones, size, speed.

    python -m benchmarks.quantization --output benchmarks/quantization-cpu.json
    python -m benchmarks.quantization --device cuda --output benchmarks/quantization-gpu.json
    python -m benchmarks.quantization --limit 2                                  # tries the script itself

Both embedded models answer the embedded problems with +Parallel+PrefixCache+DPad, as they are and with every scheme of
dpad/engine/quantization.py, each in the dtype that `load` takes for it; and as they are in the coarser dtype too, so
that what rounding alone does can be seen. Where oneDNN multiplies in float32 (dpad/engine/products.py), that is
measured a second time by torch's own library. Each batch of problems is answered by all of them in turn, after a first
time that does not count; their times are compared batch by batch. The sizes of the 7B and 8B models are estimates
and say so.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import measurement
from benchmarks.progress import Progress
from dataset import read_problems
from dpad.engine import loading, memory, products
from dpad.engine.checks import check_integer
from dpad.engine.command_line import Parser
from dpad.engine.completion import synchronize
from dpad.engine.configurations import CONFIGURATIONS
from dpad.engine.quantization import SCHEMES
from dpad.results import files, outputs, records, tables

MODELS = ("tiny", "dream-tiny")
LARGE = ("instruct", "dream-instruct", "illada")  # estimated
CONFIGURATION = "+Parallel+PrefixCache+DPad"
GEN_LENGTH = 128
BATCH = 10


@dataclass
class Variant:
    """A model with its numbers. products: see products.use."""

    loaded: loading.LoadedModel
    products: str = "auto"
    answers: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def answer(self, questions: list[str], choices: dict[str, Any]) -> tuple[Tensor, float]:
        """The answers' tokens [R, G], on the CPU, and the seconds of decoding them."""
        settings = self.loaded.family.settings.from_choices(choices)
        batch = self.loaded.encode(questions)
        with products.use(self.products):
            synchronize(self.loaded.model.device)
            start = time.perf_counter()
            output = self.loaded.generate(**batch, settings=settings)
            synchronize(self.loaded.model.device)
            seconds = time.perf_counter() - start
        return output.sequences[:, batch.input_ids.shape[1] :].cpu(), seconds


def count_right(loaded: loading.LoadedModel, answers: Tensor, targets: list[str]) -> int:
    """How many answers end with the number that the problem's own solution ends with."""
    return sum(final(text) == final(target) for text, target in zip(loaded.decode(answers), targets, strict=True))


def final(text: str) -> str:
    """What stands behind the mark of a result."""
    return text.rpartition("####")[2].strip()


def measure(name: str, device: str, problems: list[dict[str, str]], choices: dict[str, Any],
            progress: Progress) -> list[dict[str, Any]]:
    """A row for each way to keep a model's weights; the first is what the others are compared with."""
    questions = [problem["question"] for problem in problems]
    targets = [problem["answer"] for problem in problems]
    batches = [questions[first : first + BATCH] for first in range(0, len(questions), BATCH)]
    kinds = [(None, "float32"), (None, "bfloat16"), *((scheme, None) for scheme in SCHEMES)]
    variants = [Variant(loading.load(name, device=device, dtype=dtype, quantize=scheme)) for scheme, dtype in kinds]
    if variants[0].loaded.model.device.type == "cpu" and products.library() == "oneDNN":
        variants.insert(1, Variant(variants[0].loaded, "off"))
    progress.announce(f"{name}: first answers")
    for batch in batches:  # each is of shapes of its own, for which oneDNN writes programs
        for variant in variants:
            variant.answer(batch, choices)
        progress.advance()
    for number, batch in enumerate(batches, 1):
        progress.announce(f"{name}: batch {number} of {len(batches)}")
        for variant in variants:
            answers, seconds = variant.answer(batch, choices)
            variant.answers.append(answers)
            variant.seconds.append(seconds)
        progress.advance()

    rows = []
    expected = torch.cat(variants[0].answers)
    for variant in variants:
        answers = torch.cat(variant.answers)
        same = answers == expected
        numbers = variant.loaded.describe_weights()
        if numbers == {"dtype": "float32", "device": "cpu"}:
            with products.use(variant.products):
                numbers["products"] = products.library()
        rows.append({
            "model": name, **numbers, "weights": memory.size_of(variant.loaded.model), "estimated": False,
            "seconds": variant.seconds,
            "speedup": measurement.median_quotient(variants[0].seconds, variant.seconds),
            "right": count_right(variant.loaded, answers, targets), "answers": same.all(1).float().mean().item(),
            "tokens": same.float().mean().item(),
        })
    return rows


def estimate(name: str, device: str) -> list[dict[str, Any]]:
    """The sizes of a model that is not here, from what is known of its configuration."""
    rows = []
    for scheme in (None, *SCHEMES):
        _, plan = memory.plan_of_name(name, device, "bfloat16", scheme)
        rows.append({"model": name, "dtype": "bfloat16", "device": device, "weights": plan.weights(), "estimated": True}
                    | ({"quantize": scheme} if scheme else {}))
    return rows


def main() -> int:
    parser = Parser(prog="python -m benchmarks.quantization", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="problems (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write the record into this .json file")
    options = parser.parse_args()
    try:
        check_integer("--limit", options.limit, 1)
        if options.output is not None:
            outputs.check("--output", options.output, outputs.QUANTIZATION)
        loading.placement(options.device, None)
    except ValueError as error:
        parser.error(str(error))

    problems = read_problems("arithmetic-50.jsonl")[: options.limit]
    choices = CONFIGURATIONS[CONFIGURATION].choices(GEN_LENGTH)
    with Progress(2 * len(MODELS) * -(-len(problems) // BATCH), "batch") as progress:
        rows = [row for name in MODELS for row in measure(name, options.device, problems, choices, progress)]
    rows += [row for name in LARGE for row in estimate(name, options.device)]
    record = {
        "kind": "quantization", "configuration": CONFIGURATION, "device": options.device, "problems": len(problems),
        "settings": choices, "rows": rows, "environment": records.environment(),
    }
    print(tables.render([record]))
    if options.output is not None:
        files.write_json(options.output, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
