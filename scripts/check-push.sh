#!/bin/sh
# Starts a registry, pushes the images for both architectures under one name, and checks that a pull by
# each architecture gets the right binary.
# Usage: scripts/check-push.sh IMAGE      (IMAGE-amd64 and IMAGE-arm64 must exist locally)
# Needs docker-registry.
set -eu
cd "$(dirname "$0")"
# shellcheck source=/dev/null
. ./waits.sh

image=$1
folder=$(mktemp -d)
cat >"$folder/config.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $folder/data}}
http: {addr: "127.0.0.1:0"}
YAML
docker-registry serve "$folder/config.yml" >"$folder/log" 2>&1 &
registry=$!
container=tiny-probe-check-$$
trap 'docker rm "$container" >/dev/null 2>&1 || true; end "$registry" "the registry"; rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM
wait_for_line 30 "$registry" "the registry" "$folder/log" 'listening on'

repository=$(sed -n 's/.*listening on \([0-9.:]*\).*/\1/p' "$folder/log")/tiny-probe
INSECURE=--insecure ./push-image.sh "$image" "$repository" 1 latest >/dev/null
for arch in amd64:X86-64 arm64:AArch64; do
    machine=${arch#*:}
    arch=${arch%:*}
    # Remove the local images; otherwise Docker would not pull them.
    docker rmi --force "$repository:1" "$repository:1-$arch" "$repository:latest" >/dev/null 2>&1 || true
    docker create --name "$container" --platform "linux/$arch" "$repository:latest" >"$folder/log" 2>&1 || {
        cat "$folder/log" >&2
        exit 1
    }
    docker cp "$container:/tiny-probe" "$folder/tiny-probe" >/dev/null
    docker rm "$container" >/dev/null
    found=$(docker image inspect --format '{{.Architecture}}' "$repository:latest")
    if [ "$found" != "$arch" ] || ! readelf --file-header "$folder/tiny-probe" | grep -q "Machine: .*$machine"; then
        echo "FAILED  linux/$arch: pulled an image for $found, or its binary is not for $machine" >&2
        exit 1
    fi
    echo "ok      linux/$arch: pulled the binary for $machine"
done
docker rmi --force "$repository:latest" >/dev/null
