#!/bin/sh
# Checks the responses and counters of a running service. Needs only curl.
# Usage: scripts/smoke.sh [BASE_URL]      (default: $BASE_URL, else http://127.0.0.1:8080)
# Prints a line per check and exits 1 at the first that fails. No failures may be configured, and no
# other client may send requests to /probe during the check.
set -eu

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
probes=5

# check NAME EXPECTED FOUND: fails unless both are equal
check() {
    if [ "$2" != "$3" ]; then
        printf 'FAILED  %s: expected "%s", found "%s"\n' "$1" "$2" "$3" >&2
        exit 1
    fi
    printf 'ok      %s\n' "$1"
}

# ask PATH [CURL_OPTION...]: prints the status code and the content type of the response
ask() {
    path=$1
    shift
    curl --silent --max-time 10 --output /dev/null --write-out '%{http_code} %{content_type}' "$@" "$url$path" || true
}

# Prints how many requests to /probe were counted, of all methods and statuses.
probes_counted() {
    sum=0
    for count in $(curl --silent --max-time 10 "$url/metrics" |
        sed -n 's/^app_request_count_total{.*endpoint="\/probe".*} //p'); do
        sum=$((sum + count))
    done
    echo "$sum"
}

text='text/plain; charset=utf-8'
check "GET /healthz is 200" "200 $text" "$(ask /healthz)"
check "GET /metrics is 200, text format 0.0.4 by default" "200 text/plain; version=0.0.4; charset=utf-8" "$(ask /metrics)"
check "GET /metrics is 200, OpenMetrics if Accept prefers it" \
    "200 application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores" \
    "$(ask /metrics --header 'Accept: application/openmetrics-text, text/plain;q=0.5')"
check "GET / is 200, HTML" "200 text/html; charset=utf-8" "$(ask /)"
check "GET /nope is 404" "404 $text" "$(ask /nope)"

before=$(probes_counted)
for number in $(seq "$probes"); do
    check "GET /probe is 200 ($number of $probes)" "200 $text" "$(ask /probe)"
done
check "the body of GET /probe is I'm ok!" "I'm ok!" "$(curl --silent --max-time 10 "$url/probe")"
check "HEAD /probe is 200" "200 $text" "$(ask /probe --head)"
check "OPTIONS /healthz is 204" "204 " "$(ask /healthz --request OPTIONS)"
check "POST /probe is 405" "405 $text" "$(ask /probe --request POST)"
check "the counter of /probe increased by $((probes + 3))" "$((before + probes + 3))" "$(probes_counted)"
