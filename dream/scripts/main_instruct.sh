#!/usr/bin/env bash
# The main table's settings for Dream-v0-Instruct-7B, which the paper does not report: those of Dream-Base,
# whose published numbers the table shows beside.
#
#     bash dream/scripts/main_instruct.sh                             the real model, from the hub
#     MODEL=dream-tiny LIMIT=4 bash dream/scripts/main_instruct.sh    offline: our own problems, a small model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. The same command goes on after an interruption.
MODEL="${MODEL:-dream-instruct}" exec bash "$(dirname "${BASH_SOURCE[0]}")/main_base.sh"
