"""Who leads: the states of one engine, and what it does next.

                WON                       CLAIMED
    FOLLOWER ─────────► CANDIDATE ──────────────────────► LEADER
       ▲                    │  LOST, LEASE_OVER,            │
       └────────────────────┴──OUTDONE, STORE_AWAY, STOPPED─┘

Two things make a leader. In Redis, the leader's key holds its name for the length
of a lease: that keeps all others from trying. In SQL, it has raised the leader's
epoch: that keeps every earlier leader from acting, whatever it believes. Redis
alone would not do, as a leader may be paused between looking at its lease and
acting by it; SQL alone would not notice that it died.

Rule 1: whoever has the key and not the epoch is a candidate, and does nothing.

Rule 2: a leader that cannot reach Redis leads on until a margin before its lease
ends, by its own clock, and not a moment longer.

Rule 3: a leader that cannot reach SQL is of no use: after a while it gives the key
up and stands back, so that an engine that can reach it has its turn.

What stands in the key is "ID NUMBER.EPOCH TERM". ID, NUMBER and EPOCH are the same
for as long as the engine's incarnation lives, whichever process of it runs: so a
successor takes the key over as its own, without an election (`Step.TRY` finds it
held by this engine, which counts as won). TERM is made by whoever wins the key
anew; a renewal and a resignation must name it.

Pure: times are passed in; what is asked of Redis and SQL, others do.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Callable

import msgspec

from refreshd.cluster.lease import Lease, Timing


class State(enum.Enum):
    """What this engine is in the election."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Event(enum.Enum):
    """What has happened."""

    WON = "won"
    """The key is this engine's."""
    CLAIMED = "claimed"
    """SQL has raised the leader's epoch for this engine."""
    RENEWED = "renewed"
    UNREACHABLE = "unreachable"
    """Redis did not answer: nobody knows what it has done."""
    LOST = "lost"
    """The key is another's, or nobody's."""
    LEASE_OVER = "lease over"
    OUTDONE = "outdone"
    """SQL knows a later leader, or this engine was fenced."""
    STORE_AWAY = "store away"
    STOPPED = "stopped"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.FOLLOWER, Event.WON): State.CANDIDATE,
    (State.FOLLOWER, Event.LOST): State.FOLLOWER,
    (State.FOLLOWER, Event.UNREACHABLE): State.FOLLOWER,
    (State.FOLLOWER, Event.STOPPED): State.FOLLOWER,
    (State.CANDIDATE, Event.CLAIMED): State.LEADER,
    (State.CANDIDATE, Event.RENEWED): State.CANDIDATE,
    (State.CANDIDATE, Event.UNREACHABLE): State.CANDIDATE,
    (State.CANDIDATE, Event.LOST): State.FOLLOWER,
    (State.CANDIDATE, Event.LEASE_OVER): State.FOLLOWER,
    (State.CANDIDATE, Event.OUTDONE): State.FOLLOWER,
    (State.CANDIDATE, Event.STORE_AWAY): State.FOLLOWER,
    (State.CANDIDATE, Event.STOPPED): State.FOLLOWER,
    (State.LEADER, Event.RENEWED): State.LEADER,
    (State.LEADER, Event.UNREACHABLE): State.LEADER,
    (State.LEADER, Event.LOST): State.FOLLOWER,
    (State.LEADER, Event.LEASE_OVER): State.FOLLOWER,
    (State.LEADER, Event.OUTDONE): State.FOLLOWER,
    (State.LEADER, Event.STORE_AWAY): State.FOLLOWER,
    (State.LEADER, Event.STOPPED): State.FOLLOWER,
}
"""Any other pair is a fault of ours."""

# What ends a lead while the key may still be this engine's: it is given up, so that others need not wait.
_GIVES_UP = frozenset({Event.OUTDONE, Event.STORE_AWAY, Event.STOPPED})


class Step(enum.Enum):
    """What to ask of Redis now."""

    WAIT = "wait"
    TRY = "try"
    """To win the key, with `prefix` and `fresh_term`."""
    RENEW = "renew"
    """The key with `value`."""
    RESIGN = "resign"
    """Delete the key if it holds `given_up`."""


class Lead(msgspec.Struct, frozen=True):
    """A lead that goes from a process to its successor."""

    value: str
    leader_epoch: int
    since_ms: int


class Election:
    """One engine in the election."""

    def __init__(
        self,
        engine_id: str,
        number: int,
        epoch: int,
        timing: Timing,
        *,
        new_term: Callable[[], str] = lambda: secrets.token_hex(8),
        on_change: Callable[[State, Event], None] = lambda *_: None,
    ) -> None:
        """`on_change` is told when the state is another than it was, and by which event."""
        self.prefix = f"{engine_id} {number}.{epoch} "
        """How the key's value begins while any process of this engine's incarnation has it."""
        self.state = State.FOLLOWER
        self.value = ""
        """What stands in the key while this engine has it, "" while it has not."""
        self.leader_epoch = 0
        """By which it leads; 0 unless it is the leader."""
        self.given_up = ""
        """What may still stand in the key, and is to be deleted."""
        self._timing = timing
        self._new_term = new_term
        self._on_change = on_change
        self._term = new_term()
        self._lease = Lease(timing.lease_ms, timing.margin_ms)
        self._due_ms = 0
        self._aside_ms = 0
        self._handed: Lead | None = None
        self._stopped = False

    # ── what to do ────────────────────────────────────────────────────────────────────────

    @property
    def fresh_term(self) -> str:
        """The term to win the key with. It stays until it has won: a try without an answer may have."""
        return self._term

    def step(self, now_ms: int, held: str) -> Step:
        """What to do now; `held` is what stood in the key when it was last read."""
        if now_ms < self._due_ms:
            return Step.WAIT
        if self.given_up:
            # Before any try: that would find the key held by this engine, and take it for won.
            return Step.RESIGN
        if self.state is not State.FOLLOWER:
            return Step.RENEW
        if self._stopped or now_ms < self._aside_ms:
            return Step.WAIT
        return Step.TRY if not held or held.startswith(self.prefix) else Step.WAIT

    def may_act(self, now_ms: int) -> bool:
        """Whether it leads, and its lease holds."""
        return self.state is State.LEADER and self._lease.acts(now_ms)

    def remaining_ms(self, now_ms: int) -> int:
        """Until it stops acting by its lease."""
        return self._lease.remaining_ms(now_ms)

    def held_ms(self, now_ms: int) -> int:
        """How long it has had the key without a break."""
        return self._lease.held_ms(now_ms)

    # ── what has happened ─────────────────────────────────────────────────────────────────

    def tick(self, now_ms: int) -> None:
        """Time goes on: the lease may be over."""
        if self.state is not State.FOLLOWER and not self._lease.acts(now_ms):
            self._on(Event.LEASE_OVER, now_ms)

    def tried(self, value: str, sent_ms: int, now_ms: int) -> None:
        """The key has this `value` after a try that was sent at `sent_ms`."""
        if self._stopped or self.state is not State.FOLLOWER:
            # A key that was won too late is nobody's until its lease ends.
            return
        if not value.startswith(self.prefix):
            self._on(Event.LOST, now_ms)
            return
        self.value = value
        self._term = self._new_term()
        self._granted(Event.WON, sent_ms, now_ms)
        handed, self._handed = self._handed, None
        if handed is not None and handed.value == value:
            self._lease.inherit(handed.since_ms)
            self.claimed(value, handed.leader_epoch, now_ms)

    def renewed(self, value: str, sent_ms: int, now_ms: int) -> None:
        """The key has this `value` after a renewal that was sent at `sent_ms`."""
        if self.state is State.FOLLOWER:
            return
        if value == self.value:
            self._granted(Event.RENEWED, sent_ms, now_ms)
        else:
            self._on(Event.LOST, now_ms)

    def _granted(self, event: Event, sent_ms: int, now_ms: int) -> None:
        self._lease.granted(sent_ms, now_ms)
        self._due_ms = sent_ms + self._timing.renew_ms
        self._on(event, now_ms)
        # The answer may have come when the lease was over already.
        self.tick(now_ms)

    def resigned(self) -> None:
        """The key no longer holds `given_up`."""
        self.given_up = ""

    def unreachable(self, now_ms: int) -> None:
        """Redis did not answer."""
        self._due_ms = now_ms + self._timing.retry_ms
        if self._stopped:
            # Once is enough: the lease ends by itself.
            self.given_up = ""
        self._on(Event.UNREACHABLE, now_ms)

    def claimed(self, value: str, leader_epoch: int, now_ms: int) -> None:
        """SQL has made this engine the leader, for the key as it was when SQL was asked."""
        self.tick(now_ms)
        if self.state is State.CANDIDATE and value == self.value:
            self.leader_epoch = leader_epoch
            self._on(Event.CLAIMED, now_ms)

    def outdone(self, now_ms: int) -> None:
        """SQL has a later leader, or has this engine fenced."""
        if self.state is not State.FOLLOWER:
            self._on(Event.OUTDONE, now_ms)

    def store_away(self, now_ms: int) -> None:
        """SQL has not answered for so long that another engine should have its turn."""
        if self.state is not State.FOLLOWER:
            self._on(Event.STORE_AWAY, now_ms)

    def stop(self, now_ms: int) -> None:
        """This engine stops: it gives the key up, and tries no more."""
        self._stopped = True
        self._on(Event.STOPPED, now_ms)

    def leave(self, now_ms: int) -> Lead | None:
        """Another process of this engine's incarnation goes on: this one acts no more, and gives nothing up.

        Returns what to give to `inherit` there; None if it does not lead.
        """
        lead = None
        if self.may_act(now_ms):
            lead = Lead(self.value, self.leader_epoch, now_ms - self.held_ms(now_ms))
        self.stop(now_ms)
        self.given_up = ""
        return lead

    def inherit(self, lead: Lead | None) -> None:
        """Goes on with a lead, once Redis has said that the key is as it was. To be called first."""
        self._handed = lead

    def _on(self, event: Event, now_ms: int) -> None:
        was = self.state
        try:
            self.state = TRANSITIONS[was, event]
        except KeyError:
            raise RuntimeError(f"{event} cannot happen to a {was.value}") from None
        if self.state is State.FOLLOWER and was is not State.FOLLOWER:
            if event in _GIVES_UP:
                self.given_up = self.value
            self.value = ""
            self.leader_epoch = 0
            self._lease.drop()
            self._due_ms = now_ms
            if event is Event.STORE_AWAY:
                self._aside_ms = now_ms + self._timing.lease_ms // 2
        if self.state is not was:
            self._on_change(was, event)

    def __repr__(self) -> str:
        return f"<Election {self.prefix}{self.state.value} by {self.leader_epoch}, {self._lease}>"
