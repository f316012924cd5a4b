# shellcheck shell=bash
# Sourced by the scripts beside it: a temporary folder that is removed at the end, `install` and `python` inside it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# install NAME==VERSION ...: these packages in a fresh environment.
install() {
    python3 -m venv venv
    venv/bin/pip install --quiet --no-compile --disable-pip-version-check "$@"
}

# run_python: runs standard input in that environment; `seen` and `rtx` of this folder can be imported.
run_python() {
    PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore PYTHONPATH="$here" venv/bin/python -
}
