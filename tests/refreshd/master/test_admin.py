"""The admin socket with clients that behave, and that do not."""

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refreshd.master import admin
from refreshd.master.admin import AdminServer
from refreshd.master.listeners import listen_unix
from refreshd.master.loop import Loop
from tests.refreshd.master.driver import wait_until
from wire.errors import Refused
from wire.lines import Line


class Master:
    """A backend that notes what it is asked, and the loop around it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "a.sock")
        self.loop = Loop()
        self.reply = b"ok n=1\n+ worker=0\n"
        self.refused: Refused | None = None
        self.handed: list[tuple[socket.socket, str, bytes]] = []
        self.asked = 0
        self.server = AdminServer(self.loop, listen_unix(self.path), self)

    def answer(self, line: Line) -> bytes:
        self.asked += 1
        return self.reply

    def hand_over(self, sock: socket.socket, peer: str, rest: bytes) -> Refused | None:
        if self.refused is None:
            self.handed.append((sock.dup(), peer, rest))
        return self.refused

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.path)
        sock.setblocking(False)
        return sock

    def turn_until(self, condition: Callable[[], object], what: str) -> None:
        def turned() -> bool:
            self.loop.turn(0.01)
            return bool(condition())

        wait_until(turned, what)

    def read(self, sock: socket.socket, until: bytes) -> bytes:
        """What the client gets, up to an end; `b""` as the end: until it is closed."""
        got = bytearray()
        closed = False

        def enough() -> bool:
            nonlocal closed
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                data = b""
            closed = not data
            got.extend(data)
            return closed or (until != b"" and got.endswith(until))

        self.turn_until(enough, f"{until!r} from the master, got {bytes(got[:200])!r}")
        assert closed == (until == b"")
        return bytes(got)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path)
    yield master
    master.server.close()
    master.loop.close()
    for sock, _, _ in master.handed:
        sock.close()


def test_requests_are_answered_in_order_and_the_connection_stays(master: Master) -> None:
    with master.connect() as client:
        for _ in range(2):
            client.send(b"ping\nlist_workers\n")
            assert master.read(client, master.reply * 2) == master.reply * 2


def test_the_other_verbs_go_to_a_worker_with_what_was_read(master: Master) -> None:
    with master.connect() as client:
        client.send(b"ping\nstats\npart")
        master.turn_until(lambda: master.handed, "the connection at a worker")
        sock, peer, rest = master.handed[0]
        assert (peer, rest) == (f"unix:pid={os.getpid()},uid={os.geteuid()}", b"stats\npart")
        assert repr(master.server).endswith(" 0 connections>")
        sock.send(b"ok from the worker\n")
        assert client.recv(1000) == master.reply + b"ok from the worker\n"


def test_no_worker_refuses_and_goes_on(master: Master) -> None:
    master.refused = Refused("unavailable", "no worker is ready", retry_ms=500)
    with master.connect() as client:
        client.send(b"stats\npost_task task_id=a -- " + b"x" * 5000)
        refusal = b"err code=unavailable retry_ms=500 msg=no\\sworker\\sis\\sready\n"
        assert master.read(client, refusal) == refusal
        client.send(b"y\nping\n")
        assert master.read(client, master.reply) == refusal + master.reply
        master.refused = None
        client.send(b"stats\n")
        master.turn_until(lambda: master.handed, "the connection at a worker")


def test_a_line_that_nobody_takes_ends_the_connection_at_a_bound(master: Master) -> None:
    master.refused = Refused("unavailable", "no worker is ready", retry_ms=500)
    with master.connect() as client:
        master.turn_until(lambda: _push(client, 100_000) or _is_closed(client), "the end of the connection")


def _push(client: socket.socket, size: int) -> None:
    try:
        client.send(b"x" * size)
    except (BlockingIOError, BrokenPipeError):
        pass


def _is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(65536, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        try:
            client.recv(65536)
        except OSError:
            pass


def test_a_client_that_ends_its_side_gets_its_replies(master: Master) -> None:
    with master.connect() as client:
        client.send(b"ping\nping\npin")
        client.shutdown(socket.SHUT_WR)
        assert master.read(client, b"") == master.reply * 2


def test_a_line_that_is_too_long_is_refused_and_the_connection_ends(master: Master) -> None:
    with master.connect() as client:
        client.send(b"ping\nping x=" + b"y" * 5000 + b"\nping\n")
        got = master.read(client, b"")
        assert got.startswith(master.reply + b"err code=too_long msg=")
        assert got.count(b"\n") == master.reply.count(b"\n") + 1


def test_who_asks_and_never_reads_costs_a_bounded_buffer(master: Master) -> None:
    master.reply = b"x" * 10_000 + b"\n"
    with master.connect() as client:
        before = -1
        while before != master.asked:
            before = master.asked
            for _ in range(20):
                _push_pings(client)
                master.loop.turn(0)
        asked = master.asked
        assert asked * 10_000 < 4_000_000
        # Others are served meanwhile, and it gets everything once it reads.
        with master.connect() as other:
            other.send(b"ping\n")
            master.read(other, master.reply)
        master.turn_until(lambda: _drain(client) and master.asked > asked + 100, "more replies")


def _push_pings(client: socket.socket) -> None:
    try:
        client.send(b"ping\n" * 1000)
    except BlockingIOError:
        pass


def _drain(client: socket.socket) -> bool:
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        pass
    return True


def test_a_turn_does_a_bounded_amount_of_work(master: Master) -> None:
    master.reply = b"x" * 10_000 + b"\n"
    with master.connect() as client:
        client.send(b"ping\n" * 3000)
        most = 0
        while master.asked < 30:
            before = master.asked
            master.loop.turn(1)
            _drain(client)
            most = max(most, master.asked - before)
        assert most <= 7


def test_there_are_only_so_many_connections(master: Master) -> None:
    clients = [master.connect() for _ in range(admin.CONNECTIONS_MAX)]
    try:
        for client in clients:
            client.send(b"ping\n")
            master.read(client, master.reply)
        with master.connect() as one_more:
            assert master.read(one_more, b"").startswith(b"err code=busy retry_ms=1000 msg=64\\sconn")
        clients.pop().close()
        with master.connect() as one_more:
            one_more.send(b"ping\n")
            master.turn_until(lambda: "64 conn" in repr(master.server), "room for one more")
            assert master.read(one_more, master.reply) == master.reply
    finally:
        for client in clients:
            client.close()


def test_idle_connections_end_and_a_byte_now_and_then_is_idle(master: Master) -> None:
    with master.connect() as idle, master.connect() as busy:
        idle.send(b"p")
        busy.send(b"ping\n")
        master.read(busy, master.reply)
        late = time.monotonic() + admin.IDLE_S
        busy.send(b"ping\n")
        idle.send(b"i")
        master.read(busy, master.reply)
        quiet = min(connection.deadline for connection in master.server._connections)
        assert quiet < late
        master.server.tick(quiet)
        assert master.read(idle, b"") == b""
        busy.send(b"ping\n")
        master.read(busy, master.reply)


def test_others_are_denied(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may always, so the peer must be somebody else: as SO_PEERCRED would show.
    credentials = admin._CREDENTIALS
    monkeypatch.setattr(admin, "_CREDENTIALS", _SomebodyElse(credentials.size))
    with master.connect() as client:
        assert master.read(client, b"").startswith(
            b"err code=denied msg=the\\sadmin\\ssocket\\sis\\sfor\\suid"
        )


class _SomebodyElse:
    def __init__(self, size: int) -> None:
        self.size = size

    def unpack(self, _: bytes) -> tuple[int, int, int]:
        return 1, os.geteuid() + 1, 1


def test_when_descriptors_are_used_up_it_pauses_and_comes_back(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = master.server._listener
    accept = listener.accept
    calls = []

    class Full:
        def fileno(self) -> int:
            return listener.fileno()

        def close(self) -> None:
            listener.close()

        def accept(self) -> tuple[socket.socket, object]:
            calls.append(1)
            if len(calls) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept()

    monkeypatch.setattr(master.server, "_listener", Full())
    with master.connect() as client:
        client.send(b"ping\n")
        for _ in range(5):
            master.loop.turn(0.01)
        assert len(calls) == 1
        master.server.tick(time.monotonic() + 1)
        assert master.read(client, master.reply) == master.reply


def test_a_fault_in_answering_ends_that_connection_only(master: Master) -> None:
    with master.connect() as client, master.connect() as other:
        master.reply = None  # type: ignore[assignment]
        client.send(b"ping\n")
        assert master.read(client, b"") == b""
        master.reply = b"ok\n"
        other.send(b"ping\n")
        assert master.read(other, b"ok\n") == b"ok\n"


def test_the_socket_file_goes_with_it(tmp_path: Path) -> None:
    master = Master(tmp_path)
    assert os.stat(master.path).st_mode & 0o777 == 0o600
    master.server.close()
    master.loop.close()
    assert not os.path.exists(master.path)


def test_a_socket_file_that_is_another_engines_by_now_stays(tmp_path: Path) -> None:
    master = Master(tmp_path)
    os.unlink(master.path)
    (tmp_path / "keep").touch()
    Path(master.path).touch()
    master.server.close()
    master.loop.close()
    assert os.path.exists(master.path)
