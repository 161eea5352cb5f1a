#!/bin/sh
# Builds the release a second time in a fresh clone, and checks that both archives have the same bytes.
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
files=$(sed 's/.* //' "$again/clone/dist/SHA256SUMS")
for file in $files; do
    if ! cmp "dist/$file" "$again/clone/dist/$file"; then
        echo "FAILED  the release differs from one built from commit $(git rev-parse --short HEAD) in a fresh clone" >&2
        [ -z "$(git status --porcelain)" ] || echo "        (this working tree has uncommitted changes)" >&2
        exit 1
    fi
done
archive=$(echo "$files" | grep '\.tar\.gz$')
tar -x -z -f "dist/$archive" -C "$again"
(cd "$again/${archive%.tar.gz}" && sha256sum --check --quiet SHA256SUMS)
for file in THIRD-PARTY-NOTICES.txt tiny-probe.cdx.json; do
    if ! [ -s "$again/${archive%.tar.gz}/$file" ]; then
        echo "FAILED  dist/$archive has no $file" >&2
        exit 1
    fi
done
echo "$files" | sed "s/^/ok      two builds have the same bytes: dist\//"
