#!/bin/sh
# Checks that a tag can be released: it names the version in Cargo.toml, and its commit is on main.
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
if ! git merge-base --is-ancestor "$tag^{commit}" "$main"; then
    echo "FAILED  $tag is not on $main: only commits there are released" >&2
    exit 1
fi
# Semantic versioning separates a pre-release with a hyphen.
case $version in
*-*) echo "$version" ;;
*) echo "$version latest" ;;
esac
