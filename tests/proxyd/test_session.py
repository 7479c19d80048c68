"""One connection to an engine, without I/O."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd import session as s
from proxyd.errors import LinkBroken
from proxyd.session import Identity, LinkSession, LinkState
from wire.tasks import PushHead

WHO = Identity("pop1", "eu", 2)
OK = b"ok v=1 engine=e1 worker=0 workers=3 shards=64 line_max=4096\n"


def served() -> LinkSession:
    """A session that was greeted."""
    session = LinkSession()
    session.greet(WHO, 0)
    assert session.feed(OK) == [s.Greeted("e1", 3)]
    return session


def test_the_greeting() -> None:
    session = LinkSession()
    line = session.greet(WHO, 1)
    assert (
        line
        == b"hello v=1 role=proxy name=pop1 group=eu layer=2 worker=1 learn=1 catch_up=1 asks=1 verify=1\n"
    )
    assert session.feed(OK) == [s.Greeted("e1", 3)]
    assert session.line_max == 4096
    assert session.ready(100) == b"ready credit=100\n"
    assert session.beat({"fast": 1, "cpu": 0.5}) == b"beat fast=1 cpu=0.5\n"
    assert session.feed(b"ok\nok now=1 workers=4\n") == [s.Credited(), s.Counted(4)]
    for text, rate in ((b"9000000000", 9_000_000_000), (b"0", 0), (b"-1", 0), (b"x", 0), (b"9" * 16, 0)):
        session.beat({})
        assert session.feed(b"ok now=1 workers=4 prefetch_bytes_per_s=%b\n" % text) == [s.Counted(4, rate)]


def test_the_store_that_an_engine_names() -> None:
    for said, read in ((b" store=s-1", "s-1"), (b" store=", ""), (b" store=a\\sb", "")):
        session = LinkSession()
        session.greet(WHO, 0)
        assert session.feed(OK[:-1] + said + b"\n") == [s.Greeted("e1", 3, read)]


def test_engines_that_are_named() -> None:
    session = served()
    assert session.feed(b"!engines -- a:1 [::1]:2\n!engines --\n!engines later=1\n") == [
        s.Engines(["a:1", "[::1]:2"]),
        s.Engines([]),
        s.Engines([]),
    ]


PUSHED_LATE = [b"!task task_id=b type=url -- http://h/2\n", b"!task type=url task_id=b -- http://h/2\n"]


@pytest.mark.parametrize("late", PUSHED_LATE)
@pytest.mark.parametrize("step", [1, 1000])
def test_what_is_pushed_after_a_drain_is_not_taken(late: bytes, step: int) -> None:
    session = served()
    data = b"!task task_id=a type=url -- http://h/1\n!drain\n" + late + b"!cancel -- a\n"
    events = [event for at in range(0, len(data), step) for event in session.feed(data[at : at + step])]
    assert events == [(b"a", PushHead("url"), [b"http://h/1"]), s.Drain([]), s.Cancel([b"a"])]
    again = LinkSession.thaw(session.freeze())
    assert again.feed(late) == []


def test_only_reports_are_owed() -> None:
    session = served()
    session.beat({})
    session.report([], [b"report state=active task_id=a done=1 failed=0\n"])
    assert not session.owes_reports
    session.report([b"report state=done -- a\n"], [])
    assert session.owes_reports
    assert session.feed(b"ok now=1\nok n=1\nok n=1\n") == []
    assert not session.owes_reports


def test_a_signed_greeting() -> None:
    line = LinkSession().greet(WHO, 0, {"key": "k", "ts": 5, "nonce": "n", "sig": "s"})
    assert line.endswith(b" worker=0 learn=1 catch_up=1 asks=1 verify=1 key=k ts=5 nonce=n sig=s\n")


def test_a_greeting_of_an_agent_that_may_drop_its_cache() -> None:
    line = LinkSession().greet(WHO, 0, drop_after_s=3600)
    assert line.endswith(b" learn=1 catch_up=1 drop_after=3600 asks=1 verify=1\n")


def test_what_an_engine_tells_one_that_was_away() -> None:
    session = LinkSession()
    session.greet(WHO, 0)
    assert session.feed(b"ok v=1 engine=e1 workers=1 catch_up=1\n") == [s.Greeted("e1", 1, tells=True)]
    assert session.feed(b"!drop task_id=drop:1\n!caught_up\n") == [s.Drop(b"drop:1"), s.CaughtUp()]
    assert session.feed(b"!drop\n") == [s.Complaint("a drop without a task id that holds")]
    # What is pushed from now on is left to the next connection, which will be told for itself.
    session.feed(b"!drain\n")
    assert session.feed(b"!drop task_id=drop:2\n!caught_up\n") == []


def test_pushes_hot_and_cold_mean_the_same() -> None:
    hot = b"!task task_id=a type=url ttl=60 priority=9 -- http://h/1 http://h/2\n"
    cold = b"!task priority=9 type=url task_id=a ttl=60 new_key=1 -- http://h/1 http://h/2\r\n"
    wanted = (b"a", PushHead(type="url", ttl_s=60, priority=9), [b"http://h/1", b"http://h/2"])
    assert served().feed(hot) == [wanted]
    assert served().feed(cold) == [wanted]


def test_escapes_are_undone() -> None:
    line = b"!task task_id=a type=url -- http://h/a\\\\b http://h/c\\sd\n"
    [(_, _, targets)] = served().feed(line)  # type: ignore[misc]
    assert targets == [b"http://h/a\\b", b"http://h/c d"]


STREAM = (
    b"!task task_id=a type=url -- http://h/1\nok now=5\n!cancel -- a b\n!later x=1\n"
    b"!task type=dir task_id=b -- http://h/\xc3\xa9/\nerr code=busy retry_ms=500 msg=full\n"
    b"!drain to=e2:7070,e3:7070\n"
)
EVENTS = [
    (b"a", PushHead(type="url"), [b"http://h/1"]),
    s.Cancel([b"a", b"b"]),
    (b"b", PushHead(type="dir"), ["http://h/é/".encode()]),
    s.Resend(b"report state=done -- x\n", 0.5),
    s.Drain(["e2:7070", "e3:7070"]),
]


@given(st.lists(st.integers(1, 40)))
def test_the_same_bytes_in_any_pieces(sizes: list[int]) -> None:
    session = served()
    session.beat({})
    session.report([b"report state=done -- x\n"], [])
    events: list[s.Event] = []
    rest = STREAM
    for size in sizes:
        events += session.feed(rest[:size])
        rest = rest[size:]
    assert events + session.feed(rest) == EVENTS
    assert session.state is LinkState.DRAINING
    assert session.asked == 0


@given(st.lists(st.integers(0, len(STREAM)), max_size=4))
def test_a_session_can_be_frozen_between_any_two_bytes(places: list[int]) -> None:
    session = served()
    session.beat({})
    session.report([b"report state=done -- x\n"], [])
    events: list[s.Event] = []
    at = 0
    for place in [*sorted(places), len(STREAM)]:
        events += session.feed(STREAM[at:place])
        at = place
        frozen = session.freeze()
        assert session.freeze() == frozen
        session = LinkSession.thaw(frozen)
    assert events == EVENTS
    assert (session.state, session.asked, session.line_max) == (LinkState.DRAINING, 0, 4096)


@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_a_broken_link(data: bytes) -> None:
    session = served()
    try:
        session.feed(data + b"\n")
    except LinkBroken:
        pass


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"!task task_id=a type=url\n", s.BadPush(b"a", 0, "the push has no targets")),
        (b"!task task_id=a/b type=url -- x\n", s.Complaint("a push without a task id that holds")),
        (b"!task type=url -- x\n", s.Complaint("a push without a task id that holds")),
    ],
)
def test_bad_pushes(line: bytes, event: s.Event) -> None:
    assert served().feed(line) == [event]


@pytest.mark.parametrize(
    "line",
    [
        b"!task task_id=a type=teleport -- x y\n",
        b"!task task_id=a -- x y\n",
        b"!task task_id=a type=url priority=99 -- x y\n",
    ],
)
def test_pushes_of_another_version_are_reported_failed(line: bytes) -> None:
    [event] = served().feed(line)
    assert isinstance(event, s.BadPush)
    assert (event.task_id, event.total) == (b"a", 2)
    assert event.error.startswith("this agent cannot do it: ")


@pytest.mark.parametrize(
    "line", [b"!task task_id=a type=url --  x\n", b"!x\ty\n", b"!task task_id=a type=url -- a  b\n"]
)
def test_pushes_that_are_no_lines_are_passed_over(line: bytes) -> None:
    [event] = served().feed(line)
    assert isinstance(event, s.Complaint)


@pytest.mark.parametrize("data", [b"ok\n", b"\n", b"HTTP/1.1 400 Bad Request\n", b"+ x=1\n", b"\xff\n"])
def test_what_is_not_the_protocol_breaks_the_link(data: bytes) -> None:
    with pytest.raises(LinkBroken):
        served().feed(data)


@pytest.mark.parametrize(
    "data", [b"!task task_id=a type=url -- x\n", b"ok workers=0\n", b"ok workers=9999\n"]
)
def test_bad_answers_to_the_greeting(data: bytes) -> None:
    session = LinkSession()
    session.greet(WHO, 0)
    with pytest.raises(LinkBroken):
        session.feed(data)


def test_a_line_without_end_breaks_the_link() -> None:
    session = served()
    for _ in range(15):
        session.feed(b"!" + b"x" * 65536)
    with pytest.raises(LinkBroken):
        session.feed(b"!" + b"x" * 65536)


def test_refusals() -> None:
    session = LinkSession()
    session.greet(WHO, 7)
    [event] = session.feed(b"err code=bad_field field=worker msg=no\\ssuch\n")
    assert isinstance(event, s.Refusal)
    assert event.refused.field == "worker"
    session = served()
    session.report([b"report state=done -- x\n"], [b"report state=active task_id=y\n"])
    assert session.feed(b"err code=not_found msg=what\n") == [
        s.Complaint("the engine refused a report: not_found: what")
    ]
    assert isinstance(session.feed(b"err code=busy msg=x\n")[0], s.Complaint)


def test_unanswered_reports_are_given_back() -> None:
    session = served()
    session.beat({})
    session.report([b"report a\n", b"report b\n"], [b"report active\n"])
    session.feed(b"ok now=1\nok n=1\n")
    assert session.unanswered() == [b"report b\n"]


def test_greets_once() -> None:
    with pytest.raises(RuntimeError):
        served().greet(WHO, 0)
