#!/bin/sh
# Packs the static binary as a release: dist/tiny-probe-VERSION-TARGET.tar.gz, and dist/SHA256SUMS of
# this and the other targets' archives of the version.
# Usage: scripts/dist.sh BINARY TARGET
# The same commit and binary give the same bytes: names are sorted, nobody owns the files, and all
# are as old as the commit (or as SOURCE_DATE_EPOCH says).
set -eu
cd "$(dirname "$0")/.."

binary=$1
target=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=tiny-probe-$version-$target
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
mkdir -p dist "$staging/$name"
cp "$binary" README.md LICENSE-APACHE LICENSE-MIT "$staging/$name"
(cd "$staging/$name" && LC_ALL=C sha256sum -- * >"$staging/SHA256SUMS")
mv "$staging/SHA256SUMS" "$staging/$name"
tar --create --directory "$staging" --format=ustar --sort=name --mtime="@$time" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" | gzip -n -9 >"dist/$name.tar.gz"
cd dist
sha256sum "tiny-probe-$version"-*.tar.gz >SHA256SUMS
echo "ok      dist/$name.tar.gz"
