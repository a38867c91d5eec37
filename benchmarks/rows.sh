# What the scripts of llada/scripts and dream/scripts share: sourced, never run.
#
#     source ".../benchmarks/rows.sh"
#     begin main_1.5 1.5 llada-1.5            # the script's name, its model, the key of the paper's numbers
#     measure -n +DPad -t gsm8k -s 4 -l 256 -d gaussian -k 3 -sc 1.6 -w 256 -e         # flags of run.py
#     finish                                  # prints the table; arguments go to `run.py table`
#
# From the environment, all optional:
# MODEL          another model than the paper's: tiny and dream-tiny answer small problems of our own instead, offline
#                and without worked examples before them, because they were trained on single questions
# LIMIT          only the first so many problems of every task
# NUM_PROCESSES  GPUs to share the work
# BATCH_SIZE     problems decoded together (the paper: 1)
# OUTPUT         the folder of all results (default: results in the repository); a script's are in <script>/<model>
#
# What is complete is skipped, what was interrupted goes on where it stopped; the first failure ends the script.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
from_here() { # a path that the user gave counts from where the user is; empty stays empty
    case "$1" in
    "" | /*) printf '%s' "$1" ;;
    *) printf '%s/%s' "$PWD" "$1" ;;
    esac
}

folder_or_name() { # a model: a folder if there is one of that name and it looks like a path, otherwise as it is
    case "$1" in
    */*) if [ -d "$1" ]; then from_here "${1%/}"; else printf '%s' "$1"; fi ;;
    *) printf '%s' "$1" ;;
    esac
}

MODEL="$(folder_or_name "${MODEL:-}")" OUTPUT="$(from_here "${OUTPUT:-}")"
cd "$ROOT"

begin() {
    SCRIPT="$1" MODEL="${MODEL:-$2}" PAPER="${3:-}"
    OUTPUT="${OUTPUT:-results}/$SCRIPT/${MODEL##*/}${LIMIT:+-first-$LIMIT}"
    mkdir -p "$OUTPUT"
    RECORDS=() STARTED=$SECONDS
}

stand_in() { # FLAG VALUE: what an embedded model gets instead of the paper's task and number of examples
    case "$MODEL:$1:$2" in
    *tiny:-t:gsm8k) echo arithmetic-50 ;;
    *tiny:-t:minerva_math) echo math-local ;;
    *tiny:-t:humaneval | *tiny:-t:mbpp) echo "$2-local" ;;
    *tiny:-s:*) echo 0 ;;
    *) echo "$2" ;;
    esac
}

measure() {
    local flags=() name="" task="" length="" log status=0
    while [ $# -gt 0 ]; do
        case "$1" in
        -n) name="$2" ;;
        -t) task="$2" && set -- -t "$(stand_in -t "$2")" "${@:3}" ;;
        -s) set -- -s "$(stand_in -s "$2")" "${@:3}" ;;
        -l) length="$2" ;;
        esac
        flags+=("$1")
        shift
    done
    flags+=(-m "$MODEL" ${LIMIT:+--limit "$LIMIT"} ${NUM_PROCESSES:+--num_processes "$NUM_PROCESSES"}
        ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} --output "$OUTPUT/runs" --record "$OUTPUT/$task-$length-$name.json")
    RECORDS+=("$OUTPUT/$task-$length-$name.json")
    log="$OUTPUT/$task-$length-$name.log"
    printf '== %s %s: python run.py %s\n' "$SCRIPT" "${#RECORDS[@]}" "${flags[*]}"
    # On a terminal one sees the progress bar, and errors stay on the screen; otherwise everything goes into the log.
    if [ -t 2 ]; then
        "$PYTHON" run.py "${flags[@]}" | tee "$log" || status=$?
        log=""
    else
        "$PYTHON" run.py "${flags[@]}" 2>&1 | tee "$log" || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        printf '%s stopped with status %s at: python run.py %s\n%sThe same script goes on from here.\n' \
            "$SCRIPT" "$status" "${flags[*]}" "${log:+Its log: $log. }" >&2
        exit "$status"
    fi
}

finish() {
    "$PYTHON" run.py table "${RECORDS[@]}" ${PAPER:+--paper "$PAPER"} "$@" | tee "$OUTPUT/table.txt"
    printf '%s: %s rows in %s minutes; records, logs and this table: %s\n' \
        "$SCRIPT" "${#RECORDS[@]}" "$(((SECONDS - STARTED) / 60))" "$OUTPUT"
}
