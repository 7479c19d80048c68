"""Doing what was decided: here the actions of `slots`, `rolls` and `resizes` are carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from refreshd import control, logs
from refreshd.master.briefing import Briefing
from refreshd.master.children import Child
from refreshd.master.crew import Crew
from refreshd.master.moves import Action, Moves
from refreshd.master.processes import Seat
from refreshd.master.reloads import Reloads
from refreshd.master.resizes import Doing, Over, Settled, Tell
from refreshd.master.rolls import Ended, HandOver, Introduce, Pin, Rolled, TellInherit, TellResume
from refreshd.master.slots import Kill, Part, Spawn, Supervisor, TellStop, Up

log = logs.get()


class Deeds:
    """`do` is all there is to call. It decides nothing."""

    def __init__(
        self, supervisor: Supervisor, moves: Moves, crew: Crew, briefing: Briefing, reloads: Reloads
    ) -> None:
        self._supervisor = supervisor
        self._moves = moves
        self._crew = crew
        self._briefing = briefing
        self._reloads = reloads
        self._began_at = time.monotonic()

    def do(self, actions: Sequence[Action]) -> None:
        """Does all of it, in order."""
        for action in actions:
            match action:
                case Spawn():
                    self._spawn(action)
                case TellStop(seat, deadline_s):
                    self._crew.send(self._crew.children[seat], control.Stop(deadline_s))
                case Kill(seat, why):
                    child = self._crew.children[seat]
                    log.warning("worker killed", **about(child), why=why)
                    child.kill()
                case Up():
                    took_ms = round((time.monotonic() - self._began_at) * 1000)
                    log.info("up", workers=len(self._supervisor.slots), took_ms=took_ms)
                case Doing() | Tell() | Settled() | Over():
                    self._do_of_resize(action)
                case _:
                    self._do_of_roll(action)

    def _do_of_roll(self, action: Action) -> None:
        children = self._crew.children
        match action:
            case HandOver(old, new):
                log.info("hand-over begins", **about(children[new]), from_pid=children[old].pid)
                self._reloads.rolling(new.slot, "tasks move")
                self._crew.hand_over(children[old], children[new])
            case Introduce(seat, succeeds):
                if succeeds:
                    self._reloads.rolling(seat.slot, "connections move")
                self._crew.introduce(children[seat], self._siblings_of(seat), succeeds=succeeds)
            case TellResume(seat):
                log.warning("hand-over undone", **about(children[seat]))
                self._reloads.rolling(seat.slot, "it failed, the old one takes back what it gave")
                self._crew.send(children[seat], control.Resume())
            case TellInherit(seat):
                log.warning("hand-over cut short", **about(children[seat]))
                self._reloads.rolling(seat.slot, "the old one died, the new one takes what is left")
                self._crew.send(children[seat], control.Inherit())
            case Pin(seat):
                self._crew.pin(children[seat])
            case Rolled(seat, took_ms):
                log.info("worker rolled", **about(children[seat]), ms=took_ms)
                self._reloads.rolled()
            case Ended():
                self._reloads.rolls_ended(action, time.monotonic())

    def _do_of_resize(self, action: Doing | Tell | Settled | Over) -> None:
        match action:
            case Doing(what):
                log.info("number of workers changes", step=what)
                self._reloads.step(what)
            case Tell(seat, message):
                self._crew.send(self._crew.children[seat], message)
            case Settled(workers):
                self._briefing.workers = workers
                self._reloads.settled()
            case Over():
                self._reloads.resize_over(action, time.monotonic())

    def _spawn(self, spawn: Spawn) -> None:
        seat, generation, standby = spawn
        if not self._supervisor.wants(seat):
            return
        try:
            child = self._crew.start(seat, generation)
        except OSError as error:
            log.error("worker not started", slot=seat.slot, why=str(error))
            self.do(self._moves.under_way.spawn_failed(seat, str(error), time.monotonic()))
            return
        self._supervisor.spawned(seat, child.pid, generation, time.monotonic())
        # One that boots beside others who serve has all CPUs until it does, too: see rolls.Pin.
        is_beside = standby or self._supervisor.slots[seat.slot].part is Part.COMES
        cpu = None if is_beside else self._crew.pin(child)
        log.info("worker started", **about(child), cpu=cpu, standby=standby)
        self._crew.send(child, self._briefing.start(spawn))
        if standby:
            self._reloads.rolling(seat.slot, "the new one starts")
        else:
            self._crew.introduce(child, self._siblings_of(seat))

    def _siblings_of(self, seat: Seat) -> list[Seat]:
        """Who is in charge of each other slot."""
        return [slot.seat for slot in self._supervisor.slots if slot.number != seat.slot and slot.process]


def about(child: Child) -> Mapping[str, object]:
    """What tells a worker process from others, for the log."""
    return {"slot": child.seat.slot, "pid": child.pid, "generation": child.generation}
