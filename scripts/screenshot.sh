#!/usr/bin/env bash
# Takes a picture of Prometheus' graph page after three minutes of load.
# Usage: scripts/with-service.sh scripts/with-prometheus.sh scripts/screenshot.sh FILE.png
# The service needs the behaviour of the course, as `make screenshot` gives it.
set -euo pipefail

file=$1
log=$(mktemp)
trap 'kill "$load" 2>/dev/null || true; wait; rm -f "$log"' EXIT

# It goes on until the picture is taken: the last two minutes are steady.
RATE=50 DURATION=300 scripts/load.sh >/dev/null &
load=$!
sleep 190

# Debian's Prometheus has this page only, and its redirection from /graph loses the query.
url="$PROMETHEUS_URL/classic/graph?"
number=0
for expression in \
    '1000 * instance_endpoint:app_request_latency_seconds:quantile1m{endpoint="/probe", quantile!="0.99"}' \
    'sum by (http_status) (rate(app_request_count_total{endpoint="/probe"}[1m]))'; do
    url+="g$number.tab=0&g$number.range_input=2m&g$number.step_input=1&g$number.expr="
    url+="$(jq --null-input --raw-output --arg text "$expression" '$text | @uri')&"
    number=$((number + 1))
done

mkdir -p "$(dirname "$file")"
# No sandbox: Chromium refuses to start one as root, and the page is our own.
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,1540 \
    --virtual-time-budget=10000 --screenshot="$PWD/$file" "$url" 2>"$log" || { cat "$log" >&2; exit 1; }
size=$(wc -c <"$file")
if [ "$size" -ge 150000 ]; then
    echo "$file has $size bytes, and is to have less than 150000" >&2
    exit 1
fi
echo "$file: $size bytes. Look at it."
