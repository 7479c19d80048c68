"""Among whom a task id stands for one task. Pure.

Engines that share a store share its ids, and say so: each greeting names the store (PROTOCOL.md, "Ids and
stores"). Of an engine that names none it is only known that an id means one task there while that task is in
hand: two engines that know nothing of each other may use one id for two tasks, or for the same work asked for
twice, and what was done for one was not done for the other.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

# Stands in front of the id of each task in hand. Nobody chooses stores' names to make two of them meet.
MARK_BYTES = 8


class Scope(NamedTuple):
    """`mark` stands for it in keys; it is the same in every process.

    `engine` and `store` are what the greeting said; `store` is empty where it said none.
    """

    mark: bytes
    engine: str
    store: str


UNKNOWN = Scope(bytes(MARK_BYTES), "", "")
"""Of a link that has not greeted yet."""


def scope_of(engine: str, store: str, address: str) -> Scope:
    """The scope of what an engine pushes that is linked as `address` and greeted with these."""
    text = f"store {store}" if store else f"engine {engine} {address}"
    return Scope(hashlib.blake2b(text.encode(), digest_size=MARK_BYTES).digest(), engine, store)
