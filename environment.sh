#!/bin/sh
# Makes a virtual environment: environment.sh FOLDER EXTRAS [PACKAGE...]
#
# Triton's Python is at most 3.12. PYTHON (python3 by default) is taken where it fits; else another Python of this
# machine; else uv fetches 3.12 into .uv/ in this folder. PACKAGEs are installed without what they depend on.
set -eu
folder=$1 extras=$2
shift 2
first=${PYTHON:-python3}

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

chosen=
for name in "$first" python3.12 python3.11 python3.10; do
    if fits "$name"; then
        chosen=$name
        break
    fi
done
if [ -n "$chosen" ]; then
    [ "$chosen" = "$first" ] || echo "$first is not Python 3.10 to 3.12, which Triton needs: $chosen is used"
    echo "pip installs up to 2 GB into $folder with $(command -v "$chosen"); this takes some minutes without output" \
        "(3 GB more where it chooses a PyTorch with CUDA)"
    "$chosen" -m venv "$folder"
    # Python compiles what it imports, which is a small part of what is installed.
    install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
else
    echo "there is no Python 3.10 to 3.12 here, which Triton needs: uv fetches 3.12 into .uv/"
    "$first" -m venv .uv
    .uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv~=0.9'
    UV_PYTHON_INSTALL_DIR=$PWD/.uv/python .uv/bin/uv venv --quiet --clear --seed --python 3.12 "$folder"
    # Without a GPU this spares several GB of CUDA.
    install() { .uv/bin/uv pip install --quiet --python "$folder/bin/python" --torch-backend auto "$@"; }
fi
install -e ".[$extras]"
for package; do install --no-deps "$package"; done
