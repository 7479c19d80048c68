"""What a master leaves to the code that it becomes: an upgrade re-executes it in place.

The process stays: its pid, its children, and every descriptor that is listed here.
All else is in a *state document*, JSON in a memory file whose descriptor is named on
the command line (`--adopt FD`). Before that, a child process *rehearses* with the same
document (`--rehearse FD`): the code on disk must be able to read it.

The document has a version. Fields may be added, with a default, under the same
number; code that does not know a version refuses it, so the old code goes on.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from refreshd import __version__
from refreshd.config import Config, from_plain, to_plain
from refreshd.errors import StateRefused
from refreshd.master.briefing import Briefing
from refreshd.master.children import Child
from refreshd.master.holdings import Holdings, SavedHoldings
from refreshd.master.operations import Operations
from refreshd.master.processes import Process, Seat, State
from refreshd.master.slots import Phase, Slot, Supervisor
from refreshd.settings import SECTIONS, settings_of

VERSION = 1
# The configuration, and some 500 bytes a worker.
_DOCUMENT_MAX_BYTES = 4 * 1024 * 1024


class SavedProcess(msgspec.Struct, kw_only=True):
    """A worker. Times are monotonic seconds, None for never."""

    side: int
    pid: int
    generation: int
    state: str
    spawned_at: float
    ready_at: float | None
    kill_at: float | None
    kill_why: str
    why: str
    version: int
    release: str
    control_fd: int | None
    """None: it has closed its end."""


class SavedSlot(msgspec.Struct, kw_only=True):
    """A slot."""

    side: int
    start_at: float | None
    restarts: int
    failures: int
    ever_ready: bool
    processes: list[SavedProcess]


class Saved(msgspec.Struct, kw_only=True):
    """The state document."""

    version: int = VERSION
    release: str
    """Of the code that wrote it."""
    command: list[str]
    """How the engine was started, as `command_line` tells it."""
    config: dict[str, Any]
    draining: bool
    generation: int
    slots: list[SavedSlot]
    holdings: SavedHoldings
    operations: dict[str, Any]
    signals: list[int] = []
    """Came and were not acted on."""

    def fds(self) -> list[int]:
        """All descriptors that it names."""
        controls = [process.control_fd for slot in self.slots for process in slot.processes]
        return [*(fd for fd in controls if fd is not None), *self.holdings.fds()]


class _Version(msgspec.Struct):
    version: int


# Writing


def save(
    command: list[str],
    briefing: Briefing,
    supervisor: Supervisor,
    children: Mapping[Seat, Child],
    holdings: Holdings,
    operations: Operations,
    signals: Iterable[int] = (),
) -> Saved:
    """The document of a master that is up."""
    return Saved(
        release=__version__,
        command=command,
        config=to_plain(briefing.config),
        draining=briefing.draining,
        generation=supervisor.generation,
        slots=[_save_slot(slot, children) for slot in supervisor.slots],
        holdings=holdings.save(),
        operations=operations.to_plain(),
        signals=list(signals),
    )


def _save_slot(slot: Slot, children: Mapping[Seat, Child]) -> SavedSlot:
    return SavedSlot(
        side=slot.side,
        start_at=_or_none(slot.start_at),
        restarts=slot.restarts,
        failures=slot.failures,
        ever_ready=slot.ever_ready,
        processes=[_save_process(process, children[process.seat]) for process in slot.processes.values()],
    )


def _save_process(process: Process, child: Child) -> SavedProcess:
    return SavedProcess(
        side=process.seat.side,
        pid=process.pid,
        generation=process.generation,
        state=process.state.value,
        spawned_at=process.spawned_at,
        ready_at=_or_none(process.ready_at),
        kill_at=_or_none(process.kill_at),
        kill_why=process.kill_why,
        why=process.why,
        version=process.version,
        release=child.release,
        control_fd=None if child.control is None else child.control.fileno(),
    )


def _or_none(time_s: float) -> float | None:
    return None if time_s == math.inf else time_s


def write(saved: Saved) -> int:
    """Writes it into a memory file, which a child or the code to come may inherit; its descriptor."""
    fd = os.memfd_create("refreshd-state", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(msgspec.json.encode(saved))
    return fd


def become(saved: Saved) -> None:
    """Runs `saved.command` in this process, which gets the document and every descriptor in it.

    Does not return. Raises: OSError when that cannot be run; then all is as before.
    """
    state_fd = write(saved)
    fds = [state_fd, *saved.fds()]
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        os.execv(saved.command[0], [*saved.command, "--adopt", str(state_fd)])  # noqa: S606 (no shell is what is wanted)
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)
        os.close(state_fd)


# Reading


def read(fd: int) -> Saved:
    """Reads the document and closes the descriptor. Raises: StateRefused."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        document = file.read(_DOCUMENT_MAX_BYTES + 1)
    try:
        version = msgspec.json.decode(document, type=_Version).version
        if version != VERSION:
            raise StateRefused(
                f"the running master leaves a state of version {version}, this code ({__version__}) knows "
                f"version {VERSION}; restart the engine to change between the two"
            )
        return msgspec.json.decode(document, type=Saved)
    except msgspec.DecodeError as error:
        raise StateRefused(f"the state that the running master leaves cannot be read: {error}") from None


def config_of(saved: Saved) -> Config:
    """The configuration that is in force. A setting that the old code did not know has its default.

    Raises: StateRefused.
    """
    plain = saved.config
    for section in SECTIONS:
        if not section.is_array:
            table = plain.setdefault(section.name, {})
            for row in settings_of(section.name).values():
                table.setdefault(row.key, row.default)
    try:
        return from_plain(plain)
    except msgspec.ValidationError as error:
        raise StateRefused(f"the configuration in force cannot be read by this code: {error}") from None


def adopt_fds(saved: Saved) -> None:
    """Takes back what `become` did, so that no child gets more than it should."""
    for fd in saved.fds():
        os.set_inheritable(fd, False)


def restore(supervisor: Supervisor, saved: Saved) -> None:
    """Fills a new supervisor of as many slots. Raises: StateRefused."""
    supervisor.phase = Phase.UP
    supervisor.generation = saved.generation
    for slot, was in zip(supervisor.slots, saved.slots, strict=True):
        slot.side, slot.restarts, slot.failures = was.side, was.restarts, was.failures
        slot.ever_ready, slot.start_at = was.ever_ready, _or_never(was.start_at)
        for process in was.processes:
            slot.processes[process.side] = _restored(Seat(slot.number, process.side), process)


def _restored(seat: Seat, saved: SavedProcess) -> Process:
    process = Process(seat, saved.pid, saved.generation, saved.spawned_at)
    try:
        process.state = State(saved.state)
    except ValueError:
        raise StateRefused(f"the worker with pid {saved.pid} is {saved.state}, whatever that is") from None
    process.ready_at, process.kill_at = _or_never(saved.ready_at), _or_never(saved.kill_at)
    process.kill_why, process.why, process.version = saved.kill_why, saved.why, saved.version
    return process


def children_of(saved: Saved) -> list[Child]:
    """The worker processes."""
    return [
        _child(Seat(number, process.side), process)
        for number, slot in enumerate(saved.slots)
        for process in slot.processes
    ]


def _child(seat: Seat, saved: SavedProcess) -> Child:
    sock = None if saved.control_fd is None else socket.socket(fileno=saved.control_fd)
    if sock is not None:
        sock.setblocking(False)
    child = Child(seat, saved.generation, saved.pid, sock)
    child.version, child.release = saved.version or child.version, saved.release
    return child


def _or_never(time_s: float | None) -> float:
    return math.inf if time_s is None else time_s


# The command line


def command_line() -> list[str]:
    """How this process was started, so that the same command runs the code that is on disk now.

    No path is resolved: where one leads through a symbolic link to a release, the next
    run follows the link anew. A script with a `#!` line is named itself, as the
    interpreter in that line belongs to the release too.
    """
    interpreter, *rest = sys.orig_argv
    if rest and rest[0] == sys.argv[0] and _is_script(rest[0]):
        return rest
    return [sys.executable or interpreter, *rest]


def _is_script(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"#!" and "/" in path and os.access(path, os.X_OK)
    except OSError:
        return False
