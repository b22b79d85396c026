# Sourced by jobs/demo.sh and tests/run.sh: creates .venv with the pinned versions, or reuses it.
# Usage: source jobs/setup.sh; setup_venv [EXTRA,...]. Doesn't need root; as root, it installs python3-venv if missing.

setup_venv() {
    local extras=${1:-} venv=.venv python=${PYTHON:-python3} stamp wanted
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: $python isn't Python 3.11 or newer; install one, or run: PYTHON=/path/to/python3.12 bash $0" >&2
        return 2
    fi
    stamp=$venv/.segdist-setup
    # Nothing to do if the files and the interpreter are unchanged and these extras are installed.
    wanted=$(cat setup.cfg constraints.txt | cksum)" $("$python" --version)"
    if [[ -f $stamp ]] && [[ $(head -n 1 "$stamp") == "$wanted" ]]; then
        local extra missing=0
        for extra in ${extras//,/ }; do
            grep -qx "$extra" "$stamp" || missing=1
        done
        if ((!missing)); then return 0; fi
    fi
    echo "setting up $venv (a few minutes the first time) ..."
    if [[ ! -x $venv/bin/python ]] && ! "$python" -m venv "$venv" 2>/dev/null; then
        rm -rf "$venv"
        if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
        else
            echo "error: $python can't create virtual environments; install venv: sudo apt-get install python3-venv" >&2
            return 2
        fi
        "$python" -m venv "$venv" || return 2
    fi
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".${extras:+[$extras]}" || return 2
    printf '%s\n' "$wanted" ${extras//,/ } >"$stamp"
}
