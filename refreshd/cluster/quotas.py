"""Quotas over several engines, through Redis: every 5 s each tells the others what its keys use.

    engine ── one script: its own row in, all rows out ──► Redis
       └── what all have told ──► Dealer (shares.py) ──► owner.dealt(…)

A row says how much is so far, not how much more, and has the number of its round: the script may
run twice, late, or out of order, and nothing is counted twice. All of it can be lost: the
next round of each engine brings it back, but for what engines that are gone counted that day.

When Redis does not answer, each engine goes on with its last share.

Keys, all with an expiry:
    refreshd:{NAME}:quotas         hash, engine → "INCARNATION ROUND AT_MS {key: [demand, in flight, held]}"
    refreshd:{NAME}:quotas:DAY     hash, engine → {key: [[targets by type], [held by type]]}; DAY: of UTC
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
import redis
import redis.asyncio
import structlog

from refreshd.cluster.shares import Dealer, Told
from refreshd.limits import DEAL_MS, KINDS, Limits, Share, Spent

log = structlog.get_logger()

ROUND_S = DEAL_MS / 1000
# A round that takes longer is given up; the next one says the same, and more.
DEADLINE_S = 2.0
# An engine that has missed three rounds has no share.
SILENT_MS = 3 * DEAL_MS
_EXPIRY_MS = 12 * DEAL_MS
_DAY_EXPIRY_MS = 2 * 86_400_000

# KEYS: live rows, the day's rows. ARGV: engine, incarnation, round, live row, the day's row ("" to read
# only), after how many ms an engine is silent, and the two expiries. Returns live rows and the day's, flat.
SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local old = redis.call('HGET', KEYS[1], ARGV[1])
local incarnation, round = string.match(old or '', '^(%S+) (%d+) ')
if incarnation ~= ARGV[2] or tonumber(round) < tonumber(ARGV[3]) then
    local head = ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. string.format('%.0f', now) .. ' '
    redis.call('HSET', KEYS[1], ARGV[1], head .. ARGV[4])
    if ARGV[5] ~= '' then
        redis.call('HSET', KEYS[2], ARGV[1], ARGV[5])
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
local rows = redis.call('HGETALL', KEYS[1])
local live = {}
for i = 1, #rows, 2 do
    local at, row = string.match(rows[i + 1], '^%S+ %d+ (%d+) (.*)$')
    if at and now - tonumber(at) <= tonumber(ARGV[6]) then
        table.insert(live, rows[i])
        table.insert(live, row)
    else
        redis.call('HDEL', KEYS[1], rows[i])
    end
end
return {live, redis.call('HGETALL', KEYS[2])}
"""

Row = TypeVar("Row")
_live_rows = msgspec.json.Decoder(dict[str, tuple[int, int, int]])
Today = tuple[int, int, int, int, int]
_day_rows = msgspec.json.Decoder(dict[str, tuple[Today, Today]])
_NO_DAY = (0,) * KINDS


class QuotaOwner(Protocol):
    """What the rounds call back into: one worker of the engine."""

    def spent(self) -> Mapping[str, Spent]:
        """What all workers of this engine have counted, for each key."""

    def limits(self) -> Mapping[str, Limits]:
        """What the configuration says, for each key."""

    def dealt(self, shares: Mapping[str, Share]) -> None:
        """From now on this engine keeps to these."""

    def counted_before(self, key: str, day: int, today: tuple[int, ...]) -> None:
        """More that this engine counted on that day, in an earlier life."""


class SharedQuotas:
    """One engine's rounds. `client` must not repeat commands by itself; it stays its owner's to close."""

    def __init__(self, client: redis.asyncio.Redis, name: str, engine: str, owner: QuotaOwner) -> None:
        """`name` is the cluster's, `engine` this engine's."""
        self._owner = owner
        self._engine = engine
        self._prefix = f"refreshd:{{{name}}}:quotas"
        self._script = client.register_script(SCRIPT)
        self._incarnation = secrets.token_hex(6)
        self._dealer = Dealer(engine)
        self._round = 0
        self._has_heard = False
        """Whether it is known what the others, and an earlier life of this engine, have told."""
        self._away = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SharedQuotas {self._engine} round {self._round}{', Redis away' if self._away else ''}>"

    def start(self) -> None:
        """Begins; the first round is at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Ends. The others notice after SILENT_MS; what was dealt holds on here."""
        self._closing = True
        if self._task is not None:
            # The client makes a ConnectionError of it now and then: so this is not all that ends the rounds.
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while not self._closing:
            heard_before = self._has_heard
            try:
                await self.round()
            except Exception:
                # A fault of ours: the shares hold on, and the next round may do better.
                log.exception("a round of quotas failed")
            if not self._closing:
                # In the first one that is answered this engine only listens.
                await asyncio.sleep(ROUND_S if heard_before or not self._has_heard else 0)

    async def round(self) -> bool:
        """One round. Returns whether Redis answered; if not, the shares stay as they are."""
        spent, limits = self._owner.spent(), self._owner.limits()
        day = max((one.day for one in spent.values()), default=0)
        mine, kept = self._dealer.tell(spent, limits, asyncio.get_running_loop().time())
        self._owner.dealt(kept)
        self._round += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                live, days = await self._exchange(mine, day)
        except (redis.RedisError, OSError, TimeoutError) as error:
            if not self._away and not self._closing:
                log.warning("quotas are not shared, each engine keeps its part", error=repr(error))
            self._away = True
            return False
        if self._away:
            log.info("quotas are shared again")
        self._away = False
        told, gone, quiet = _read(live, days)
        if not self._has_heard:
            self._has_heard = True
            self._catch_up(mine, day, told.get(self._engine) or gone.get(self._engine) or {})
        gone.pop(self._engine, None)
        self._owner.dealt(self._dealer.deal(told, gone, limits, day, quiet))
        return True

    async def _exchange(self, mine: Mapping[str, Told], day: int) -> tuple[list[Any], list[Any]]:
        # A key that nobody uses here is not told of.
        live = {
            key: (one.demand_milli, one.in_flight, one.holds_in_flight)
            for key, one in mine.items()
            if one.demand_milli or one.holds_in_flight
        }
        days = {key: (one.today, one.holds_today) for key, one in mine.items() if any(one.holds_today)}
        keys = [self._prefix, f"{self._prefix}:{day}"]
        # Not before it is known what an earlier life had counted.
        day_row = msgspec.json.encode(days) if self._has_heard else b""
        head: list[bytes | str | int] = [self._engine, self._incarnation, self._round]
        rows = [msgspec.json.encode(live), day_row]
        live_rows, day_rows = await self._script(keys, [*head, *rows, SILENT_MS, _EXPIRY_MS, _DAY_EXPIRY_MS])
        return live_rows, day_rows

    def _catch_up(self, mine: Mapping[str, Told], day: int, known: Mapping[str, Told]) -> None:
        """After a start: of this day Redis may know more than the engine does."""
        for key, one in known.items():
            here = mine[key].today if key in mine else _NO_DAY
            more = tuple(max(there - counted, 0) for there, counted in zip(one.today, here, strict=True))
            if any(more):
                self._owner.counted_before(key, day, more)


Rows = dict[str, dict[str, Told]]
"""By engine and key."""


def _read(live: list[Any], days: list[Any]) -> tuple[Rows, Rows, frozenset[str]]:
    """What living engines tell, what those that are gone have told, and which told nothing of this day."""
    counted = {name: _decode(_day_rows, row) for name, row in _pairs(days)}
    told: Rows = {}
    quiet = set()
    for name, row in _pairs(live):
        if name not in counted:
            quiet.add(name)
        uses, today = _decode(_live_rows, row), counted.pop(name, {})
        told[name] = {
            key: Told(*uses.get(key, (0, 0, 0)), *today.get(key, (_NO_DAY, _NO_DAY)))
            for key in uses.keys() | today.keys()
        }
    gone = {name: {key: Told(today=one[0]) for key, one in keys.items()} for name, keys in counted.items()}
    return told, gone, frozenset(quiet)


def _decode(decoder: msgspec.json.Decoder[dict[str, Row]], row: bytes | str) -> dict[str, Row]:
    """What cannot be read is of an engine of another version, and counts as nothing."""
    try:
        return decoder.decode(row)
    except msgspec.DecodeError:
        return {}


def _pairs(flat: list[Any]) -> list[tuple[str, Any]]:
    """A flat list of fields and values, whether or not the client decodes them."""
    names = [name.decode() if isinstance(name, bytes) else name for name in flat[::2]]
    return list(zip(names, flat[1::2], strict=True))
