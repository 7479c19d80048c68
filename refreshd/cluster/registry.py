"""Which engines there are, as Redis knows it: writing and reading of what `snapshot` describes."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
import structlog

from refreshd.cluster import clock
from refreshd.cluster.client import ClusterClient
from refreshd.cluster.lease import Timing
from refreshd.cluster.names import Names
from refreshd.cluster.scripts import GIVE_UP, READ, REGISTER
from refreshd.cluster.snapshot import ENGINES_MAX, Advert, Entry, Snapshot
from refreshd.errors import ClusterUnavailable

log = structlog.get_logger()

# Ids that are read at most: engines that are gone stay in the set for a while.
_READ_MAX = 4 * ENGINES_MAX
# An id leaves the set so many leases after its own has ended.
_FORGET_LEASES = 6


class Registry:
    """Reads and writes the registry of one cluster."""

    def __init__(
        self,
        client: ClusterClient,
        names: Names,
        timing: Timing,
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self._client = client
        self._names = names
        self._timing = timing
        self._now_ms = now_ms
        self._complained: dict[str, bytes] = {}
        """What was logged as unreadable, by id: once, not once a second."""

    async def register(self, advert: Advert) -> tuple[bool, Advert | None]:
        """Sets or renews this engine's lease.

        Returns whether it has it, and what stood there before (None: nothing that can
        be read). It has not if a later epoch of the engine is registered.
        Raises: ClusterUnavailable.
        """
        names, timing = self._names, self._timing
        done, held = await self._client.run(
            REGISTER,
            [names.engine(advert.id), names.engines, names.memory],
            msgspec.json.encode(advert),
            timing.lease_ms,
            advert.id,
            advert.epoch,
            secrets.token_hex(8),
            timing.memory_ms,
            _FORGET_LEASES * timing.lease_ms,
        )
        try:
            return bool(done), msgspec.json.decode(held, type=Advert)
        except msgspec.DecodeError:
            return bool(done), None

    async def give_up(self, advert: Advert) -> None:
        """This engine stops as planned: its lease ends now, unless another process has it by now.

        Raises: ClusterUnavailable.
        """
        names = self._names
        keys = [names.engine(advert.id), names.engines]
        await self._client.run(GIVE_UP, keys, advert.id, advert.epoch, advert.boot)

    async def read(self) -> Snapshot:
        """The registry as it is now. Raises: ClusterUnavailable."""
        names = self._names
        asked_ms = self._now_ms()
        keys = [names.engines, names.leader, names.memory]
        answer = await self._client.run(READ, keys, names.engine(""), _READ_MAX)
        try:
            return self._snapshot(answer, asked_ms)
        except (ValueError, TypeError) as error:
            got = repr(answer)[:200]
            raise ClusterUnavailable(f"Redis answered {got} for the registry: {error}") from None

    def _snapshot(self, answer: list[bytes | int], asked_ms: int) -> Snapshot:
        leader, memory, *rows = answer
        entries: list[Entry] = []
        unreadable: list[str] = []
        for key, text, remaining_ms in zip(rows[0::3], rows[1::3], rows[2::3], strict=True):
            engine_id = _text(key)
            advert = self._advert(engine_id, text)
            if advert is None:
                unreadable.append(engine_id)
            else:
                entries.append(Entry(advert, max(int(remaining_ms), 0)))
        return Snapshot(
            tuple(sorted(entries, key=lambda entry: (entry.advert.number, entry.advert.id))),
            tuple(unreadable),
            _text(leader),
            _text(memory),
            asked_ms,
        )

    def _advert(self, engine_id: str, text: bytes | int) -> Advert | None:
        raw = text if isinstance(text, bytes) else b"%d" % text
        try:
            advert = msgspec.json.decode(raw, type=Advert)
            if advert.id != engine_id:
                raise msgspec.ValidationError(f"it says that its id is {advert.id!r}")
        except msgspec.DecodeError as error:
            if self._complained.get(engine_id) != raw:
                if len(self._complained) >= _READ_MAX:
                    self._complained.clear()
                self._complained[engine_id] = raw
                log.error("an engine's entry cannot be read", of=engine_id, error=str(error), got=raw[:200])
            return None
        return advert

    def __repr__(self) -> str:
        return f"<Registry {self._names.prefix}>"


def _text(value: bytes | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
