#!/usr/bin/env bash
# Installs the real servers that tests run against: PostgreSQL and Prometheus. Where this is not possible the tests that
# need them are skipped with a reason; in CI (CI=true) that is a failure instead.
set -euo pipefail

has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }
has_prometheus() { command -v prometheus >/dev/null; }

missing=()
has_postgresql || missing+=(postgresql)
has_prometheus || missing+=(prometheus)

if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]} …"
    # The packages would start servers of their own. The tests start theirs, on free ports and in temporary folders.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    log=$(mktemp)
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
        cat "$log" >&2
        exit 1
    }
    rm -f "$log"
    # Where a policy was there and allowed it, they run now.
    for service in "${missing[@]}"; do
        service "$service" stop >/dev/null 2>&1 || true
    done
fi

status=0
report() {
    echo "$1 is not installed: the tests that need it are skipped." >&2
    [ "${CI:-}" != true ] || status=1
}
has_postgresql || report PostgreSQL
has_prometheus || report Prometheus
exit $status
