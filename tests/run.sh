#!/usr/bin/env bash
# Set up the virtual environment, check the code's style, run all tests. From any directory:
#
#     bash tests/run.sh                      # everything
#     bash tests/run.sh -k sampler -x        # arguments go to pytest
#
# Ends with pytest's closing line and status 0 only when style and tests are both in order.
set -uo pipefail
EXTRA=demo/requirements.txt
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT" || exit 1

"$PYTHON" -m ruff check --quiet .
style=$?
"$PYTHON" -m pytest -q "$@"
tests=$?
if [ "$style" -ne 0 ]; then
    echo "ruff found the faults listed above the tests" >&2
    exit 1
fi
exit "$tests"
