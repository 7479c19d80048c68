"""One engine's membership in a database that engines share: `sharing.Shared` over mysql_engines."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from refreshd.mysql_url import MysqlUrl
from refreshd.store import mysql_engines as engines
from refreshd.store.base import ProxyRow
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_engines import Membership
from refreshd.store.mysql_rows import hexed
from refreshd.store.sharing import EngineRow, Handout

_SECRET_BYTES = 32


class MysqlShared:
    """See `sharing.Shared`. Two connections: what is looked at each second waits for no act of the leader."""

    def __init__(self, url: MysqlUrl, member: Membership) -> None:
        """Raises: StoreUnavailable, StoreFailed, StoreDamaged."""
        self.number, self.epoch = member
        self._member = member
        self._looking = Session(url)
        self._acting = Session(url)
        self.peers_secret = self._secret()

    def _secret(self) -> bytes:
        """The first engine makes it up."""
        made = hexed(secrets.token_bytes(_SECRET_BYTES))
        _, found = self._looking.query(
            b"INSERT IGNORE INTO peers VALUES (1, %b)" % made, b"SELECT secret FROM peers WHERE one=1"
        )
        return bytes(found.rows[0][0])

    def last_handout(self, before_ms: int | None) -> int:
        """See `Shared`."""
        return engines.last_handout(self._looking, before_ms)

    def look(self, after: int) -> list[Handout]:
        """See `Shared`."""
        (seen,) = self._looking.query(self._member.seen)
        self._member.check(seen)
        return engines.handouts(self._looking, self.number, after)

    def proxies(self) -> list[ProxyRow]:
        """See `Shared`."""
        return [
            ProxyRow(*row) for row in self._looking.read(b"SELECT name, grp, layer FROM proxy ORDER BY name")
        ]

    def claim_leadership(self) -> int:
        """See `Shared`."""
        (seen,) = self._acting.query(self._member.seen)
        self._member.check(seen)
        return engines.lead(self._acting, self.number)

    def engines(self) -> Sequence[EngineRow]:
        """See `Shared`."""
        return engines.engines(self._acting)

    def fence(self, leader_epoch: int, number: int) -> int | None:
        """See `Shared`."""
        return engines.fence(self._acting, leader_epoch, number)

    def hand_out(self, leader_epoch: int, number: int, fenced_epoch: int, to_number: int, limit: int) -> int:
        """See `Shared`."""
        now_ms = time.time_ns() // 1_000_000
        fenced = Membership(number, fenced_epoch)
        return engines.hand_out(self._acting, leader_epoch, fenced, to_number, now_ms, limit)
