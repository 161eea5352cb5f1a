#!/bin/sh
# Checks that docs/alerts.md has, before the catalogue, a section for every alert and no other, that each
# runbook_url leads there, that each alert has a unit test in which it fires, and that the query of
# docs/kubernetes.md has one.
# Usage: scripts/check-alerts-doc.sh
set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# same NAME FILE FILE: the two lists are equal.
same() {
    if ! diff "$2" "$3" >"$folder/difference"; then
        printf 'FAILED  %s (< expected, > found):\n' "$1" >&2
        cat "$folder/difference" >&2
        exit 1
    fi
    printf 'ok      %s\n' "$1"
}

rules='deploy/prometheus/alerting_rules.yml deploy/prometheus/slo_rules.yml'
# shellcheck disable=SC2086 # two files
sed -n 's/^ *- alert: //p' $rules | uniq >"$folder/alerts"
[ -s "$folder/alerts" ] || { echo "FAILED  no alert in $rules" >&2 && exit 1; }
sed -n -e '/^## The catalogue$/q' -e 's/^### //p' docs/alerts.md >"$folder/sections"
same "docs/alerts.md has the alerts of the rules, in their order" "$folder/alerts" "$folder/sections"

# GitHub makes the anchor of a heading from its letters in lower case.
# shellcheck disable=SC2086
sed -n 's/^ *- alert: //p' $rules | tr '[:upper:]' '[:lower:]' >"$folder/anchors"
# shellcheck disable=SC2086
sed -n 's|^ *runbook_url: https://github.com/[A-Za-z0-9-]*/tiny-probe/blob/main/docs/alerts.md#||p' $rules >"$folder/runbooks"
same "every alert has a runbook_url that leads to its section" "$folder/anchors" "$folder/runbooks"

# `make set-owner` changes both.
sed -n 's|^ *newName: ghcr.io/\([A-Za-z0-9-]*\)/tiny-probe$|\1|p' deploy/kubernetes/base/kustomization.yaml >"$folder/image"
sed -n 's|^ *runbook_url: https://github.com/\([A-Za-z0-9-]*\)/.*|\1|p' deploy/prometheus/*_rules*.yml |
    tr '[:upper:]' '[:lower:]' | sort -u >"$folder/account"
tr '[:upper:]' '[:lower:]' <"$folder/image" >"$folder/expected"
same "every runbook_url, also in the tests, has the account of the image" "$folder/expected" "$folder/account"

sort "$folder/alerts" >"$folder/expected"
cat deploy/prometheus/*_rules_test.yml | sed -n 's/^ *- alertname: //p' | sort -u >"$folder/fired"
same "every alert fires in a unit test" "$folder/expected" "$folder/fired"

awk '/^```promql$/ { shown = 1; next } /^```$/ { shown = 0 } shown' docs/kubernetes.md >"$folder/expected"
sed -e '1,/The query of docs/d' deploy/prometheus/recording_rules_test.yml |
    sed -n -e 's/^          //' -e '/expr: |2/,/eval_time/p' | sed -e 1d -e '$d' >"$folder/query"
same "the query of docs/kubernetes.md is the one that has a unit test" "$folder/expected" "$folder/query"
