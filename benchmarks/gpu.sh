#!/usr/bin/env bash
# Run every check and measurement that needs a GPU; needs torch, transformers, accelerate and tqdm, `tests` also pytest
# and hypothesis, and train-8b peft. On an H100 agreement took 35 seconds, 8b-steps two minutes and train-8b 40 seconds;
# the others were not measured. No part may take longer than LIMIT seconds (default: 480).
#
#     bash benchmarks/gpu.sh                     # writes benchmarks/<GPU>-*.json; `python run.py table FILE` shows them
#     OUTPUT=records bash benchmarks/gpu.sh
#     ONLY="agreement 8b-headline" bash benchmarks/gpu.sh        # some of them, by name
#
# The most important come first, in case time runs out: whether tokens on the GPU in float32 equal the plain path's, with
# graphs and without, and how many agree in bfloat16; the tests that need a GPU; LLaDA-8B's shape at batch size 1 (six
# rows, then the headline: the seven rows of the paper's figure), 8 and 32; Dream-7B's shape; training steps at
# LLaDA-8B's shape; the cost of a block against the answer's length.
# Weights are random, so nothing is downloaded. PYTHON names the interpreter (default: python3). If one of them fails,
# the others still run, and the status at the end is 1.
set -uo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
OUTPUT="${OUTPUT:-$ROOT/benchmarks}"
PARTS="agreement tests 8b-steps 8b-headline 8b-batch8 8b-batch32 7b-steps train-8b 8b-growth"
for name in ${ONLY:-}; do
    case " $PARTS " in
    *" $name "*) ;;
    *) echo "gpu.sh: ONLY has $name; it must be some of $PARTS" >&2 && exit 2 ;;
    esac
done
cd "$ROOT"
GPU="$("$PYTHON" - <<'END'
import re
import sys
try:
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"gpu.sh: {sys.executable} has no package {error.name}; name another interpreter: PYTHON=.venv/bin/python")
if not torch.cuda.is_available():
    sys.exit("gpu.sh: torch sees no GPU here, and everything that this script measures needs one")
print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).lower())
END
)" || exit 1
mkdir -p "$OUTPUT"

STATUS=0

check() { # NAME COMMAND...: run it, unless ONLY leaves it out
    case " ${ONLY:-$1} " in
    *" $1 "*) echo "== $1" && shift && { timeout "${LIMIT:-480}" "$@" || STATUS=1; } ;;
    esac
}

bench() { # NAME FLAG...: run `run.py bench` on the GPU
    local name="$1"
    shift
    check "$name" "$PYTHON" run.py bench --device cuda --dtype bfloat16 --output "$OUTPUT/$GPU-$name.json" "$@"
}

check agreement "$PYTHON" -m benchmarks.agreement --device cuda --output "$OUTPUT/$GPU-agreement.json"
check tests "$PYTHON" -m pytest -q -m gpu tests/test_gpu.py tests/test_memory.py tests/test_transformers.py
bench 8b-steps -m 8b --prompt_length 96 -l 512 --steps_per_block 8 --repeats 3
bench 8b-headline -m 8b --prompt_length 200 -l 1024 --steps_per_block 10 --blocks 5 --rows figure --repeats 1
bench 8b-batch8 -m 8b --prompt_length 96 -l 512 --steps_per_block 8 --batch_size 8 --repeats 1 \
    --only +DPad,+PrefixCache+DPad,+DualCache+DPad
bench 8b-batch32 -m 8b --prompt_length 96 -l 256 --steps_per_block 4 --batch_size 32 --repeats 1 \
    --only +DPad,+PrefixCache+DPad,+DualCache+DPad
bench 7b-steps -m 7b --prompt_length 96 -l 512 --steps_per_block 8 --repeats 1
check train-8b "$PYTHON" -m benchmarks.training.steps -m 8b --device cuda --output "$OUTPUT/$GPU-train-8b.json"
bench 8b-growth -m 8b --gen_lengths 256,512,1024,2048 --steps_per_block 8 --repeats 2
exit "$STATUS"
