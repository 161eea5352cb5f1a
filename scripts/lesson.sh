# Functions that docs/lesson.md uses. To define them in your shell: . scripts/lesson.sh
# shellcheck shell=sh

# increase TEXT: prints by how much each series whose line begins with TEXT has grown from the exposition in the file
# `before` to the one in the file `after`. Series that did not change are left out.
increase() {
    awk -v text="$1" '
        index($0, text) != 1 { next }              # Not one of these series.
        NR == FNR { old[$1] = $2; next }           # In the first file: remember its value.
        $2 > old[$1] { print $1, $2 - old[$1] }    # In the second file: print the difference.
    ' before after
}

# ask QUERY: sends a query to Prometheus. Prints a line per series: its name and labels, its value, the time.
ask() {
    promtool query instant http://localhost:9090 "$1" | sed '/^$/d' | sort
}

# await QUERY: repeats a query every second until it has a result, for at most two minutes.
await() {
    started=$(date +%s) dots=
    while :; do
        result=$(ask "$1")
        seconds=$(($(date +%s) - started))
        if [ -n "$result" ]; then break; fi
        if [ "$seconds" -ge 120 ]; then
            printf '\ntimed out: within %d s, Prometheus had no result for %s\n' "$seconds" "$1" >&2
            return 1
        fi
        printf '.' >&2 && dots=printed
        sleep 1
    done
    if [ -n "$dots" ]; then printf ' after %d s\n' "$seconds" >&2; fi
    printf '%s\n' "$result"
}
