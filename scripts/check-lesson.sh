#!/usr/bin/env bash
# Takes the lesson as its reader does: types every command of docs/lesson.md in order, and compares
# what comes with what the text shows.
# Usage: scripts/check-lesson.sh [FILE]
# Takes three minutes. Port 8080 and 9090 must be free. Prints a line per command; exits 1 at the first that
# shows something else.
#
# In a ```console block a line that starts with "$ " is a command, and the others behind it are what it
# prints. There "…" stands for anything within a line, and alone for any number of lines.
# "<!-- terminal: NAME -->" before a block: its command goes on in a terminal of its own; another
# command there is typed after Ctrl-C.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
lesson=${1:-$root/docs/lesson.md}
scratch=$(mktemp -d)
declare -A terminals=()

# shellcheck disable=SC2046  # Each job is a word.
finish() {
    for name in "${!terminals[@]}"; do interrupt "$name"; done
    # What the lesson has left in the background.
    kill $(jobs -p) 2>/dev/null
    rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 1' INT TERM

# interrupt NAME: Ctrl-C in that terminal. Fails if that does not end its command.
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
        echo "waited in vain: Ctrl-C ends what runs in the terminal \"$1\" within 10 s" >&2
        return 1
    fi
}

# watch: ends this script if a command that is typed here takes too long. Bash handles the signal only
# when the child that it waits for has ended, so the children get one, too.
watch() {
    local deadline command
    while sleep 1; do
        read -r deadline command 2>/dev/null <"$scratch/deadline" || continue
        if ((SECONDS > deadline)); then
            printf 'FAILED  %s\n\nwaited in vain: it ends within %d s\n' "$command" "$limit" >&2
            kill $$
            pkill -TERM -P $$
            return
        fi
    done
}

# Seconds for one command. The longest wait for an alert, or build the tests.
limit=300
# Within a pipeline it is no child of this shell, and the signal above would miss it.
curl() { command curl --max-time 60 "$@"; }

# shows EXPECTED PRINTED: whether a file has the lines of another, "…" aside.
shows() {
    local -a expected=() printed=()
    mapfile -t expected <"$1"
    mapfile -t printed <"$2"
    local at=0 any=false line pattern
    for line in "${expected[@]}"; do
        if [ "$line" = … ]; then
            any=true
            continue
        fi
        pattern=${line//\\/\\\\}
        pattern=${pattern//\*/\\*}
        pattern=${pattern//\?/\\?}
        pattern=${pattern//[/\\[}
        pattern=${pattern//…/*}
        while :; do
            ((at < ${#printed[@]})) || { missing=$line; return 1; }
            # shellcheck disable=SC2053  # It is a pattern.
            if [[ ${printed[at++]} == $pattern ]]; then break; fi
            $any || { missing=$line; return 1; }
        done
        any=false
    done
    if ! $any && ((at < ${#printed[@]})); then
        missing='(nothing more)'
        return 1
    fi
}

# take COMMAND TERMINAL: types a command and compares what it prints with $scratch/expected.
take() {
    local missing=
    if [ -n "$2" ]; then
        if [ -n "${terminals[$2]:-}" ]; then interrupt "$2" || exit 1; fi
        : >"$scratch/printed.$2"
        set -m
        # A shell in the background may have been started with SIGINT ignored, and so would its children.
        env --default-signal=INT bash -c "$1" >"$scratch/printed.$2" 2>&1 </dev/null &
        terminals[$2]=$!
        set +m
        local deadline=$((SECONDS + limit))
        until shows "$scratch/expected" "$scratch/printed.$2"; do
            if ((SECONDS > deadline)) || ! kill -0 "${terminals[$2]}" 2>/dev/null; then break; fi
            sleep 0.2
        done
        cp "$scratch/printed.$2" "$scratch/printed"
    else
        # Here, so that what it sets is set for the next.
        echo "$((SECONDS + limit)) $1" >"$scratch/deadline"
        eval "$1" >"$scratch/printed" 2>&1 </dev/null
        : >"$scratch/deadline"
    fi
    if ! shows "$scratch/expected" "$scratch/printed"; then
        printf 'FAILED  %s\n\nexpected this line: %s\n\nof:\n' "$1" "$missing" >&2
        cat "$scratch/expected" >&2
        printf '\nfound:\n' >&2
        cat "$scratch/printed" >&2
        exit 1
    fi
    printf 'ok      %s\n' "$1"
}

# The lesson changes the sources: it is taken on a copy, built where everything else is.
mkdir "$scratch/tiny-probe"
(cd "$root" && git ls-files -z --cached --others --exclude-standard |
    tar --create --null --files-from - --ignore-failed-read 2>/dev/null) |
    tar --extract --directory "$scratch/tiny-probe"
cd "$scratch/tiny-probe" || exit 1
git init --quiet .
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}/lesson"

: >"$scratch/deadline"
watch &
command='' terminal='' next_terminal='' in_block=false commands=0
while IFS= read -r line <&3; do
    case $line in
    '<!-- terminal: '*) next_terminal=${line#<!-- terminal: } next_terminal=${next_terminal% -->} ;;
    '```console') in_block=true terminal=$next_terminal next_terminal='' ;;
    '```' | '$ '*)
        if $in_block; then
            if [ -n "$command" ]; then
                take "$command" "$terminal"
                commands=$((commands + 1))
            fi
            command='' && : >"$scratch/expected"
            if [ "$line" = '```' ]; then in_block=false; else command=${line#\$ }; fi
        fi
        ;;
    *) if $in_block; then printf '%s\n' "$line" >>"$scratch/expected"; fi ;;
    esac
done 3<"$lesson"
((commands > 0)) || { echo "FAILED  no command in $lesson" >&2 && exit 1; }
printf 'ok      all %d commands of the lesson\n' "$commands"
