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
    # Packages name some files by links of the file system, such as /lib; the links go in as they are.
    printf '%s\n' /bin /lib /lib64 /sbin /usr/bin/cc
    dpkg-query --listfiles $needed | sed 's,^/\(bin\|lib\|lib64\|sbin\)/,/usr&,' | grep '^/\(etc\|usr\)/'
    find /etc/alternatives /usr/lib/rustlib "$crates/index" "$crates/cache"
} | sort -u | while read -r file; do
    [ ! -e "$file" ] || printf '%s\n' "$file"
done | tar --create --no-recursion --files-from=- --absolute-names \
    --transform "s,^$crates,/usr/local/cargo/registry," |
    docker import --change 'ENV CARGO_HOME=/usr/local/cargo' - "$image" >/dev/null
echo "ok      $image stands in for the Rust image: $(docker run --rm "$image" cargo --version)"
