#!/bin/sh
# Renders deploy/kubernetes, with and without autoscaling, and checks it: against the schemas of Kubernetes and of the Prometheus
# Operator, against the restricted Pod Security Standard, and that its parts fit together.
# Usage: scripts/check-kubernetes.sh
# Needs kubectl, jq, python3 with venv, and npm; the validators come from PyPI and npm into target/.
# shellcheck disable=SC2016 # $pod and its kin are variables of jq
set -eu
cd "$(dirname "$0")/.."

tools=target/check-kubernetes
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

if [ ! -e "$tools/complete" ]; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet kubernetes-validate==1.37.0
    npm install --silent --no-save --prefix "$tools" @kubernetes-models/prometheus-operator@6.0.0
    touch "$tools/complete"
fi

# As it is, and with the line for the Prometheus Operator made effective.
cp -r deploy/kubernetes "$rendered/sources"
sed -i 's/^  # - servicemonitor.yaml/  - servicemonitor.yaml/' "$rendered/sources/base/kustomization.yaml"
for overlay in . autoscaling; do
    kubectl kustomize "deploy/kubernetes/$overlay" >"$rendered/plain.yaml"
    "$tools/bin/kubernetes-validate" --strict --no-warn "$rendered/plain.yaml"
    kubectl kustomize "$rendered/sources/$overlay" |
        "$tools/bin/python" -c 'import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)' \
            >"$rendered/sources/$overlay/rendered.json"
done
cat >"$tools/service-monitor.mjs" <<'JS'
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";
const monitors = JSON.parse(readFileSync(0)).filter((one) => one.kind === "ServiceMonitor");
if (monitors.length !== 1) throw new Error(`${monitors.length} ServiceMonitors, 1 expected`);
new ServiceMonitor(monitors[0]).validate();
JS
node "$tools/service-monitor.mjs" <"$rendered/sources/rendered.json"
echo "ok      ServiceMonitor fits the Prometheus Operator's schema"

# check NAME CONDITION: a jq expression over $deployment, $pod, $container, $service and $monitor, that
# holds of all $overlays
overlays=". autoscaling"
check() {
    for overlay in $overlays; do check_one "$rendered/sources/$overlay/rendered.json" "$@"; done
    printf 'ok      %s\n' "$1"
}

check_one() {
    jq --exit-status '
        def one(kind): map(select(.kind == kind)) | if length == 1 then .[0] else error("\(length) of \(kind)") end;
        one("Deployment") as $deployment | one("Service") as $service | one("ServiceMonitor") as $monitor
        | $deployment.spec.template as $pod | $pod.spec.containers[0] as $container
        | '"$3" "$1" >/dev/null || {
        printf 'FAILED  %s, in %s\n' "$2" "${1#"$rendered/sources/"}" >&2
        exit 1
    }
}

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
check "restricted: no host namespaces, no volumes, one container" \
    '($pod.spec | keys) - ["automountServiceAccountToken", "containers", "enableServiceLinks",
        "securityContext", "terminationGracePeriodSeconds"] == [] and ($pod.spec.containers | length) == 1'
check "restricted: not root, by number" \
    '$pod.spec.securityContext | .runAsNonRoot and .runAsUser > 0'
check "restricted: the default seccomp profile" \
    '$pod.spec.securityContext.seccompProfile.type == "RuntimeDefault"'
check "restricted: no privilege, no capability, nothing writable" \
    '$container.securityContext == {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: ["ALL"]}}'
check "no token of the cluster in the pod" '$pod.spec.automountServiceAccountToken == false'
check "the Service selects the pods, and its port is one of theirs" \
    '($pod.metadata.labels | contains($service.spec.selector)) and $deployment.spec.selector.matchLabels == $service.spec.selector
        and any($container.ports[].name; . == $service.spec.ports[0].targetPort)'
check "the ServiceMonitor selects the Service, and its port is one of the Service's" \
    '($service.metadata.labels | contains($monitor.spec.selector.matchLabels))
        and any($service.spec.ports[].name; . == $monitor.spec.endpoints[0].port)'
check "the annotations say the port of the container" \
    '$pod.metadata.annotations["prometheus.io/port"] == ($container.ports[0].containerPort | tostring)'
check "liveness and readiness ask /healthz" \
    '[$container.livenessProbe, $container.readinessProbe | .httpGet] | all(. == {path: "/healthz", port: "http"})'
grace=$(sed -n 's/.*GRACE: Duration = Duration::from_secs(\([0-9]*\));/\1/p' src/shutdown.rs)
check "the grace period covers preStop, the ${grace:-unknown} seconds for delayed answers, and a margin of 2" \
    '$container.lifecycle.preStop.sleep.seconds as $sleep | $sleep > 0
        and $pod.spec.terminationGracePeriodSeconds >= $sleep + '"$grace"' + 2'

overlays=autoscaling
check "the autoscaler has the Deployment, which leaves the number of pods to it: 1 to 10" \
    'one("HorizontalPodAutoscaler").spec | .scaleTargetRef.name == $deployment.metadata.name
        and $deployment.spec.replicas == null and [.minReplicas, .maxReplicas] == [1, 10]'
check "the PodDisruptionBudget selects the pods, and lets one of them go" \
    'one("PodDisruptionBudget").spec | .selector == $deployment.spec.selector and .maxUnavailable == 1'
# The README says how much load makes how many pods.
check "at half of the request, a pod works for five requests a second" \
    '($container.env[] | select(.name == "WORK").value | rtrimstr("ms") | tonumber) as $work
        | ($container.resources.requests.cpu | rtrimstr("m") | tonumber) as $request
        | one("HorizontalPodAutoscaler").spec.metrics[0].resource.target.averageUtilization as $target
        | $request * $target / 100 / $work == 5'
