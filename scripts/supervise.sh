#!/usr/bin/env bash
# Does for one process what a kubelet does for a container: starts it again one second after it has ended,
# and kills it when three health checks in a row have failed, one per second. A limit on memory
# applies to each process that it starts.
# Usage: scripts/supervise.sh tiny-probe [FLAG...]        (settings as environment variables)
#        MEMORY=64M scripts/supervise.sh tiny-probe       (needs root, for a cgroup)
# Ctrl-C or SIGTERM ends the process, and with it the supervision.
set -euo pipefail

group=
# Makes a cgroup, of version 2 or 1, whose processes get so much memory.
limit_memory() {
    if [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
        group=$(mktemp -d /sys/fs/cgroup/memory/tiny-probe-XXXXXX)
        echo "$1" >"$group/memory.limit_in_bytes"
    else
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control
        group=$(mktemp -d /sys/fs/cgroup/tiny-probe-XXXXXX)
        echo "$1" >"$group/memory.max"
        echo 0 >"$group/memory.swap.max"
    fi
}
[ -z "${MEMORY:-}" ] || limit_memory "$MEMORY"

process=
stop() {
    trap '' INT TERM
    kill "$process" 2>/dev/null || true
    wait "$process" || true
    [ -z "$group" ] || rmdir "$group"
    exit 0
}
trap stop INT TERM

while :; do
    # A shell enters the cgroup, and then becomes the process.
    # shellcheck disable=SC2016  # The inner shell expands these.
    sh -c 'group=$1 && shift && if [ -n "$group" ]; then echo $$ >"$group/cgroup.procs"; fi && exec "$@"' \
        sh "$group" "$@" &
    process=$!
    failures=0
    has_served=
    while kill -0 "$process" 2>/dev/null; do
        sleep 1
        if "$1" healthcheck >/dev/null 2>&1; then
            has_served=true
            failures=0
        # Until the first success the process is starting.
        elif [ -n "$has_served" ] && [ $((failures += 1)) -ge 3 ]; then
            echo "supervise: three health checks have failed, killing the process" >&2
            kill -KILL "$process" 2>/dev/null || true
            break
        fi
    done
    code=0
    wait "$process" || code=$?
    echo "supervise: the process ended with exit code $code, starting it again" >&2
done
