"""Addresses as they stand in the configuration and in `!drain to=`."""

from __future__ import annotations


def parse_address(text: str) -> tuple[str, int] | None:
    """HOST:PORT, an IPv6 address in brackets; None if it is not that."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return (host, int(port)) if host and host.isprintable() and " " not in host else None


def format_address(address: tuple[str, int]) -> str:
    """The inverse of `parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
