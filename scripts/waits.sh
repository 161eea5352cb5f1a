# Functions for the other scripts that wait with a time limit and say what they waited for.
# shellcheck shell=sh

# wait_for_line SECONDS PID NAME LOG PATTERN: waits until a child of this shell has written a line that
# matches. If the child ends or the time is over, prints what it wrote and fails.
wait_for_line() {
    deadline=$(($(date +%s) + $1))
    until grep -qs "$5" "$4"; do
        if ! kill -0 "$2" 2>/dev/null; then
            cat "$4" >&2
            echo "failed: $3 ended before it printed \"$5\"" >&2
            return 1
        fi
        if [ "$(date +%s)" -ge "$deadline" ]; then
            cat "$4" >&2
            echo "timed out: $3 did not print \"$5\" within $1 s" >&2
            return 1
        fi
        sleep 0.05
    done
}

# end PID NAME: ends a child of this shell with SIGTERM, or with SIGKILL if it still runs ten seconds later.
end() {
    kill "$1" 2>/dev/null || true
    (sleep 10 && kill -KILL "$1") >/dev/null 2>&1 &
    limit=$!
    status=0
    wait "$1" 2>/dev/null || status=$?
    kill "$limit" 2>/dev/null || true
    if [ "$status" = 137 ]; then
        echo "timed out: $2 did not end within 10 s of SIGTERM and was killed" >&2
    fi
}
