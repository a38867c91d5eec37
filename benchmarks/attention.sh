#!/usr/bin/env bash
# What blocks of the embedded models attend to: the records and figures of docs/attention.md. About a minute on a CPU.
#
#     bash benchmarks/attention.sh                     # writes benchmarks/attention-*.json and .png
#     OUTPUT=results bash benchmarks/attention.sh
#
# PYTHON names the interpreter (default: python3).
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
OUTPUT="${OUTPUT:-benchmarks}"
cd "$ROOT"

for model in tiny dream-tiny; do
    "$PYTHON" run.py attention -m "$model" --device cpu -t arithmetic-50 -d gaussian -k 3 -sc 1.6 \
        --plot "$OUTPUT/attention-$model.png" --record "$OUTPUT/attention-$model.json"
done
