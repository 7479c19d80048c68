#!/usr/bin/env bash
# venv.sh PYTHON LOCK: make .venv from the libraries pinned in LOCK, with this tree installed in place.
set -euo pipefail
python=$1 lock=$2
here=$(cd "$(dirname "$0")" && pwd)

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "install: got $("$python" --version 2>&1 || echo "no $python"), want Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
# Debian parts ensurepip from Python; without it a venv has no pip.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$here/system-packages.sh" -:python3-venv
fi
echo "install: .venv from $lock"
"$python" -m venv .venv
pip=(.venv/bin/python -m pip -qq --disable-pip-version-check install)
"${pip[@]}" -r "$lock"
# The lock holds setuptools too, so that nothing unpinned is fetched to build the tree.
"${pip[@]}" --no-deps --no-build-isolation -e .
