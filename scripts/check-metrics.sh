#!/bin/sh
# Asks promtool about the exposition of a running service that has answered every kind of request.
# Usage: scripts/check-metrics.sh [BASE_URL]      (default: $BASE_URL, else http://127.0.0.1:8080)
set -eu

url=${1:-${BASE_URL:-http://127.0.0.1:8080}}
for path in / /probe /healthz /metrics /nope; do
    curl --silent --show-error --max-time 10 --output /dev/null "$url$path"
    curl --silent --show-error --max-time 10 --output /dev/null --request POST "$url$path"
done

page=$(mktemp)
trap 'rm -f "$page"' EXIT
curl --silent --show-error --max-time 10 --fail --output "$page" "$url/metrics"
grep -q '^app_request_count_total{.*} 1$' "$page"
# promtool reports on standard error and fails on errors only; here nothing at all is to be said.
findings=$(promtool check metrics <"$page" 2>&1) || true
if [ -n "$findings" ]; then
    printf '%s\n' "$findings" >&2
    exit 1
fi
echo "ok      promtool check metrics has nothing to say about $(grep -vc '^#' "$page") series"
