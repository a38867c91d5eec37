#!/usr/bin/env bash
# The paper's long-sequence figure for Dream-v0-Base-7B: HumanEval, answers of 1024 and 2048 tokens, six configurations.
#
#     bash dream/scripts/long_seq.sh                             the paper's model, from the hub
#     MODEL=dream-tiny LIMIT=4 bash dream/scripts/long_seq.sh    offline: small problems, an embedded model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. After an interruption, the same command continues.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin long_seq-dream dream-base dream-base

for length in 1024 2048; do
    measure -n Vanilla                    -t humaneval -s 0 -l $length
    measure -n +DPad                      -t humaneval -s 0 -l $length -d gaussian -k 3 -sc 2.3 -w 128 -e
    measure -n +Parallel                  -t humaneval -s 0 -l $length -th 0.9
    measure -n +Parallel+DPad             -t humaneval -s 0 -l $length -th 0.9 -d gaussian -k 3 -sc 2.3 -w 128 -e
    measure -n +Parallel+PrefixCache      -t humaneval -s 0 -l $length -th 0.9 -c
    measure -n +Parallel+PrefixCache+DPad -t humaneval -s 0 -l $length -th 0.9 -c -d gaussian -k 3 -sc 2.3 -w 128 -e
done

finish --plot "$OUTPUT/long_seq.png"
