"""Receipts: what was done to a task's targets, and seen, as this agent signs it (docs/agent.md, "Receipts").

The key is made when the first receipt is, unless a file has it (`receipt_key_file`); then it is as long-lived
as the file. What signs is loaded only then: an agent that is asked for no proof does without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxyd import __version__
from proxyd.documents import encode
from proxyd.tasks import Task
from wire.lines import format_line
from wire.receipts import RECEIPT_MAX_BYTES, Signer, new_seed

if TYPE_CHECKING:
    from proxyd.session import Identity

# What stands around a payload, in a receipt and in its line.
_AROUND_BYTES = 1024


def room_for(line_max: int) -> int:
    """How long a payload may be that goes into a receipt, and that into a line, whatever has to be escaped.

    Within a receipt a character of it takes two bytes at the most, and four in a line.
    """
    return max(0, min((RECEIPT_MAX_BYTES - _AROUND_BYTES) // 2, (line_max - _AROUND_BYTES) // 4))


class Notary:
    """Signs for one agent. `now` is the loop's clock, `wall_ms` the one on the wall."""

    def __init__(
        self, now: Callable[[], float], wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._now = now
        self._wall_ms = wall_ms
        self._signer: Signer | None = None

    def use(self, seed: bytes) -> None:
        """Signs with this key from now on; without one, with any that it has, or will make."""
        if seed and (self._signer is None or self._signer.seed != seed):
            self._signer = Signer(seed)

    @property
    def public(self) -> str:
        """What a checker needs to know, in hex; empty while nothing was signed and no key was given."""
        return "" if self._signer is None else self._signer.public

    @property
    def seed(self) -> bytes:
        """The key, if there is one."""
        return b"" if self._signer is None else self._signer.seed

    def line(self, task: Task, who: Identity, line_max: int) -> bytes:
        """The `receipt` line of a task that has just ended, for an engine that knows us as `who`."""
        if self._signer is None:
            self._signer = Signer(new_seed())
        receipt = self._signer.sign(self._payload(task, who, room_for(line_max)).decode())
        return format_line("receipt", {"task_id": task.id.decode()}, [receipt.text()])

    def _payload(self, task: Task, who: Identity, room: int) -> bytes:
        ended_ms = self._wall_ms()
        evidence = task.evidence or []
        parts = [encode(each) for each in evidence]
        head: dict[str, Any] = {
            "v": 1,
            "proxy": who.name,
            "group": who.group,
            "layer": who.layer,
            "release": __version__,
            "task": task.id.decode(),
            "type": task.head.type,
            "force": task.head.force,
            "verify": task.head.verify,
            "then": task.head.then,
            "began_ms": ended_ms - round((self._now() - task.received_at) * 1000),
            "ended_ms": ended_ms,
            "targets": task.total,
            "done": task.done,
            "failed": task.failed,
            "listed": len(parts),
            "of": len(evidence) + task.evidence_left_out,
        }
        room -= len(encode(head)) + len(b',"evidence":[]')
        if sum(map(len, parts)) + len(parts) > room:
            # What failed says more than what went well.
            badly_first = sorted(range(len(parts)), key=lambda at: evidence[at].error is None)
            parts = _fitting([parts[at] for at in badly_first], room)
            head["listed"] = len(parts)
        return b'%b,"evidence":[%b]}' % (encode(head)[:-1], b",".join(parts))


def _fitting(parts: list[bytes], room: int) -> list[bytes]:
    kept: list[bytes] = []
    for part in parts:
        room -= len(part) + 1
        if room < 0:
            break
        kept.append(part)
    return kept
