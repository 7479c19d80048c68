"""What the master answers on the admin socket, with an operator that only notes what it is asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from refreshd import __version__, control
from refreshd.errors import ConfigError
from refreshd.master.children import Child
from refreshd.master.console import Console
from refreshd.master.operations import Kind, Operation, Operations, config_refused
from refreshd.master.processes import Seat, Timing
from refreshd.master.slots import Supervisor
from refreshd.scoreboard import Scoreboard
from wire.lines import Line, parse
from wire.verbs import MASTER_VERBS


class NotingOperator:
    """Books operations; the test does them."""

    def __init__(self) -> None:
        self.operations = Operations()
        self.draining = False
        self.faults: list[str] = []

    def start_reload(self) -> Operation:
        if self.faults:
            raise config_refused("refreshd.toml", ConfigError(self.faults))
        return self.operations.ask(Kind.RELOAD)

    def start_upgrade(self) -> Operation:
        return self.operations.ask(Kind.UPGRADE)

    def set_draining(self, on: bool) -> None:
        self.draining = on


class Bench:
    """A console of two slots, the first of which serves."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self.supervisor = Supervisor(2, Timing())
        self.operator = NotingOperator()
        self.children: dict[Seat, Child] = {}
        self.console = Console(self.supervisor, self.children, scoreboard, self.operator)
        self.supervisor.start()
        self.sockets: list[socket.socket] = []
        self.spawned(Seat(0), 4711, 1)
        self.supervisor.ready(Seat(0), control.VERSION, 0.0)

    def spawned(self, seat: Seat, pid: int, generation: int) -> None:
        self.sockets.append(socket.socket(socket.AF_UNIX))
        self.children[seat] = Child(seat, generation, pid, self.sockets[-1])
        self.supervisor.spawned(seat, pid, generation, 0.0)

    def ask(self, request: bytes) -> Line:
        return parse(self.console.answer(parse(request)).split(b"\n", 1)[0])

    def rows(self, request: bytes) -> list[dict[str, str]]:
        return [parse(raw).fields for raw in self.console.answer(parse(request)).split(b"\n")[1:-1]]


@pytest.fixture
def bench() -> Iterator[Bench]:
    fd = Scoreboard.create()
    scoreboard = Scoreboard(fd)
    bench = Bench(scoreboard)
    yield bench
    for sock in bench.sockets:
        sock.close()
    scoreboard.close()
    os.close(fd)


def test_every_verb_of_the_masters_has_an_answer(bench: Bench) -> None:
    for verb in MASTER_VERBS:
        assert bench.ask(verb.encode()).verb in ("ok", "err")


def test_a_reload_and_what_became_of_it(bench: Bench) -> None:
    assert bench.ask(b"operation").fields["code"] == "not_found"
    assert bench.ask(b"reload").fields == {"operation": "1"}
    asked = bench.ask(b"operation operation=1").fields
    assert asked.pop("ms") == "0"
    assert asked == {"operation": "1", "kind": "reload", "state": "waiting", "step": "", "why": ""}
    book = bench.operator.operations
    book.begin(0.0, 0)
    book.step("worker 0 of 2\nhands over \0")
    assert bench.ask(b"operation").fields["step"] == "worker 0 of 2\nhands over ?"
    assert bench.ask(b"upgrade").fields == {"operation": "2"}
    assert bench.ask(b"reload").fields == {"operation": "2"}
    book.fail("it did not come up", 1.5, 1500)
    ended = bench.ask(b"operation operation=1").fields
    assert (ended["state"], ended["why"], ended["ms"]) == ("failed", "it did not come up", "1500")
    assert bench.ask(b"operation").fields["operation"] == "2"
    unknown = bench.ask(b"operation operation=3").fields
    assert unknown["msg"] == "no operation 3; of reloads and upgrades the last 16 are known"
    assert bench.ask(b"operation operation=x").fields["code"] == "bad_field"


def test_a_wrong_configuration_is_refused_with_every_fault(bench: Bench) -> None:
    bench.operator.faults = ["line 2: engine.x: not a setting", "line 9: key.name: missing"]
    refused = bench.ask(b"reload").fields
    assert (refused["code"], refused["field"]) == ("bad_field", "config")
    assert refused["msg"] == (
        "refreshd.toml: line 2: engine.x: not a setting\nrefreshd.toml: line 9: key.name: missing"
    )
    assert bench.operator.operations.newest() is None


def test_draining_and_back(bench: Bench) -> None:
    bench.spawned(Seat(1), 4712, 1)
    bench.supervisor.ready(Seat(1), control.VERSION, 0.0)
    for verb, phase in ((b"drain", "draining"), (b"drain", "draining"), (b"undrain", "up")):
        assert bench.ask(verb).verb == "ok"
        assert bench.ask(b"engine_status").fields["phase"] == phase


def test_the_status_of_the_engine(bench: Bench) -> None:
    assert bench.ask(b"engine_status").fields == {
        "phase": "booting", "pid": str(os.getpid()), "generation": "1", "release": __version__,
        "workers": "2", "ready": "1",
    }  # fmt: skip
    bench.ask(b"drain")
    assert bench.ask(b"engine_status").fields["phase"] == "booting"
    bench.ask(b"reload")
    bench.operator.operations.begin(0.0, 0)
    bench.ask(b"reload")
    status = bench.ask(b"engine_status").fields
    assert (status["operation"], status["kind"], status["state"]) == ("1", "reload", "running")
    bench.supervisor.stop(0.0, 1.0)
    assert bench.ask(b"engine_status").fields["phase"] == "stopping"


def test_the_rows_of_workers(bench: Bench) -> None:
    rows = bench.rows(b"list_workers")
    assert [(row["worker"], row["pid"], row["state"], row["role"], row["generation"]) for row in rows] == [
        ("0", "4711", "ready", "serving", "1"),
        ("1", "0", "waiting", "standby", "0"),
    ]


def test_slots_that_come_and_go(bench: Bench) -> None:
    def shown() -> list[tuple[str, str]]:
        return [(row["worker"], row["role"]) for row in bench.rows(b"list_workers")[2:]]

    bench.supervisor.grow(4)
    for slot in (2, 3):
        bench.spawned(Seat(slot), 4720 + slot, 2)
        bench.supervisor.ready(Seat(slot), control.VERSION, 0.0)
    assert shown() == [("2", "standby"), ("3", "standby")]
    bench.supervisor.hold()
    assert shown() == [("2", "serving"), ("3", "serving")]
    bench.supervisor.release(2, 0.0)
    assert shown() == [("2", "leaving"), ("3", "leaving")]
    bench.supervisor.exited(Seat(2), "exit status 0", by_others=False, now=1.0)
    assert shown() == [("3", "leaving")]
    bench.supervisor.exited(Seat(3), "exit status 0", by_others=False, now=1.0)
    assert shown() == []


def test_a_slot_that_is_handed_over_has_two_rows(bench: Bench) -> None:
    def shown() -> list[tuple[str, str, str]]:
        return [(row["pid"], row["state"], row["role"]) for row in bench.rows(b"list_workers")[:2]]

    old, new = Seat(0), Seat(0, 1)
    bench.spawned(new, 4712, 2)
    assert shown() == [("4711", "ready", "serving"), ("4712", "starting", "standby")]
    bench.supervisor.ready(new, control.VERSION, 0.0)
    assert shown() == [("4711", "ready", "serving"), ("4712", "ready", "standby")]
    bench.supervisor.put_in_charge(new)
    assert shown() == [("4712", "ready", "serving"), ("4711", "ready", "leaving")]
    bench.supervisor.tell_stop(old, 0.0, 1.0, "")
    assert shown() == [("4712", "ready", "serving"), ("4711", "stopping", "leaving")]
