#!/usr/bin/env bash
# Installs the real servers that tests run against: PostgreSQL and Prometheus. Where this is not possible the tests that
# need them are skipped with a reason; in CI that is a failure instead.
set -euo pipefail

has_postgresql() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; }
has_prometheus() { command -v prometheus >/dev/null; }

missing=()
has_postgresql || missing+=(postgresql)
has_prometheus || missing+=(prometheus)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]} …"
    # The packages would start servers of their own; the tests start theirs.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! has_postgresql; then
    echo "PostgreSQL is not installed: its tests cannot run." >&2
    [ "${CI:-}" != true ] || exit 1
fi
if ! has_prometheus; then
    echo "Prometheus is not installed: its test cannot run." >&2
    [ "${CI:-}" != true ] || exit 1
fi
