#!/bin/sh
# Runs the container image as people run it and checks that it serves, says how it is, and stops.
# Usage: scripts/check-image.sh [IMAGE]      (default: app:metrics)
# Prints a line per check; exits 1 at the first that fails. Without a Docker engine it says so and
# exits 0, or 1 where CI=true.
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

# within SECONDS COMMAND [ARGUMENT...]: asks again and again until the command succeeds
within() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# start [DOCKER_OPTION...]: a fresh container
start() {
    docker rm --force "$container" >/dev/null 2>&1 || true
    # shellcheck disable=SC2068 # the options are words
    docker run --detach --name "$container" $@ "$image" >"$scratch/id"
    within 10 serves || failed "docker run $* does not serve"
}

state() { docker inspect --format "{{.State.$1}}" "$container"; }

serves() { docker logs "$container" 2>&1 | grep -q ' on http://'; }

# is FIELD VALUE: whether the container's state is that
is() { [ "$(state "$1")" = "$2" ]; }

# What the service said it listens on.
url_said() { docker logs "$container" 2>&1 | sed -n 's/.* on \(http:.*\)/\1/p'; }

# Where the container's port is published.
url_published() { echo "http://$(docker port "$container" 8080/tcp)"; }

smoke() {
    ./smoke.sh "$2" >"$scratch/smoke" || failed "smoke.sh, with docker run $1"
    ok "smoke.sh passes with docker run $1"
}

# stop_within MILLISECONDS WHEN: the time is the process's; the engine adds its own for the network
stop_within() {
    before=$(date +%s%3N)
    docker stop "$container" >/dev/null
    returned=$(($(date +%s%3N) - before))
    took=$(($(date --date "$(state FinishedAt)" +%s%3N) - before))
    is ExitCode 0 || failed "docker stop $2: exit code $(state ExitCode), expected 0"
    [ "$took" -le "$1" ] || failed "docker stop $2: over after $took ms, at most $1 expected"
    ok "docker stop $2: over after $took ms with exit code 0, docker returns after $returned"
}

if ! docker info >"$scratch/info" 2>&1; then
    if [ "${CI:-}" = true ]; then
        echo "FAILED  no Docker engine, and CI must have one:" >&2
        tail -n 3 "$scratch/info" >&2
        exit 1
    fi
    echo "skipped the image: no Docker engine here (\`docker info\` says why)"
    exit 0
fi

size=$(docker image inspect --format '{{.Size}}' "$image") || failed "no image $image: run \`make image\` first"
[ "$size" -lt 1000000 ] || failed "the image has $size bytes, fewer than 1000000 expected"
ok "the image has $size bytes"
docker save "$image" | tar -x -C "$scratch"
layers=$(sed 's/.*"Layers":\[\([^]]*\)\].*/\1/; s/[",]/ /g' "$scratch/manifest.json")
# shellcheck disable=SC2086 # one word per layer
set -- $layers
[ $# = 1 ] || failed "the image has $# layers, 1 expected"
content=$(tar -t -f "$scratch/$1")
[ "$content" = tiny-probe ] || failed "the image holds \"$content\", tiny-probe alone expected"
ok "its one layer holds the binary and nothing else"

start --net=host --env LISTEN=127.0.0.1:0
smoke --net=host "$(url_said)"

start --publish 127.0.0.1::8080
smoke "-p" "$(url_published)"
stop_within 1000 "with nothing to do"

# shellcheck disable=SC2086 # the options are words
start --publish 127.0.0.1::8080 $hardened
smoke "$hardened" "$(url_published)"
curl --no-progress-meter --fail --max-time 60 --output /dev/null --parallel --parallel-max 100 \
    "$(url_published)/probe?[1-5000]" || failed "5000 requests on 100 connections within 16 MB"
is OOMKilled false || failed "16 MB are not enough"
ok "5000 requests on 100 connections within 16 MB: $(docker stats --no-stream --format '{{.MemUsage}}' "$container")"

# shellcheck disable=SC2086 # the options are words
start --net=host --env LISTEN=127.0.0.1:0 --env MAX_CONNECTIONS=1000 $hardened
./unread-clients.py "$(url_said)" >"$scratch/unread" 2>&1 || unread=failed
is OOMKilled false || failed "990 clients that do not read: out of memory with --memory 16m"
is Running true || failed "990 clients that do not read: the container ended with exit code $(state ExitCode)"
[ "${unread:-}" != failed ] || failed "$(cat "$scratch/unread")"
ok "$(cat "$scratch/unread"), and /healthz is served within 16 MB"

start --publish 127.0.0.1::8080 --health-interval 1s --health-retries 1
within 20 is Health.Status healthy || failed "the health status does not become healthy"
ok "the health status becomes healthy"
docker kill --signal STOP "$container" >/dev/null
within 40 is Health.Status unhealthy || failed "stuck, and the health status does not become unhealthy"
ok "the health status becomes unhealthy when the service is stuck"
docker kill --signal CONT "$container" >/dev/null
within 20 is Health.Status healthy || failed "no longer stuck, and the health status does not become healthy"
ok "and healthy again when it goes on"

start --publish 127.0.0.1::8080 --env SLOW_RATE=1 --env SLOW_LATENCY=1h
curl --silent --verbose --max-time 60 "$(url_published)/probe" >/dev/null 2>"$scratch/delayed" &
within 10 grep -qs '^> GET /probe' "$scratch/delayed" || failed "the request is not sent"
# Whatever becomes of this later one, the service has read the earlier one by then.
curl --silent --max-time 1 --output /dev/null "$(url_published)/healthz" || true
stop_within 6000 "with a delayed answer waiting"
[ "$took" -ge 4000 ] || failed "docker stop: the delayed answer was waited for $took ms only, 5 s expected"
