# For the other scripts: waits that end, and say what they waited for.
# shellcheck shell=sh

# wait_for_line SECONDS PID NAME LOG PATTERN: waits until a child of this shell has written a line. Shows
# what it wrote instead and fails if it has ended, or after that time.
wait_for_line() {
    deadline=$(($(date +%s) + $1))
    until grep -qs "$5" "$4"; do
        if [ "$(date +%s)" -ge "$deadline" ] || ! kill -0 "$2" 2>/dev/null; then
            cat "$4" >&2
            echo "waited in vain: $3 says \"$5\" within $1 s" >&2
            return 1
        fi
        sleep 0.05
    done
}

# end PID NAME: sends SIGTERM to a child of this shell, and SIGKILL if it has not ended after ten seconds.
end() {
    kill "$1" 2>/dev/null || true
    (sleep 10 && kill -KILL "$1") >/dev/null 2>&1 &
    limit=$!
    status=0
    wait "$1" 2>/dev/null || status=$?
    kill "$limit" 2>/dev/null || true
    if [ "$status" = 137 ]; then
        echo "waited in vain: $2 ends within 10 s of SIGTERM; killed it" >&2
    fi
}
