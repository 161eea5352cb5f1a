#!/bin/sh
# Renders deploy/kubernetes and each of its overlays, and checks them: against the schemas of Kubernetes
# and of the Prometheus Operator, against the restricted Pod Security Standard, and that their parts fit together.
# Usage: scripts/check-kubernetes.sh
# Needs kubectl, jq, python3 with venv, and npm. The validators are installed from PyPI and npm into target/.
# shellcheck disable=SC2016 # $pod and the like are variables of jq.
set -eu
cd "$(dirname "$0")/.."

tools=target/check-kubernetes
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

if [ ! -e "$tools/complete" ]; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --require-hashes --requirement scripts/requirements/kubernetes.txt
    cp scripts/requirements/npm-kubernetes/*.json "$tools"
    (cd "$tools" && npm ci --silent --ignore-scripts)
    touch "$tools/complete"
fi

# json FILE: a YAML file with several documents, as a JSON array.
json() {
    "$tools/bin/python" -c 'import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)' <"$1"
}

for overlay in . autoscaling canary faults monitoring; do
    mkdir -p "$rendered/$overlay"
    kubectl kustomize "deploy/kubernetes/$overlay" >"$rendered/$overlay/rendered.yaml"
    json "$rendered/$overlay/rendered.yaml" >"$rendered/$overlay/rendered.json"
done
kubectl kustomize deploy/grafana >"$rendered/dashboard.yaml"
# The oldest version that the validator knows, and the newest.
for kubernetes in 1.25 1.37; do
    for overlay in . autoscaling canary faults; do
        "$tools/bin/kubernetes-validate" --strict --quiet -k "$kubernetes" "$rendered/$overlay/rendered.yaml"
    done
    "$tools/bin/kubernetes-validate" --strict --quiet -k "$kubernetes" "$rendered/dashboard.yaml"
    printf 'ok      the manifests fit the schemas of Kubernetes %s\n' "$kubernetes"
done
scripts/prometheus-rule.sh >"$rendered/rule.yaml"
json "$rendered/rule.yaml" >"$rendered/rule.json"

cat >"$tools/operator.mjs" <<'JS'
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";
const types = { PrometheusRule, ServiceMonitor };
const [file, kind] = process.argv.slice(2);
const found = JSON.parse(readFileSync(file)).filter((one) => one.kind === kind);
if (found.length !== 1) throw new Error(`${found.length} of ${kind} in ${file}, 1 expected`);
new types[kind](found[0]).validate();
console.log(`ok      ${kind} fits the Prometheus Operator's schema`);
JS
node "$tools/operator.mjs" "$rendered/monitoring/rendered.json" ServiceMonitor
node "$tools/operator.mjs" "$rendered/rule.json" PrometheusRule

# equal NAME FILE FILE: the two JSON documents have the same value.
equal() {
    if [ "$(jq --sort-keys . "$2")" != "$(jq --sort-keys . "$3")" ]; then
        printf 'FAILED  %s\n' "$1" >&2
        exit 1
    fi
    printf 'ok      %s\n' "$1"
}
for file in recording alerting slo; do json "deploy/prometheus/${file}_rules.yml"; done |
    jq --slurp 'map(.[].groups) | add' >"$rendered/groups.json"
jq '.[].spec.groups' "$rendered/rule.json" >"$rendered/rule-groups.json"
equal "the PrometheusRule has the groups of deploy/prometheus" "$rendered/groups.json" "$rendered/rule-groups.json"
jq '.[] | select(.kind == "ConfigMap").data["tiny-probe.json"] | fromjson' \
    "$rendered/monitoring/rendered.json" >"$rendered/dashboard.json"
equal "the ConfigMap has the dashboard" deploy/grafana/tiny-probe.json "$rendered/dashboard.json"

# check NAME CONDITION: a jq expression over $deployment, $pod, $container, $service and $monitor that holds for
# each Deployment of all $overlays.
overlays=". autoscaling canary faults"
check() {
    for overlay in $overlays; do check_one "$rendered/$overlay/rendered.json" "$@"; done
    printf 'ok      %s\n' "$1"
}

check_one() {
    jq --exit-status --slurpfile monitoring "$rendered/monitoring/rendered.json" '
        def all_of(kind): map(select(.kind == kind)) | if length > 0 then . else error("no \(kind)") end;
        def one(kind): all_of(kind) | if length == 1 then .[0] else error("\(length) of \(kind)") end;
        . as $all | one("Service") as $service | ($monitoring[0] | one("ServiceMonitor")) as $monitor
        | [all_of("Deployment")[] as $deployment | $deployment.spec.template as $pod | $pod.spec.containers[0] as $container
            | $all | '"$3"'] | all' "$1" >/dev/null || {
        printf 'FAILED  %s, in %s\n' "$2" "${1#"$rendered/"}" >&2
        exit 1
    }
}

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
check "restricted: no host namespaces, no volumes, one container" \
    '($pod.spec | keys) - ["automountServiceAccountToken", "containers", "enableServiceLinks",
        "securityContext", "terminationGracePeriodSeconds"] == [] and ($pod.spec.containers | length) == 1'
check "restricted: runs as a numeric user other than root" \
    '$pod.spec.securityContext | .runAsNonRoot and .runAsUser > 0'
check "restricted: the default seccomp profile" \
    '$pod.spec.securityContext.seccompProfile.type == "RuntimeDefault"'
check "restricted: no privilege escalation, no capabilities, a read-only root file system" \
    '$container.securityContext == {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: ["ALL"]}}'
check "no token of the cluster in the pod" '$pod.spec.automountServiceAccountToken == false'
check "the Service selects the pods, and its port is one of theirs" \
    '($pod.metadata.labels | contains($service.spec.selector))
        and any($container.ports[].name; . == $service.spec.ports[0].targetPort)'
check "the ServiceMonitor selects the Service and refers to one of its ports" \
    '($service.metadata.labels | contains($monitor.spec.selector.matchLabels))
        and any($service.spec.ports[].name; . == $monitor.spec.endpoints[0].port)'
check "the Deployment selects its own pods, and their labels are those that Prometheus finds them by" \
    '($pod.metadata.labels | contains($deployment.spec.selector.matchLabels))
        and $pod.metadata.labels["app.kubernetes.io/name"] == "tiny-probe" and $service.metadata.labels["app.kubernetes.io/name"] == "tiny-probe"
        and $monitor.spec.targetLabels == ["app.kubernetes.io/name"]'
check "the ServiceMonitor drops the target label that would rename ours" \
    'any($monitor.spec.endpoints[0].relabelings[]; . == {action: "labeldrop", regex: "endpoint"})'
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
grep -q 'image="ghcr.io/${GITHUB_REPOSITORY,,}"' .github/workflows/ci.yml ||
    { echo "FAILED  the workflow publishes another image than the manifests name" >&2 && exit 1; }
# On GitHub the account is known.
repository=$(printf '%s' "${GITHUB_REPOSITORY:-[a-z0-9-]+/tiny-probe}" | tr '[:upper:]' '[:lower:]')
check "the image is the one that the workflow publishes for version ${version:-unknown}" \
    '$container.image | test("^ghcr[.]io/(OWNER/tiny-probe|'"$repository):$version"'$")'

mkdir -p "$rendered/copy/docs"
cp -R Makefile README.md Dockerfile deploy scripts "$rendered/copy"
cp docs/*.md "$rendered/copy/docs"
sed -i.old 's|ghcr.io/[^/]*/|ghcr.io/OWNER/|' "$rendered/copy/deploy/kubernetes/base/kustomization.yaml"
sed -i.old 's|github.com/[^/]*/|github.com/OWNER/|' "$rendered"/copy/deploy/prometheus/*_rules*.yml "$rendered/copy/Dockerfile" \
    "$rendered/copy/README.md"
rm "$rendered"/copy/*.old "$rendered"/copy/deploy/*/*.old "$rendered"/copy/deploy/*/*/*.old
make --silent -C "$rendered/copy" set-owner ACCOUNT=Octo-Cat
if grep -r /OWNER/ "$rendered/copy/deploy" "$rendered/copy/Dockerfile" "$rendered/copy/README.md" >&2 ||
    ! "$rendered/copy/scripts/check-alerts-doc.sh" >/dev/null ||
    ! kubectl kustomize "$rendered/copy/deploy/kubernetes" | grep -q "image: ghcr.io/octo-cat/tiny-probe:$version"; then
    echo "FAILED  make set-owner replaces OWNER in the image and in the addresses" >&2
    exit 1
fi
echo "ok      make set-owner replaces OWNER in the image and in the addresses"
check "the annotations say the port of the container" \
    '$pod.metadata.annotations["prometheus.io/port"] == ($container.ports[0].containerPort | tostring)'
check "liveness is /healthz, readiness is /readyz, and a start may take a minute" \
    '([$container.startupProbe, $container.livenessProbe | .httpGet] | all(. == {path: "/healthz", port: "http"}))
        and $container.readinessProbe.httpGet == {path: "/readyz", port: "http"}
        and ($container.startupProbe | .periodSeconds * .failureThreshold) == 60'
grace=$(sed -n 's/.*GRACE_PERIOD: Duration = Duration::from_secs(\([0-9]*\));/\1/p' src/shutdown.rs)
[ -n "$grace" ] || { echo "FAILED  src/shutdown.rs has no GRACE_PERIOD in whole seconds for this script to read" >&2 && exit 1; }
check "the grace period covers SHUTDOWN_DELAY, the $grace seconds for delayed responses, and a margin of 2" \
    '($container.env[] | select(.name == "SHUTDOWN_DELAY").value | rtrimstr("s") | tonumber) as $delay | $delay > 0
        and $pod.spec.terminationGracePeriodSeconds >= $delay + '"$grace"' + 2 and $container.lifecycle == null'
# tests/hostile/memory.rs and scripts/check-image.sh show that this many connections fit.
check "16 MiB of memory, for 1000 connections" \
    '$container.resources.limits == {memory: "16Mi"} and $container.resources.requests.memory == "16Mi"
        and ($container.env | any(. == {name: "MAX_CONNECTIONS", value: "1000"}))'

overlays=autoscaling
check "the autoscaler targets the Deployment, which sets no number of replicas itself, and allows 1 to 10" \
    'one("HorizontalPodAutoscaler").spec | .scaleTargetRef.name == $deployment.metadata.name
        and $deployment.spec.replicas == null and [.minReplicas, .maxReplicas] == [1, 10]'
check "the PodDisruptionBudget selects the pods, and lets one of them go" \
    'one("PodDisruptionBudget").spec | .selector as $selector | ($pod.metadata.labels | contains($selector.matchLabels))
        and .maxUnavailable == 1'
# docs/kubernetes.md says how much load makes how many pods.
check "at half of the request, a pod works for five requests a second" \
    '($container.env[] | select(.name == "WORK").value | rtrimstr("ms") | tonumber) as $work
        | ($container.resources.requests.cpu | rtrimstr("m") | tonumber) as $request
        | one("HorizontalPodAutoscaler").spec.metrics[0].resource.target.averageUtilization as $target
        | $request * $target / 100 / $work == 5'

overlays=faults
check "every fault can be caused, and the NetworkPolicy selects the pods and opens their port" \
    '($container.env | any(. == {name: "FAULT_INJECTION", value: "all"}))
        and (one("NetworkPolicy").spec | .podSelector.matchLabels as $labels | ($pod.metadata.labels | contains($labels))
            and .ingress[0].ports[0].port == $container.ports[0].name)'
overlays=". autoscaling canary"
check "fault injection is off" '$container.env | all(.name != "FAULT_INJECTION")'

overlays=canary
check "two Deployments with selectors of their own, one of each version" \
    'all_of("Deployment") | length == 2 and ([.[].spec.selector.matchLabels] | unique | length == 2)
        and ([.[].spec.template.spec.containers[0].env[] | select(.name == "APP_VERSION").value] | sort == ["1", "2"])'
