#!/bin/sh
# Counts the instructions per request, without those of the kernel. Unlike times, the counts are the same in
# every run, even on a busy machine.
#
# bench/instructions.sh            for the requests of wrk, Prometheus and a browser
#
# Callgrind counts the instructions of two runs, one of which has 1000 requests more. The difference divided
# by 1000 is the result. Needs valgrind. The profile of the longer run is kept in target/bench/ for
# callgrind_annotate.
set -eu
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
    echo "instructions: valgrind is not installed; on Debian: apt-get install valgrind" >&2
    exit 1
fi
mkdir -p target/bench
# The bench profile is the release profile with line numbers.
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
