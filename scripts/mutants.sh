#!/usr/bin/env bash
# Changes the code in about two thousand places, one at a time, and checks that a test fails for each change.
#
# Usage: scripts/mutants.sh     (needs cargo-mutants; .cargo/mutants.toml lists the changes left out and why)
#
# Each pass builds and runs one kind of test, the fastest first. Changes that it misses are tried again in
# the next pass. Exits 1 if all tests miss a change.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/mutants.out
rm -rf "$out"

# pass SECONDS TESTS: tries the remaining changes. SECONDS is a timeout, several times what the tests need.
pass() {
    local status=0
    "${CARGO:-cargo}" mutants --workspace --test-workspace=true --iterate --jobs 2 --output target \
        --timeout "$1" --cargo-arg="$2" || status=$?
    # Exit code 2 means that changes were missed, 3 that tests timed out. A timeout counts as a failed test.
    ((status == 0 || status == 2 || status == 3)) || exit "$status"
    cat "$out/timeout.txt" >>"$out/caught.txt"
}

pass 10 --lib
pass 20 --test=connection
pass 30 --test=api
pass 40 --test=service
pass 60 --test=hostile

missed=$(wc -l <"$out/missed.txt")
echo "changes that no test noticed: $missed"
((missed == 0))
