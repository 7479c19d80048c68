"""The client's end of a connection: greeting, compression, and what follows."""

import pytest

from wire.compress import Compressor, Decompressor
from wire.dialogue import Credentials, Dialogue, Welcome, format_hello
from wire.errors import LocalError, PeerMisbehaved, Refused
from wire.lines import parse
from wire.sessions import Greeting, Push, Reply
from wire.signatures import check_hello

OK = b"ok v=1 engine=e1 worker=1 workers=2 shards=64 line_max=4096\n"


def test_the_greeting_is_one_that_an_engine_takes() -> None:
    raw = format_hello(Credentials("acme", b"s3cret"), ts=1795250000, nonce="n", worker=1, zipped=True)
    hello = Greeting().read_hello(parse(raw[:-1]))
    assert (hello.role, hello.worker, hello.zip) == ("client", 1, "snappy")
    assert hello.key == "acme"
    check_hello(b"s3cret", "client", "acme", hello.ts, hello.nonce, hello.sig, 1795250000)
    assert format_hello(None, ts=1, nonce="n") == b"hello v=1 role=client\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("zipped", [False, True])
def test_greeting_then_replies_in_any_pieces(step: int, zipped: bool) -> None:
    dialogue: Dialogue[str] = Dialogue(b"hello\n", zipped=zipped)
    assert dialogue.begin() == b"hello\n"
    assert not dialogue.open
    with pytest.raises(LocalError):
        dialogue.sent("x", "ping")
    early = b"!drain\n" + OK
    assert [event.line.verb for event in dialogue.feed(early) if isinstance(event, Push)] == ["!drain"]
    assert dialogue.open
    assert dialogue.welcome == Welcome("e1", 1, 2, 4096)
    assert dialogue.line_max == 4096
    dialogue.sent("x", "ping")
    request = dialogue.pack(b"ping\n")
    assert (Decompressor().decompress(request) if zipped else request) == b"ping\n"
    data = b"ok now=1\n!state task_id=t\n"
    data = Compressor().compress(data) if zipped else data
    events = [event for at in range(0, len(data), step) for event in dialogue.feed(data[at : at + step])]
    assert events[0] == Reply("x", {"now": "1"}, [], None)
    assert isinstance(events[1], Push)
    assert dialogue.unanswered == 0


def test_what_follows_the_greeting_in_one_read_is_not_lost() -> None:
    dialogue: Dialogue[str] = Dialogue(b"hello\n", zipped=True)
    events = dialogue.feed(OK + Compressor().compress(b"!drain\n"))
    assert [event.line.verb for event in events if isinstance(event, Push)] == ["!drain"]


def test_without_greeting_it_is_open_at_once() -> None:
    dialogue: Dialogue[str] = Dialogue(None)
    assert dialogue.open
    assert dialogue.begin() == b""
    dialogue.sent("x", "ping")
    assert dialogue.abandon() == ["x"]


def test_a_refused_greeting() -> None:
    dialogue: Dialogue[str] = Dialogue(b"hello\n")
    with pytest.raises(Refused, match="off") as caught:
        dialogue.feed(b"err code=auth msg=clock\\sis\\soff\n")
    assert caught.value.code == "auth"
    assert not dialogue.open


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01\n", b"ok v=1\n", b"ok worker=0 workers=0\n",
        b"+ a=1\n",
        b"ok worker=0 workers=99999\n", b"ok worker=x workers=1\n", b"x" * (2 << 20),
    ],
)  # fmt: skip
def test_not_an_engine(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        Dialogue(b"hello\n").feed(data)


def test_a_damaged_stream() -> None:
    dialogue: Dialogue[str] = Dialogue(b"hello\n", zipped=True)
    with pytest.raises(PeerMisbehaved, match="snappy"):
        dialogue.feed(OK + b"ok now=1\n")
