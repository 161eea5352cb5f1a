#!/usr/bin/env bash
# Changes the code in about two thousand places, one at a time, and checks that a test fails for each change.
#
# Usage: scripts/mutants.sh     (needs cargo-mutants and cargo-nextest; .cargo/mutants.toml lists the changes left
#                                out and why)
#
# Each pass builds and runs some of the tests until one fails, the fastest first. The changes that it misses are
# tried again in the next pass. Exits 1 if all tests miss a change.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/mutants.out
rm -rf "$out"

# pass ALL SECONDS TESTS...: tries the remaining changes. Unless ALL is true, only the tests of the package that is
# changed are built and run. SECONDS is a timeout, several times what the tests need.
pass() {
    local all=$1 seconds=$2 status=0
    # A test that fails because the machine is busy passes when it is run again, and then counts as passed.
    local options=(--test-threads=16 --retries=1 --max-fail=1:immediate)
    shift 2
    # If the tests failed without a change, all changes would count as noticed. cargo-mutants itself would run only
    # the tests of the packages whose changes remain.
    "${CARGO:-cargo}" nextest run --workspace --cargo-profile=mutants "$@" "${options[@]}"
    "${CARGO:-cargo}" mutants --workspace --test-workspace="$all" --baseline=skip --iterate --jobs 2 \
        --output target --test-tool=nextest --timeout "$seconds" "${@/#/--cargo-arg=}" \
        -- "${options[@]}" || status=$?
    # Exit code 2 means that changes were missed, 3 that tests timed out. A timeout counts as a failed test.
    ((status == 0 || status == 2 || status == 3)) || exit "$status"
    cat "$out/timeout.txt" >>"$out/caught.txt"
}

pass false 30 --lib
pass true 30 --lib
pass true 120 --test=api --test=service
pass true 60 --test=connection
pass true 300 --test=hostile

missed=$(wc -l <"$out/missed.txt")
echo "changes that no test noticed: $missed"
((missed == 0))
