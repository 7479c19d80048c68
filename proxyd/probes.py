"""Whether a cache that nothing was heard of is there: asked before the next purge has to find out.

    closed, silent for `probe_every_s`  ──► GET `probe`, or only a connection ──► an error in a row, or none
    closed, and the last probe failed   ──► the same, after `retry_first_s`
    not closed, and nothing waits here  ──► the one request that the breaker lets through is a probe: it
    decides

While something waits at a breaker that is not closed, that is tried, not a probe: what a purge shows is worth
more. Without `probe` a cache that is closed is asked for nothing, as nobody knows what it may be asked for
that its origin does not hear of: that it takes connections (which a frozen one does) is no proof that it is
well, and counts for nothing; that it takes none is an error. One that is down is asked for OPTIONS *, which
comes seldom; whatever it answers, it is alive.

One connection a probe, one probe a cache at a time, and an end to each.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from proxyd.addresses import format_address
from proxyd.blame import Death
from proxyd.breaker import Breaker, Outcome, State
from proxyd.causes import Cause, cause_of_death, cause_of_error
from proxyd.local import LocalClient
from proxyd.pipeline import SERVER_ERROR
from proxyd.route import Lanes

# A probe is answered by the cache itself, without an origin: more than this is no health.
TIMEOUT_S = 2.0
# The head of an answer; the rest is not read.
HEAD_MAX_BYTES = 8192

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r\n]").match


class Finding(NamedTuple):
    """What a probe has found. `outcome` is None if it found nothing."""

    outcome: Outcome | None
    why: str = ""


class Prober:
    """Asks one cache. `look` is to be called a few times a second."""

    def __init__(self, lanes: Lanes, path: str) -> None:
        self.lanes = lanes
        self.path = path
        """What is asked for; empty: see above."""
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._failed = False

    @property
    def _breakers(self) -> list[Breaker]:
        """Of the lanes that send requests: the first of them says how the cache is."""
        lanes = self.lanes
        local = isinstance(lanes.fast, LocalClient)
        return [lanes.slow.breaker] if local else [lanes.fast.breaker, lanes.slow.breaker]

    def look(self, now: float) -> None:
        """Begins a probe where it is time for one."""
        every_s = self._breakers[0].settings.probe_every_s
        if not every_s or self._asking is not None:
            return
        due = [breaker for breaker in self._breakers if self._is_due(breaker, every_s, now)]
        if due:
            self._asked_at = now
            self._asking = asyncio.get_running_loop().create_task(self._ask(due))

    def _is_due(self, breaker: Breaker, every_s: float, now: float) -> bool:
        if breaker.state is State.CLOSED:
            if breaker is not self._breakers[0]:
                return False
            wait_s = breaker.settings.retry_first_s if self._failed else every_s
            return now - max(breaker.heard_at, self._asked_at) >= wait_s
        client = self.lanes.fast if breaker is self.lanes.fast.breaker else self.lanes.slow
        if client.waiting or client.in_flight:
            return False
        # (Half-open here: it was let through by its lane, which has nothing to send any more.)
        return breaker.state is State.HALF_OPEN or breaker.may_send(now)

    async def _ask(self, due: list[Breaker]) -> None:
        """Asks, and tells the breakers."""
        try:
            down = any(breaker.state is not State.CLOSED for breaker in due)
            finding = await probe(self.lanes.address, self.path, down=down)
            self._failed = finding.outcome not in (None, Outcome.OK)
            if finding.outcome is not None:
                now = asyncio.get_running_loop().time()
                for breaker in due:
                    breaker.note(finding.outcome, now, why=finding.why)
        finally:
            self._asking = None

    def close(self) -> None:
        """Asks no more."""
        if self._asking is not None:
            self._asking.cancel()


async def probe(address: tuple[str, int], path: str, *, down: bool) -> Finding:
    """Asks once. `down`: without a path, too, an answer is wanted."""
    stage = "no connection"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*address, limit=HEAD_MAX_BYTES)
            try:
                if not path and not down:
                    return Finding(None)
                stage = "no answer to a probe"
                writer.write(_request(address, path))
                return _judge(path, await reader.readline())
            finally:
                writer.transport.abort()
    except TimeoutError:
        cause = Cause.FULL if stage == "no connection" else Cause.FROZEN
        return Finding(Outcome.TIMEOUT, cause.of(f"{stage} within {TIMEOUT_S:g} s"))
    except OSError as error:
        return Finding(Outcome.FAILED, cause_of_error(error).of(f"cannot connect: {error.strerror or error}"))
    except ValueError:
        return Finding(Outcome.FAILED, cause_of_death(Death.OVERSIZE).of(Death.OVERSIZE.value))


def _request(address: tuple[str, int], path: str) -> bytes:
    what = f"GET {path}" if path else "OPTIONS *"
    # Max-Forwards (RFC 9110, 7.6.2): whoever gets OPTIONS * first answers it.
    more = "" if path else "Max-Forwards: 0\r\n"
    host = format_address(address)
    return (
        f"{what} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: refreshd-probe\r\n{more}Connection: close\r\n\r\n"
    ).encode()


def _judge(path: str, line: bytes) -> Finding:
    status = _STATUS(line)
    if status is None:
        death = Death.GARBAGE if line else Death.CLOSED
        return Finding(Outcome.FAILED, cause_of_death(death).of(death.value))
    if path and int(status[1]) >= SERVER_ERROR:
        return Finding(Outcome.FAILED, Cause.FULL.of(f"GET {path} was answered {int(status[1])}"))
    return Finding(Outcome.OK)
