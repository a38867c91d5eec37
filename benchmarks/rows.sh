# Functions that the scripts of llada/scripts and dream/scripts share: sourced, never run.
#
#     source ".../benchmarks/rows.sh"
#     begin main_1.5 1.5 llada-1.5            # the script's name, its model, the key of the paper's numbers
#     measure -n +DPad -t gsm8k -s 4 -l 256 -d gaussian -k 3 -sc 1.6 -w 256 -e         # flags of run.py
#     compare gsm8k 4 256  3 1.6 256  96 0.4  72 7 0.4       # methods beside each other, see the function
#     finish                                  # prints the table; passes its arguments to `run.py table`
#
# Environment variables, all optional:
# MODEL          a model in place of the paper's. tiny and dream-tiny get this repository's small problems in place of
#                the paper's tasks, offline, and no worked examples, because they were trained on single questions
# LIMIT          number of problems of each task, the first ones (default: all)
# NUM_PROCESSES  number of GPUs that share the work (default: 1)
# BATCH_SIZE     number of problems decoded together (default: 1, as in the paper)
# DPAD_ISOLATION the least isolation of programs that the model writes (docs/security.md)
# SEEDS          number of seeds of a method that draws, in comparisons (default: 3)
# OUTPUT         folder of all results (default: results in the repository); those of a script are in <script>/<model>
#
# Complete rows are skipped, and an interrupted row continues where it stopped. The first failure ends the script.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"

from_here() { # PATH: make a path absolute, from where the user is; an empty one stays empty
    case "$1" in
    "" | /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
    esac
}

folder_or_name() { # MODEL: make it absolute if it has a slash and such a folder exists; other names stay as they are
    case "$1" in
    */*) if [ -d "$1" ]; then from_here "${1%/}"; else printf '%s' "$1"; fi ;;
    *) printf '%s' "$1" ;;
    esac
}

MODEL="$(folder_or_name "${MODEL:-}")"
OUTPUT="$(from_here "${OUTPUT:-}")"
cd "$ROOT"

begin() { # SCRIPT MODEL [PAPER]: set up the folder of the results
    SCRIPT="$1"
    MODEL="${MODEL:-$2}"
    PAPER="${3:-}"
    OUTPUT="${OUTPUT:-results}/$SCRIPT/${MODEL##*/}${LIMIT:+-first-$LIMIT}"
    mkdir -p "$OUTPUT"
    # The published LLaDA rows were scored with the text after EOS.
    case "$MODEL:$2" in
    *tiny:* | *:dream*) AFTER_EOS=drop ;;
    *) AFTER_EOS=keep ;;
    esac
    RECORDS=()
    STARTED=$SECONDS
}

stand_in() { # FLAG VALUE: the value for an embedded model, in place of the paper's task or number of examples
    case "$MODEL:$1:$2" in
    *tiny:-t:gsm8k) echo arithmetic-50 ;;
    *tiny:-t:minerva_math) echo math-local ;;
    *tiny:-t:humaneval | *tiny:-t:mbpp) echo "$2-local" ;;
    *tiny:-s:*) echo 0 ;;
    *) echo "$2" ;;
    esac
}

compare() { # TASK SHOTS LENGTH  K SCALE WINDOW  WINDOW FALL  WINDOW K ALPHA: DPad's, Streaming-dLLM's and SSM's settings
    local dpad="-k $4 -sc $5 -w $6" streaming="-w $7 --fall $8" soft="--soft_k ${10} --soft_alpha ${11}"
    # One threshold for all; then the same with the prefix cache, which Streaming-dLLM has.
    measure compare -t "$1" -s "$2" -l "$3" -th 0.9 --seeds "${SEEDS:-3}" \
        --methods "parallel,dpad-parallel=$dpad,dpad-even=$dpad,dpad-last=$dpad,window,no-suffix" \
        --methods "streaming-uncached=--method streaming --cache none $streaming,ssm-hard=-w $9,ssm=-w $9 $soft" \
        --methods "fast-dllm,dpad-parallel-cache=$dpad,streaming=$streaming,ssm-cache=--method ssm -c -w $9 $soft"
}

measure() { # [compare] FLAG...: measure one row, or a comparison, with run.py, unless its record is complete
    local flags=() name="" task="" length="" log status=0
    while [ $# -gt 0 ]; do
        case "$1" in
        compare) name=compare ;;
        -n) name="$2" ;;
        -t) task="$2" && set -- -t "$(stand_in -t "$2")" "${@:3}" ;;
        -s) set -- -s "$(stand_in -s "$2")" "${@:3}" ;;
        -l) length="$2" ;;
        esac
        flags+=("$1")
        shift
    done
    flags+=(-m "$MODEL" --after_eos "$AFTER_EOS" ${LIMIT:+--limit "$LIMIT"} ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"}
        ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} --output "$OUTPUT/runs" --record "$OUTPUT/$task-$length-$name.json")
    RECORDS+=("$OUTPUT/$task-$length-$name.json")
    log="$OUTPUT/$task-$length-$name.log"
    printf '== %s %s: python run.py %s\n' "$SCRIPT" "${#RECORDS[@]}" "${flags[*]}"
    # On a terminal, the progress bar and errors stay on the screen. Elsewhere they go into the log as well.
    if [ -t 2 ]; then
        "$PYTHON" run.py "${flags[@]}" | tee "$log" || status=$?
        log=""
    else
        "$PYTHON" run.py "${flags[@]}" 2>&1 | tee "$log" || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        printf '%s stopped with status %s at: python run.py %s\n%sRun the same script again to continue from here.\n' \
            "$SCRIPT" "$status" "${flags[*]}" "${log:+Its log: $log. }" >&2
        exit "$status"
    fi
}

finish() { # [FLAG...]: print the table of all rows, and keep it as table.txt
    "$PYTHON" run.py table "${RECORDS[@]}" ${PAPER:+--paper "$PAPER"} "$@" | tee "$OUTPUT/table.txt"
    printf '%s: %s rows in %s minutes; records, logs and this table: %s\n' \
        "$SCRIPT" "${#RECORDS[@]}" "$(((SECONDS - STARTED) / 60))" "$OUTPUT"
}
