"""FAULTS 18: hostile bytes. A clear `err` or a close, bounded memory, and the others are served meanwhile."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.driver import PATIENCE_S, Engine, Peer, wait_until
from tests.peer.raw import owned_by, read_line
from tests.peer.snappy_frames import IDENTIFIER, SnappyPeer, frame

LINE_MAX = 1 << 20
_MORE_MIB = 100
"""What an engine may take on top of what it had. Its named limits for one connection add up to about 20."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One engine for all: what one test does to it must not matter to the next."""
    patience = {"LINE_PATIENCE_S": 2, "WRITE_PATIENCE_S": 2}
    with (
        Engine(proxies=["p1"], constants={"refreshd.worker.connection": patience}) as engine,
        engine.proxy("p1", credit=100_000),
    ):
        yield engine
        assert not engine.logged("worker ended")
        assert "Traceback" not in engine.log()


@pytest.fixture(autouse=True)
def others(engine: Engine) -> Iterator[Peer]:
    """Somebody else, who is served before, meanwhile and after; memory is looked at around it all."""
    before = [engine.memory_mib(slot) for slot in range(2)]
    with engine.peer() as peer:
        peer.ok("ping")
        yield peer
        peer.ok("ping")
        peer.ok("stats")
    for slot in range(2):
        assert engine.memory_mib(slot) < before[slot] + _MORE_MIB


def _code(raw: bytes) -> str:
    line = read_line(raw)
    return line.fields["code"] if line.verb == "err" else line.verb


def _flood(peer: Peer, data: bytes, times: int, others: Peer) -> None:
    """Writes on, whether or not the engine has closed by then."""
    try:
        for _ in range(times):
            SnappyPeer.write_raw(peer, data) if isinstance(peer, SnappyPeer) else peer.write_bytes(data)
            others.ok("ping")
    except ConnectionError:
        pass


def test_ten_megabytes_without_a_newline_are_too_long(engine: Engine, others: Peer) -> None:
    with engine.peer() as peer:
        _flood(peer, b"x" * 65536, 160, others)
        assert peer.reply().code == "too_long"
        assert peer.rest() == b""


def test_the_replies_before_a_line_that_is_too_long_come_first(engine: Engine) -> None:
    ids = owned_by(0, "toolong") + owned_by(1, "toolong")
    posts = "".join(f"post_task task_id={i} type=url -- http://example.com/\n" for i in ids)
    with engine.peer() as peer:
        peer.write_bytes(f"ping\n{posts}list_tasks limit=1\nping ".encode() + b"x" * LINE_MAX + b"\nping\n")
        replies = [peer.reply(), peer.reply(), peer.reply(), peer.reply(listing=True), peer.reply()]
        assert [reply.code for reply in replies] == ["", "", "", "", "too_long"]
        assert peer.rest() == b""


def test_a_line_of_exactly_line_max_is_read(engine: Engine) -> None:
    with engine.peer() as peer:
        peer.write_bytes(b"ping x=" + b"y" * (LINE_MAX - 8) + b"\n")
        assert peer.reply().ok
        peer.write_bytes(b"ping x=" + b"y" * (LINE_MAX - 7) + b"\n")
        assert peer.reply().code == "too_long"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\r",
        b"ping\0",
        b"\0",
        b"pi\rng",
        b"ping\r\r",
        b"ping\t",
        b"\xff\xfe",
        b"ping x=\xc3",
        b"ping\x7f",
    ],
)
def test_a_bad_line_is_answered_and_the_connection_goes_on(engine: Engine, line: bytes) -> None:
    for first in (b"", b"ping\n"):
        with engine.peer() as peer:
            peer.write_bytes(first + line + b"\nping\r\n")
            codes = [_code(peer.raw_line()) for _ in range(2 + bool(first))]
            assert codes == ["ok"] * bool(first) + ["bad_line", "ok"]


def test_random_bytes_get_a_reply_a_line(engine: Engine) -> None:
    """Bytes of which much is nearly right; as many replies as lines, in one piece and cut anywhere."""
    chance = random.Random(7)
    words = [
        b"post_task",
        b"task_id=a",
        b" ",
        b"--",
        b"\\s",
        b"=",
        b"ping",
        b"\r",
        b"\0",
        b"\xe4",
        b"type=url",
    ]
    for _ in range(20):
        lines = [b"".join(chance.choices(words, k=chance.randrange(8))) for _ in range(50)]
        data = b"ping\n" + b"\n".join(lines) + b"\n"
        with engine.peer() as peer:
            cut = chance.randrange(len(data))
            peer.write_bytes(data[:cut])
            peer.write_bytes(data[cut:])
            assert _code(peer.raw_line()) == "ok"
            for line in lines:
                code = _code(peer.raw_line())
                assert code in ("ok", "bad_line", "unknown_verb", "missing_field", "bad_field"), (line, code)
            assert peer.is_quiet(0.01)


def test_thousands_of_bad_greetings_in_one_write(engine: Engine) -> None:
    with engine.peer() as peer:
        peer.write_bytes(b"hello v=9\n" * 3000)
        assert {reply.code for reply in peer.replies(3000)} <= {"bad_field", "bad_line", "missing_field"}
        peer.ok("ping")


def test_half_a_line_then_silence_ends_some_day(engine: Engine, others: Peer) -> None:
    with engine.peer() as peer:
        peer.write_bytes(b"ping\nget_task task_")
        peer.reply()
        for _ in range(10):
            others.ok("ping")
        assert peer.reply().code == "bad_line"
        assert peer.rest() == b""


def test_half_a_line_then_the_end(engine: Engine) -> None:
    with engine.peer() as peer:
        peer.write_bytes(b"ping\nping\npin")
        peer.end()
        assert peer.rest().count(b"ok now=") == 2


def test_many_who_connect_and_say_nothing_or_go_at_once(engine: Engine, others: Peer) -> None:
    for _ in range(300):
        engine.peer().close()
    silent = [engine.peer() for _ in range(200)]
    others.ok("ping")
    for peer in silent:
        peer.close()


def _never_read(engine: Engine, request: bytes) -> Peer:
    """Writes until the engine takes no more."""
    peer = Peer(engine.address(), 0.5)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        for _ in range(2000):
            peer.write_bytes(request * (65536 // len(request)))
    except (TimeoutError, ConnectionError):
        peer.socket.setblocking(False)
        return peer
    raise AssertionError(f"{request!r} is read for ever though its replies are not")


NEVER_READ = (
    b"ping\n",
    b"stats\n",
    b"list_tasks limit=10000\n",
    b"get_task task_id=nobody\n",
    b"nonsense x=y\n",
)


def test_who_never_reads_is_not_read_from_and_closed_in_the_end(engine: Engine, others: Peer) -> None:
    """Pipelining without end: the engine stops reading, then gives up."""
    with ExitStack() as stack:
        deaf = [stack.enter_context(_never_read(engine, request)) for request in NEVER_READ]
        for _ in range(10):
            others.ok("ping")
        wait_until(lambda: all(_is_closed(peer) for peer in deaf), "those that do not read are closed", 40)


def _is_closed(peer: Peer) -> bool:
    try:
        peer.socket.send(b"x")
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return False


def test_who_watches_and_never_reads_slows_nobody(engine: Engine, others: Peer) -> None:
    ids = [f"unread{i}" for i in range(3000)]
    with Peer(engine.address(), PATIENCE_S) as deaf:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        posts = [
            f"post_task task_id={i} type=url scope=p1 -- http://example.com/\nwatch_task task_id={i}"
            for i in ids
        ]
        deaf.write(*posts)

        def all_done() -> bool:
            others.write(*[f"get_task task_id={task_id}" for task_id in ids])
            return {reply.fields.get("state") for reply in others.replies(len(ids))} == {"complete"}

        wait_until(all_done, "every task of who does not read is done")


SNAPPY_FAULTS = {
    "no identifier": b"ping\nping\n",
    "another identifier": b"\xff\x06\x00\x00snappy",
    "a bad checksum": IDENTIFIER + b"\x01\x09\x00\x00\x00\x00\x00\x00ping\n",
    "a compressed chunk that is none": IDENTIFIER + b"\x00\x0a\x00\x00" + b"\xff" * 10,
    "a reserved chunk": IDENTIFIER + b"\x02\x04\x00\x00abcd",
    "a chunk that is too long": IDENTIFIER + b"\x00\xff\xff\xff",
    "a few bytes that declare 4 GiB": IDENTIFIER
    + b"\x00\x0c\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x0f\x00\x00\x00",
}


@pytest.mark.parametrize("fault", SNAPPY_FAULTS.values(), ids=SNAPPY_FAULTS)
def test_a_bad_snappy_stream_is_a_bad_line_and_the_end(engine: Engine, fault: bytes) -> None:
    with SnappyPeer(engine.address()) as peer:
        peer.ok("ping")
    with SnappyPeer(engine.address()) as peer:
        peer.write_raw(fault)
        assert peer.reply().code == "bad_line"
        assert peer.rest() == b""


def test_a_snappy_bomb_is_a_line_that_is_too_long(engine: Engine, others: Peer) -> None:
    """64 KiB that repeat are 3 KiB of chunk: 20 MiB come as 1 MiB, and are not kept."""
    with SnappyPeer(engine.address()) as peer:
        _flood(peer, frame(b"x" * 65536, compressed=True), 320, others)
        assert peer.reply().code == "too_long"
        assert peer.rest() == b""


def test_half_a_snappy_frame_then_the_end(engine: Engine) -> None:
    with SnappyPeer(engine.address()) as peer:
        peer.write_raw(frame(b"ping\n")[:-1])
        peer.end()
        assert peer.rest() == b""


def test_a_hostile_proxy_reports_what_it_was_never_given(engine: Engine, others: Peer) -> None:
    others.post("untouched", "type=url scope=p1 due=4000000000")
    with engine.proxy_peer("p9", 0) as proxy:
        assert proxy.ok("report state=done -- untouched nobody a/b \\s")["n"] == "4"
        assert proxy.code("report state=failed task_id=untouched done=-1 failed=0") == "bad_field"
        assert proxy.code(f"report state=active task_id=untouched done={10**30} failed=0") == "bad_field"
        assert proxy.code("report state=done") == "missing_field"
        assert proxy.code("report state=gone -- untouched") == "bad_field"
        assert proxy.code("ready credit=-1") == "bad_field"
        assert proxy.code("ready credit=x") == "bad_field"
        assert others.state("untouched") == "pending"


def test_who_is_cut_off_is_pushed_nothing_more(engine: Engine, others: Peer) -> None:
    """The end of what it watches would be written after the end of its stream."""
    for slot in range(2):
        (task_id,) = owned_by(slot, "cut-off")
        others.post(task_id, "type=url due=4000000000")
        with engine.peer() as peer:
            assert peer.ok(f"watch_task task_id={task_id}")["state"] == "pending"
            peer.write_bytes(b"x" * LINE_MAX)
            assert peer.reply().code == "too_long"
            assert others.ok(f"cancel_task task_id={task_id}")["state"] == "cancelled"


def test_a_proxy_that_is_cut_off_is_pushed_nothing_more(engine: Engine, others: Peer) -> None:
    with engine.proxy_peer("p2", 0) as proxy:
        proxy.ok("ready credit=100")
        proxy.write_bytes(b"x" * LINE_MAX)
        assert proxy.reply().code == "too_long"
        for task_id in owned_by(0, "to-nobody", 3):
            others.post(task_id, "type=url scope=p2")
            others.ok(f"get_task task_id={task_id}")
