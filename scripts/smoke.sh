#!/bin/sh
# Asks a running service, with curl alone, whether it answers and counts as it should.
# Usage: scripts/smoke.sh [BASE_URL]      (default: $BASE_URL, else http://127.0.0.1:8080)
# Prints a line per check; exits 1 at the first that fails. The service must not be told to fail,
# and nobody else may be asking /probe meanwhile.
set -eu

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
probes=5

# check NAME EXPECTED FOUND
check() {
    if [ "$2" != "$3" ]; then
        printf 'FAILED  %s: expected "%s", found "%s"\n' "$1" "$2" "$3" >&2
        exit 1
    fi
    printf 'ok      %s\n' "$1"
}

# ask PATH [CURL_OPTION...]: the status code and the content type
ask() {
    path=$1
    shift
    curl --silent --max-time 10 --output /dev/null --write-out '%{http_code} %{content_type}' "$@" "$url$path" || true
}

# The sum of the counter over the methods and the status codes of /probe.
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
check "GET /metrics is 200, text format 0.0.4" "200 text/plain; version=0.0.4; charset=utf-8" "$(ask /metrics)"
check "GET /metrics is 200, OpenMetrics where that is preferred" \
    "200 application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores" \
    "$(ask /metrics --header 'Accept: application/openmetrics-text, text/plain;q=0.5')"
check "GET / is 200, HTML" "200 text/html; charset=utf-8" "$(ask /)"
check "GET /nope is 404" "404 $text" "$(ask /nope)"

before=$(probes_counted)
for number in $(seq "$probes"); do
    check "GET /probe is 200 ($number of $probes)" "200 $text" "$(ask /probe)"
done
check "GET /probe says I'm ok!" "I'm ok!" "$(curl --silent --max-time 10 "$url/probe")"
check "HEAD /probe is 200" "200 $text" "$(ask /probe --head)"
check "OPTIONS /healthz is 204" "204 " "$(ask /healthz --request OPTIONS)"
check "POST /probe is 405" "405 $text" "$(ask /probe --request POST)"
check "the counter of /probe went up by $((probes + 3))" "$((before + probes + 3))" "$(probes_counted)"
