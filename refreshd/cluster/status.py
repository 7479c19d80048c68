"""How the cluster stands, as one engine sees it: what `refreshctl cluster` shows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from refreshd.cluster.snapshot import Entry, Snapshot
from refreshd.cluster.truth import EngineRow


class EngineStatus(msgspec.Struct, frozen=True):
    """One engine, by Redis and by SQL; each may know it without the other."""

    id: str
    number: int = 0
    epoch: int = 0
    """By SQL, or by its lease where SQL does not know it."""
    alive: bool | None = None
    """By SQL; None: not known there."""
    leads: bool = False
    lease_ms: int = 0
    """Left of its lease; 0: it has none."""
    lag_ms: int | None = None
    """Since it renewed; None: it has no lease."""
    address: str = ""
    workers: int = 0
    release: str = ""
    unfinished: int = 0
    draining: bool = False


class ClusterStatus(msgspec.Struct, frozen=True):
    """The cluster, as the engine `id` sees it."""

    cluster: str
    id: str
    state: str
    """follower, candidate or leader."""
    leader: str
    """Id of the engine that leads, "": nobody does."""
    leader_epoch: int
    """0: not known yet."""
    lead_ms: int
    """How long this engine may act as leader before it must have renewed; 0: it does not lead."""
    watched_ms: int
    """How long this engine has watched the registry without a break: after a lease's time it may fence."""
    redis_error: str
    """"": Redis answers."""
    store_error: str
    """"": SQL answered the coordinator's last question."""
    fenced: int
    """Engines that this process fenced."""
    handed_out: int
    """Tasks that this process gave to others."""
    conflict: bool
    """Another engine registers under this one's id."""
    engines: tuple[EngineStatus, ...]
    """By number."""


def engines_of(
    snapshot: Snapshot, rows: Sequence[EngineRow], *, lease_ms: int, now_ms: int
) -> tuple[EngineStatus, ...]:
    """One for each engine that Redis or SQL knows."""
    age_ms = now_ms - snapshot.at_ms
    rows_by_name = {row.name: row for row in rows}
    leased = [_leased(entry, rows_by_name, snapshot, lease_ms, age_ms) for entry in snapshot.engines]
    seen = {status.id for status in leased}
    others = [
        EngineStatus(row.name, row.number, row.epoch, row.alive, leads=row.name == snapshot.leader_id)
        for row in rows
        if row.name not in seen
    ]
    return tuple(sorted([*leased, *others], key=lambda status: (status.number, status.id)))


def _leased(
    entry: Entry, rows: dict[str, EngineRow], snapshot: Snapshot, lease_ms: int, age_ms: int
) -> EngineStatus:
    advert = entry.advert
    row = rows.get(advert.id)
    remaining_ms = max(entry.remaining_ms - age_ms, 0)
    return EngineStatus(
        id=advert.id,
        number=advert.number,
        epoch=advert.epoch if row is None else row.epoch,
        alive=None if row is None else row.alive,
        leads=advert.id == snapshot.leader_id,
        lease_ms=remaining_ms,
        lag_ms=max(lease_ms - entry.remaining_ms, 0) + age_ms,
        address=advert.address,
        workers=advert.workers,
        release=advert.release,
        unfinished=advert.unfinished,
        draining=advert.draining,
    )
