#!/bin/sh
# Write requirements.lock: every platform, Python 3.11 and newer, by name, version and hash; no address of anything.
#
#   sh tools/lock.sh [--upgrade] [--upgrade-package NAME]
#
# Pins that still fit are kept. The settings of this machine (index, constraints, find-links) are left out of it.
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."
command -v uv >/dev/null 2>&1 || { echo "tools/lock.sh needs uv: pip install uv" >&2; exit 1; }
unset UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_CONSTRAINT UV_OVERRIDE PIP_CONSTRAINT
uv pip compile pyproject.toml --group dev --quiet --no-config --universal --python-version 3.11 --generate-hashes \
    --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "make lock" --output-file requirements.lock "$@" >/dev/null
