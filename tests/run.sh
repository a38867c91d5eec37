#!/usr/bin/env bash
# Set up the virtual environment, check style and types, run the tests. From any directory:
#
#     bash tests/run.sh                      # everything; afterwards, how much of the code the tests reach
#     bash tests/run.sh --fast               # about a minute: style, and the tests marked `fast` (see tests/conftest.py)
#     bash tests/run.sh -k sampler -x        # style, types, and pytest with these arguments
#
# Ends with pytest's closing line, and with status 0 only when style, types and tests are in order. A run of everything
# must also reach ENGINE_COVERAGE percent of dpad/engine, branches included.
set -uo pipefail
ENGINE_COVERAGE=95
EXTRA="demo/requirements.txt dpad/serve/requirements.txt dpad/engine/requirements.txt"
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT" || exit 1

export OMP_NUM_THREADS=1  # small models are fastest so, and two test processes do not compete for cores
parallel=(-n 2 --dist worksteal)  # two processes; an idle one takes over tests of the other
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
status=0

fail() {
    echo "$*" >&2
    status=1
}

check_coverage() {
    "$PYTHON" -m coverage report --skip-covered --include="dpad/engine/*" --fail-under="$ENGINE_COVERAGE" ||
        fail "coverage: the tests must reach $ENGINE_COVERAGE% of dpad/engine"
    echo "All of the code: $("$PYTHON" -m coverage report --format=total)%"
}

everything=$([ $# -eq 0 ] && echo yes)
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m fast "${parallel[@]}" "$@"
else
    "$PYTHON" -m mypy --no-error-summary || fail "mypy: see the errors above"
fi
"$PYTHON" -m ruff check --quiet . || fail "ruff: see the errors above"

if [ "$everything" ]; then
    set -- "${parallel[@]}" --durations=25 --cov --cov-report=
fi
"$PYTHON" -m pytest -q "$@" 2>&1 | tee "$log" || status=1
[ -z "$everything" ] || check_coverage
if [ "$status" -ne 0 ] || [ "$everything" ]; then
    tail -n 1 "$log"
fi
exit "$status"
