#!/usr/bin/env bash
# The study of training with suffix dropout, from nothing to its table and figure.
#
#     bash benchmarks/training/study.sh                  # hours: see docs/training.md
#     QUICK=1 bash benchmarks/training/study.sh          # a trial in minutes, whose numbers mean nothing
#     JOBS=2 OUTPUT=records bash benchmarks/training/study.sh
#
# A small LLaDA learns three tasks from random weights, with the full suffix: that is the base. From it, for each seed,
# three models are trained with the same steps and examples: with the full suffix, with suffix dropout, and with no
# suffix at all. Then the base and these models solve fresh problems, decoded in six ways (study.py says which).
#
# Environment variables, all optional:
# PYTHON      the interpreter (default: python3)
# OUTPUT      folder of the models, logs, records, table and figure (default: results/study)
# DEVICE      cpu, cuda or cuda:1 (default: the first GPU, if there is one)
# JOBS        models that are trained, or decoded with, side by side (default: 1)
# SEEDS       (default: 1 2 3)         PROBLEMS   of a task for each seed (default: 500)
# BASE_STEPS  (default: 1800)          STEPS      of each of the other trainings (default: 250)
# THRESHOLD   of parallel decoding; 0: one token a step, about ten times as long (default: 0.9)
# DTYPE       that is decoded in (default: float32)       BATCH   problems decoded together (default: 100)
#
# The same command continues an interrupted study. What is complete is neither done again nor written over. If a model
# fails, the others are still made, and the status is 1.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
SCRIPT="$ROOT/benchmarks/training/study.sh"
if [ -n "${QUICK:-}" ]; then
    OUTPUT="${OUTPUT:-$ROOT/results/study-quick}" BASE_STEPS="${BASE_STEPS:-20}" STEPS="${STEPS:-5}"
    PROBLEMS="${PROBLEMS:-4}" SEEDS="${SEEDS:-1}"
fi
export PYTHON="${PYTHON:-python3}" OUTPUT="${OUTPUT:-$ROOT/results/study}" DEVICE="${DEVICE:-}" JOBS="${JOBS:-1}"
export BASE_STEPS="${BASE_STEPS:-1800}" STEPS="${STEPS:-250}" PROBLEMS="${PROBLEMS:-500}" THRESHOLD="${THRESHOLD:-0.9}"
export DTYPE="${DTYPE:-float32}" BATCH="${BATCH:-100}"
TASKS=arithmetic,answer-first,countdown
BLOCKS=8,32 # the tasks are decoded in blocks of these lengths

train() { # FOLDER COMMAND...: run a training, or continue it, unless its model is complete
    local folder="$1" resume=""
    shift
    if [ -e "$folder/train-state.pt" ] || [ -e "$folder/train-state-before.pt" ]; then
        resume=--resume
    elif [ -e "$folder/model.safetensors" ]; then
        return
    fi
    "$PYTHON" "$@" --output "$folder" ${DEVICE:+--device "$DEVICE"} $resume
}

model() { # ARM SEED: train one model and decode with it
    local folder="$OUTPUT/$1-$2" suffix=()
    case "$1" in
    base) folder="$OUTPUT/start" ;;
    full) suffix=(-d null) ;;
    dropout) suffix=(-d gaussian -w 64,128 -k 3,4 -sc 0.8,1.6,3.2) ;;
    none) suffix=(-d block) ;;
    esac
    if [ "$1" != base ]; then
        train "$folder" run.py train -m "$OUTPUT/start" --data "$TASKS" --objective blockwise -l 64,128 -b "$BLOCKS" \
            "${suffix[@]}" --steps "$STEPS" --batch_size 64 --noise_min 0.02 --seed "$2" || return
    fi
    "$PYTHON" -m benchmarks.training.study evaluate --model "$folder" --arm "$1" --seed "$2" --problems "$PROBLEMS" \
        --threshold "$THRESHOLD" --dtype "$DTYPE" --batch_size "$BATCH" ${DEVICE:+--device "$DEVICE"} \
        --output "$OUTPUT/records/$1-$2.json"
}

mkdir -p "$OUTPUT"
OUTPUT="$(cd "$OUTPUT" && pwd)"
cd "$ROOT"
if [ $# -eq 2 ]; then # called by this script
    echo "== $1, seed $2: begins ($OUTPUT/$1-$2.log)"
    status=0
    (model "$@") >>"$OUTPUT/$1-$2.log" 2>&1 || status=$?
    echo "== $1, seed $2: $([ "$status" -eq 0 ] && echo complete || tail -n 1 "$OUTPUT/$1-$2.log")"
    exit "$status"
fi

settings="base of $BASE_STEPS steps, trainings of $STEPS steps, $PROBLEMS problems, threshold $THRESHOLD, $DTYPE, \
batches of $BATCH"
if [ "$(cat "$OUTPUT/settings.txt" 2>/dev/null || echo "$settings")" != "$settings" ]; then
    echo "study.sh: OUTPUT is $OUTPUT, a study of other settings ($(cat "$OUTPUT/settings.txt")); name another folder" >&2
    exit 2
fi
echo "$settings" >"$OUTPUT/settings.txt"

packages='import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))'
if ! "$PYTHON" -c "$packages" torch transformers accelerate; then
    echo "study.sh: $PYTHON lacks torch, transformers or accelerate; name another interpreter: PYTHON=.venv/bin/python" >&2
    exit 2
fi
cores="$("$PYTHON" -c 'from dpad.results.records import cores; print(cores())')"
echo "== base: begins"
train "$OUTPUT/start" -m dpad.training.scratch --family llada --tasks "$TASKS" --blocks "$BLOCKS" -d null \
    --tokens_per_step 24000 --steps "$BASE_STEPS" --threads "${OMP_NUM_THREADS:-$cores}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}"
status=0
for seed in ${SEEDS:-1 2 3}; do printf '%s\n' "full $seed" "dropout $seed" "none $seed" "base $seed"; done |
    xargs -L 1 -P "$JOBS" bash "$SCRIPT" || status=1
# All records in one file too, as the repository keeps them.
"$PYTHON" - "$OUTPUT" <<'END' || status=1
import sys
from dpad.results import files, records
files.write_json(f"{sys.argv[1]}/study.json", records.load([f"{sys.argv[1]}/records"]))
END
"$PYTHON" run.py table "$OUTPUT/records" --plot "$OUTPUT/study.png" | tee "$OUTPUT/table.txt" || status=1
exit "$status"
