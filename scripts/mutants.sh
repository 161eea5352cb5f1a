#!/usr/bin/env bash
# Changes the code in a thousand ways, one at a time, each of which a test has to notice.
#
# Usage: scripts/mutants.sh     needs cargo-mutants; .cargo/mutants.toml says what is left out, and why
#
# Each pass builds and runs one kind of tests, the quickest first; what it misses is for the next one.
# Exits 1 if a change was missed by all of them, and names it.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/mutants.out
rm -rf "$out"

# pass SECONDS TESTS: so long may the tests take, which is many times what they do.
pass() {
    local status=0
    "${CARGO:-cargo}" mutants --workspace --test-workspace=true --iterate --jobs 2 --output target \
        --timeout "$1" --cargo-arg="$2" || status=$?
    # 2 says that some were missed, 3 that a test waited in vain. Such a test has noticed.
    ((status == 0 || status == 2 || status == 3)) || exit "$status"
    cat "$out/timeout.txt" >>"$out/caught.txt"
}

pass 10 --lib
pass 20 --test=connection
pass 30 --test=api
pass 40 --test=service
pass 60 --test=hostile

missed=$(wc -l <"$out/missed.txt")
echo "$missed changes were missed by every test"
((missed == 0))
