"""The leader's key in Redis: does what `election` decides, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refreshd.cluster.client import ClusterClient
from refreshd.cluster.election import Election, Step
from refreshd.cluster.lease import Timing
from refreshd.cluster.names import Names
from refreshd.cluster.scripts import ACQUIRE, RENEW, RESIGN, Script
from refreshd.errors import ClusterUnavailable


class Seat:
    """The key, for one engine's election."""

    def __init__(
        self,
        client: ClusterClient,
        names: Names,
        election: Election,
        timing: Timing,
        now_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._key = names.leader
        self._election = election
        self._lease_ms = timing.lease_ms
        self._now_ms = now_ms

    async def step(self, held: str) -> None:
        """Does what is due; `held` is what stood in the key when it was last read.

        Raises: ClusterUnavailable, of which the election knows by then.
        """
        election = self._election
        sent_ms = self._now_ms()
        election.tick(sent_ms)
        step = election.step(sent_ms, held)
        try:
            match step:
                case Step.TRY:
                    term = election.fresh_term
                    _, value = await self._ask(ACQUIRE, election.prefix, term, self._lease_ms)
                    election.tried(value.decode(), sent_ms, self._now_ms())
                case Step.RENEW:
                    value = await self._ask(RENEW, election.value, self._lease_ms)
                    election.renewed(value.decode(), sent_ms, self._now_ms())
                case Step.RESIGN:
                    await self._ask(RESIGN, election.given_up)
                    election.resigned()
                case Step.WAIT:
                    pass
        except ClusterUnavailable:
            election.unreachable(self._now_ms())
            raise

    async def _ask(self, script: Script, *args: str | int) -> Any:
        return await self._client.run(script, [self._key], *args)
