#!/bin/sh
# Make the CPU environment: install.sh DIRECTORY [PYTHON]
#
# Every package is pinned in requirements.txt, with hashes, and installed without
# resolving. torch comes last: by pip if it can find the CPU build (a wheel folder or
# index of your own, by PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), else by uv, which knows
# the PyTorch project's CPU builds. The CUDA build is never taken.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$1
python=${2:-python3.11}

command -v "$python" >/dev/null || {
    echo "install.sh: $python not found. Install Python 3.11 (see README, Set-up) or give" >&2
    echo "its path: make PYTHON=/path/to/python3.11" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "install.sh: Python 3.11 is needed, $python is $("$python" --version 2>&1)" >&2
    exit 1
}

"$python" -m venv "$venv" || {
    echo "install.sh: no venv could be made; on Debian and Ubuntu: apt-get install python3.11-venv" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "installing the pinned packages into $venv (about two minutes)"
pip install --quiet --no-deps --require-hashes -r "$here/requirements.txt"

if ! "$venv/bin/python" -c 'import torch; assert torch.__version__.startswith("2.13.0")' 2>/dev/null; then
    echo "installing the CPU build of torch 2.13.0"
    pip install --quiet --no-deps --require-hashes -r "$here/torch.txt" 2>/dev/null ||
        "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --torch-backend cpu torch==2.13.0 || {
        echo "install.sh: no CPU build of torch 2.13.0 was found. See README, Set-up: torch." >&2
        exit 1
    }
fi

# `import nki` and the project's own packages work from anywhere in this environment.
PYTHONPATH="$root" "$venv/bin/python" -m simulator enable "$root"
pip check
