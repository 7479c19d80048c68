"""A private MariaDB that syncs every commit, as one for tasks must."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import pymysql

from tools.servers.errors import ServerFailed
from tools.servers.process import Server, find_program
from tools.servers.waiting import accepts, free_port

INSTALL_TIMEOUT_S = 60.0
DATABASE = "refreshd"
USER, PASSWORD = "refreshd", "p@ss/word:1"
# Small, and without what would only take time at the start and the stop.
SETTINGS = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--innodb-fast-shutdown=2",
    "--innodb-buffer-pool-load-at-startup=OFF",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
    "--performance-schema=OFF",
    "--skip-log-bin",
    "--skip-name-resolve",
    "--max-connections=200",
)


class MariaDb(Server):
    """`mariadbd` on a port and a socket of its own, with a database and a user for refreshd.

    `url` is for `store.url`; `query` asks as root. `kill` and `restart` keep folder and port.
    `template` is a folder of system tables to copy (see `install`), so that a start takes 0.5 s
    and not 3; `settings` are options of mariadbd.
    """

    name = "mariadb"
    tries = 3

    def __init__(self, *, template: Path | None = None, settings: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._template = template
        self._settings = settings

    @property
    def socket(self) -> Path:
        """The path of its Unix socket."""
        return self.folder / "sock"

    @property
    def url(self) -> str:
        """For `store.url`, over TCP."""
        return self.url_of(DATABASE)

    def url_of(self, database: str, options: str = "") -> str:
        """As `url`, of a database that `make_database` made."""
        return f"mysql://{USER}:p%40ss%2Fword%3A1@{self.address}/{database}{options and '?' + options}"

    def _prepare(self) -> None:
        self.port = free_port()

    def start(self) -> Self:
        """See `Server.start`."""
        super().start()
        self.make_database(DATABASE)
        return self

    def make_database(self, name: str) -> None:
        """A database that the user may do everything in."""
        self.query(f"CREATE DATABASE IF NOT EXISTS `{name}`")
        self.query(f"GRANT ALL ON `{name}`.* TO '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'")

    def query(self, sql: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs a statement as root; returns its rows."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def connect(self, database: str | None = None) -> pymysql.Connection[Any]:
        """A connection as root, in which every statement is a transaction."""
        return pymysql.connect(
            unix_socket=str(self.socket), user="root", database=database, autocommit=True, connect_timeout=5
        )

    def kill(self) -> None:
        """As a power cut of the process: SIGKILL. What it had committed is there after `restart`."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(INSTALL_TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        if self.process is not None:
            self.process.send_signal(number)

    def restart(self) -> None:
        """Starts it again, after `kill`, in its folder and at its port; waits until it serves."""
        self.run()
        self._wait_ready()

    def _command(self) -> list[str]:
        data = self.folder / "data"
        if not data.exists():
            if self._template is None:
                install(data)
            else:
                shutil.copytree(self._template, data)
        return [
            find_program("mariadbd"),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder / 'pid'}",
            # Who starts deletes what looks like a temporary table there: not those of another that runs.
            f"--tmpdir={self.folder}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            *_as_user(),
            *SETTINGS,
            *self._settings,
        ]

    def _is_ready(self) -> bool:
        if not accepts("127.0.0.1", self.port):
            return False
        try:
            self.query("SELECT 1")
        except pymysql.MySQLError:
            return False
        return True


def install(data: Path) -> None:
    """Makes a folder of system tables in which root may enter without a password. Raises: ServerFailed."""
    command = [
        find_program("mariadb-install-db"),
        "--no-defaults",
        f"--datadir={data}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--innodb-log-file-size=32M",
        *_as_user(),
    ]
    with tempfile.TemporaryDirectory(prefix="refreshd-mariadb-") as folder:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "TMPDIR": folder},
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise ServerFailed(f"mariadb-install-db failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")


def _as_user() -> list[str]:
    """As root it refuses to run unless that is said."""
    return [f"--user={getpass.getuser()}"] if os.getuid() == 0 else []
