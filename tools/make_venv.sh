#!/usr/bin/env bash
# Makes a virtual environment with pip, also where Debian's python3 comes without ensurepip. Usage: make_venv.sh PYTHON DIRECTORY
set -euo pipefail
python=$1 directory=$2

command -v "$python" >/dev/null || {
    echo "There is no $python. Penstock needs Python 3.11 or later; name one with PYTHON=…" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Penstock needs Python 3.11 or later; $python is $("$python" --version 2>&1). Name another with PYTHON=…" >&2
    exit 1
}

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # The package of Debian's default Python and of any other that stands beside it: python3.11-venv.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $package …"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    else
        echo "This Python cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install $package" >&2
        exit 1
    fi
fi
# What an interrupted attempt left is not trusted.
rm -rf "$directory"
exec "$python" -m venv "$directory"
