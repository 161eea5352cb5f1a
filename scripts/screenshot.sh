#!/usr/bin/env bash
# Takes a picture of an incident in Prometheus' graph page: requests fail and are late for a while, until
# after the alert has fired.
# Usage: scripts/with-service.sh scripts/with-prometheus.sh scripts/screenshot.sh FILE.png
# The service needs the behaviour of the course and fault injection, as `make screenshot` gives it.
set -euo pipefail

file=$1
log=$(mktemp)
# load.sh ends within 30 s, which is how long it waits for the last responses.
trap 'kill "$load" 2>/dev/null || true; wait; rm -f "$log"' EXIT

# It goes on until the picture is taken. A minute and a half is steady, the first minute not shown: what
# is measured looks back over one.
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
        echo "waited in vain: TinyProbeErrors fires within 120 s" >&2
        exit 1
    fi
    sleep 0.5
done
echo "TinyProbeErrors fires after $((SECONDS - start)) s"
# Long enough to see that what is measured arrives at what is configured.
sleep 60
curl --silent --show-error --fail --max-time 10 --request DELETE "$BASE_URL/faults"
sleep 90

# Debian's Prometheus has this page only, and its redirection from /graph loses the query.
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
# No sandbox: Chromium refuses to start one as root, and the page is our own. Scaled, so that the
# expressions fit into their one line.
timeout 120 chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1560,1540 \
    --force-device-scale-factor=0.8 --virtual-time-budget=10000 --screenshot="$PWD/$file" "$url" 2>"$log" || {
    cat "$log" >&2
    echo "Chromium took no picture within 120 s" >&2
    exit 1
}
size=$(wc -c <"$file")
if [ "$size" -ge 150000 ]; then
    echo "$file has $size bytes, and is to have less than 150000" >&2
    exit 1
fi
echo "$file: $size bytes. Look at it."
