#!/usr/bin/env bash
# The paper's long-sequence figure for LLaDA-1.5: GSM8K, 1-shot, answers of 1024 tokens, seven configurations.
#
#     bash llada/scripts/long_seq.sh                       the paper's model, from the hub
#     MODEL=tiny LIMIT=4 bash llada/scripts/long_seq.sh    offline: small problems, an embedded model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. After an interruption, the same command continues.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin long_seq 1.5 llada-1.5

measure -n Vanilla                    -t gsm8k -s 1 -l 1024
measure -n Vanilla+EarlyTermination   -t gsm8k -s 1 -l 1024 -e
measure -n +DPad                      -t gsm8k -s 1 -l 1024 -d gaussian -k 3 -sc 1.6 -w 256 -e
measure -n +Parallel                  -t gsm8k -s 1 -l 1024 -th 0.9
measure -n +Parallel+DPad             -t gsm8k -s 1 -l 1024 -th 0.9 -d gaussian -k 3 -sc 1.6 -w 256 -e
measure -n +Parallel+PrefixCache      -t gsm8k -s 1 -l 1024 -th 0.9 -c
measure -n +Parallel+PrefixCache+DPad -t gsm8k -s 1 -l 1024 -th 0.9 -c -d gaussian -k 3 -sc 1.6 -w 256 -e

finish --plot "$OUTPUT/long_seq.png"
