"""Asks who an engine is, without greeting it as the proxy that this agent is.

An engine that another one names may be linked already, by another name of its machine. Greeted as a proxy
it would close the links that it has, for a new connection replaces the old one; a client's replaces nothing.
"""

from __future__ import annotations

import asyncio

from proxyd.errors import LinkBroken, LinkRefused
from proxyd.link import LinkSettings, sign
from proxyd.session import Greeted, read_greeted
from wire import PROTOCOL_VERSION
from wire.errors import BadLine
from wire.lines import format_line, parse, read_refused

# An answer to a hello has a hundred bytes.
ANSWER_MAX_BYTES = 4096


async def ask_who(address: tuple[str, int], settings: LinkSettings, within_s: float) -> Greeted:
    """What the engine at an address says of itself.

    Raises: LinkRefused if it takes no client with this key; LinkBroken, OSError, TimeoutError.
    """
    hello: dict[str, str | int | float | None] = {"v": PROTOCOL_VERSION, "role": "client"}
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(*address, limit=ANSWER_MAX_BYTES)
        try:
            writer.write(format_line("hello", hello | (sign(settings, "client") or {})))
            return _read(await reader.readline())
        except ValueError:
            raise LinkBroken("the engine's answer to the hello is too long") from None
        finally:
            writer.close()


def _read(raw: bytes) -> Greeted:
    if not raw.endswith(b"\n"):
        raise LinkBroken("the engine closed the connection before it answered the hello")
    try:
        line = parse(raw.rstrip(b"\r\n"))
    except BadLine as error:
        raise LinkBroken(f"the engine does not speak the protocol: {error}") from None
    if line.verb == "err":
        raise LinkRefused(str(read_refused(line)))
    if line.verb != "ok":
        raise LinkBroken(f"the engine sent {line.verb!r} where it was greeted")
    return read_greeted(line.fields)
