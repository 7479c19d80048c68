"""What the master says on the admin socket, and to whom it gives the rest."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from refreshd import control
from refreshd.master.children import Child
from refreshd.master.slots import Phase, Slot, State, Supervisor
from refreshd.scoreboard import Scoreboard
from wire.errors import Refused
from wire.lines import Line, Value, format_line

_RETRY_MS = 500


class Console:
    """The admin socket's backend; it reads the master's state and changes none of it."""

    def __init__(self, supervisor: Supervisor, children: Mapping[int, Child], scoreboard: Scoreboard) -> None:
        self._supervisor = supervisor
        self._children = children
        self._scoreboard = scoreboard
        self._turn_of = 0
        self._answers = {"list_workers": self._list_workers, "ping": self._ping}

    def answer(self, line: Line) -> bytes:
        """The reply to one of `admin_session.MASTER_VERBS`."""
        return self._answers[line.verb]()

    def _ping(self) -> bytes:
        return format_line("ok", {"now": time.time_ns() // 1_000_000})

    def _list_workers(self) -> bytes:
        now = time.monotonic()
        rows = [format_line("+", self._row(slot, now)) for slot in self._supervisor.slots]
        return format_line("ok", {"n": len(rows)}) + b"".join(rows)

    def _row(self, slot: Slot, now: float) -> dict[str, Value]:
        row: dict[str, Value] = {"worker": slot.number, "pid": slot.pid, "state": slot.state.value}
        child = self._children.get(slot.number)
        if child is None:
            idle = dict.fromkeys(("cpu_pct", "mem", "up_s", "connections", "tasks"), 0)
            return row | idle | {"restarts": slot.restarts, "heartbeat_ms": 0}
        shown = self._scoreboard.read(slot.number)
        beat_at = max(shown.heartbeat_ns / 1e9, slot.spawned_at)
        return row | {
            "cpu_pct": round(child.cpu_pct, 1),
            "mem": child.mem_bytes,
            "up_s": int(now - slot.spawned_at),
            "connections": shown.connections,
            "tasks": shown.tasks,
            "restarts": slot.restarts,
            "heartbeat_ms": max(0, round((now - beat_at) * 1000)),
        }

    def hand_over(self, sock: socket.socket, peer: str, rest: bytes) -> Refused | None:
        """Gives an admin connection to a ready worker, each in turn."""
        if self._supervisor.phase in (Phase.STOPPING, Phase.ENDED):
            return Refused("draining", "the engine is stopping", retry_ms=_RETRY_MS)
        for child in self._ready_in_turn():
            try:
                child.send(control.Adopt("admin", peer), (sock.fileno(),), rest)
            except (OSError, ValueError):
                continue
            return None
        return Refused("unavailable", "no worker is ready", retry_ms=_RETRY_MS)

    def _ready_in_turn(self) -> list[Child]:
        slots = self._supervisor.slots
        self._turn_of = (self._turn_of + 1) % len(slots)
        in_turn = slots[self._turn_of :] + slots[: self._turn_of]
        return [self._children[slot.number] for slot in in_turn if slot.state is State.READY]
