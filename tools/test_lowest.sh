#!/bin/sh
# The tests without the slow ones, in an environment of its own that has the oldest run-time versions which
# pyproject.toml allows; pytest and the rest as requirements.lock has them.
#
#   sh tools/test_lowest.sh [PYTEST OPTION...]
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."
command -v uv >/dev/null 2>&1 || { echo "tools/test_lowest.sh needs uv: pip install uv" >&2; exit 1; }
env=.venv-lowest
python=$env/bin/python
{
    uv venv --no-project --clear --python .venv/bin/python "$env"
    uv pip install --python "$python" --require-hashes --only-binary :all: -r requirements.lock
    uv pip install --python "$python" --only-binary :all: --resolution lowest-direct --reinstall -r pyproject.toml
    uv pip install --python "$python" --no-deps --no-build-isolation -e .
} >.venv-lowest.log 2>&1 || { tail -n 3 .venv-lowest.log >&2; exit 1; }
exec "$python" -m pytest -q -n auto -m 'not slow' "$@"
