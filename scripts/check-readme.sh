#!/usr/bin/env bash
# Checks the README: that it has at most 160 lines, that the files and `make` targets that it names exist, and,
# with scripts/check-lesson.sh, that every command prints the output that it shows.
# Usage: scripts/check-readme.sh
# Takes a minute and needs ports 8080 and 9090. Prints a line per check and exits 1 at the first that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

# The commands that are not run here, each with the `make` target that does the same. Every other command is.
elsewhere='
check-dist        git clone https://github.com/*/tiny-probe && cd tiny-probe
check-image       docker build -t app:metrics .
check-image       docker run -d -p 8080:8080 --name=app-metrics --read-only --cap-drop ALL --memory 16m -e MAX_CONNECTIONS=1000 app:metrics
check-image       docker stop app-metrics && docker rm app-metrics
check-kubernetes  kubectl apply -k deploy/kubernetes
'

failed() {
    printf 'FAILED  %s\n' "$*" >&2
    exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM

lines=$(wc -l <README.md)
[ "$lines" -le 160 ] || failed "README.md has $lines lines, expected at most 160"
echo "ok      $lines lines"

# The markup that check-lesson.sh does not read would hide commands.
if grep -n -e '^    ' -e $'^\t' -e '^```[a-z]' README.md | grep -v ':```console$'; then
    failed "README.md has an indented block or one of another language; commands belong in \`\`\`console blocks"
fi

while read -r target; do
    grep -q "^$target:" Makefile || failed "README.md names \`make $target\`, and the Makefile has no such target"
done < <(grep -oE '\bmake [a-z][a-z-]*' README.md | cut -d' ' -f2 | sort -u)
echo "ok      the Makefile has every target that README.md names"

while read -r file; do
    [ -e "$file" ] || failed "README.md links to $file, which does not exist"
done < <(grep -oE '\]\([^):#]+' README.md | cut -c3-)
echo "ok      every file that README.md links to exists"

cp README.md "$scratch/README.md"
while read -r target command; do
    [ -n "$target" ] || continue
    grep -q "make .*$target" .ci/run || failed "no check runs \`make $target\`, which is listed here for: $command"
    found=false
    while IFS= read -r line; do
        # shellcheck disable=SC2053  # The right side is a pattern.
        if [[ $line == "\$ "$command ]]; then found=true; else printf '%s\n' "$line"; fi
    done <"$scratch/README.md" >"$scratch/rest"
    $found || failed "README.md does not have this command, which is listed here: $command"
    mv "$scratch/rest" "$scratch/README.md"
    printf 'ok      %s: run by make %s\n' "$command" "$target"
done <<<"$elsewhere"

# In a `make` that another one started, each prints the folder that it enters.
unset MAKEFLAGS MAKELEVEL
scripts/check-lesson.sh "$scratch/README.md" | while IFS= read -r line; do
    printf '%s\n' "${line/ of the lesson/ of README.md that are not listed above}"
done
