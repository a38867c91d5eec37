#!/usr/bin/env bash
# Watch suffix dropout make LLaDA or Dream faster: six configurations on 50 word problems, as a table and a bar chart.
# Sets everything up (virtual environment, packages), works from any directory, takes under 10 minutes on two cores.
#
#     bash demo/demo.sh                                        # the embedded model, without network or GPU
#     LIMIT=10 bash demo/demo.sh                               # a quick look at 10 problems
#     GEN_LENGTH=1024 LIMIT=10 bash demo/demo.sh               # long answers: the rows of the paper's figure
#     MODEL=dream-tiny bash demo/demo.sh                       # the embedded Dream
#     MODEL=1.5 TASK=gsm8k-split bash demo/demo.sh             # LLaDA-1.5 on GSM8K; needs: python dataset/gsm8k.py
#
# MODEL       tiny (default), dream-tiny, instruct, 1.5, base, dream-instruct, dream-base, a checkpoint folder or a hub id
# TASK        arithmetic-50 (default), gsm8k-split, or any generation task that `python run.py -t` takes
# LIMIT       number of problems, the first ones (default: all)
# GEN_LENGTH  answer tokens, a multiple of 32 (default: 256)
#
# Arguments go to demo/demo.py, which has more of them: bash demo/demo.sh --help. Ctrl-C keeps the finished answers, and
# the same command continues from there. Results: results/demo/<task>-<model>-<length>/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

exec "$PYTHON" "$ROOT/demo/demo.py" \
    ${MODEL:+--model "$MODEL"} ${TASK:+--task "$TASK"} ${LIMIT:+--limit "$LIMIT"} \
    ${GEN_LENGTH:+--gen_length "$GEN_LENGTH"} "$@"
