"""One question to an engine, where speed does not matter."""

from __future__ import annotations

import asyncio
from pathlib import Path

DEADLINE_S = 10.0


async def ask(address: tuple[str, int] | Path, line: bytes) -> list[bytes]:
    """The reply, and the rows when it is a listing. Raises: OSError; TimeoutError is one."""
    async with asyncio.timeout(DEADLINE_S):
        if isinstance(address, Path):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(line + b"\n")
            reply = await reader.readline()
            if not reply:
                raise ConnectionResetError("closed before it answered")
            number = int(reply.split(b" n=")[1]) if reply.startswith(b"ok n=") else 0
            return [reply, *[await reader.readline() for _ in range(number)]]
        finally:
            writer.close()
