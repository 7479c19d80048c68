"""What the master holds for life: the data folder, the listeners, the scoreboard."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

import msgspec

from refreshd.config import Config, Engine
from refreshd.errors import BootError, StoreError
from refreshd.master.activation import Activation
from refreshd.master.children import Inherited
from refreshd.master.data_folder import DataFolder
from refreshd.master.listeners import listen_tcp, listen_unix
from refreshd.scoreboard import Scoreboard
from refreshd.sockets import address_of
from refreshd.store import layout
from refreshd.store.layout import lanes_for


class SavedHoldings(msgspec.Struct, kw_only=True):
    """All of it, as a re-executed master finds it again."""

    lanes: int
    listener_fd: int
    admin_fd: int
    scoreboard_fd: int
    lock_fd: int
    pid_fd: int

    def fds(self) -> list[int]:
        """Every descriptor."""
        return [self.listener_fd, self.admin_fd, self.scoreboard_fd, self.lock_fd, self.pid_fd]


class Holdings:
    """All of it, open; `close` takes away the files that tell of a running engine."""

    def __init__(
        self,
        folder: DataFolder,
        lanes: int,
        listener: socket.socket,
        admin: socket.socket,
        scoreboard_fd: int,
    ) -> None:
        self.folder = folder
        self.lanes = lanes
        """How many lanes the store has."""
        self.listener = listener
        self.admin = admin
        """The admin server closes it, and takes its file away."""
        self.scoreboard_fd = scoreboard_fd
        self.scoreboard = Scoreboard(scoreboard_fd)

    def __repr__(self) -> str:
        return f"<Holdings {self.folder.path} {self.address}>"

    @property
    def address(self) -> str:
        """Where the text RPC is served, HOST:PORT."""
        return address_of(self.listener)

    @property
    def for_workers(self) -> Inherited:
        """The descriptors that every worker gets."""
        return Inherited(self.listener.fileno(), self.scoreboard_fd, self.folder.lock_fd)

    def save(self) -> SavedHoldings:
        """What `hold_on` needs in this process after it was re-executed."""
        return SavedHoldings(
            lanes=self.lanes,
            listener_fd=self.listener.fileno(),
            admin_fd=self.admin.fileno(),
            scoreboard_fd=self.scoreboard_fd,
            lock_fd=self.folder.lock_fd,
            pid_fd=self.folder.pid_fd,
        )

    def close(self) -> None:
        """Gives everything up, the folder last: the next engine may start from then on."""
        self.scoreboard.close()
        os.close(self.scoreboard_fd)
        self.listener.close()
        self.folder.close()


def take_hold(config: Config, workers: int) -> Holdings:
    """Opens it all, and tells where the engine listens. The first engine on a folder makes a lane a worker.

    Raises: BootError, and nothing stays open.
    """
    engine = config.engine
    with ExitStack() as undo:
        folder = DataFolder(engine.data)
        undo.callback(folder.close)
        lanes = _read_lanes(folder, workers) if config.store.url == "sqlite:" else lanes_for(workers)
        given = undo.enter_context(Activation(os.environ))
        listener = undo.enter_context(given.tcp(engine.listen) or listen_tcp(engine.listen))
        folder.write_address(address_of(listener))
        admin = undo.enter_context(given.admin(engine.admin) or listen_unix(engine.admin))
        scoreboard_fd = Scoreboard.create()
        # Workers get it by name, as they do the other descriptors.
        os.set_inheritable(scoreboard_fd, False)
        undo.pop_all()
        return Holdings(folder, lanes, listener, admin, scoreboard_fd)


def hold_on(engine: Engine, saved: SavedHoldings) -> Holdings:
    """All that this process held before it was re-executed; nothing is opened or written anew."""
    folder = DataFolder(engine.data, held=(saved.lock_fd, saved.pid_fd))
    listener, admin = (socket.socket(fileno=fd) for fd in (saved.listener_fd, saved.admin_fd))
    for sock in (listener, admin):
        sock.setblocking(False)
    return Holdings(folder, saved.lanes, listener, admin, saved.scoreboard_fd)


def _read_lanes(folder: DataFolder, workers: int) -> int:
    try:
        return layout.read_or_create(folder.path, workers)
    except StoreError as error:
        raise BootError(str(error)) from None
    except OSError as error:
        raise BootError(f"cannot use the data folder {folder.path}: {error.strerror}") from None
