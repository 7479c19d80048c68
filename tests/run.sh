#!/usr/bin/env bash
# run.sh PYTHON [PYTEST_ARG…]: all tests, or those the arguments choose (paths, -k; not -m); none is run twice.
# First what may share the CPUs, two at a time, then what is marked `alone` (setup.cfg). Both must pass.
# The closing lines of both are the last two lines.
set -uo pipefail
python=$1
shift
said=$(mktemp)
trap 'rm -f "$said"' EXIT
[ -t 1 ] && set -- --color=yes "$@"

status=5 # pytest's own word for: no test was chosen
closing=()
half() {
    local result
    "$python" -m pytest "$@" | tee "$said"
    result=${PIPESTATUS[0]}
    closing+=("$(tail -n 1 "$said")")
    # Interrupted, or told of arguments that make no sense: the other half would hear the same.
    [ "$result" -ge 2 ] && [ "$result" -ne 5 ] && exit "$result"
    if [ "$result" -ne 5 ] && [ "$status" -ne 1 ]; then status=$result; fi
}

half --numprocesses=2 --dist=loadfile -m 'not alone' "$@"
half -m alone "$@"
printf '%s\n' '' "${closing[@]}"
exit "$status"
