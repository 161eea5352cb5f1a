#!/bin/sh
# Makes a replacement for the Rust image that the Dockerfile builds with, from the files of this Debian
# machine. With it, the whole Dockerfile can be built where no image can be pulled.
# Usage: scripts/stand-in-builder.sh IMAGE
#        docker build --build-arg BUILDER=IMAGE .
# The image contains Debian's cargo and rustc, the installed musl target, the packages they depend on, and
# the crates that cargo has already downloaded.
set -eu

image=${1:?usage: scripts/stand-in-builder.sh IMAGE}
crates=${CARGO_HOME:-$HOME/.cargo}/registry
needed=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances \
    cargo-web rustc-web gcc libc6-dev binutils dash coreutils | grep '^[a-z]' | sort -u)

# shellcheck disable=SC2086 # Each package is a separate word.
{
    # Packages list some files by paths that are symbolic links, such as /lib. Include the links as well.
    printf '%s\n' /bin /lib /lib64 /sbin /usr/bin/cc
    dpkg-query --listfiles $needed | sed 's,^/\(bin\|lib\|lib64\|sbin\)/,/usr&,' | grep '^/\(etc\|usr\)/'
    find /etc/alternatives /usr/lib/rustlib "$crates/index" "$crates/cache"
} | sort -u | while read -r file; do
    [ ! -e "$file" ] || printf '%s\n' "$file"
done | tar --create --no-recursion --files-from=- --absolute-names \
    --transform "s,^$crates,/usr/local/cargo/registry," |
    docker import --change 'ENV CARGO_HOME=/usr/local/cargo' - "$image" >/dev/null
echo "ok      $image stands in for the Rust image: $(docker run --rm "$image" cargo --version)"
