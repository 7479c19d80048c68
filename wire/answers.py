"""What an engine's replies say, as values (PROTOCOL.md, "Client verbs").

Readers are strict about the fields they need and blind to the rest, as all of
this protocol; what does not hold raises PeerMisbehaved.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from wire.errors import PeerMisbehaved
from wire.fields import FINAL_STATES, STATES
from wire.lines import read_count

Fields = Mapping[str, str]


class Answer(msgspec.Struct, frozen=True):
    """An `ok` as it came: its fields, and the rows of a listing."""

    fields: dict[str, str]
    rows: list[dict[str, str]]


class Accepted(msgspec.Struct, frozen=True):
    """The engine has the task on stable storage. `dup`: it had it before."""

    task_id: str
    state: str
    total: int
    dup: bool = False


class TaskState(msgspec.Struct, frozen=True):
    """Where a task stands. Counts are (proxy, target) pairs."""

    task_id: str
    state: str
    done: int
    failed: int
    total: int

    @property
    def final(self) -> bool:
        """Whether the state will never change again."""
        return self.state in FINAL_STATES


class TaskStatus(msgspec.Struct, frozen=True):
    """What `get_task` and `list_tasks` tell; times in Unix milliseconds."""

    task_id: str
    type: str
    state: str
    total: int
    done: int
    failed: int
    created: int
    updated: int

    @property
    def final(self) -> bool:
        """Whether the state will never change again."""
        return self.state in FINAL_STATES


class ProxyStatus(msgspec.Struct, frozen=True):
    """A task at one proxy; `ms` is how long the proxy took."""

    proxy: str
    layer: int
    state: str
    done: int
    failed: int
    ms: int
    error: str | None = None
    verified: bool | None = None
    """True where the effect was seen; None where nobody asked for that, or the proxy cannot say."""


class OperationStatus(msgspec.Struct, frozen=True):
    """A reload or upgrade; `ms` is how long it ran, `step` and `why` are text for people."""

    operation: int
    kind: str
    state: str
    step: str
    why: str
    ms: int

    @property
    def over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.state in ("done", "failed")


def read_accepted(fields: Fields) -> Accepted:
    """The reply to `post_task`. Raises: PeerMisbehaved."""
    return Accepted(
        _text(fields, "task_id"), _state(fields), _count(fields, "total"), dup=fields.get("dup") == "1"
    )


def read_task_state(fields: Fields) -> TaskState:
    """A `!state` push, or the reply to `watch_task`. Raises: PeerMisbehaved."""
    return TaskState(
        _text(fields, "task_id"),
        _state(fields),
        _count(fields, "done"),
        _count(fields, "failed"),
        _count(fields, "total"),
    )


def read_task_status(fields: Fields) -> TaskStatus:
    """The reply to `get_task`, or a row of `list_tasks`. Raises: PeerMisbehaved."""
    return TaskStatus(
        _text(fields, "task_id"),
        _text(fields, "type"),
        _state(fields),
        _count(fields, "total"),
        _count(fields, "done"),
        _count(fields, "failed"),
        _count(fields, "created"),
        _count(fields, "updated"),
    )


def read_proxy_status(fields: Fields) -> ProxyStatus:
    """A row of `task_detail`. Raises: PeerMisbehaved."""
    return ProxyStatus(
        _text(fields, "proxy"),
        _count(fields, "layer"),
        _text(fields, "state"),
        _count(fields, "done"),
        _count(fields, "failed"),
        _count(fields, "ms"),
        fields.get("error"),
        True if fields.get("verified") == "1" else None,
    )


def read_operation(fields: Fields) -> OperationStatus:
    """The reply to `operation`. Raises: PeerMisbehaved."""
    return OperationStatus(
        _count(fields, "operation"),
        _text(fields, "kind"),
        _text(fields, "state"),
        fields.get("step", ""),
        fields.get("why", ""),
        _count(fields, "ms"),
    )


def read_operation_number(fields: Fields) -> int:
    """The reply to `reload` and `upgrade`. Raises: PeerMisbehaved."""
    return _count(fields, "operation")


def read_now(fields: Fields) -> int:
    """The reply to `ping`: the engine's clock in Unix milliseconds. Raises: PeerMisbehaved."""
    return _count(fields, "now")


def read_value(text: str) -> int | float | str:
    """A figure as a number where it is one, else as it came."""
    count = read_count(text)
    if count is not None:
        return count
    # No exponents, no "nan", no "_": what is not plainly a decimal number stays text.
    whole, dot, places = text.removeprefix("-").partition(".")
    if whole.isascii() and whole.isdecimal() and (not dot or (places.isascii() and places.isdecimal())):
        return float(text) if dot else int(text) if len(text) < 20 else text
    return text


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not value:
        raise PeerMisbehaved(f"the engine's answer has no {name}")
    return value


def _count(fields: Fields, name: str) -> int:
    count = read_count(fields.get(name, ""))
    if count is None:
        raise PeerMisbehaved(
            f"the engine's answer has {name}={fields.get(name, '')[:20]!r}, wanted a whole number"
        )
    return count


def _state(fields: Fields) -> str:
    state = fields.get("state", "")
    if state not in STATES:
        raise PeerMisbehaved(
            f"the engine's answer has state={state[:20]!r}, wanted one of {', '.join(STATES)}"
        )
    return state
