#!/bin/sh
# Starts Prometheus with deploy/prometheus, runs a command with its URL in PROMETHEUS_URL, stops it again.
# Usage: BASE_URL=http://ADDRESS:PORT scripts/with-prometheus.sh COMMAND [ARGUMENT...]
# It listens on a free port of 127.0.0.1, or where LISTEN says.
# Three things differ from deploy/prometheus, the last two so that a minute shows something: the
# service's address, an interval of 1 s instead of 5 s, and alerts that wait for 10 s instead of 1 m.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/waits.sh"

folder=$(mktemp -d)
sed -e "s|tiny-probe:8080|${BASE_URL#http://}|" -e 's/_interval: 5s/_interval: 1s/' \
    deploy/prometheus/prometheus.yml >"$folder/prometheus.yml"
sed 's/for: 1m/for: 10s/' deploy/prometheus/alerting_rules.yml >"$folder/alerting_rules.yml"
cp deploy/prometheus/recording_rules.yml "$folder"

prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" \
    --enable-feature=exemplar-storage --web.listen-address="${LISTEN:-127.0.0.1:0}" 2>"$folder/log" &
prometheus=$!
trap 'end "$prometheus" Prometheus; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM

wait_for_line 60 "$prometheus" Prometheus "$folder/log" 'Server is ready'
PROMETHEUS_URL=http://$(sed -n '/Listening on/s/.*address=\([0-9.:]*\).*/\1/p' "$folder/log")
export PROMETHEUS_URL
"$@"
