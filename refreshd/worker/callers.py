"""Who a request comes from, wherever its connection is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wire.errors import Refused
from wire.verbs import Role, Verb, check_role

if TYPE_CHECKING:
    from refreshd.worker.proxy_session import ProxySession

WATCHES_MAX = 10_000
# `list_tasks` that a connection may have unanswered: a page can be 1.3 MB, and all pages of a turn are kept.
LISTINGS_MAX = 16
# What a connection may do before the greeting that the configuration asks for.
_BEFORE_HELLO = frozenset({"ping"})


class Caller:
    """The peer behind a connection, as its greeting made it known."""

    __slots__ = ("key", "listings", "must_greet", "number", "posts", "role", "session", "slot", "watching")

    def __init__(self, slot: int, number: int, *, must_greet: bool, role: str | None = None) -> None:
        self.slot = slot
        """The worker that holds the connection."""
        self.number = number
        """How that worker calls the connection."""
        self.role = role
        self.key: str | None = None
        self.must_greet = must_greet
        self.session: ProxySession | None = None
        self.watching: dict[bytes, None] = {}
        """Tasks that this connection watches; kept where the connection is."""
        self.listings = 0
        self.posts = False
        """Whether it may post tasks: decided once, as it is asked for each."""
        self._decide()

    def greeted(self, role: str | None, key: str | None, *, must_greet: bool = False) -> None:
        """A hello was accepted, here or by the process that the connection comes from."""
        self.role, self.key, self.must_greet = role, key, must_greet
        self._decide()

    def must(self, greet: bool) -> None:
        """Whether it has to greet first has changed; who has greeted, or needs not, stays what it is."""
        if self.role is None:
            self.must_greet = greet
            self._decide()

    def _decide(self) -> None:
        self.posts = not self.must_greet and self.role in (None, Role.CLIENT, Role.ADMIN)

    def check(self, verb: Verb) -> None:
        """The one place where role and greeting are checked. Raises: Refused, `auth` or `denied`."""
        if self.must_greet and verb.name not in _BEFORE_HELLO:
            raise Refused("auth", "this engine wants a signed hello first")
        check_role(verb, self.role)

    def watch(self, task_id: bytes) -> None:
        """Notes that the connection watches a task. Raises: Refused, `busy`."""
        if len(self.watching) >= WATCHES_MAX and task_id not in self.watching:
            raise Refused("busy", f"a connection watches at most {WATCHES_MAX} tasks", retry_ms=1000)
        self.watching[task_id] = None

    def begin_listing(self) -> None:
        """Notes that a listing is asked for. Raises: Refused, `busy`."""
        if self.listings >= LISTINGS_MAX:
            raise Refused("busy", f"a connection asks for {LISTINGS_MAX} listings at a time", retry_ms=200)
        self.listings += 1

    def end_listing(self) -> None:
        """A listing is answered."""
        self.listings -= 1

    def context(self) -> bytes:
        """The caller as it crosses the mesh."""
        return f"{self.slot} {self.number} {self.role or ''} {self.key or ''}".encode()

    @classmethod
    def from_context(cls, context: bytes) -> Caller:
        """The inverse of `context`; the greeting was checked by the sibling."""
        slot, number, role, key = context.decode().split(" ")
        caller = cls(int(slot), int(number), must_greet=False, role=role or None)
        caller.key = key or None
        return caller

    def __repr__(self) -> str:
        return f"<Caller {self.slot}/{self.number} {self.role or 'not greeted'} {self.key or ''}>"
