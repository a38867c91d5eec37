#!/usr/bin/env bash
# The paper's ablation for LLaDA-1.5: accuracy by window and kept tokens; GSM8K, 4-shot, G = 512, prefix cache.
#
#     bash llada/scripts/heatmap.sh                       the paper's model, from the hub
#     MODEL=tiny LIMIT=4 bash llada/scripts/heatmap.sh    offline: small problems, an embedded model
#
# LIMIT, NUM_PROCESSES, BATCH_SIZE, OUTPUT: see benchmarks/rows.sh. After an interruption, the same command continues.
source "$(dirname "${BASH_SOURCE[0]}")/../../benchmarks/rows.sh"
begin heatmap 1.5

# WINDOWS: only these columns of the heatmap, such as WINDOWS="128 256" (default: all).
SIZES="32 64 128 192 256 320 384 448 512"
# For the Gaussian sampler, the scale that keeps so many tokens on average, with k = 3; as window:tokens:scale.
SCALES="64:32:3.4 128:32:1.6 128:64:3.4 192:32:1.1 192:64:2.1 192:128:7.7 256:32:0.8 256:64:1.6 256:128:3.4
256:192:13.1 320:32:0.7 320:64:1.3 320:128:2.5 320:192:5.3 320:256:18.9 384:32:0.6 384:64:1.1 384:128:2.1 384:192:3.4
384:256:7.7 384:320:24.5 448:32:0.5 448:64:0.9 448:128:1.8 448:192:2.6 448:256:4.6 448:320:10.3 448:384:29.9
512:32:0.4 512:64:0.8 512:128:1.6 512:192:2.3 512:256:3.4 512:320:6.1 512:384:13.1 512:448:34.9"

for window in ${WINDOWS:-$SIZES}; do
    for tokens in $SIZES; do
        if [ "$tokens" -le "$window" ]; then
            measure -n "uniform-$window-$tokens" -t gsm8k -s 4 -l 512 -c -d uniform -nt "$tokens" -w "$window" -e
        fi
    done
    for entry in $SCALES; do
        IFS=: read -r entry_window tokens scale <<<"$entry"
        if [ "$entry_window" = "$window" ]; then
            measure -n "gaussian-$window-$tokens" -t gsm8k -s 4 -l 512 -c -d gaussian -k 3 -sc "$scale" -w "$window" -e
        fi
    done
done

finish --figure heatmap --plot "$OUTPUT/heatmap.png"
