"""Where an engine listens: `HOST:PORT`, or `unix:PATH` (any address with a slash is a path)."""

from __future__ import annotations

from typing import NamedTuple

from wire.errors import LocalError


class Address(NamedTuple):
    """A place to connect to: a path, or else a host and a port."""

    host: str
    port: int
    path: str | None = None


def is_unix(text: str) -> bool:
    """Whether the address is a Unix socket's, where nobody greets."""
    return text.startswith("unix:") or "/" in text


def read_address(text: str) -> Address:
    """Reads `HOST:PORT`, `[IPV6]:PORT`, `unix:PATH` or a path. Raises: LocalError."""
    if is_unix(text):
        return Address("", 0, text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise LocalError(f"{text[:80]!r} is not an address; wanted HOST:PORT, or unix:PATH")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise LocalError(f"{text[:80]!r}: an IPv6 address stands in brackets, as in [::1]:7070")
    return Address(host.strip("[]"), int(port))
