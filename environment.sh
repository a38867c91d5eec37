# The set-up that demo/demo.sh and tests/run.sh share: a virtual environment in .venv with requirements.txt
# and this repository (in place) installed.
#
#     source environment.sh        # from a bash script; afterwards $ROOT is the repository and $PYTHON its interpreter
#
# The first call installs (about two minutes), later ones only look at a stamp. A half-made environment is repaired.
# PYTHON names another interpreter than python3. pip's own settings (mirrors, proxies, wheel folders) apply as usual.
# EXTRA: more files of requirements to install, with spaces between them (the tests take the web UI's and the server's).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

give_up() {
    echo "set-up: $*" >&2
    exit 1
}

works() { # an interpreter that starts and is new enough
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_gpu() {
    [ -e /dev/nvidia0 ] || nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        works "$PYTHON" && command -v "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if works "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

install_all() {
    local pip=("$1/bin/python" -m pip --disable-pip-version-check) required installed
    required="$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$ROOT/requirements.txt")"
    installed="$("${pip[@]}" show torch 2>/dev/null | sed -n 's/^Version: //p')"
    if has_gpu; then
        case "$installed" in
        *+cpu) "${pip[@]}" uninstall --yes torch ;; # installed before there was a GPU
        esac
    elif [ "$(uname -s)" = Linux ] && [ "${installed%+*}" != "$required" ]; then
        # PyPI's wheel for Linux brings gigabytes of CUDA. The label +cpu picks the build without it. Where pip finds
        # none, the command below takes PyPI's.
        "${pip[@]}" install --no-deps --retries 1 --timeout 15 \
            --extra-index-url https://download.pytorch.org/whl/cpu "torch==$required+cpu" || true
    fi
    "${pip[@]}" install -r "$ROOT/requirements.txt" && "${pip[@]}" install --no-deps -e "$ROOT"
}

install_extra() {
    local venv="$ROOT/.venv" stamp file files=(-r "$ROOT/requirements.txt")
    for file in $EXTRA; do
        files+=(-r "$ROOT/$file")
    done
    stamp="$(for file in "${files[@]}"; do [ "$file" = -r ] || cat "$file"; done | cksum)"
    if [ "$(cat "$venv/installed-extra" 2>/dev/null)" != "$stamp" ]; then
        printf 'Installing the packages of %s … ' "$EXTRA" >&2
        "$venv/bin/python" -m pip --disable-pip-version-check install "${files[@]}" >"$venv/install-extra.log" 2>&1 ||
            give_up "pip could not install $EXTRA; its whole output is in $venv/install-extra.log"
        echo "$stamp" >"$venv/installed-extra"
        printf 'done\n' >&2
    fi
}

set_up() {
    local venv="$ROOT/.venv" python stamp log started=$SECONDS
    stamp="$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum) $ROOT $(has_gpu && echo gpu || echo cpu)"
    if [ "$(cat "$venv/installed" 2>/dev/null)" = "$stamp" ] && works "$venv/bin/python"; then
        return
    fi
    if command -v flock >/dev/null; then # a second script that starts now waits here, then finds all done
        exec 9<"$ROOT/requirements.txt"
        flock 9
        if [ "$(cat "$venv/installed" 2>/dev/null)" = "$stamp" ] && works "$venv/bin/python"; then
            exec 9<&-
            return
        fi
    fi
    if ! works "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)" || give_up "${PYTHON:-python3} is missing or older than Python 3.11;" \
            "install a newer one or name it: PYTHON=/path/to/python3"
        "$python" -m venv --clear "$venv" >/dev/null 2>&1 || {
            rm -rf "$venv"
            give_up "$python could not make a virtual environment in $venv; its venv module may be missing" \
                "(Debian, Ubuntu: apt install python3-venv)"
        }
    fi
    rm -f "$venv/installed"
    log="$venv/install.log"
    printf 'Installing the packages of requirements.txt into .venv (about 2 minutes the first time) … ' >&2
    if ! install_all "$venv" >"$log" 2>&1; then
        printf 'failed\n' >&2
        grep -i '^error' "$log" | tail -n 3 >&2
        give_up "pip could not install requirements.txt; its whole output is in $log"
    fi
    echo "$stamp" >"$venv/installed"
    printf 'done in %s s\n' "$((SECONDS - started))" >&2
    if command -v flock >/dev/null; then
        exec 9<&-
    fi
}

set_up
if [ -n "${EXTRA:-}" ]; then
    install_extra
fi
PYTHON="$ROOT/.venv/bin/python"
