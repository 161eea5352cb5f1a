#!/bin/sh
# Builds the release again, in a clone of its own, and checks that it is the same to the byte.
# Usage: make dist && scripts/check-dist.sh TARGET
set -eu
cd "$(dirname "$0")/.."
target=$1

again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
git clone --quiet . "$again/clone"
if ! make --no-print-directory -C "$again/clone" dist TARGET="$target" CARGO_TARGET_DIR="$again/target" >"$again/log" 2>&1; then
    cat "$again/log" >&2
    exit 1
fi
(cd dist && sha256sum --check --quiet SHA256SUMS)
archive=$(sed 's/.* //' "$again/clone/dist/SHA256SUMS")
if ! cmp "dist/$archive" "$again/clone/dist/$archive"; then
    echo "FAILED  the release differs from one built of commit $(git rev-parse --short HEAD) elsewhere" >&2
    [ -z "$(git status --porcelain)" ] || echo "        (there are uncommitted changes here)" >&2
    exit 1
fi
tar -x -z -f "dist/$archive" -C "$again"
(cd "$again/${archive%.tar.gz}" && sha256sum --check --quiet SHA256SUMS)
echo "ok      dist/$archive is the same when built twice"
