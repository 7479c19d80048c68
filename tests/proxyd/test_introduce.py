"""Asking an engine who it is."""

from __future__ import annotations

import asyncio

import pytest

from proxyd.errors import LinkBroken, LinkRefused
from proxyd.introduce import ask_who
from proxyd.link import LinkSettings
from proxyd.session import Greeted, Identity
from tests.proxyd.fake_engine import FakeEngine
from tests.proxyd.rig import Scripted, Visit, run
from wire.signatures import check_hello

WHO = Identity("pop1", "eu", 2)


def test_as_a_client_with_the_key_of_the_agent() -> None:
    with FakeEngine(3, id="e7") as engine:
        settings = LinkSettings(WHO, 1, "k1", b"s3cret")
        assert run(ask_who(("127.0.0.1", engine.port), settings, 5.0)) == Greeted("e7", 3)
        [hello] = engine.links[0].lines
        fields = dict(pair.split("=", 1) for pair in hello.split(" ")[1:])
        assert {key: fields[key] for key in ("v", "role", "key")} == {"v": "1", "role": "client", "key": "k1"}
        assert fields.keys() == {"v", "role", "key", "ts", "nonce", "sig"}
        ts = int(fields["ts"])
        check_hello(b"s3cret", "client", "k1", ts, fields["nonce"], fields["sig"], ts)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"err code=auth msg=who?\n", LinkRefused, "auth: who\\?"),
        (b"", LinkBroken, "closed the connection"),
        (b"ok v=1 engine=e1", LinkBroken, "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", LinkBroken, "does not speak the protocol"),
        (b"!drain\n", LinkBroken, "sent '!drain'"),
        (b"ok workers=0\n", LinkBroken, "0 workers"),
        (b"x" * 100_000, LinkBroken, "too long"),
    ],
)
def test_other_answers(answer: bytes, error: type[Exception], says: str) -> None:
    async def script(visit: Visit) -> None:
        await visit._reader.readline()
        await visit.send(answer)

    async def test() -> None:
        async with Scripted(script) as server:
            with pytest.raises(error, match=says):
                await ask_who(server.address, LinkSettings(WHO, 1), 5.0)

    run(test())


def test_one_that_says_nothing() -> None:
    async def test() -> None:
        async with Scripted(Visit.forever) as server:
            with pytest.raises(TimeoutError):
                await ask_who(server.address, LinkSettings(WHO, 1), 0.2)
            async with asyncio.timeout(5.0):
                while server.open:
                    await asyncio.sleep(0.01)

    run(test())
