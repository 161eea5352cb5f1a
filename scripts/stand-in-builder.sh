#!/bin/sh
# Makes a stand-in for the Rust image that the Dockerfile builds with, out of this Debian machine,
# so that the whole Dockerfile can be run where nothing can be pulled.
# Usage: scripts/stand-in-builder.sh IMAGE
#        docker build --build-arg BUILDER=IMAGE .
# It holds Debian's cargo and rustc, the installed musl target, what these need, and the crates
# that cargo has already downloaded here.
set -eu

image=${1:?usage: scripts/stand-in-builder.sh IMAGE}
crates=${CARGO_HOME:-$HOME/.cargo}/registry
needed=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances \
    cargo-web rustc-web gcc libc6-dev binutils dash coreutils | grep '^[a-z]' | sort -u)

# shellcheck disable=SC2086 # one word per package
{
    # Where /bin is a link to /usr/bin, packages name their files by either.
    printf '%s\n' /bin /lib /lib64 /sbin /usr/bin/cc
    dpkg-query --listfiles $needed 2>/dev/null | grep -v -e '^/\(bin\|lib\|lib64\|sbin\)\(/\|$\)' -e '^/usr/share'
    dpkg-query --listfiles $needed 2>/dev/null | sed -n 's,^/\(bin\|lib\|lib64\|sbin\)/,/usr/&,p' | tr -s /
    find /etc/alternatives /usr/lib/rustlib "$crates/index" "$crates/cache"
} | sort -u | while read -r file; do
    [ ! -e "$file" ] || printf '%s\n' "$file"
done | tar --create --no-recursion --files-from=- --absolute-names \
    --transform "s,^$crates,/usr/local/cargo/registry," |
    docker import --change 'ENV CARGO_HOME=/usr/local/cargo' - "$image" >/dev/null
echo "ok      $image stands in for the Rust image: $(docker run --rm "$image" cargo --version)"
