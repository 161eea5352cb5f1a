#!/usr/bin/env bash
# Checks the lesson: runs every command of docs/lesson.md in order and compares its output with the
# output that the text shows.
# Usage: scripts/check-lesson.sh [FILE]
# SLOW=1 waits three seconds before each command, as a person does.
# Takes three minutes, with SLOW=1 seven. Needs ports 8000, 8080 and 9090, Go, and PyPI. Prints a line per command
# and exits 1 at the first command whose output differs.
#
# In a ```console block, a line that starts with "$ " is a command, and the lines after it are its
# expected output. In the output, "…" matches any text within a line; a line that consists of "…"
# matches any number of lines. Three comments are instructions:
# <!-- terminal: NAME --> before a block runs its command in a terminal of its own. A second command for the same
#     terminal interrupts the first one with Ctrl-C.
# <!-- interrupt: NAME --> presses Ctrl-C in that terminal.
# <!-- file: NAME --> before a block of another language writes that block to a file.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
lesson=${1:-$root/docs/lesson.md}
scratch=$(mktemp -d)
declare -A terminals=()

# shellcheck disable=SC2046  # Each job is a separate word.
finish() {
    for name in "${!terminals[@]}"; do interrupt "$name"; done
    # End the background jobs that the lesson started.
    kill $(jobs -p) 2>/dev/null
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 1' INT TERM

# interrupt NAME: presses Ctrl-C in that terminal. Fails if its command does not end.
interrupt() {
    local group=${terminals[$1]} signal deadline ended_by=
    unset "terminals[$1]"
    for signal in INT TERM KILL; do
        kill "-$signal" -- "-$group" 2>/dev/null
        deadline=$((SECONDS + 10))
        while kill -0 "$group" 2>/dev/null && ((SECONDS <= deadline)); do sleep 0.1; done
        if ! kill -0 "$group" 2>/dev/null; then
            ended_by=$signal
            break
        fi
    done
    if [ "$ended_by" != INT ]; then
        echo "timed out: Ctrl-C did not end the command in the terminal \"$1\" within 10 s" >&2
        return 1
    fi
}

# watch: ends this script if a command takes longer than $limit seconds. Bash handles a signal only after the
# child that it waits for has ended, so the children are signaled as well.
watch() {
    local deadline command
    while sleep 1; do
        read -r deadline command 2>/dev/null <"$scratch/deadline" || continue
        if ((SECONDS > deadline)); then
            printf 'FAILED  %s\n\ntimed out: it did not end within %d s\n' "$command" "$limit" >&2
            kill $$
            pkill -TERM -P $$
            return
        fi
    done
}

# The time limit of a command in seconds. The slowest ones wait for an alert or compile the tests.
limit=900
# In a pipeline, curl is not a child of this shell, so the signal from `watch` would not reach it.
curl() { command curl --max-time 60 "$@"; }

# matches EXPECTED ACTUAL: succeeds if the lines of one file match those of the other. Otherwise sets
# `missing` to the first expected line that was not found.
matches() {
    local -a expected=() actual=()
    mapfile -t expected <"$1"
    mapfile -t actual <"$2"
    local at=0 may_skip=false line pattern
    for line in "${expected[@]}"; do
        if [ "$line" = … ]; then
            may_skip=true
            continue
        fi
        pattern=${line//\\/\\\\}
        pattern=${pattern//\*/\\*}
        pattern=${pattern//\?/\\?}
        pattern=${pattern//[/\\[}
        pattern=${pattern//…/*}
        while :; do
            ((at < ${#actual[@]})) || { missing=$line; return 1; }
            # shellcheck disable=SC2053  # The right side is a pattern.
            if [[ ${actual[at++]} == $pattern ]]; then break; fi
            $may_skip || { missing=$line; return 1; }
        done
        may_skip=false
    done
    if ! $may_skip && ((at < ${#actual[@]})); then
        missing='(end of the output)'
        return 1
    fi
}

# run COMMAND TERMINAL: runs a command and compares its output with $scratch/expected.
run() {
    local missing='' waited=''
    if [ -n "${SLOW:-}" ]; then sleep 3; fi
    if [ -n "$2" ]; then
        if [ -n "${terminals[$2]:-}" ]; then interrupt "$2" || exit 1; fi
        : >"$scratch/actual.$2"
        set -m
        # If this script was started with SIGINT ignored, its children would ignore it as well.
        env --default-signal=INT bash -c "$1" >"$scratch/actual.$2" 2>&1 </dev/null &
        terminals[$2]=$!
        set +m
        local deadline=$((SECONDS + limit))
        until matches "$scratch/expected" "$scratch/actual.$2"; do
            if ((SECONDS > deadline)); then
                waited="timed out: in $limit s, it did not print what is expected"
                break
            elif ! kill -0 "${terminals[$2]}" 2>/dev/null; then
                waited='it ended before it had printed what is expected'
                break
            fi
            sleep 0.2
        done
        cp "$scratch/actual.$2" "$scratch/actual"
    else
        # In this shell, so that later commands see the functions and variables that it defines.
        echo "$((SECONDS + limit)) $1" >"$scratch/deadline"
        eval "$1" >"$scratch/actual" 2>&1 </dev/null
        : >"$scratch/deadline"
    fi
    if ! matches "$scratch/expected" "$scratch/actual"; then
        printf 'FAILED  %s\n\n%sdid not find this line: %s\n\nexpected output:\n' \
            "$1" "${waited:+$waited; }" "$missing" >&2
        cat "$scratch/expected" >&2
        printf '\nactual output:\n' >&2
        cat "$scratch/actual" >&2
        exit 1
    fi
    printf '%4d s  %s\n' "$SECONDS" "$1"
}

# The lesson changes the sources, so it runs in a copy with a target folder of its own. The files have the time of
# this run. Otherwise cargo would reuse what the last run built from the changed sources.
mkdir "$scratch/tiny-probe"
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from - --ignore-failed-read 2>/dev/null) |
    tar --extract --touch --directory "$scratch/tiny-probe"
cd "$scratch/tiny-probe" || exit 1
git init --quiet .
git add .
git -c user.name=lesson -c user.email=lesson@localhost commit --quiet --message 'The lesson'
if ! { docs/lesson-pictures.py && git diff --exit-code -- docs; }; then
    echo 'FAILED  the pictures differ from what docs/lesson-pictures.py draws' >&2
    exit 1
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}/lesson"

# Debian installs the client library outside of Go's modules. Where it is installed, use it, because the module
# proxy may be out of reach.
if [ -d /usr/share/gocode/src/github.com/prometheus/client_golang ]; then
    export GO111MODULE=off GOPATH=/usr/share/gocode
    go() { [ "$1" = mod ] || command go "$@"; }
fi

: >"$scratch/deadline"
watch &
command='' terminal='' next_terminal='' in_block=false file='' in_file=false commands=0
while IFS= read -r line <&3; do
    if $in_file; then
        if [ "$line" = '```' ]; then in_file=false file=''; else printf '%s\n' "$line" >>"$file"; fi
        continue
    fi
    case $line in
    '<!-- interrupt: '*)
        name=${line#<!-- interrupt: } name=${name% -->}
        interrupt "$name" || exit 1
        ;;
    '<!-- file: '*) file=${line#<!-- file: } file=${file% -->} ;;
    '<!-- terminal: '*) next_terminal=${line#<!-- terminal: } next_terminal=${next_terminal% -->} ;;
    '```console') in_block=true terminal=$next_terminal next_terminal='' ;;
    '```'[a-z]*) if [ -n "$file" ]; then in_file=true && : >"$file"; fi ;;
    '```' | '$ '*)
        if $in_block; then
            if [ -n "$command" ]; then
                run "$command" "$terminal"
                commands=$((commands + 1))
            fi
            command='' && : >"$scratch/expected"
            if [ "$line" = '```' ]; then in_block=false; else command=${line#\$ }; fi
        fi
        ;;
    *) if $in_block; then printf '%s\n' "$line" >>"$scratch/expected"; fi ;;
    esac
done 3<"$lesson"
((commands > 0)) || { echo "FAILED  found no command in $lesson" >&2 && exit 1; }
printf 'ok      all %d commands of the lesson, in %d s\n' "$commands" "$SECONDS"
