#!/bin/sh
# Pushes an image for both architectures to a registry, as one image under each of the tags.
# Usage: scripts/push-image.sh IMAGE REPOSITORY TAG...
# IMAGE-amd64 and IMAGE-arm64 are here; they go into the repository as FIRST_TAG-amd64 and -arm64.
# INSECURE=--insecure is for a registry without TLS.
set -eu

image=$1
repository=$2
shift 2
first=$repository:$1

for arch in amd64 arm64; do
    docker tag "$image-$arch" "$first-$arch"
    docker push --quiet "$first-$arch"
done
for tag in "$@"; do
    # An image that BuildKit has signed with a provenance is an index of its own, which only
    # imagetools can take apart.
    if docker buildx version >/dev/null 2>&1; then
        docker buildx imagetools create --tag "$repository:$tag" "$first-amd64" "$first-arm64"
    else
        # shellcheck disable=SC2086 # an option or none
        docker manifest create ${INSECURE:-} "$repository:$tag" "$first-amd64" "$first-arm64" >/dev/null
        # shellcheck disable=SC2086
        docker manifest push --purge ${INSECURE:-} "$repository:$tag" >/dev/null
    fi
done
