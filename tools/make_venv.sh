#!/usr/bin/env bash
# Makes a virtual environment, also where Debian's python3 lacks ensurepip. Usage: make_venv.sh PYTHON DIRECTORY
set -euo pipefail
python=$1 directory=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Penstock needs Python 3.11 or later; $python is $("$python" --version 2>&1). Name one with PYTHON=…" >&2
    exit 1
}
if "$python" -m venv "$directory" 2>/dev/null && [ -x "$directory/bin/pip" ]; then exit 0; fi
rm -rf "$directory"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3-venv …"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    exec "$python" -m venv "$directory"
fi
echo "This Python cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2
exit 1
