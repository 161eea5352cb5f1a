#!/bin/sh
# Counts the instructions of one request, but for the kernel's: repeatable on a noisy machine.
#
# bench/instructions.sh            what wrk, Prometheus and a browser send
#
# Callgrind counts two runs of the same connection, one with 1000 requests more. The difference is
# theirs alone. Needs valgrind. The profile of the longer run stays in target/bench/, for
# callgrind_annotate.
set -eu
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
    echo "instructions: valgrind is not installed; on Debian: apt-get install valgrind" >&2
    exit 1
fi
mkdir -p target/bench
# The benchmarks' profile is the release's with line numbers.
"${CARGO:-cargo}" build --profile bench --quiet --manifest-path bench/micro/Cargo.toml
binary=bench/micro/target/release/micro

count() {
    valgrind --tool=callgrind --callgrind-out-file="target/bench/callgrind.$1" "$binary" "$1" "$2" 2>&1 |
        sed -n 's/.*Collected : //p'
}

for client in wrk Prometheus browser; do
    few=$(count "$client" 100)
    many=$(count "$client" 1100)
    printf '%-12s %8d instructions per request\n' "$client" $(((many - few) / 1000))
done
