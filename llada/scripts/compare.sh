#!/usr/bin/env bash
# DPad beside its rivals with LLaDA: GSM8K, MATH, HumanEval and MBPP, published settings, one protocol.
#
#     bash llada/scripts/compare.sh                       LLaDA-1.5, from the hub; MODEL=instruct: LLaDA-8B-Instruct
#     MODEL=tiny LIMIT=4 bash llada/scripts/compare.sh    offline: small problems, an embedded model
#
# LIMIT, SEEDS, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. The same command continues.
# LONG=1: GSM8K with answers of 1024 tokens as well, the row of the papers' largest speedups.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin compare 1.5

# The settings are of the papers DPad (2508.14148), Streaming-dLLM (2601.17917; on GSM8K with five examples) and SSM
# (2608.23167), where Streaming-dLLM has its settings for answers of this length.
#       task         shots length  DPad: k a W  Streaming: W fall  SSM: W k alpha
case "$MODEL" in
*[Ii]nstruct*)
    compare gsm8k        4 256     4 2.0 256    96 0.3             64 3 0.3
    compare minerva_math 4 256     4 2.0 256    128 0.3            64 7 0.4
    compare humaneval    0 512     3 2.3 512    256 0.4            160 7 0.4
    compare mbpp         3 512     3 2.3 128    32 0.3             80 7 0.4
    ;;
*)
    compare gsm8k        4 256     3 1.6 256    96 0.4             72 7 0.4
    compare minerva_math 4 256     3 1.6 256    96 0.4             72 7 0.4
    compare humaneval    0 512     3 2.3 128    96 0.4             160 7 0.4
    compare mbpp         3 512     3 1.6 512    96 0.3             48 7 0.4
    ;;
esac
if [ -n "${LONG:-}" ]; then # Streaming-dLLM has no settings for this length: those for 512
    compare gsm8k        1 1024    3 1.6 256    128 0.6            72 3 0.4
fi

finish --plot "$OUTPUT/pareto.png"
