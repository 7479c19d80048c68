"""The fleet, and the plans that tell a task where to go.

The fleet is every proxy that is expected (configured) or has registered. A
*plan* is what a scope meant when a task was accepted: the proxies by layer,
fixed for the life of the task, so that `total` never changes and a proxy that
comes later is not missed by tasks that are older than it. Tasks with the same
scope share one plan.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from wire.errors import Refused

if TYPE_CHECKING:
    from refreshd.fanout import Log

# Distinct scopes that are remembered. A plan costs about 200 bytes a proxy, so
# 256 plans of 5,000 proxies are 256 MB at the very worst; one at a time is usual.
PLANS_MAX = 256


class Proxy(NamedTuple):
    """A member of the fleet. `listed`: the configuration expects it."""

    name: str
    group: str
    layer: int
    listed: bool


class Layer:
    """One layer of a plan: its proxies, each with the place of its bit in a task's mask."""

    __slots__ = ("first", "full", "logs", "next", "number", "places", "plan", "proxies", "replays", "size")

    def __init__(self, plan: Plan, number: int, proxies: tuple[str, ...], first: int) -> None:
        self.plan = plan
        self.number = number
        self.proxies = proxies
        self.first = first
        """The rank of this layer's first proxy in the whole plan."""
        self.size = len(proxies)
        self.places = {name: (i >> 3, 1 << (i & 7), first + i) for i, name in enumerate(proxies)}
        """Proxy → (byte, bit) in the mask, rank in the plan."""
        self.full = ((1 << self.size) - 1).to_bytes((self.size + 7) // 8, "little")
        """The mask in which every proxy is still to report."""
        self.next: Layer | None = None
        self.logs: dict[int, Log] = {}
        """Priority → the log of tasks that this layer works on."""
        self.replays: dict[int, Log] = {}
        """Priority → the log of those that were parked and came back for a proxy that is back."""

    def bit(self, place: tuple[int, int, int]) -> int:
        """The bit of the proxy at a place, in a number that has one for each of the layer."""
        return 1 << (place[2] - self.first)


class Plan:
    """Where a task goes: layers in order, each begun when the one before it has finished."""

    __slots__ = ("layers", "number", "ranks", "size", "text")

    def __init__(self, layers: Iterable[tuple[int, tuple[str, ...]]]) -> None:
        made: list[Layer] = []
        first = 0
        for number, proxies in layers:
            made.append(Layer(self, number, proxies, first))
            first += len(proxies)
        for layer, following in itertools.pairwise(made):
            layer.next = following
        self.layers = tuple(made)
        self.size = first
        """How many proxies take part."""
        self.ranks = [(name, layer) for layer in made for name in layer.proxies]
        """Rank → proxy and its layer."""
        self.text = ";".join(f"{layer.number}={','.join(layer.proxies)}" for layer in made)
        """The plan as the store keeps it: `0=pop1,pop2;1=edge1`."""
        digest = hashlib.sha256(self.text.encode()).digest()
        self.number = int.from_bytes(digest[:8], "little") >> 1
        """Names the plan in the store: 63 bits of its text's SHA-256."""

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The plan with this `text`. Raises: ValueError."""
        layers = []
        for part in text.split(";"):
            number, equals, names = part.partition("=")
            if not equals or not names:
                raise ValueError(f"{text[:80]!r} is not a plan")
            layers.append((int(number), tuple(names.split(","))))
        return cls(layers)

    def __repr__(self) -> str:
        return f"<Plan {self.size} proxies in {len(self.layers)} layers>"


def plan_size(text: str) -> int:
    """How many proxies the plan with this `text` has. 100 times as fast as making it, for listings."""
    return text.count(",") + text.count(";") + 1


class Fleet:
    """Who is in the fleet, and what a scope means just now."""

    def __init__(self, proxies: Iterable[Proxy]) -> None:
        self._proxies = {proxy.name: proxy for proxy in proxies}
        self._registered = {name: proxy for name, proxy in self._proxies.items() if not proxy.listed}
        """What proxies said of themselves; of those that are listed, the configuration's word counts."""
        self._plans: dict[tuple[str, ...] | None, Plan] = {}

    def __len__(self) -> int:
        return len(self._proxies)

    def __iter__(self) -> Iterator[Proxy]:
        return iter(sorted(self._proxies.values()))

    def get(self, name: str) -> Proxy | None:
        """The proxy of this name, or None."""
        return self._proxies.get(name)

    def add(self, proxy: Proxy) -> bool:
        """Takes a proxy in, or changes its group or layer. Returns whether anything changed.

        One that is listed stays as it is listed, for as long as it is.
        """
        known = self._proxies.get(proxy.name)
        if not proxy.listed:
            self._registered[proxy.name] = proxy
            if known is not None and known.listed:
                return False
        if known == proxy:
            return False
        self._proxies[proxy.name] = proxy
        self._plans.clear()
        return True

    def remove(self, name: str) -> bool:
        """Takes a proxy out; plans that were made keep it. Returns whether it was there."""
        self._registered.pop(name, None)
        if self._proxies.pop(name, None) is None:
            return False
        self._plans.clear()
        return True

    def expect(self, listed: Iterable[Proxy]) -> bool:
        """The configuration lists these now. Returns whether anything changed.

        One that is listed no more is what it registered as, or is gone; plans that were made keep it.
        """
        proxies = self._registered | {proxy.name: proxy for proxy in listed}
        if proxies == self._proxies:
            return False
        self._proxies = proxies
        self._plans.clear()
        return True

    def plan(self, scope: tuple[str, ...] | None) -> Plan:
        """What `scope` (None: everyone) means now.

        Raises: Refused, `bad_field` for an empty fleet or a name nobody has.
        """
        plan = self._plans.get(scope)
        if plan is None:
            plan = self._make_plan(scope)
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            self._plans[scope] = plan
        return plan

    def _make_plan(self, scope: tuple[str, ...] | None) -> Plan:
        if not self._proxies:
            raise Refused(
                "bad_field",
                "scope: the fleet is empty; list a [[proxy]] or let one register first",
                field="scope",
            )
        chosen = self._proxies.values() if scope is None else self._chosen(scope)
        layers: dict[int, list[str]] = {}
        for proxy in chosen:
            layers.setdefault(proxy.layer, []).append(proxy.name)
        return Plan((number, tuple(sorted(layers[number]))) for number in sorted(layers))

    def _chosen(self, scope: tuple[str, ...]) -> list[Proxy]:
        wanted = set(scope)
        chosen = [proxy for proxy in self._proxies.values() if proxy.name in wanted or proxy.group in wanted]
        unknown = wanted - {proxy.name for proxy in chosen} - {proxy.group for proxy in chosen}
        if unknown:
            name = min(unknown)
            raise Refused(
                "bad_field",
                f"scope: no proxy or group is called {name}; the fleet has {self._shown()}",
                field="scope",
            )
        return chosen

    def _shown(self) -> str:
        names = sorted({proxy.group for proxy in self._proxies.values()} | set(self._proxies))
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
