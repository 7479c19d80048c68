"""What a socket says of itself."""

from __future__ import annotations

import socket


def address_of(sock: socket.socket) -> str:
    """Where a TCP socket listens, as HOST:PORT."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
