#!/usr/bin/env bash
# Checks tiny-probe through Prometheus. In the first part, half of the requests fail for 30 seconds, and an
# alert must fire and resolve. In the second part, a minute of load runs with the settings of the course, and
# the results of Prometheus must agree with what was sent and configured. The process must not restart.
# Usage: FAULT_INJECTION=on FAIL_RATE=0.01 SLOW_RATE=0.01 LATENCY=300ms scripts/with-service.sh \
#            scripts/with-prometheus.sh scripts/check-scrape.sh
# Takes 110 seconds. Prints a line per check and exits 1 at the first that fails.
set -euo pipefail

rate=50
folder=$(mktemp -d)
# After SIGTERM, load.sh waits up to 30 s for the last responses.
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

fail() {
    printf 'FAILED  %s\n' "$*" >&2
    exit 1
}

# values EXPRESSION: prints the values of the query except NaN, evaluated at the time $at if it is set.
values() {
    curl --silent --show-error --max-time 10 --get "$PROMETHEUS_URL/api/v1/query" \
        --data-urlencode "query=$1" ${at:+--data-urlencode "time=$at"} |
        jq -r 'if .status == "success" then .data.result[].value[1] | select(. != "NaN") else error(.error) end'
}

# eventually NAME SECONDS EXPRESSION: waits until the query has a result; fails when the time is over.
eventually() {
    local deadline=$((SECONDS + $2))
    while [ -z "$(values "$3")" ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$1: no result within $2 s: $3"
        sleep 0.5
    done
    printf 'ok      %s\n' "$1"
}

# between NAME LOW HIGH EXPRESSION: fails unless the query has exactly one value, from LOW to HIGH.
between() {
    local value
    value=$(values "$4")
    awk -v value="$value" -v low="$2" -v high="$3" \
        'BEGIN { exit !(value ~ /^[0-9.e+-]+$/ && low + 0 <= value + 0 && value + 0 <= high + 0) }' ||
        fail "$1: expected $2 to $3, found \"$value\": $4"
    printf 'ok      %s: %s, expected %s to %s\n' "$1" "$value" "$2" "$3"
}

# Half of the requests fail, and an alert fires; no longer than asked.
eventually "the target is up, no alert fires" 60 'up{job="tiny-probe"} == 1 unless on () ALERTS{alertstate="firing"}'
since=$(($(date +%s) + 1))
curl --silent --show-error --fail --max-time 10 --request PUT "$BASE_URL/faults?fail-rate=0.5&for=30s"
RATE=20 DURATION=120 scripts/load.sh >/dev/null 2>&1 &
load=$!
eventually "a gauge shows the new setting" 10 'app_configured_fail_ratio == 0.5'
eventually "TinyProbeErrors fires" 60 'ALERTS{alertname="TinyProbeErrors", alertstate="firing"}'
eventually "the setting is reverted after its time" 60 'app_configured_fail_ratio == 0.01'
kill "$load"
wait "$load" || true

# The queries of the document have a result.
# shellcheck disable=SC2016
sed -n '/^```promql$/,/^```$/p' docs/metrics.md | grep -v -e '^```' -e '^#' |
    while IFS= read -r query; do
        eventually "docs/metrics.md: $query" 30 "$query"
    done

# 2. Prometheus negotiates OpenMetrics, the only format with the type info, and stores exemplars.
metadata() {
    curl --silent --show-error --max-time 10 --get "$PROMETHEUS_URL/api/v1/targets/metadata" --data "metric=app_version" |
        jq --raw-output '.data[0].type'
}
[ "$(metadata)" = info ] || fail "Prometheus does not scrape OpenMetrics: app_version is of type $(metadata)"
echo "ok      Prometheus has negotiated OpenMetrics"

traced_at=$(date +%s)
trace=$(od --address-radix=n --format=x1 --read-bytes=16 /dev/urandom | tr -d ' ')
curl --silent --show-error --max-time 10 --output /dev/null --header "traceparent: 00-$trace-00f067aa0ba902b7-01" "$BASE_URL/probe"
traces() {
    curl --silent --show-error --max-time 10 --get "$PROMETHEUS_URL/api/v1/query_exemplars" \
        --data-urlencode 'query=app_request_latency_seconds_bucket{endpoint="/probe"}' \
        --data "start=$((traced_at - 1))" --data "end=$((traced_at + 60))" |
        jq --raw-output '.data[].exemplars[].labels.trace_id'
}
until traces | grep -qx "$trace"; do
    [ "$(date +%s)" -lt $((traced_at + 30)) ] || fail "query_exemplars does not return the trace $trace within 30 s"
    sleep 0.5
done
echo "ok      query_exemplars returns the trace that was sent"

# 3. A minute of load. All following queries are evaluated at its last second, after a minute of steady load.
at=$(($(date +%s) + 67))
RATE=$rate DURATION=68 scripts/load.sh >"$folder/load" 2>&1 &
load=$!
while [ "$(date +%s)" -lt "$at" ]; do sleep 0.5; done
wait "$load" || fail "$(cat "$folder/load")"
curl --silent --show-error --fail --max-time 10 --output "$folder/text" "$BASE_URL/metrics"
curl --silent --show-error --fail --max-time 10 --output "$folder/open-metrics" \
    --header 'Accept: application/openmetrics-text' "$BASE_URL/metrics"
tail -n +2 "$folder/load"

between "the target stayed up" 1 1 'min_over_time(up{job="tiny-probe"}[1m])'
life="$((at - since))s"
between "the process was not restarted" 0 0 "changes(process_start_time_seconds[$life])"
between "no counter was reset" 0 0 "sum(resets(app_request_count_total[$life]))"
between "Prometheus scraped it every second" 55 61 'count_over_time(up{job="tiny-probe"}[1m])'
between "requests per second, within 5% of the rate sent" \
    "$(awk -v rate="$rate" 'BEGIN { print rate * 0.95 }')" "$(awk -v rate="$rate" 'BEGIN { print rate * 1.05 }')" \
    'sum(rate(app_request_count_total{endpoint="/probe"}[1m]))'
# The gamma's median is 0.267 s and its 0.9 quantile 0.532 s; the limits are those of their buckets.
latency='instance_endpoint:app_request_latency_seconds:quantile_rate1m{endpoint="/probe"'
between "median latency" 0.25 0.5 "$latency, quantile=\"0.5\"}"
between "p90 of the latency" 0.5 0.75 "$latency, quantile=\"0.9\"}"
# The Apdex of the course, with a target of 0.5 s and a tolerable limit of 1 s. The fractions of requests
# within them are 0.87 and 0.99.
buckets='app_request_latency_seconds_bucket{endpoint="/probe"'
between "Apdex, by le=\"0.5\" and le=\"1.0\"" 0.88 0.97 "
    (sum(rate($buckets, le=\"0.5\"}[1m])) + sum(rate($buckets, le=\"1.0\"}[1m])))
    / 2 / sum(rate(app_request_latency_seconds_count{endpoint=\"/probe\"}[1m]))"
# 3000 requests fail with a probability of 0.01 each. The range is four standard deviations wide on each
# side.
between "error ratio" 0.0027 0.0173 'instance_endpoint:app_request_errors:ratio_rate1m{endpoint="/probe"}'
between "TinyProbeErrors is resolved and no alert is firing" 1 1 'absent(ALERTS{alertstate="firing"})'
while read -r alert; do
    between "$alert has not fired" 1 1 "absent_over_time(ALERTS{alertstate=\"firing\", alertname=\"$alert\"}[$life])"
done < <(sed -n 's/.*alert: //p' deploy/prometheus/{alerting,slo}_rules.yml | sort -u | grep -vx TinyProbeErrors)

# Every expression of the dashboard, its panels' and its variables', has a value that is a number, except those
# of the kubelet's metrics, which are not here.
dashboard=deploy/grafana/tiny-probe.json
# shellcheck disable=SC2016  # These are variables of Grafana.
jq -r '(.panels[].targets[].expr), (.annotations.list[] | select(.name != "Alerts").expr), (.templating.list[] | select(.type == "query").query.query)' "$dashboard" |
    sed -e 's/\$__rate_interval/1m/g' -e 's/\$__range/1m/g' -e 's/\$\(job\|namespace\|instance\)/.*/g' -e 's|\$endpoint|/probe|g' \
        -e 's/^label_values(\(.*\), *\([a-z]*\))$/count by (\2) (\1)/' -e '/container_/d' >"$folder/expressions"
while read -r expression; do
    [ -n "$(values "$expression")" ] || fail "a query of the dashboard has no data: $expression"
done <"$folder/expressions"
printf 'ok      each of the %d queries of the dashboard has data\n' "$(wc -l <"$folder/expressions")"

"${PYTHON:-python3}" scripts/check-exposition.py tests/service/seed-metrics.txt "$folder/text" "$folder/open-metrics"
