"""Sockets between two workers: a stream for the mesh, and one for packets with connections.

The master makes each pair, sends the ends to the two workers and keeps none.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# The descriptors that one of the two gets: [mesh stream, packets].
Ends = tuple[int, int]


@contextmanager
def pairs() -> Iterator[tuple[Ends, Ends]]:
    """What the one gets and what the other gets, open until the end of the `with`. Raises: OSError."""
    with ExitStack() as stack:
        ends: list[tuple[int, int]] = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            stack.enter_context(one)
            stack.enter_context(other)
            ends.append((one.fileno(), other.fileno()))
        (stream, stream_too), (packets, packets_too) = ends
        yield (stream, packets), (stream_too, packets_too)
