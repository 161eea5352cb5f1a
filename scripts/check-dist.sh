#!/bin/sh
# Builds the release again, in a clone of its own, and checks that it is the same to the byte.
# Usage: make dist && scripts/check-dist.sh
set -eu
cd "$(dirname "$0")/.."

again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
git clone --quiet . "$again/clone"
if ! make --no-print-directory -C "$again/clone" dist CARGO_TARGET_DIR="$again/target" >"$again/log" 2>&1; then
    cat "$again/log" >&2
    exit 1
fi
(cd dist && sha256sum --check --quiet SHA256SUMS)
if ! diff dist/SHA256SUMS "$again/clone/dist/SHA256SUMS"; then
    echo "FAILED  the release differs from one built of commit $(git rev-parse --short HEAD) elsewhere" >&2
    [ -z "$(git status --porcelain)" ] || echo "        (there are uncommitted changes here)" >&2
    exit 1
fi
archive=$(sed 's/.* //' dist/SHA256SUMS)
tar -x -z -f "dist/$archive" -C "$again"
(cd "$again/${archive%.tar.gz}" && sha256sum --check --quiet SHA256SUMS)
echo "ok      dist/$archive is the same when built twice"
