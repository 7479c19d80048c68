"""A visitor of a cache: sends bytes as they stand, so that no library touches a URL."""

from __future__ import annotations

import http.client
import socket
from typing import NamedTuple

from tests.proxyd.rig import split_address

TIMEOUT_S = 15.0


class Answer(NamedTuple):
    """What came back; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def ask(address: str, method: str, host: str, path: str, headers: str = "") -> Answer:
    """One request on a connection of its own. `headers` are whole lines."""
    with socket.create_connection(split_address(address), timeout=TIMEOUT_S) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode("latin-1"))
        response = http.client.HTTPResponse(sock, method=method)
        response.begin()
        body = response.read()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def get(address: str, host: str, path: str) -> Answer:
    """A visitor's GET."""
    return ask(address, "GET", host, path)
