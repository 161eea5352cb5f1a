#!/usr/bin/env bash
# Looks at tiny-probe through Prometheus: it is told to fail for half a minute, an alert fires and
# resolves, and what Prometheus says of a minute of load with the behaviour of the course agrees with
# what was sent and what is configured. All of it in one life of the process.
# Usage: FAULT_INJECTION=on FAIL_RATE=0.01 SLOW_RATE=0.01 LATENCY=300ms scripts/with-service.sh \
#            scripts/with-prometheus.sh scripts/check-scrape.sh
# Takes 110 seconds. Prints a line per check; exits 1 at the first that fails.
set -euo pipefail

rate=50
folder=$(mktemp -d)
# load.sh ends within 30 s, which is how long it waits for the last responses.
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

fail() {
    printf 'FAILED  %s\n' "$*" >&2
    exit 1
}

# values EXPRESSION: those of its values that are numbers, at the time $at if that is set.
values() {
    curl --silent --show-error --max-time 10 --get "$PROMETHEUS_URL/api/v1/query" \
        --data-urlencode "query=$1" ${at:+--data-urlencode "time=$at"} |
        jq -r 'if .status == "success" then .data.result[].value[1] | select(. != "NaN") else error(.error) end'
}

# eventually NAME SECONDS EXPRESSION: the expression has a value within that time.
eventually() {
    local deadline=$((SECONDS + $2))
    while [ -z "$(values "$3")" ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$1: not within $2 s: $3"
        sleep 0.5
    done
    printf 'ok      %s\n' "$1"
}

# between NAME LOW HIGH EXPRESSION: it has one value, and that is within the limits.
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
eventually "what it is told is a gauge" 10 'app_configured_fail_ratio == 0.5'
eventually "TinyProbeErrors fires" 60 'ALERTS{alertname="TinyProbeErrors", alertstate="firing"}'
eventually "it is taken back by itself" 60 'app_configured_fail_ratio == 0.01'
kill "$load"
wait "$load" || true

# Prometheus asks for OpenMetrics by itself: of an info only that format knows. And a trace is found.
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
    [ "$(date +%s)" -lt $((traced_at + 30)) ] || fail "query_exemplars does not give the trace $trace"
    sleep 0.5
done
echo "ok      query_exemplars gives the trace that was sent"

# All that follows is asked of the last second of the load, when it has been steady for a minute.
at=$(($(date +%s) + 67))
RATE=$rate DURATION=68 scripts/load.sh >"$folder/load" 2>&1 &
load=$!
while [ "$(date +%s)" -lt "$at" ]; do sleep 0.5; done
wait "$load" || fail "$(cat "$folder/load")"
curl --silent --show-error --fail --max-time 10 --output "$folder/text" "$BASE_URL/metrics"
curl --silent --show-error --fail --max-time 10 --output "$folder/open-metrics" \
    --header 'Accept: application/openmetrics-text' "$BASE_URL/metrics"
tail -n +2 "$folder/load"

between "it stayed up" 1 1 'min_over_time(up{job="tiny-probe"}[1m])'
life="$((at - since))s"
between "it has not been restarted" 0 0 "changes(process_start_time_seconds[$life])"
between "no counter was reset" 0 0 "sum(resets(app_request_count_total[$life]))"
between "it was scraped every second" 55 61 'count_over_time(up{job="tiny-probe"}[1m])'
between "requests per second, within 5% of those sent" \
    "$(awk -v rate="$rate" 'BEGIN { print rate * 0.95 }')" "$(awk -v rate="$rate" 'BEGIN { print rate * 1.05 }')" \
    'sum(rate(app_request_count_total{endpoint="/probe"}[1m]))'
# The gamma's median is 0.267 s and its 0.9 quantile 0.532 s; the limits are those of their buckets.
latency='instance_endpoint:app_request_latency_seconds:quantile_rate1m{endpoint="/probe"'
between "median latency" 0.25 0.5 "$latency, quantile=\"0.5\"}"
between "p90 of the latency" 0.5 0.75 "$latency, quantile=\"0.9\"}"
# The Apdex of the course, satisfied up to 0.5 s and tolerating up to 1 s. The shares are 0.87 and 0.99.
buckets='app_request_latency_seconds_bucket{endpoint="/probe"'
between "Apdex, by le=\"0.5\" and le=\"1.0\"" 0.88 0.97 "
    (sum(rate($buckets, le=\"0.5\"}[1m])) + sum(rate($buckets, le=\"1.0\"}[1m])))
    / 2 / sum(rate(app_request_latency_seconds_count{endpoint=\"/probe\"}[1m]))"
# Four standard deviations of the share of 3000 requests that fail with a probability of 0.01.
between "error ratio" 0.0027 0.0173 'instance_endpoint:app_request_errors:ratio_rate1m{endpoint="/probe"}'
between "TinyProbeErrors has resolved, no alert fires" 1 1 'absent(ALERTS{alertstate="firing"})'
while read -r alert; do
    between "$alert has not fired" 1 1 "absent_over_time(ALERTS{alertstate=\"firing\", alertname=\"$alert\"}[$life])"
done < <(sed -n 's/.*alert: //p' deploy/prometheus/{alerting,slo}_rules.yml | sort -u | grep -vx TinyProbeErrors)

# Every expression of the dashboard, its panels' and its variables', has a value that is a number, except those
# of the kubelet's metrics, which are not here.
dashboard=deploy/grafana/tiny-probe.json
# shellcheck disable=SC2016  # The dollars are Grafana's.
jq -r '(.panels[].targets[].expr), (.annotations.list[] | select(.name != "Alerts").expr), (.templating.list[] | select(.type == "query").query.query)' "$dashboard" |
    sed -e 's/\$__rate_interval/1m/g' -e 's/\$__range/1m/g' -e 's/\$\(job\|namespace\|instance\)/.*/g' -e 's|\$endpoint|/probe|g' \
        -e 's/^label_values(\(.*\), *\([a-z]*\))$/count by (\2) (\1)/' -e '/container_/d' >"$folder/expressions"
while read -r expression; do
    [ -n "$(values "$expression")" ] || fail "no data for the dashboard: $expression"
done <"$folder/expressions"
printf 'ok      the dashboard has data for each of its %d expressions\n' "$(wc -l <"$folder/expressions")"

"${PYTHON:-python3}" scripts/check-exposition.py tests/service/seed-metrics.txt "$folder/text" "$folder/open-metrics"
