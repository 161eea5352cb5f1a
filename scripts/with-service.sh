#!/bin/sh
# Starts the built binary on a free port, runs a command with its URL in BASE_URL, and stops the binary.
# Usage: scripts/with-service.sh COMMAND [ARGUMENT...]      (settings as environment variables)
# PROGRAM is the binary (default: target/release/tiny-probe). RUNNER is an emulator, for a binary of
# another architecture.
set -eu
# shellcheck source=/dev/null
. "$(dirname "$0")/waits.sh"

program=${PROGRAM:-target/release/tiny-probe}
log=$(mktemp)
# shellcheck disable=SC2086 # The runner can have options.
LISTEN=127.0.0.1:0 ${RUNNER:-} "$program" 2>"$log" &
service=$!
trap 'end "$service" "the service"; rm -f "$log"' EXIT
trap 'exit 1' INT TERM

wait_for_line 30 "$service" "the service" "$log" ' on http://'
BASE_URL=$(sed -n 's/.* on \(http:.*\)/\1/p' "$log")
export BASE_URL
"$@"
