#!/bin/sh
# Sends every kind of request to a running service and checks its exposition with promtool.
# Usage: scripts/check-metrics.sh [BASE_URL]      (default: $BASE_URL, else http://127.0.0.1:8080)
set -eu

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
for path in / /probe /healthz /metrics /nope; do
    curl --silent --show-error --max-time 10 --output /dev/null "$url$path"
    curl --silent --show-error --max-time 10 --output /dev/null --request POST "$url$path"
done

exposition=$(mktemp)
trap 'rm -f "$exposition"' EXIT
curl --silent --show-error --max-time 10 --fail --output "$exposition" "$url/metrics"
grep -q '^app_request_count_total{.*} 1$' "$exposition"
# promtool's exit code reports only errors. This check also fails on warnings, which it prints on standard
# error.
findings=$(promtool check metrics <"$exposition" 2>&1) || true
if [ -n "$findings" ]; then
    printf '%s\n' "$findings" >&2
    exit 1
fi
echo "ok      promtool check metrics finds no problem in $(grep -vc '^#' "$exposition") series"
