#!/bin/sh
# Checks that a tag can be released: it names the version in Cargo.toml, the other files have the same version,
# and its commit is on main.
# Usage: scripts/check-tag.sh TAG [MAIN]      (MAIN is a branch; default: origin/main)
# Prints the tags of the image: the version, and `latest` unless it is a pre-release.
set -eu
cd "$(dirname "$0")/.."

tag=$1
main=${2:-origin/main}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [ "$tag" != "v$version" ]; then
    echo "FAILED  the tag is $tag, but the version in Cargo.toml is $version: expected the tag v$version" >&2
    exit 1
fi
for file in Cargo.lock fuzz/Cargo.lock bench/micro/Cargo.lock; do
    if ! grep -A 1 '^name = "tiny-probe"$' "$file" | grep -qxF "version = \"$version\""; then
        echo "FAILED  $file has another version than $version: run cargo update tiny-probe in its folder" >&2
        exit 1
    fi
done
manifest=deploy/kubernetes/base/kustomization.yaml
if ! grep -qxF "    newTag: $version" "$manifest"; then
    echo "FAILED  newTag in $manifest is not $version" >&2
    exit 1
fi
if ! git merge-base --is-ancestor "$tag^{commit}" "$main"; then
    echo "FAILED  $tag is not on $main: only commits there are released" >&2
    exit 1
fi
# Semantic versioning separates a pre-release with a hyphen.
case $version in
*-*) echo "$version" ;;
*) echo "$version latest" ;;
esac
