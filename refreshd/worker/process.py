"""The worker process: from its command line to its end.

    BOOT ── Start, store open, tasks loaded ──► READY ── Stop, or the master is gone ──► STOPPING ──► exit
     └── Start(standby), store open ──► STANDBY ── TakeOver (docs/handover.md) ──┘

Exit codes: 0 stopped as asked, 1 the store can no longer be trusted (the master
starts another), 3 could not start (told to the master with the reason).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
import setproctitle
import structlog
import uvloop

from refreshd import __version__, control, logs
from refreshd import config as configuration
from refreshd.errors import RefreshdError
from refreshd.scoreboard import Scoreboard
from refreshd.shard import ShardMap
from refreshd.sockets import address_of
from refreshd.worker.configuring import configure
from refreshd.worker.hub import Hub

log = structlog.get_logger()

EXIT_FAILED = 1
EXIT_BOOT = 3
# Without a master nobody would start a successor or stop us: finish quickly (FAULTS 2 allows 5 s).
ORPHAN_DEADLINE_S = 3.0
# The saver needs the interpreter's lock a few times a commit; waiting the default 5 ms
# for it each time while the loop is busy would be most of a commit's time.
SWITCH_INTERVAL_S = 0.001
GC_EVERY_S = 2.0
# Young objects that are worth looking at for cycles; when there are more, they are tasks.
GC_YOUNG_MAX = 50_000


class Process:
    """One worker process."""

    def __init__(
        self, slot: int, master: socket.socket, listener: socket.socket, scoreboard: Scoreboard
    ) -> None:
        self._slot = slot
        self._generation = 0
        self._master = master
        self._listener = listener
        self._scoreboard = scoreboard
        self._hub: Hub | None = None
        self._end: asyncio.Event
        self._deadline_s = ORPHAN_DEADLINE_S
        self._status = 0

    async def run(self) -> int:
        """Serves until it is told to stop. Returns the exit code."""
        self._end = asyncio.Event()
        start = self._receive_start()
        if start is None:
            return 0
        try:
            self._boot(start)
        except (RefreshdError, OSError) as error:
            self._say(control.Failed(str(error)))
            return EXIT_BOOT
        except Exception as error:
            log.exception("a fault while starting")
            self._say(control.Failed(f"a fault of the engine while starting: {error!r}"))
            return EXIT_BOOT
        await self._end.wait()
        return await self._stop()

    def _receive_start(self) -> control.Start | None:
        self._master.setblocking(True)
        received = control.receive(self._master)
        if received is None or not isinstance(received[0], control.Start):
            return None
        return received[0]

    def _boot(self, start: control.Start) -> None:
        config = configuration.from_plain(start.config)
        self._generation = start.generation
        logs.configure(role="worker", engine=config.engine.id, slot=start.slot)
        self._title(config.engine.id, "loading")
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        hub = Hub(
            config,
            ShardMap(start.slot, start.workers, start.lanes),
            self._scoreboard,
            loop,
            generation=start.generation,
            side=start.side,
            say=self._say,
        )
        hub.engine.fatal = self._fail
        hub.moves.on_taken = lambda: self._title(config.engine.id, "ready")
        hub.engine.draining = start.draining
        hub.open_store(standby=start.standby)
        self._hub = hub
        if start.standby:
            hub.moves.stand_by(self._listener)
        hub.cluster.address = address_of(self._listener)
        hub.start()
        self._master.setblocking(False)
        loop.add_reader(self._master.fileno(), self._on_message)
        if not start.standby:
            hub.handing.listen(self._listener)
            hub.cluster.serve()
        loop.add_signal_handler(signal.SIGTERM, lambda: self._stop_soon(hub.config.engine.stop_deadline_s))
        load_ms = int((time.monotonic() - began) * 1000)
        self._tidy()
        self._say(control.Ready(len(hub.engine.tasks), load_ms, control.VERSION, __version__))
        self._title(config.engine.id, "standby" if start.standby else "ready")
        log.info("worker ready", unfinished=len(hub.engine.tasks), load_ms=load_ms)

    def _title(self, engine: str, state: str) -> None:
        setproctitle.setproctitle(f"refreshd: worker {self._slot} {state} gen {self._generation} [{engine}]")

    def _tidy(self) -> None:
        """Looks for cycles among what is young, unless that is tasks; the old is never looked through.

        A collection of all would stop the loop for 0.1 s at 400,000 tasks, and
        tasks are freed by their reference counts anyway.
        """
        if gc.get_count()[0] < GC_YOUNG_MAX:
            gc.collect(1)
        gc.freeze()
        asyncio.get_running_loop().call_later(GC_EVERY_S, self._tidy)

    def _on_message(self) -> None:
        """The master says something, or is gone."""
        try:
            received = control.receive(self._master)
        except BlockingIOError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.error("the master cannot be understood", error=str(error))
            received = None
        if received is None:
            log.warning("the master is gone, stopping")
            asyncio.get_running_loop().remove_reader(self._master.fileno())
            self._stop_soon(ORPHAN_DEADLINE_S)
            return
        message, fds, rest = received
        hub = self._hub
        if hub is None:
            return
        match message, fds:
            case control.Peer(), [stream, packets]:
                hub.sibling(message, socket.socket(fileno=stream), socket.socket(fileno=packets))
            case control.Adopt(), [fd]:
                hub.handing.serve(fd, admin=message.role == "admin", rest=rest)
            case control.HandOver(), [stream, packets]:
                self._title(hub.config.engine.id, "leaving")
                hub.moves.hand_over(socket.socket(fileno=stream), socket.socket(fileno=packets))
            case control.TakeOver(), [stream, packets]:
                hub.moves.take_over(socket.socket(fileno=stream), socket.socket(fileno=packets))
            case control.Resume(), []:
                self._title(hub.config.engine.id, "ready")
                self._read_store(hub.moves.resume())
            case control.Inherit(), []:
                self._read_store(hub.moves.inherit())
            case control.Configure(number, plain), []:
                self._configure(hub, number, plain)
            case control.Remap(workers), []:
                hub.moves.remap(workers)
            case control.Route(workers), []:
                hub.moves.route(workers)
            case control.Retire(workers), []:
                hub.moves.retire(workers)
            case control.Left(slot), []:
                hub.sibling_retired(slot)
            case control.Drain(on), []:
                hub.engine.draining = on or hub.stopping
            case control.Stop(deadline_s), []:
                self._stop_soon(deadline_s)
            case _:
                log.error("the master says something strange", message=repr(message), fds=len(fds))
                for fd in fds:
                    os.close(fd)

    def _configure(self, hub: Hub, number: int, plain: dict[str, Any]) -> None:
        """Settings take effect in place; the master is told that, or why not."""
        try:
            configure(hub, configuration.from_plain(plain))
        except (RefreshdError, msgspec.ValidationError) as error:
            log.error("not configured", why=str(error))
            self._say(control.Configured(number, str(error)))
        else:
            self._say(control.Configured(number))

    def _read_store(self, work: Coroutine[Any, Any, None]) -> None:
        """Shards are read from the store; without them this process is of no use."""

        async def read() -> None:
            try:
                await work
            except Exception as error:
                log.exception("shards could not be taken from the store")
                self._fail(f"shards could not be taken from the store: {error!r}")

        if self._hub is not None:
            self._hub.background(read())

    def _say(self, message: control.Message) -> None:
        try:
            control.send(self._master, message)
        except OSError as error:
            log.warning("the master does not listen", error=str(error))

    def _stop_soon(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._end.set()

    def _fail(self, why: str) -> None:
        """The store can no longer be trusted: end without another acknowledgement."""
        log.critical("worker ends at once", why=why)
        self._say(control.Stopping(why))
        os._exit(EXIT_FAILED)

    async def _stop(self) -> int:
        hub = self._hub
        if hub is None:
            return EXIT_BOOT
        self._title(hub.config.engine.id, "stopping")
        self._say(control.Stopping())
        saved = await hub.stop(self._deadline_s)
        log.info("worker stopped", saved=saved)
        return 0 if saved else EXIT_FAILED


def main(argv: list[str] | None = None) -> int:
    """Runs a worker; started by the master only."""
    parser = argparse.ArgumentParser(prog="refreshd.worker")
    for name in ("slot", "control-fd", "listen-fd", "scoreboard-fd"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args(argv)
    # These reach the whole group from a terminal or an operator; the master says what they mean.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    process = Process(
        args.slot,
        socket.socket(fileno=args.control_fd),
        socket.socket(fileno=args.listen_fd),
        Scoreboard(args.scoreboard_fd),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(process.run())
        # Everything is saved and closed by now. Closing the loop could wait for a transport
        # for ever, and an orphan that hangs keeps the data folder from its successor.
        os._exit(status)
