"""What the master says on the admin socket, and to whom it gives the rest."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from refreshd import __version__, control
from refreshd.master.children import Child
from refreshd.master.operations import REMEMBERED_MAX, Operation, Operator
from refreshd.master.processes import Process, Seat, State
from refreshd.master.slots import Part, Phase, Slot, Supervisor
from refreshd.scoreboard import Scoreboard, row_of
from wire.errors import Refused
from wire.lines import Line, Value, carriable, format_line, format_refused
from wire.verbs import VERBS, read_fields

_RETRY_MS = 500


class Console:
    """The admin socket's backend; it reads the master's state, and has `operator` change it."""

    def __init__(
        self,
        supervisor: Supervisor,
        children: Mapping[Seat, Child],
        scoreboard: Scoreboard,
        operator: Operator,
    ) -> None:
        self._supervisor = supervisor
        self._children = children
        self._scoreboard = scoreboard
        self._operator = operator
        self._turn_of = 0
        self._answers: dict[str, Callable[[dict[str, Any]], bytes]] = {
            "ping": self._ping,
            "list_workers": self._list_workers,
            "engine_status": self._engine_status,
            "reload": self._reload,
            "upgrade": self._upgrade,
            "operation": self._operation,
            "drain": self._drain,
            "undrain": self._undrain,
        }

    def answer(self, line: Line) -> bytes:
        """The reply to one of `wire.verbs.MASTER_VERBS`."""
        try:
            return self._answers[line.verb](read_fields(VERBS[line.verb], line))
        except Refused as refused:
            return format_refused(refused)

    def _ping(self, _: dict[str, Any]) -> bytes:
        return format_line("ok", {"now": time.time_ns() // 1_000_000})

    # What an operator has done

    def _reload(self, _: dict[str, Any]) -> bytes:
        return format_line("ok", {"operation": self._operator.start_reload().number})

    def _upgrade(self, _: dict[str, Any]) -> bytes:
        return format_line("ok", {"operation": self._operator.start_upgrade().number})

    def _operation(self, values: dict[str, Any]) -> bytes:
        book = self._operator.operations
        number = values.get("operation")
        operation = book.newest() if number is None else book.get(number)
        if operation is None:
            what = "nothing was asked for yet" if number is None else f"no operation {number}"
            raise Refused("not_found", f"{what}; of reloads and upgrades the last {REMEMBERED_MAX} are known")
        return format_line("ok", _described(operation))

    def _drain(self, _: dict[str, Any]) -> bytes:
        self._operator.set_draining(True)
        return b"ok\n"

    def _undrain(self, _: dict[str, Any]) -> bytes:
        self._operator.set_draining(False)
        return b"ok\n"

    # How the engine is

    def _engine_status(self, _: dict[str, Any]) -> bytes:
        book = self._operator.operations
        operation = book.running or book.newest()
        slots = self._supervisor.slots
        status: dict[str, Value] = {
            "phase": self._phase(),
            "pid": os.getpid(),
            "generation": self._supervisor.generation,
            "release": __version__,
            "workers": len(slots),
            "ready": sum(slot.state is State.READY for slot in slots),
        }
        return format_line("ok", status | (_described(operation) if operation else {}))

    def _phase(self) -> str:
        phase = self._supervisor.phase
        if phase in (Phase.STOPPING, Phase.ENDED):
            return Phase.STOPPING.value
        return "draining" if phase is Phase.UP and self._operator.draining else phase.value

    def _list_workers(self, _: dict[str, Any]) -> bytes:
        now = time.monotonic()
        rows: list[dict[str, Value]] = []
        for slot in self._supervisor.slots:
            in_charge, beside = slot.process, slot.processes.get(1 - slot.side)
            if in_charge is not None:
                rows.append(self._row(slot, in_charge, now))
            elif slot.part is not Part.GOES:
                rows.append(_nobody(slot))
            if beside is not None:
                rows.append(self._row(slot, beside, now))
        return format_line("ok", {"n": len(rows)}) + b"".join(format_line("+", row) for row in rows)

    def _row(self, slot: Slot, process: Process, now: float) -> dict[str, Value]:
        child = self._children[process.seat]
        shown = self._scoreboard.read(row_of(*process.seat))
        beat_at = max(shown.heartbeat_ns / 1e9, process.spawned_at)
        return {
            "worker": slot.number,
            "pid": process.pid,
            "state": process.state.value,
            "role": _role(slot, process),
            "generation": process.generation,
            "release": carriable(child.release),
            "cpu_pct": round(child.cpu_pct, 1),
            "mem": child.mem_bytes,
            "up_s": int(now - process.spawned_at),
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
        return [self._children[slot.seat] for slot in in_turn if slot.state is State.READY]


def _role(slot: Slot, process: Process) -> str:
    """What the process is to its slot; the words are those of PROTOCOL.md."""
    if process.state in (State.STOPPING, State.KILLED) or slot.part is Part.GOES:
        return "leaving"
    if process.state is State.STARTING or slot.part is Part.COMES:
        return "standby"
    if process.seat == slot.seat:
        return "serving"
    # The successor has the higher generation: before it is in charge it stands by, then the other one leaves.
    in_charge = slot.process
    return "leaving" if in_charge and in_charge.generation > process.generation else "standby"


def _nobody(slot: Slot) -> dict[str, Value]:
    idle = dict.fromkeys(("cpu_pct", "mem", "up_s", "connections", "tasks"), 0)
    return {
        "worker": slot.number,
        "pid": 0,
        "state": State.WAITING.value,
        "role": "standby",
        "generation": 0,
        "release": "",
        **idle,
        "restarts": slot.restarts,
        "heartbeat_ms": 0,
    }


def _described(operation: Operation) -> dict[str, Value]:
    return {
        "operation": operation.number,
        "kind": operation.kind.value,
        "state": operation.state.value,
        "step": carriable(operation.step),
        "why": carriable(operation.why),
        "ms": operation.took_ms(time.monotonic()),
    }
