#!/bin/sh
# Packs the static binary into a release archive, dist/tiny-probe-VERSION-TARGET.tar.gz, and writes the
# checksums of this version's archives to dist/SHA256SUMS.
# Usage: scripts/dist.sh BINARY TARGET
# The archive depends only on the commit and the binary: names are sorted, the owner is 0, and the time of
# all files is that of the commit, or SOURCE_DATE_EPOCH.
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
