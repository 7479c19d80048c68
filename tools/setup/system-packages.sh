#!/usr/bin/env bash
# system-packages.sh PROGRAM:PACKAGE...: install, as Debian packages, the programs that are missing
# ("-" as PROGRAM: install without looking; a path, in which * may stand: a file).
#
# Needs root or a sudo that asks nothing. No daemon is started. What cannot be installed is named in one line;
# the exit is then 0, for tests that need it skip themselves, or 1 if CI=true, where nothing may be skipped.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
limit_s=600 # for each call of apt-get

is_there() {
    case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

missing() { # the PROGRAM:PACKAGE pairs of which the program is not there
    local pair
    for pair in "$@"; do
        is_there "${pair%%:*}" || echo "$pair"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive timeout "$limit_s" apt-get -qq \
        -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# Packages of daemons start them when installed; policy-rc.d is Debian's way to say no. One that is there is left alone.
policy=/usr/sbin/policy-rc.d
forbid_daemons() {
    if [ -e "$policy" ]; then return; fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f "$policy"' EXIT
}

# One call a package, so that one that is not to be had takes no other with it.
install_packages() {
    local package
    forbid_daemons
    apt update >/dev/null || echo "setup: apt-get update failed" >&2
    for package in "$@"; do
        apt install -y --no-install-recommends "$package" >/dev/null || echo "setup: cannot install $package" >&2
    done
}

mapfile -t wanted < <(missing "$@")
[ "${#wanted[@]}" -gt 0 ] || exit 0

if may_install; then
    echo "setup: installing ${wanted[*]#*:}"
    install_packages "${wanted[@]#*:}"
else
    echo "setup: no apt-get, or neither root nor a sudo without a password" >&2
fi

lacking=0
for pair in $(missing "${wanted[@]}"); do
    if [ "${pair%%:*}" = - ]; then continue; fi
    lacking=1
    echo "setup: MISSING ${pair%%:*} (package ${pair#*:}): what needs it is skipped" >&2
done
if [ "$lacking" = 1 ] && [ "${CI:-}" = true ]; then
    echo "setup: CI=true, so nothing may be skipped" >&2
    exit 1
fi
