#!/usr/bin/env bash
# The paper's main table for LLaDA-8B-Instruct: GSM8K, MATH, HumanEval and MBPP, four configurations each.
#
#     bash llada/scripts/main_instruct.sh                       the paper's model, from the hub
#     MODEL=tiny LIMIT=4 bash llada/scripts/main_instruct.sh    offline: small problems, an embedded model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. After an interruption, the same command continues.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin main_instruct instruct llada-instruct

measure -n Vanilla        -t gsm8k -s 4 -l 256
measure -n +DPad          -t gsm8k -s 4 -l 256 -d gaussian -k 4 -sc 2.0 -w 256 -e
measure -n +Parallel      -t gsm8k -s 4 -l 256 -th 0.9
measure -n +Parallel+DPad -t gsm8k -s 4 -l 256 -th 0.9 -d gaussian -k 4 -sc 2.0 -w 256 -e

measure -n Vanilla        -t minerva_math -s 4 -l 256
measure -n +DPad          -t minerva_math -s 4 -l 256 -d gaussian -k 4 -sc 2.0 -w 256 -e
measure -n +Parallel      -t minerva_math -s 4 -l 256 -th 0.9
measure -n +Parallel+DPad -t minerva_math -s 4 -l 256 -th 0.9 -d gaussian -k 4 -sc 2.0 -w 256 -e

measure -n Vanilla        -t humaneval -s 0 -l 512
measure -n +DPad          -t humaneval -s 0 -l 512 -d gaussian -k 3 -sc 2.3 -w 512 -e
measure -n +Parallel      -t humaneval -s 0 -l 512 -th 0.9
measure -n +Parallel+DPad -t humaneval -s 0 -l 512 -th 0.9 -d gaussian -k 3 -sc 2.3 -w 512 -e

measure -n Vanilla        -t mbpp -s 3 -l 512
measure -n +DPad          -t mbpp -s 3 -l 512 -d gaussian -k 3 -sc 2.3 -w 128 -e
measure -n +Parallel      -t mbpp -s 3 -l 512 -th 0.9
measure -n +Parallel+DPad -t mbpp -s 3 -l 512 -th 0.9 -d gaussian -k 3 -sc 2.3 -w 128 -e

finish
