#!/bin/sh
# Starts Prometheus with deploy/prometheus, runs a command with its URL in PROMETHEUS_URL, and stops it.
# Usage: BASE_URL=http://ADDRESS:PORT scripts/with-prometheus.sh COMMAND [ARGUMENT...]
# It listens on a free port of 127.0.0.1, or where LISTEN says. It sends alerts to ALERTMANAGER=ADDRESS:PORT, or
# nowhere if that is not set.
# Five things differ from deploy/prometheus. Two are the addresses. The others make changes visible
# within a minute: an interval of 1 s instead of 5 s, rates over 1 m instead of 5 m (and their names, such
# as ratio_rate1m), and alerts that wait for 10 s instead of 1 m.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/waits.sh"

folder=$(mktemp -d)
if [ -n "${ALERTMANAGER:-}" ]; then alerting="s|alertmanager:9093|$ALERTMANAGER|"; else alerting="/^alerting:/,\$d"; fi
sed -e "s|tiny-probe:8080|${BASE_URL#http://}|" -e 's/_interval: 5s/_interval: 1s/' -e "$alerting" \
    deploy/prometheus/prometheus.yml >"$folder/prometheus.yml"
for file in recording_rules.yml alerting_rules.yml slo_rules.yml; do
    sed -e 's/\[5m\]/[1m]/g' -e 's/rate5m/rate1m/g' -e 's/for: 1m/for: 10s/' "deploy/prometheus/$file" >"$folder/$file"
done

prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" \
    --enable-feature=exemplar-storage --web.listen-address="${LISTEN:-127.0.0.1:0}" 2>"$folder/log" &
prometheus=$!
trap 'end "$prometheus" Prometheus; rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM

wait_for_line 60 "$prometheus" Prometheus "$folder/log" 'Server is ready'
PROMETHEUS_URL=http://$(sed -n '/Listening on/s/.*address=\([0-9.:]*\).*/\1/p' "$folder/log")
export PROMETHEUS_URL
"$@"
