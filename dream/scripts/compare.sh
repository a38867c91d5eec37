#!/usr/bin/env bash
# DPad beside its rivals with Dream: GSM8K, MATH, HumanEval and MBPP, published settings, one protocol.
#
#     bash dream/scripts/compare.sh                             Dream-v0-Base-7B, from the hub
#     MODEL=dream-tiny LIMIT=4 bash dream/scripts/compare.sh    offline: small problems, an embedded model
#
# LIMIT, SEEDS, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. The same command continues.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin compare-dream dream-base

# The settings are of the papers DPad (2508.14148), Streaming-dLLM (2601.17917; on GSM8K with another prompt) and SSM
# (2608.23167), where Streaming-dLLM has its settings for answers of this length.
#       task         shots length  DPad: k a W  Streaming: W fall  SSM: W k alpha
compare gsm8k        4 256         4 1.6 256    32 0.3             48 5 0.2
compare minerva_math 4 256         4 1.6 128    32 0.1             48 5 0.2
compare humaneval    0 512         3 2.3 128    128 0.4            72 5 0.2
compare mbpp         3 512         3 1.6 128    192 0.6            48 5 0.2

finish --plot "$OUTPUT/pareto.png"
