#!/bin/sh
# Checks bounded-http as its users get it: both crates can be packaged, and the service with a counter in
# the README has at most 40 lines, builds in a new project, and counts.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=scripts/waits.sh
. scripts/waits.sh
cargo=${CARGO:-cargo}

project=$(mktemp -d)
service=
trap '[ -z "$service" ] || end "$service" "the service"; rm -rf "$project"' EXIT
trap 'exit 1' INT TERM

# Cargo keeps the unpacked bounded-http of an earlier run under the same version, and would compile tiny-probe
# with that. So its sources are unpacked in a new home, which shares everything else.
home=${CARGO_HOME:-$HOME/.cargo}
mkdir -p "$project/home/registry"
for shared in config.toml registry/index registry/cache; do
    if [ -e "$home/$shared" ]; then ln -s "$home/$shared" "$project/home/$shared"; fi
done
CARGO_HOME=$project/home "$cargo" package --locked --workspace --allow-dirty --quiet
echo "ok      both crates can be packaged"

"$cargo" new --quiet --vcs none --name quotes "$project/quotes"
"$cargo" add --quiet --manifest-path "$project/quotes/Cargo.toml" --path bounded-http
"$cargo" add --quiet --manifest-path "$project/quotes/Cargo.toml" --no-default-features prometheus
# Use the versions that this repository tests.
cp Cargo.lock "$project/quotes"
awk '/^```$/ { shown = 0 } shown { print } /^```rust/ { blocks += 1; shown = blocks == 3 }' bounded-http/README.md \
    >"$project/quotes/src/main.rs"
lines=$(wc -l <"$project/quotes/src/main.rs")
if [ "$lines" -lt 30 ] || [ "$lines" -gt 40 ]; then
    echo "FAILED  the third block of Rust in bounded-http/README.md has $lines lines; expected 30 to 40" >&2
    exit 1
fi
CARGO_TARGET_DIR=$PWD/target/check-crate "$cargo" build --quiet --manifest-path "$project/quotes/Cargo.toml"
echo "ok      the service of the README, $lines lines, builds in an empty project"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
target/check-crate/debug/quotes "127.0.0.1:$port" &
service=$!
curl --silent --show-error --fail --max-time 10 --retry 20 --retry-delay 1 --retry-connrefused "$url/quote" >/dev/null
for path in /quote /nope /nope; do
    curl --silent --max-time 10 --output /dev/null "$url$path"
done
counted=$(curl --silent --max-time 10 "$url/metrics" | grep '^requests_total')
expected='requests_total{route="/quote",status="200"} 2
requests_total{route="other",status="404"} 2'
if [ "$counted" != "$expected" ]; then
    printf 'FAILED  expected\n%s\nfound\n%s\n' "$expected" "$counted" >&2
    exit 1
fi
echo "ok      it counts its requests by route and status"
