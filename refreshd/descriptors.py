"""How many file descriptors a process may have open."""

from __future__ import annotations

import resource

# What a worker opens beside its connections: store, mesh, hand-over, links to proxies.
_SPARE = 1024


def make_room(connections: int) -> tuple[int, int]:
    """Raises this process's limit for so many connections, as far as it may.

    Shells and systemd give 1,024 and let the process take more; children inherit
    it. Returns what it is then, and what it was to be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted, wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed, wanted
