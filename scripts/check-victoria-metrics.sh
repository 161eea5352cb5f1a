#!/usr/bin/env bash
# Lets VictoriaMetrics scrape the service, and checks the values that it has stored.
# Usage: scripts/with-service.sh scripts/check-victoria-metrics.sh
# Takes a few seconds. Prints a line per check and exits 1 at the first that fails. No failures may be
# configured, and no other client may send requests to /probe during the check.
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/waits.sh"

folder=$(mktemp -d)
cat >"$folder/scrape.yml" <<END
scrape_configs:
  - job_name: tiny-probe
    scrape_interval: 1s
    static_configs:
      - targets: ["${BASE_URL#http://}"]
END
# With port 0, VictoriaMetrics would not report which port it listens on.
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
victoria-metrics -promscrape.config="$folder/scrape.yml" -storageDataPath="$folder/data" \
    -httpListenAddr="127.0.0.1:$port" -search.latencyOffset=0s 2>"$folder/log" &
victoria=$!
trap 'end "$victoria" VictoriaMetrics; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM

for _ in 1 2 3; do
    curl --silent --show-error --fail --max-time 10 --output /dev/null "$BASE_URL/probe"
done

# expect NAME VALUE EXPRESSION: waits until the query has this value; fails after 30 seconds.
expect() {
    local deadline=$((SECONDS + 30)) found
    while
        # Ignore errors: VictoriaMetrics may not be listening yet.
        found=$(curl --silent --max-time 10 --get "http://127.0.0.1:$port/api/v1/query" --data-urlencode "query=$3" |
            jq --raw-output '.data.result[].value[1]' || true)
        [ "$found" != "$2" ]
    do
        if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$victoria"; then
            printf 'FAILED  %s: expected "%s", found "%s": %s\n' "$1" "$2" "$found" "$3" >&2
            tail -n 5 "$folder/log" >&2
            exit 1
        fi
        sleep 0.2
    done
    printf 'ok      VictoriaMetrics: %s\n' "$1"
}

probe='endpoint="/probe",method="GET"'
expect "the target is up" 1 'up{job="tiny-probe"}'
expect "the counter" 3 "app_request_count_total{$probe,http_status=\"200\"}"
expect "a series that is exposed as 0 before its first request" 0 "app_request_count_total{$probe,http_status=\"500\"}"
expect "a bucket selected by its canonical bound" 3 "app_request_latency_seconds_bucket{$probe,le=\"10.0\"}"
expect "CPU time with fractions of a second" 1 'count(process_cpu_seconds_total % 1 > 0)'
expect "as many samples as the exposition has" \
    "$(curl --silent --show-error --fail --max-time 10 "$BASE_URL/metrics" | grep -vc '^#')" 'scrape_samples_scraped'
