#!/bin/sh
# Packs the static binary into a release archive, dist/tiny-probe-VERSION-TARGET.tar.gz, with the licenses of
# others and the bill of materials. Writes the bill of materials and the OpenVEX document beside it as well, and the
# checksums of this version's files to dist/SHA256SUMS.
# Usage: scripts/dist.sh BINARY TARGET [--no-default-features]
# With --no-default-features the name is tiny-probe-VERSION-lean-TARGET.
# The archive depends only on the commit and the binary: names are sorted, the owner is 0, and the time of
# all files is that of the commit, or SOURCE_DATE_EPOCH.
set -eu
cd "$(dirname "$0")/.."

binary=$1
target=$2
shift 2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=tiny-probe-$version${1:+-lean}-$target
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
mkdir -p dist "$staging/$name"
cp "$binary" README.md LICENSE-APACHE LICENSE-MIT THIRD-PARTY-NOTICES.txt "$staging/$name"
scripts/third-party.py sbom "$target" "$@" >"$staging/$name/tiny-probe.cdx.json"
cp "$staging/$name/tiny-probe.cdx.json" "dist/$name.cdx.json"
# The lean binary has no vulnerability to explain.
[ $# -gt 0 ] || scripts/third-party.py vex >"dist/tiny-probe-$version.openvex.json"
(cd "$staging/$name" && LC_ALL=C sha256sum -- * >"$staging/SHA256SUMS")
mv "$staging/SHA256SUMS" "$staging/$name"
tar --create --directory "$staging" --format=ustar --sort=name --mtime="@$time" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" | gzip -n -9 >"dist/$name.tar.gz"
cd dist
sha256sum "tiny-probe-$version"[-.]* >SHA256SUMS
echo "ok      dist/$name.tar.gz"
