#!/bin/sh
# Makes .venv with this project (editable) and its development tools; does nothing when it is up to date.
# `make-venv.sh empty` makes the environment alone, and installs nothing into it.
set -eu
stamp=.venv/.installed
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ]; then exit 0; fi
is_new='import sys; sys.exit(sys.version_info < (3, 11))'
python="${PYTHON:-}"
# A distribution's own Python is built with profile-guided optimisation and without a shared library; beside one that was
# compiled by hand the server took an eighth more messages on it. PYTHON chooses another.
if [ -z "$python" ] && [ "$(uname)" = Linux ] && /usr/bin/python3 -c "$is_new" 2>/dev/null; then
    if [ "$(id -u)" = 0 ] || /usr/bin/python3 -c "import ensurepip" 2>/dev/null; then python=/usr/bin/python3; fi
fi
python="${python:-python3}"
if ! "$python" -c "$is_new"; then
    echo "Pillarbox needs Python 3.11 or later; $python is $("$python" -V 2>&1). Set PYTHON=/path/to/python3." >&2
    exit 1
fi
if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv 2>/dev/null; then
    rm -rf .venv
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing python3-venv with apt-get"
        apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-venv >/dev/null
        "$python" -m venv .venv
    else
        echo "$python cannot make a virtual environment: install its venv package (Debian: python3-venv)" >&2
        exit 1
    fi
fi
[ "${1:-}" = empty ] && exit 0
echo "installing Pillarbox and its tools into .venv"
.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
touch "$stamp"
