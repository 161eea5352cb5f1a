#!/bin/sh
# Runs the container image with the options that its users need, and checks that it serves, reports its
# health, and stops.
# Usage: scripts/check-image.sh [IMAGE]      (default: app:metrics)
# Prints a line per check and exits 1 at the first that fails. Without a Docker engine it skips the checks
# and exits 0, or fails if CI=true.
set -eu
cd "$(dirname "$0")"

image=${1:-app:metrics}
hardened="--read-only --cap-drop ALL --security-opt no-new-privileges --memory 16m --memory-swap 16m"
container=tiny-probe-check-$$
scratch=$(mktemp -d)
trap 'docker rm --force "$container" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

ok() { printf 'ok      %s\n' "$*"; }

failed() {
    printf 'FAILED  %s\n' "$*" >&2
    docker logs --tail 20 "$container" 2>&1 | sed -n '/No such container/!s/^/        /p' >&2
    exit 1
}

# within SECONDS COMMAND [ARGUMENT...]: repeats the command until it succeeds; fails when the time is over
within() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# start [DOCKER_OPTION...]: starts a new container and waits until it serves
start() {
    docker rm --force "$container" >/dev/null 2>&1 || true
    # shellcheck disable=SC2068 # The options are separate words.
    docker run --detach --name "$container" $@ "$image" >"$scratch/id"
    within 10 serves || failed "with docker run $*, the service does not start within 10 s"
}

state() { docker inspect --format "{{.State.$1}}" "$container"; }

serves() { docker logs "$container" 2>&1 | grep -q ' on http://'; }

# is FIELD VALUE: succeeds if this field of the container's state has this value
is() { [ "$(state "$1")" = "$2" ]; }

# Prints the URL in the start line of the service.
url_in_log() { docker logs "$container" 2>&1 | sed -n 's/.* on \(http:.*\)/\1/p'; }

# Prints the URL of the container's published port.
url_published() { echo "http://$(docker port "$container" 8080/tcp)"; }

smoke() {
    ./smoke.sh "$2" >"$scratch/smoke" || failed "smoke.sh, with docker run $1"
    ok "smoke.sh passes with docker run $1"
}

# stop_within MILLISECONDS WHEN: stops the container, and fails if its process takes longer than that. The
# time that the engine then needs for the network does not count.
stop_within() {
    before=$(date +%s%3N)
    docker stop "$container" >/dev/null
    returned=$(($(date +%s%3N) - before))
    took=$(($(date --date "$(state FinishedAt)" +%s%3N) - before))
    is ExitCode 0 || failed "docker stop $2: exit code $(state ExitCode), expected 0"
    [ "$took" -le "$1" ] || failed "docker stop $2: the process ended after $took ms, expected at most $1"
    ok "docker stop $2: the process ended after $took ms with exit code 0, docker returned after $returned"
}

if ! docker info >"$scratch/info" 2>&1; then
    if [ "${CI:-}" = true ]; then
        echo "FAILED  CI=true requires a Docker engine, and there is none:" >&2
        tail -n 3 "$scratch/info" >&2
        exit 1
    fi
    echo "skipped the image: there is no Docker engine (\`docker info\` says why)"
    exit 0
fi

size=$(docker image inspect --format '{{.Size}}' "$image") || failed "no image $image: run \`make image\` first"
[ "$size" -lt 1000000 ] || failed "the image has $size bytes, expected fewer than 1000000"
ok "the image has $size bytes"
docker save "$image" | tar -x -C "$scratch"
layers=$(sed 's/.*"Layers":\[\([^]]*\)\].*/\1/; s/[",]/ /g' "$scratch/manifest.json")
# shellcheck disable=SC2086 # Each layer is a separate word.
set -- $layers
[ $# = 1 ] || failed "the image has $# layers, expected 1"
content=$(tar -t -f "$scratch/$1")
[ "$content" = tiny-probe ] || failed "the image contains \"$content\", expected only tiny-probe"
ok "the image has one layer, which contains only the binary"

label() { docker image inspect --format "{{index .Config.Labels \"$1\"}}" "$image"; }
revision=$(label org.opencontainers.image.revision)
echo "$revision" | grep -qx '[0-9a-f]\{40\}' || failed "the image has no label with its revision: build it with make"
label org.opencontainers.image.source | grep -q '^https://github.com/' || failed "the image has no label with its source"
[ "$(label third-party-notices)" = "$(cat ../THIRD-PARTY-NOTICES.txt)" ] ||
    failed "the label third-party-notices is not THIRD-PARTY-NOTICES.txt"
ok "the image has labels with its source, its revision and the licenses of others"
version=$(docker run --rm --network none "$image" --version)
commit=$(echo "$version" | sed -n 's/.*(commit \([0-9a-f]*\)[-,].*/\1/p')
case $revision in
    "${commit:-none}"*) ok "--version prints the commit of the label: $version" ;;
    *) failed "--version prints \"$version\", expected the commit of the label, $revision" ;;
esac

start --net=host --env LISTEN=127.0.0.1:0
smoke --net=host "$(url_in_log)"

start --publish 127.0.0.1::8080
smoke "-p" "$(url_published)"
stop_within 1000 "without pending requests"

# shellcheck disable=SC2086 # The options are separate words.
start --publish 127.0.0.1::8080 $hardened
smoke "$hardened" "$(url_published)"
curl --no-progress-meter --fail --max-time 60 --output /dev/null --parallel --parallel-max 100 \
    "$(url_published)/probe?[1-5000]" || failed "5000 requests on 100 connections within 16 MB"
is OOMKilled false || failed "out of memory after 5000 requests with --memory 16m"
ok "5000 requests on 100 connections within 16 MB: $(docker stats --no-stream --format '{{.MemUsage}}' "$container")"

# shellcheck disable=SC2086 # The options are separate words.
start --net=host --env LISTEN=127.0.0.1:0 --env MAX_CONNECTIONS=1000 $hardened
./unread-clients.py "$(url_in_log)" >"$scratch/unread" 2>&1 || unread=failed
is OOMKilled false || failed "990 clients that do not read: out of memory with --memory 16m"
is Running true || failed "990 clients that do not read: the container ended with exit code $(state ExitCode)"
[ "${unread:-}" != failed ] || failed "$(cat "$scratch/unread")"
ok "$(cat "$scratch/unread"), and /healthz was served within 16 MB"

start --publish 127.0.0.1::8080 --health-interval 1s --health-retries 1
within 20 is Health.Status healthy || failed "the health status did not become healthy within 20 s"
ok "the health status becomes healthy"
docker kill --signal STOP "$container" >/dev/null
within 40 is Health.Status unhealthy || failed "the service is stopped, but the health status did not become unhealthy within 40 s"
ok "the health status becomes unhealthy while the service is stopped"
docker kill --signal CONT "$container" >/dev/null
within 20 is Health.Status healthy || failed "the service runs again, but the health status did not become healthy within 20 s"
ok "the health status becomes healthy again when the service continues"

start --publish 127.0.0.1::8080 --env SLOW_RATE=1 --env SLOW_LATENCY=1h
curl --silent --verbose --max-time 60 "$(url_published)/probe" >/dev/null 2>"$scratch/delayed" &
within 10 grep -qs '^> GET /probe' "$scratch/delayed" || failed "curl did not send the delayed request within 10 s"
# Once this later request has its response, the service has read the delayed one.
curl --silent --max-time 1 --output /dev/null "$(url_published)/healthz" || true
stop_within 6000 "while a delayed response is pending"
[ "$took" -ge 4000 ] || failed "docker stop: the service waited only $took ms for the delayed response, expected 5 s"
