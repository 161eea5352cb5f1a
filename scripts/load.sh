#!/usr/bin/env bash
# Asks /probe at a steady rate, whether or not the answers come in time, and sums up how it was answered.
# Usage: scripts/load.sh [BASE_URL [PATH]]      (default: $BASE_URL, else http://127.0.0.1:8080; /probe)
# With --fault-injection each request may say how it is answered: PATH '/probe?status=503&delay=250ms'.
# RATE is requests per second (20, at most 300), DURATION seconds (60). Ctrl-C ends it early.
# Each request is of a trace of its own (traceparent), by which its exemplar can be told.
# Exits 1 if a request got no answer within 30 seconds; such are counted as status 000.
set -euo pipefail
export LC_ALL=C
if [ -z "${EPOCHREALTIME:-}" ] || ! command -v stdbuf >/dev/null; then
    echo "load.sh: needs bash 5 and GNU's stdbuf (on a Mac: brew install bash coreutils)" >&2
    exit 2
fi

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
path=${2:-/probe}
rate=${RATE:-20}
duration=${DURATION:-60}

# curl counts in the query, whose other names are ignored.
case $path in
    *\?*) path="$path&" ;;
    *) path="$path?" ;;
esac

answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
trap 'duration=0' INT TERM

progress() {
    printf '\r%4d s  %6d sent  %6d answered ' "$seconds" "$((seconds * rate))" "$(wc -l <"$answers")" >&2
}

# One second's requests, as curl's configuration has them.
requests() {
    # 16 bytes of trace and 8 of span each.
    od --address-radix=n --output-duplicates --format=x1 --width=24 --read-bytes=$((24 * rate)) /dev/urandom |
        tr -d ' ' | awk -v url="$url$path" '{
            print "next\nurl = \"" url NR "\"\nmax-time = 30\noutput = /dev/null"
            print "header = \"traceparent: 00-" substr($0, 1, 32) "-" substr($0, 33) "-01\""
            print "write-out = \"%{http_code} %{time_total}\\n\""
        }'
}

# Microseconds since the epoch.
now() { echo "${EPOCHREALTIME/[.,]/}"; }

start=$(now)
seconds=0
while [ "$seconds" -lt "$duration" ]; do
    # One process per second sends that second's requests, and writes a line as each is answered.
    requests | stdbuf --output=L curl --no-progress-meter --parallel --parallel-immediate --parallel-max "$rate" \
        --config - >>"$answers" &
    seconds=$((seconds + 1))
    # Until the second is over, counted from the start: no delay adds up.
    left=$((start + seconds * 1000000 - $(now)))
    if [ "$left" -gt 0 ]; then
        sleep "$((left / 1000000)).$(printf '%06d' $((left % 1000000)))" || true
    fi
    progress
done
sending=$(($(now) - start))
wait
progress
echo >&2

sort --key 2 --numeric-sort "$answers" | awk -v sent=$((seconds * rate)) -v sending="$sending" '
    { statuses[$1]++ }
    $1 != "000" { latency[++answered] = $2 }
    function percentile(p) { return latency[int((answered - 1) * p / 100) + 1] }
    END {
        printf "requests  %d in %.1f s, %.1f per second\n", sent, sending / 1e6, sent * 1e6 / sending
        for (status in statuses)
            printf "status    %s: %d\n", status, statuses[status]
        if (answered > 0)
            printf "latency   p50 %.3f s, p90 %.3f s, p99 %.3f s\n", percentile(50), percentile(90), percentile(99)
        exit answered < sent
    }'
