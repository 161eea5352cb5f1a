#!/bin/sh
# Sends requests at a steady rate, whether or not the responses arrive in time, and prints a summary of
# their statuses and latencies.
# Usage: scripts/load.sh [BASE_URL [PATH]]      (default: $BASE_URL, else http://127.0.0.1:8080; /probe)
# With --fault-injection, PATH can choose the response: '/probe?status=503&delay=250ms'.
# RATE is the number of requests per second (default 20, at most 300), DURATION the time in seconds
# (default 60). Ctrl-C ends it early.
# Each request has a traceparent with a trace ID of its own, so that every exemplar belongs to one request.
# Exits 1 if a request gets no response within 30 seconds. Such requests are counted as status 000, and the
# summary says why.
# Needs curl 7.67 or later.
set -eu
export LC_ALL=C

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
path=${2:-/probe}
rate=${RATE:-20}
duration=${DURATION:-60}

# Each request gets a number in its query. The service ignores names that it does not know.
case $path in
    *\?*) path="$path&" ;;
    *) path="$path?" ;;
esac

# The responses of each second are a file of their own, because one curl may write while another does.
responses=$(mktemp -d)
errors=$(mktemp)
trap 'rm -rf "$responses" "$errors"' EXIT
trap 'duration=0' INT TERM

progress() {
    cat "$responses"/* | awk -v seconds="$seconds" -v sent=$((seconds * rate)) '
        $1 == "000" { failed++ }
        END {
            printf "\r%4d s  %6d sent  %6d responses ", seconds, sent, NR - failed
            if (failed) printf " %d without response ", failed
        }' >&2
}

# Prints the requests of one second in the syntax of curl's configuration file.
requests() {
    # Each line is a trace ID of 16 bytes and a span ID of 8.
    od -A n -v -t x1 -N $((24 * rate)) /dev/urandom | tr -d ' \n' | fold -w 48 | awk -v url="$url$path" '{
        print "next\nurl = \"" url NR "\"\nmax-time = 30\noutput = /dev/null"
        print "header = \"traceparent: 00-" substr($0, 1, 32) "-" substr($0, 33) "-01\""
        print "write-out = \"%{http_code} %{time_total}\\n\""
    }'
}

start=$(date +%s)
seconds=0
while [ "$seconds" -lt "$duration" ]; do
    # One curl process sends the requests of this second and writes a line for each response.
    requests | curl --no-progress-meter --parallel --parallel-immediate --parallel-max "$rate" \
        --config - >"$responses/$seconds" 2>>"$errors" &
    seconds=$((seconds + 1))
    # Wait until the second is over, counted from the start so that delays do not add up.
    while [ "$(date +%s)" -lt $((start + seconds)) ]; do sleep 0.1 || true; done
    progress
done
sending=$(($(date +%s) - start))
wait
progress
echo >&2
# The most frequent reasons, without the time that each attempt took.
sed 's/ after [0-9]* ms//' "$errors" | sort | uniq -c | sort -r -n | head -n 3 >&2

sort -n -k 2 "$responses"/* | awk -v sent=$((seconds * rate)) -v sending="$sending" '
    { statuses[$1]++ }
    $1 != "000" { latency[++responses] = $2 }
    function percentile(p) { return latency[int((responses - 1) * p / 100) + 1] }
    END {
        printf "requests  %d in %d s, %.1f per second\n", sent, sending, sent / (sending > 0 ? sending : 1)
        for (status in statuses)
            printf "status    %s: %d\n", status, statuses[status]
        if (responses > 0)
            printf "latency   p50 %.3f s, p90 %.3f s, p99 %.3f s\n", percentile(50), percentile(90), percentile(99)
        exit responses < sent
    }'
