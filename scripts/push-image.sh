#!/bin/sh
# Pushes the images for both architectures to a registry, and combines them into one image per tag.
# Usage: scripts/push-image.sh IMAGE REPOSITORY TAG...
# IMAGE-amd64 and IMAGE-arm64 must exist locally. They are pushed as FIRST_TAG-amd64 and FIRST_TAG-arm64.
# Set INSECURE=--insecure for a registry without TLS.
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
    # BuildKit adds a provenance attestation, which turns an image into an index. Only imagetools can
    # combine indexes.
    if docker buildx version >/dev/null 2>&1; then
        docker buildx imagetools create --tag "$repository:$tag" "$first-amd64" "$first-arm64"
    else
        # shellcheck disable=SC2086 # The variable is an option or empty.
        docker manifest create ${INSECURE:-} "$repository:$tag" "$first-amd64" "$first-arm64" >/dev/null
        # shellcheck disable=SC2086
        docker manifest push --purge ${INSECURE:-} "$repository:$tag" >/dev/null
    fi
done
