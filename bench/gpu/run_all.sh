#!/usr/bin/env bash
# Every GPU check and measurement there is, in under nine minutes, from a plain source tree; see README.md. Exit status: 0 when every part
# ran and was right, 1 when one was wrong or cut short, 2 when the command line is wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
# Wheels that the caller brought along: what the machine's Python has not got. Nothing is downloaded.
if compgen -G '.whl/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl ||
        echo "bench.gpu: the wheels in .whl do not install here; going on without them" >&2
    export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
else
    echo "bench.gpu: no wheels in .whl; parts that need a package which is missing here say so"
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
"$python" -m bench.gpu "$@"
