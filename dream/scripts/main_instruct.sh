#!/usr/bin/env bash
# Dream-v0-Instruct-7B, which the paper does not report, with the settings of the paper's main table for Dream-Base.
# The published numbers beside the measured ones are Dream-Base's.
#
#     bash dream/scripts/main_instruct.sh                             the real model, from the hub
#     MODEL=dream-tiny LIMIT=4 bash dream/scripts/main_instruct.sh    offline: small problems, an embedded model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. After an interruption, the same command continues.
MODEL="${MODEL:-dream-instruct}" exec bash "$(dirname "${BASH_SOURCE[0]}")/main_base.sh"
