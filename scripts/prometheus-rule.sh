#!/bin/sh
# Prints the rules of deploy/prometheus as a PrometheusRule, the resource that the Prometheus Operator reads:
#     scripts/prometheus-rule.sh | kubectl apply --filename -
# Kustomize cannot do this, because a rule file is not a Kubernetes resource.
# LABEL=name=value is the label by which the Operator's Prometheus selects rules (release=prometheus).
set -eu
cd "$(dirname "$0")/../deploy/prometheus"

label=${LABEL:-release=prometheus}
cat <<END
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tiny-probe
  labels:
    app.kubernetes.io/name: tiny-probe
    ${label%%=*}: "${label#*=}"
spec:
  groups:
END
for file in recording_rules.yml alerting_rules.yml slo_rules.yml; do
    # The groups of each file, indented: everything after its line "groups:".
    sed -e '1,/^groups:$/d' -e 's/^./  &/' "$file"
done
