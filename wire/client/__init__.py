"""A client of an engine, or of several, on asyncio or uvloop. The only place in wire/ with a socket.

    Client    the verbs: what a program calls
    Exchange  calls: each is sent, retried, and settled by an answer, an error or its deadline
    Lanes     the way to each worker of the engine in use; moving to another engine
    Link      one connection: bytes between a transport and a Dialogue

What to do is decided elsewhere, without I/O: `wire/dialogue.py` reads and writes
the bytes, `wire/retry.py` says whether, when and where to try again. Here are the
sockets and the timers. A call is on a link, in a lane's queue while that connects,
or waiting for its next try; it never needs a task of its own.

    async with Client("127.0.0.1:7070") as client:
        await client.post(NewTask("t1", TaskHead("url"), ("https://example.com/a",)))
        print(await client.wait("t1"))
"""

from wire.client.client import TIMEOUT_S, WATCH_TIMEOUT_S, Client, Outcome

__all__ = ["TIMEOUT_S", "WATCH_TIMEOUT_S", "Client", "Outcome"]
