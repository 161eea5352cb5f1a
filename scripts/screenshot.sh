#!/usr/bin/env bash
# Takes a picture of an incident in the Prometheus web interface: requests fail and are slow until a minute
# after the alert has fired.
# Usage: scripts/with-service.sh scripts/with-prometheus.sh scripts/screenshot.sh FILE.png
# The service must run with fault injection and the settings of the course, as in `make screenshot`.
set -euo pipefail

file=$1
log=$(mktemp)
# After SIGTERM, load.sh waits up to 30 s for the last responses.
trap 'kill "$load" 2>/dev/null || true; wait; rm -f "$log"' EXIT

# The load continues until the picture is taken. The first 90 seconds are steady. The picture leaves out
# the first minute, because the rates are computed over one minute.
RATE=50 DURATION=600 scripts/load.sh >/dev/null 2>&1 &
load=$!
sleep 90
start=$SECONDS
curl --silent --show-error --fail --max-time 10 --request PUT "$BASE_URL/faults?fail-rate=0.2&latency=900ms"
fires() {
    curl --silent --max-time 10 --get "$PROMETHEUS_URL/api/v1/query" \
        --data-urlencode 'query=ALERTS{alertname="TinyProbeErrors", alertstate="firing"}' |
        jq --exit-status '.data.result | length > 0' >/dev/null
}
until fires; do
    if ((SECONDS - start > 120)); then
        echo "timed out: TinyProbeErrors did not fire within 120 s" >&2
        exit 1
    fi
    sleep 0.5
done
echo "TinyProbeErrors fires after $((SECONDS - start)) s"
# The measured values need a minute to reach the configured ones.
sleep 60
curl --silent --show-error --fail --max-time 10 --request DELETE "$BASE_URL/faults"
sleep 90

# Debian's Prometheus has only this page, and its redirect from /graph drops the query.
url="$PROMETHEUS_URL/classic/graph?"
number=0
for expression in \
    'instance_endpoint:app_request_errors:ratio_rate1m{endpoint="/probe"} or app_configured_fail_ratio' \
    'instance_endpoint:app_request_latency_seconds:quantile_rate1m{endpoint="/probe", quantile="0.9"} or app_configured_latency_seconds'; do
    url+="g$number.tab=0&g$number.range_input=4m&g$number.step_input=1&g$number.expr="
    url+="$(jq --null-input --raw-output --arg text "$expression" '$text | @uri')&"
    number=$((number + 1))
done

mkdir -p "$(dirname "$file")"
# Chromium does not start as root with its sandbox, which is not needed for a page of our own. The scale
# factor makes each expression fit on one line.
timeout 120 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1560,1540 \
    --force-device-scale-factor=0.8 --virtual-time-budget=10000 --screenshot="$PWD/$file" "$url" 2>"$log" || {
    cat "$log" >&2
    echo "Chromium took no picture within 120 s" >&2
    exit 1
}
size=$(wc -c <"$file")
if [ "$size" -ge 150000 ]; then
    echo "$file has $size bytes, expected fewer than 150000" >&2
    exit 1
fi
echo "$file: $size bytes. Look at it."
