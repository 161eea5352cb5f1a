#!/bin/sh
# Builds the archive and, with a Docker engine, the image without tiny_http, and checks that nothing in them names
# the crate. That the search can find it is checked with the default archive.
# Usage: make dist && scripts/check-lean.sh TARGET
set -eu
cd "$(dirname "$0")/.."

target=$1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# crate_in FILE...: succeeds if a file has the name of the crate, or of one that only it depends on
crate_in() { grep --quiet --text --extended-regexp 'tiny_http|chunked_transfer|ascii[-@]1\.' "$@"; }

failed() {
    echo "FAILED  $*" >&2
    exit 1
}

# unpack NAME: unpacks dist/NAME.tar.gz, and sets the variables binary and bill
unpack() {
    tar -x -z -f "dist/$1.tar.gz" -C "$scratch"
    binary=$scratch/$1/tiny-probe
    bill=$scratch/$1/tiny-probe.cdx.json
}

unpack "tiny-probe-$version-$target"
crate_in "$binary" || failed "the default binary does not name tiny_http, so this check would find nothing"
crate_in "$bill" || failed "the default bill of materials does not name tiny_http"

make --no-print-directory dist TARGET="$target" LEAN=true
unpack "tiny-probe-$version-lean-$target"
if crate_in "$binary" "$bill"; then
    failed "dist/tiny-probe-$version-lean-$target.tar.gz names tiny_http"
fi
echo "ok      the lean archive does not name tiny_http: its binary has $(wc -c <"$binary") bytes"

if ! docker info >"$scratch/info" 2>&1; then
    if [ "${CI:-}" = true ]; then
        failed "CI=true requires a Docker engine, and there is none: $(tail -n 1 "$scratch/info")"
    fi
    echo "skipped the lean image: there is no Docker engine"
    exit 0
fi
make --no-print-directory static-image TARGET="$target" LEAN=true IMAGE=app:lean
docker save app:lean >"$scratch/image.tar"
# The notices in its labels are for both binaries.
mkdir "$scratch/image"
tar -x -f "$scratch/image.tar" -C "$scratch/image"
layers=$(sed 's/.*"Layers":\[\([^]]*\)\].*/\1/; s/[",]/ /g' "$scratch/image/manifest.json")
for layer in $layers; do
    if tar -x -O -f "$scratch/image/$layer" | crate_in; then
        failed "the lean image names tiny_http"
    fi
done
echo "ok      the lean image does not name tiny_http"
