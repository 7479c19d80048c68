"""Which request is the master's and which a worker's, however the bytes come."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.master.admin_session import (
    HELD_MAX_BYTES,
    LINE_MAX_BYTES,
    MASTER_VERBS,
    AdminSession,
    Ask,
    Bad,
    HandOver,
)
from wire.lines import format_refused
from wire.verbs import VERBS, Role

# What comes, what the master answers ("verb" or "!code"), and what a worker gets.
CORPUS: list[tuple[bytes, list[str], bytes | None]] = [
    (b"ping\n", ["ping"], None),
    (b"ping\r\n", ["ping"], None),
    (b"ping later=1\nlist_workers\n", ["ping", "list_workers"], None),
    (b"list_workers -- x\n", ["list_workers"], None),
    (b"pin", [], None),
    (b"", [], None),
    (b"stats\n", [], b"stats\n"),
    (b"stats", [], b"stats"),
    (b"list_tasks limit=3\nping\n", [], b"list_tasks limit=3\nping\n"),
    (b"ping\npost_task task_id=a", ["ping"], b"post_task task_id=a"),
    (b"\nping\n", [], b"\nping\n"),
    (b" ping\n", [], b" ping\n"),
    (b"ping\tx\n", [], b"ping\tx\n"),
    (b"ping\x00\n", [], b"ping\x00\n"),
    (b"pingpong\n", [], b"pingpong\n"),
    (b"list_workers2\n", [], b"list_workers2\n"),
    (b"PING\n", [], b"PING\n"),
    (b"\xff\xfe\n", [], b"\xff\xfe\n"),
    (b"!ping\n", [], b"!ping\n"),
    (b"ping  x=1\nping\n", ["!bad_line", "ping"], None),
    (b"ping x\nping\n", ["!bad_line", "ping"], None),
    (b"ping \xff\nping\n", ["!bad_line", "ping"], None),
    (b"ping x=\\q\nstats\n", ["!bad_line"], b"stats\n"),
    (b"ping x=" + b"y" * (LINE_MAX_BYTES - 8) + b"\n", ["ping"], None),
    (b"ping x=" + b"y" * (LINE_MAX_BYTES - 7) + b"\n", ["!too_long"], None),
    (b"ping x=" + b"y" * LINE_MAX_BYTES * 3, ["!too_long"], None),
]


def drain(session: AdminSession) -> Iterator[str]:
    while (event := session.next_event()) is not None:
        match event:
            case Ask(line):
                yield line.verb
            case Bad(refused, fatal):
                yield f"!{refused.code}"
                if fatal:
                    session.take_rest()
                    return
            case HandOver():
                yield "hand over"
                return


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(("data", "answers", "rest"), CORPUS, ids=[data[:30] for data, _, _ in CORPUS])
def test_whole_or_in_pieces(data: bytes, answers: list[str], rest: bytes | None, size: int) -> None:
    session, heard = AdminSession(), []
    handed: bytes | None = None
    for start in range(0, len(data), size):
        if handed is not None or heard[-1:] == ["!too_long"]:
            handed = None if handed is None else handed + data[start : start + size]
            continue
        session.feed(data[start : start + size])
        for word in drain(session):
            if word == "hand over":
                handed = session.take_rest()
            else:
                heard.append(word)
    assert (heard, handed) == (answers, rest)


@given(
    st.lists(
        st.sampled_from([b"ping", b"list_workers", b" ", b"x=", b"\n", b"\r\n", b"\\s", b"--"]) | st.binary()
    )
)
def test_any_bytes_mean_the_same_whole_and_byte_by_byte(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    heard: list[list[str]] = [[], []]
    for session_heard, size in zip(heard, (1 << 20, 1), strict=True):
        session = AdminSession()
        for start in range(0, len(data), size):
            session.feed(data[start : start + size])
            while (event := session.next_event()) not in (None, HandOver()):
                if isinstance(event, Bad):
                    assert format_refused(event.refused).startswith(b"err code=bad_line msg=")
                session_heard.append(type(event).__name__)
            if event is not None:
                session_heard.append(f"hand over before {(session.take_rest() + data[start + size :]).hex()}")
                break
    assert heard[0] == heard[1]


def test_the_masters_verbs_are_in_the_table() -> None:
    for verb in MASTER_VERBS:
        assert Role.ADMIN in VERBS[verb].roles


def test_a_request_that_no_worker_takes_is_dropped_when_its_line_is_whole() -> None:
    session = AdminSession()
    session.feed(b"stats\nlist_ta")
    assert session.next_event() == HandOver()
    assert session.skip_line() is True
    assert session.next_event() == HandOver()
    assert session.skip_line() is False
    session.feed(b"sks\nping\n")
    assert session.skip_line() is True
    assert list(drain(session)) == ["ping"]


def test_a_request_that_no_worker_takes_is_held_up_to_a_bound() -> None:
    session = AdminSession()
    session.feed(b"x" * (HELD_MAX_BYTES - 1))
    assert session.skip_line() is False
    session.feed(b"x")
    assert session.skip_line() is None
