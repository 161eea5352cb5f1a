#!/bin/sh
# Checks that a binary is what goes into a scratch image: static, position independent, stripped.
# On ARM a static binary is not position independent: rustc does not make such.
# Usage: scripts/check-static.sh BINARY
set -eu

binary=$1

# check NAME COMMAND [ARGUMENT...]
check() {
    name=$1
    shift
    "$@" || {
        printf 'FAILED  %s is not %s\n' "$binary" "$name" >&2
        exit 1
    }
    printf 'ok      %s\n' "$name"
}

# is PATTERN, is_not PATTERN: what readelf says
is() { readelf --wide --file-header --program-headers --dynamic --section-headers "$binary" | grep "$1" >/dev/null; }
is_not() { ! is "$1"; }

is '^ *Machine: *AArch64' || check "position independent" is '^ *Type: *DYN '
check "static: no interpreter" is_not ' INTERP '
check "static: no library" is_not '(NEEDED)'
check "stripped" is_not ' \.symtab '
