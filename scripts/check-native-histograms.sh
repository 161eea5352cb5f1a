#!/usr/bin/env bash
# Lets Prometheus 3 convert the service's histograms to native ones (`convert_classic_histograms_to_nhcb`), and
# checks that each is one series and keeps its exemplars. Prometheus 2 cannot do this, so nothing is checked with it.
# Usage: scripts/with-service.sh scripts/check-native-histograms.sh
# Takes a few seconds. Prints a line per check and exits 1 at the first that fails. No other client may send
# requests to /probe during the check.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/waits.sh"

version=$(prometheus --version 2>&1 | sed -n 's/^prometheus, version \([0-9]*\).*/\1/p')
if [ "$version" -lt 3 ]; then
    echo "skipped native histograms: they need Prometheus 3, and this is version $version"
    exit 0
fi

folder=$(mktemp -d)
cat >"$folder/prometheus.yml" <<END
global:
  scrape_interval: 1s
scrape_configs:
  - job_name: tiny-probe
    convert_classic_histograms_to_nhcb: true
    static_configs:
      - targets: ["${BASE_URL#http://}"]
END
prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" --web.listen-address=127.0.0.1:0 \
    --enable-feature=exemplar-storage,native-histograms 2>"$folder/log" &
prometheus=$!
trap 'end "$prometheus" Prometheus; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
wait_for_line 60 "$prometheus" Prometheus "$folder/log" 'Server is ready'
url=http://$(sed -n '/Listening on/s/.*address=\([0-9.:]*\).*/\1/p' "$folder/log")

started=$(date +%s)
trace=$(od --address-radix=n --format=x1 --read-bytes=16 /dev/urandom | tr -d ' ')
for _ in 1 2 3; do
    curl --silent --show-error --fail --max-time 10 --output /dev/null \
        --header "traceparent: 00-$trace-00f067aa0ba902b7-01" "$BASE_URL/probe"
done

# expect NAME VALUE FILTER PATH [DATA]: waits until a response of the API has this value; fails after 30 seconds.
expect() {
    local deadline=$((SECONDS + 30)) found
    while
        found=$(curl --silent --max-time 10 --get "$url/api/v1/$4" --data-urlencode "query=$5" \
            --data "start=$started" --data "end=$((started + 60))" | jq --raw-output "$3" || true)
        [ "$found" != "$2" ]
    do
        if [ "$SECONDS" -ge "$deadline" ]; then
            printf 'FAILED  %s: waited 30 s for "%s", found "%s": %s\n' "$1" "$2" "$found" "$5" >&2
            exit 1
        fi
        sleep 0.2
    done
    printf 'ok      native histograms: %s\n' "$1"
}

histogram='app_request_latency_seconds{endpoint="/probe", method="GET"}'
expect "the requests are counted in one series" 3 '.data.result[].value[1]' query "histogram_count($histogram)"
expect "it has a median" true '.data.result[].value[1] | tonumber | . > 0 and . < 10' \
    query "histogram_quantile(0.5, $histogram)"
expect "there are no series of buckets" 1 '.data.result[].value[1]' query 'absent(app_request_latency_seconds_bucket)'
expect "it has its exemplar" "$trace" '.data[].exemplars[-1].labels.trace_id' query_exemplars "$histogram"
