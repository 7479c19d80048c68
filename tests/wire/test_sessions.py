"""Both ends of a connection: greetings, and the pairing of replies with requests."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from wire.errors import BadLine, PeerMisbehaved, Refused
from wire.lines import parse
from wire.sessions import LISTING_MAX, Greeting, GreetingState, Push, Reply, ReplyReader

SIGNED = b"hello v=1 role=client key=acme ts=1795250000 nonce=n1 sig=" + b"0f" * 32


# -- greetings


def test_a_greeting_comes_first_or_not_at_all() -> None:
    greeting = Greeting()
    hello = greeting.read_hello(parse(SIGNED + b" worker=1 zip=snappy"))
    assert (hello.role, hello.key, hello.ts, hello.nonce, hello.worker, hello.zip) == (
        "client", "acme", 1795250000, "n1", 1, "snappy",
    )  # fmt: skip
    assert greeting.state is GreetingState.NEW
    greeting.accept()
    assert greeting.state is GreetingState.GREETED
    with pytest.raises(BadLine, match="first request"):
        greeting.read_hello(parse(SIGNED))
    with pytest.raises(RuntimeError):
        greeting.accept()
    greeting.skip()
    assert greeting.state is GreetingState.GREETED


def test_after_another_request_it_is_too_late() -> None:
    greeting = Greeting()
    greeting.skip()
    assert greeting.state is GreetingState.ANONYMOUS
    with pytest.raises(BadLine):
        greeting.read_hello(parse(SIGNED))


def test_a_refused_greeting_changes_nothing() -> None:
    greeting = Greeting()
    with pytest.raises(Refused):
        greeting.read_hello(parse(b"hello v=2 role=client"))
    assert greeting.read_hello(parse(b"hello v=1 role=client")).key is None


def test_a_proxy_says_who_it_is() -> None:
    hello = Greeting().read_hello(parse(b"hello v=1 role=proxy name=pop1 group=eu layer=2"))
    assert (hello.name, hello.group, hello.layer) == ("pop1", "eu", 2)
    assert (hello.catch_up, hello.drop_after_s) == (False, None)


def test_a_proxy_asks_to_be_told_what_it_missed() -> None:
    hello = Greeting().read_hello(parse(b"hello v=1 role=proxy name=pop1 catch_up=1 drop_after=3600"))
    assert (hello.catch_up, hello.drop_after_s) == (True, 3600)


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"hello role=client", "missing_field", "v"), (b"hello v=1", "missing_field", "role"),
        (b"hello v=2 role=client", "bad_field", "v"), (b"hello v=1 role=admin", "bad_field", "role"),
        (b"hello v=1 role=proxy", "missing_field", "name"),
        (b"hello v=1 role=client key=a", "missing_field", "ts"),
        (b"hello v=1 role=client key=a ts=1", "missing_field", "nonce"),
        (b"hello v=1 role=client key=a ts=1 nonce=n", "missing_field", "sig"),
        (b"hello v=1 role=client key=a ts=1 nonce= sig=0", "bad_field", "nonce"),
        (b"hello v=1 role=client key=a ts=1 nonce=n sig=0", "bad_field", "sig"),
        (b"hello v=1 role=client zip=gzip", "bad_field", "zip"),
        (b"hello v=1 role=client worker=-1", "bad_field", "worker"),
        (b"hello v=1 role=proxy name=a/b", "bad_field", "name"),
        (b"hello v=1 role=proxy name=a layer=x", "bad_field", "layer"),
        (b"hello v=1 role=proxy name=a catch_up=yes", "bad_field", "catch_up"),
        (b"hello v=1 role=proxy name=a drop_after=0", "bad_field", "drop_after"),
        (b"hello v=1 role=proxy name=a drop_after=31622401", "bad_field", "drop_after"),
    ],
)  # fmt: skip
def test_greetings_that_are_refused(raw: bytes, code: str, field: str) -> None:
    with pytest.raises(Refused) as caught:
        Greeting().read_hello(parse(raw))
    assert (caught.value.code, caught.value.field) == (code, field)


# -- replies


def reader(*verbs: str) -> ReplyReader[int]:
    made: ReplyReader[int] = ReplyReader()
    for number, verb in enumerate(verbs):
        made.sent(number, verb)
    return made


STREAM = (
    b"ok now=5\n!state task_id=t state=active done=0 failed=0 total=1\n"
    b"ok n=2\n+ name=a value=1\n+ name=b value=x\\sy\r\nerr code=busy retry_ms=50 msg=later\nok n=0\n!drain\n"
)
EVENTS: list[Any] = [
    Reply(0, {"now": "5"}, [], None),
    "!state",
    Reply(1, {"n": "2"}, [{"name": "a", "value": "1"}, {"name": "b", "value": "x y"}], None),
    ("busy", 50),
    Reply(3, {"n": "0"}, [], None),
    "!drain",
]


def told(event: Any) -> Any:
    if isinstance(event, Push):
        assert parse(event.raw) == event.line
        return event.line.verb
    return event if event.refused is None else (event.refused.code, event.refused.retry_ms)


@given(st.lists(st.integers(0, len(STREAM)), max_size=5))
def test_replies_are_paired_however_the_bytes_come(places: list[int]) -> None:
    bounds = [0, *sorted(places), len(STREAM)]
    replies = reader("ping", "stats", "get_task", "list_tasks")
    events = [event for start, end in pairwise(bounds) for event in replies.feed(STREAM[start:end])]
    assert [told(event) for event in events] == EVENTS
    assert replies.unanswered == 0


def test_byte_by_byte() -> None:
    replies = reader("ping", "stats", "get_task", "list_tasks")
    events = [event for byte in STREAM for event in replies.feed(bytes([byte]))]
    assert [told(event) for event in events] == EVENTS


@pytest.mark.parametrize(
    ("verb", "data"),
    [
        ("ping", b"ok\nok\n"), ("ping", b"what now\n"), ("ping", b"+ a=1\n"), ("ping", b"\n"),
        ("ping", b"ok  \n"), ("ping", b"\xff\n"), ("ping", b"HTTP/1.1 400 Bad Request\r\n"),
        ("stats", b"ok\n"), ("stats", b"ok n=x\n"), ("stats", b"ok n=-1\n"),
        ("stats", b"ok n=" + b"9" * 5000 + b"\n"),
        ("stats", b"ok n=%d\n" % (LISTING_MAX + 1)), ("stats", b"ok n=1\nok\n"),
        ("stats", b"ok n=1\n!drain\n"),
        ("stats", b"ok n=2\n+ a=1\nerr code=busy\n"), ("stats", b"ok n=1\n+x a=1\n"),
    ],
)  # fmt: skip
def test_an_engine_that_misbehaves(verb: str, data: bytes) -> None:
    replies = reader(verb)
    with pytest.raises(PeerMisbehaved):
        # Where a good reply came first, it is returned first.
        replies.feed(data) and replies.feed(b"")
    assert replies.fault is not None
    with pytest.raises(PeerMisbehaved):
        replies.feed(b"ok\n")


def test_what_came_before_the_fault_is_not_lost() -> None:
    replies = reader("ping", "ping", "stats")
    events = replies.feed(b"ok now=1\nok now=2\nok n=oops\n")
    assert [event.token for event in events if isinstance(event, Reply)] == [0, 1]
    assert "n=" in str(replies.fault)
    assert replies.abandon() == [2]


def test_a_line_too_long_is_a_fault() -> None:
    replies: ReplyReader[int] = ReplyReader(100)
    replies.sent(0, "ping")
    with pytest.raises(PeerMisbehaved, match="too long"):
        replies.feed(b"x" * 101)


def test_the_unanswered_are_handed_back_in_order() -> None:
    replies = reader("stats", "ping", "ping")
    assert replies.feed(b"ok n=2\n+ name=a value=1\n") == []
    assert replies.unanswered == 3
    assert replies.abandon() == [0, 1, 2]
    assert replies.unanswered == 0
    # And it can begin anew: no row of the listing that was cut is left.
    replies.sent(9, "stats")
    events = replies.feed(b"ok n=1\n+ name=b value=2\n")
    assert events == [Reply(9, {"n": "1"}, [{"name": "b", "value": "2"}], None)]


class Pipeline(RuleBasedStateMachine):
    """An engine that behaves, fed in pieces: each request is answered once, in order."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.replies: ReplyReader[int] = ReplyReader()
        self.sent = 0
        self.asked: list[tuple[int, str]] = []
        self.wire = b""
        self.expected: list[Any] = []
        self.got: list[Any] = []

    @rule(verb=st.sampled_from(["ping", "post_task", "stats", "list_tasks", "nonsense"]))
    def ask(self, verb: str) -> None:
        self.replies.sent(self.sent, verb)
        self.asked.append((self.sent, verb))
        self.sent += 1

    @rule(refuse=st.booleans(), rows=st.integers(0, 3))
    def answer(self, refuse: bool, rows: int) -> None:
        if not self.asked:
            return
        token, verb = self.asked.pop(0)
        self.expected.append(token)
        if refuse:
            self.wire += b"err code=busy msg=x\n"
        elif verb in ("stats", "list_tasks"):
            self.wire += b"ok n=%d\n" % rows + b"+ a=1\n" * rows
        else:
            self.wire += b"ok\n"

    @rule()
    def push(self) -> None:
        self.wire += b"!state task_id=t\n"
        self.expected.append("push")

    @rule(size=st.integers(1, 30))
    def deliver(self, size: int) -> None:
        piece, self.wire = self.wire[:size], self.wire[size:]
        for event in self.replies.feed(piece):
            self.got.append("push" if isinstance(event, Push) else event.token)

    @invariant()
    def in_order(self) -> None:
        assert self.got == self.expected[: len(self.got)]
        assert self.replies.unanswered >= len(self.asked)

    def teardown(self) -> None:
        self.deliver(len(self.wire) + 1)
        assert self.got == self.expected
        assert self.replies.abandon() == [token for token, _ in self.asked]


TestPipeline = Pipeline.TestCase
