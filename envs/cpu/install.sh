#!/bin/sh
# Make the CPU environment, or mend or update one: install.sh DIRECTORY [PYTHON]
#
# Every package is pinned in requirements.txt, with hashes, and installed without
# resolving. torch comes last: by pip if it can find the CPU build (a wheel folder or
# index of your own, by PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), else by uv, which knows
# the PyTorch project's CPU builds. The CUDA build is never taken.
#
# DIRECTORY/installing is there while this runs, DIRECTORY/installed when all is done. An
# environment that an earlier run left half-made is made anew.
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

if [ -e "$venv/installing" ]; then
    echo "install.sh: $venv is half-made; making it anew"
    rm -rf "$venv"
fi
mkdir -p "$venv"
rm -f "$venv/installed"
: >"$venv/installing"

"$python" -m venv "$venv" || {
    echo "install.sh: no venv could be made; on Debian and Ubuntu: apt-get install python3.11-venv" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "installing the pinned packages into $venv (about two minutes)"
pip install --quiet --no-deps --require-hashes -r "$here/requirements.txt"

# The version of the installed torch, without importing it; empty if there is none.
torch=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || :)
wanted=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$here/torch.txt")
if [ "$torch" != "$wanted" ] && [ "$torch" != "$wanted+cpu" ]; then
    echo "installing the CPU build of torch $wanted"
    pip install --quiet --no-deps --require-hashes -r "$here/torch.txt" 2>"$venv/torch.log" ||
        "$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --torch-backend cpu \
            "torch==$wanted" || {
        cat "$venv/torch.log" >&2
        echo "install.sh: no CPU build of torch $wanted was found. See README, Set-up: torch." >&2
        exit 1
    }
fi

# `import nki` and the project's own packages work from anywhere in this environment.
PYTHONPATH="$root" "$venv/bin/python" -m simulator enable "$root"
pip check
mv "$venv/installing" "$venv/installed"
