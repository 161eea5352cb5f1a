#!/bin/sh
# Checks that a binary can run in a scratch image: static, position independent, stripped.
# On ARM it need not be position independent, because rustc does not support that for static binaries.
# Usage: scripts/check-static.sh BINARY
set -eu

binary=$1

# check NAME COMMAND [ARGUMENT...]: fails unless the command succeeds
check() {
    name=$1
    shift
    "$@" || {
        printf 'FAILED  %s is not %s\n' "$binary" "$name" >&2
        exit 1
    }
    printf 'ok      %s\n' "$name"
}

# is PATTERN, is_not PATTERN: succeeds if the output of readelf matches, or does not match
is() { readelf --wide --file-header --program-headers --dynamic --section-headers "$binary" | grep "$1" >/dev/null; }
is_not() { ! is "$1"; }

is '^ *Machine: *AArch64' || check "position independent" is '^ *Type: *DYN '
check "static: no interpreter" is_not ' INTERP '
check "static: no library" is_not '(NEEDED)'
check "stripped" is_not ' \.symtab '
