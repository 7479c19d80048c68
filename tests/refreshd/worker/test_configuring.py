"""Settings take effect in a worker that runs: a real hub and store, connections without sockets."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from refreshd import config as configuration
from refreshd import descriptors
from refreshd.config import Config
from refreshd.errors import ConfigError
from refreshd.scoreboard import Scoreboard
from refreshd.shard import ShardMap
from refreshd.store import layout
from refreshd.store.sqlite import SqliteLane
from refreshd.worker.configuring import configure
from refreshd.worker.hub import Hub
from wire.dialogue import Credentials, format_hello
from wire.lines import parse

SECRETS = {"acme.key": b"open sesame", "other.key": b"swordfish"}
ACME = '[[key]]\nname = "acme"\nsecret_file = "acme.key"\n'
POP1 = '[[proxy]]\nname = "pop1"\ngroup = "eu"\n'
POST = b"post_task task_id=%b type=url -- http://a.example/x"


class Transport:
    """What a connection writes, and how it ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.written = b""
        self.ended = False
        self._closing = False
        self.owner: Any = None
        self._loop = loop

    def set_write_buffer_limits(self, high: int) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes) -> None:
        assert not self.ended, f"written behind the end: {data!r}"
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        if not self._closing:
            self.ended = self._closing = True
            self._loop.call_soon(self.owner.connection_lost, None)

    abort = close


class Peer:
    """The other end of a connection."""

    def __init__(self, hub: Hub, *, admin: bool = False) -> None:
        self.connection = hub.new_connection(admin=admin, unread=b"")
        self.transport = Transport(hub.loop)
        self.transport.owner = self.connection
        self.connection.connection_made(cast(Any, self.transport))

    def say(self, line: bytes) -> None:
        self.connection.data_received(line + b"\n")

    @property
    def heard(self) -> list[str]:
        """Verb, or code, of each line that came."""
        lines = [parse(raw) for raw in self.transport.written.split(b"\n")[:-1]]
        return [line.fields.get("code", line.verb) for line in lines]

    async def asks(self, line: bytes) -> str:
        """The verb or code of the answer."""
        before = len(self.heard)
        self.say(line)
        await until(lambda: len(self.heard) > before)
        return self.heard[before]

    async def greets(self, key: str = "", more: bytes = b"") -> str:
        return await self.asks(hello(key) + more)

    @property
    def dismissed(self) -> bool:
        return self.transport.ended and self.heard[-1:] == ["!drain"]


def hello(key: str = "", secret: bytes = b"open sesame") -> bytes:
    credentials = Credentials(key, secret) if key else None
    nonce = os.urandom(8).hex()
    line = format_hello(credentials, ts=int(time.time()), nonce=nonce, worker=None, zipped=False)
    return line.removesuffix(b"\n")


def proxy_hello(name: str) -> bytes:
    return b"hello v=1 role=proxy name=" + name.encode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


Work = Callable[[Hub], Awaitable[None]]


class Bench:
    """One worker, that starts with a configuration and does some work."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._data.mkdir()
        layout.read_or_create(self._data, 1)

    def config(self, text: str = "", engine: str = "", secrets: dict[str, bytes] | None = None) -> Config:
        known = SECRETS | (secrets or {})
        head = f'[engine]\ndata = "{self._data}"\n{engine}\n'
        return configuration.parse(head + text, read_secret=lambda path: known[path])

    def run(self, config: Config, work: Work) -> None:
        async def main() -> None:
            fd = Scoreboard.create()
            scoreboard = Scoreboard(fd)
            hub = Hub(config, ShardMap(0, 1, 1), scoreboard, asyncio.get_running_loop())
            hub.open_store()
            hub.start()
            await work(hub)
            for connection in list(hub.connections.values()):
                connection.abort()
            await hub.stop(5.0)

        asyncio.run(main())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_bounds_of_tasks(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        peer = Peer(hub)
        assert await peer.greets() == "ok"
        proxy = Peer(hub)
        assert await proxy.asks(proxy_hello("pop1")) == "ok"
        assert await peer.asks(POST % b"one") == "ok"
        for engine in ("tasks_max = 1", "tasks_bytes_max = 1048576", "saver_queue_max = 100"):
            configure(hub, bench.config(engine=engine))
            code = await peer.asks(POST % engine[:9].encode())
            assert code == ("busy" if engine == "tasks_max = 1" else "ok")
        assert hub.engine.config is hub.config
        assert hub.config.engine.tasks_max == bench.config().engine.tasks_max
        assert await proxy.asks(b"beat") == "ok"

    bench.run(bench.config(), work)


def test_what_prefetches_may_bring_is_shared_out_at_the_next_beat(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        proxies = [Peer(hub), Peer(hub)]
        for number, proxy in enumerate(proxies):
            assert await proxy.asks(proxy_hello(f"pop{number}")) == "ok"

        async def told() -> str | None:
            assert await proxies[0].asks(b"beat") == "ok"
            line = parse(proxies[0].transport.written.split(b"\n")[-2])
            assert line.fields["workers"]
            return line.fields.get("prefetch_bytes_per_s")

        assert await told() is None
        configure(hub, bench.config(engine="prefetch_bytes_per_s = 1001"))
        assert await told() == "500"
        hub.proxies.disconnected(hub.proxies.sessions["pop1"])
        assert await told() == "1001"
        configure(hub, bench.config())
        assert await told() is None

    bench.run(bench.config(), work)


def test_what_needs_a_restart_is_refused_and_changes_nothing(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        before = hub.config
        with pytest.raises(ConfigError, match=r"engine\.id takes effect at a restart only"):
            configure(hub, bench.config(POP1, engine='id = "e2"\ntasks_max = 1'))
        assert hub.config is before
        assert hub.fleet.get("pop1") is None

    bench.run(bench.config(), work)


def test_what_needs_new_workers_stays_until_they_come(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        configure(hub, bench.config(engine="line_max = 8192\nworkers = 7"))
        assert hub.config == bench.config()
        configure(hub, bench.config(engine="line_max = 8192\ntasks_max = 9"))
        assert hub.config.engine.line_max == bench.config().engine.line_max
        assert hub.config.engine.tasks_max == 9

    bench.run(bench.config(), work)


def test_who_has_not_signed_goes_when_signatures_are_wanted(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        anonymous, greeted, signed, fresh, operator, proxy = (
            Peer(hub), Peer(hub), Peer(hub), Peer(hub), Peer(hub, admin=True), Peer(hub),
        )  # fmt: skip
        assert await anonymous.asks(b"ping") == "ok"
        assert await greeted.greets() == "ok"
        assert await signed.greets("acme") == "ok"
        assert await operator.asks(b"ping") == "ok"
        assert await proxy.asks(proxy_hello("pop1")) == "ok"
        configure(hub, bench.config(ACME, engine='auth = "required"'))
        assert [peer.dismissed for peer in (anonymous, greeted, proxy)] == [True] * 3
        assert "pop1" not in hub.proxies.sessions
        anonymous.say(b"ping")
        assert anonymous.heard[-1] == "!drain"
        for peer in (signed, operator):
            assert await peer.asks(b"ping") == "ok"
        assert await fresh.asks(b"stats") == "auth"
        late = Peer(hub)
        assert await late.greets() == "auth"
        assert await late.greets("acme") == "ok"
        late_too, waiting = Peer(hub), Peer(hub)
        assert await late_too.asks(b"stats") == "auth"
        configure(hub, bench.config(ACME))
        assert await waiting.asks(b"stats") == "ok"
        assert await late_too.asks(b"stats") == "ok"

    bench.run(bench.config(ACME), work)


def test_keys_that_are_gone_or_have_another_secret(bench: Bench) -> None:
    two = ACME + '[[key]]\nname = "other"\nsecret_file = "other.key"\n'

    async def work(hub: Hub) -> None:
        acme, other = Peer(hub), Peer(hub)
        assert await acme.greets("acme") == "ok"
        other.say(hello("other", b"swordfish"))
        await until(lambda: other.heard == ["ok"])
        configure(hub, bench.config(two, secrets={"other.key": b"changed"}))
        assert (acme.transport.ended, other.dismissed) == (False, True)
        again = Peer(hub)
        assert await again.asks(hello("other", b"swordfish")) == "auth"
        assert await again.asks(hello("other", b"changed")) == "ok"
        configure(hub, bench.config(ACME + 'domains = ["b.example"]\n', secrets={"acme.key": b"new"}))
        assert acme.dismissed
        assert again.dismissed

    bench.run(bench.config(two), work)


def test_domains_hold_for_those_who_are_connected(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        peer = Peer(hub)
        assert await peer.greets("acme") == "ok"
        assert await peer.asks(POST % b"one") == "ok"
        configure(hub, bench.config(POP1 + ACME + 'domains = ["b.example"]\n'))
        assert await peer.asks(POST % b"two") == "denied"
        configure(hub, bench.config(POP1 + ACME + 'domains = ["a.example"]\n'))
        assert await peer.asks(POST % b"two") == "ok"
        assert not peer.transport.ended

    bench.run(bench.config(POP1 + ACME), work)


def test_a_key_that_only_a_sibling_knows_may_try_again(bench: Bench) -> None:
    """A post that crosses the mesh between two workers of which one is configured already."""

    async def work(hub: Hub) -> None:
        peer = Peer(hub)
        assert await peer.greets("acme") == "ok"
        peer.connection.caller.key = "new"
        assert await peer.asks(POST % b"one") == "busy"
        assert hub.engine.tasks == {}

    bench.run(bench.config(POP1 + ACME), work)


def test_replies_that_are_owed_come_before_the_end(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        peer = Peer(hub)
        assert await peer.asks(b"ping") == "ok"
        peer.say(POST % b"one")
        assert peer.heard == ["ok"], "the task is on its way to the disk"
        configure(hub, bench.config(POP1 + ACME, engine='auth = "required"'))
        assert not peer.transport.ended
        peer.say(b"ping")
        await until(lambda: peer.transport.ended)
        assert sorted(peer.heard) == ["!drain", "ok", "ok"]
        assert list(hub.engine.tasks) == [b"one"]

    bench.run(bench.config(POP1 + ACME), work)


def test_a_greeting_under_way_is_looked_at_again(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        peer, proxy = Peer(hub), Peer(hub)
        peer.say(hello("acme"))
        proxy.say(proxy_hello("pop1") + b" group=eu")
        assert peer.heard == proxy.heard == []
        configure(hub, bench.config(POP1.replace("eu", "us") + ACME, secrets={"acme.key": b"new"}))
        await until(lambda: peer.heard and proxy.heard)
        assert (peer.heard, proxy.heard) == (["auth"], ["bad_field"])
        assert await peer.asks(hello("acme", b"new")) == "ok"

    bench.run(bench.config(POP1 + ACME), work)


def test_the_fleet_that_is_expected(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        client = Peer(hub)
        proxies = {name: Peer(hub) for name in ("pop1", "pop2", "pop3")}
        for name, proxy in proxies.items():
            assert await proxy.asks(proxy_hello(name)) == "ok"
        _, pop2, pop3 = proxies.values()
        assert await client.asks(POST % b"one") == "ok"
        assert hub.engine.tasks[b"one"].layer.plan.text == "0=pop1,pop2,pop3"

        listed = '[[proxy]]\nname = "pop1"\ngroup = "eu"\nlayer = 1\n[[proxy]]\nname = "pop4"\n'
        configure(hub, bench.config(listed))
        assert [peer.dismissed for peer in proxies.values()] == [True, True, False]
        # pop2 was only listed, pop3 has registered; pop1 has another layer.
        assert await client.asks(POST % b"two") == "ok"
        assert hub.engine.tasks[b"two"].layer.plan.text == "0=pop3,pop4;1=pop1"
        assert hub.engine.tasks[b"one"].layer.plan.text == "0=pop1,pop2,pop3"
        assert await Peer(hub).asks(proxy_hello("pop1") + b" layer=0") == "bad_field"
        again = Peer(hub)
        assert await again.asks(proxy_hello("pop1")) == "ok"
        assert hub.proxies.sessions["pop1"] is again.connection.session

        configure(hub, bench.config(listed, engine="open_fleet = false"))
        assert pop3.dismissed
        assert not again.transport.ended
        assert await Peer(hub).asks(proxy_hello("pop3")) == "denied"
        listed += '[[proxy]]\nname = "pop3"\n'
        configure(hub, bench.config(listed, engine="open_fleet = false"))
        assert await Peer(hub).asks(proxy_hello("pop3")) == "ok"
        assert pop2.transport.ended

    bench.run(bench.config(POP1 + '[[proxy]]\nname = "pop2"\n'), work)


def test_a_proxy_that_is_listed_as_what_it_is_stays(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        proxy = Peer(hub)
        assert await proxy.asks(proxy_hello("pop1") + b" group=eu") == "ok"
        for engine, text in (("open_fleet = false", POP1), ("", POP1), ("", "")):
            configure(hub, bench.config(text, engine=engine))
            assert await proxy.asks(b"beat") == "ok"
        known = hub.fleet.get("pop1")
        assert known is not None
        assert (known.group, known.listed) == ("eu", False)

    bench.run(bench.config(), work)


def test_retention_and_deadline(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        configure(hub, bench.config("[store]\nretention_s = 60\n", engine="stop_deadline_s = 2"))
        lane = hub.engine.savers[0].lane
        assert isinstance(lane, SqliteLane)
        assert lane._retention_ms == 60_000
        assert hub.config.engine.stop_deadline_s == 2.0

    bench.run(bench.config(), work)


def test_more_connections_need_more_descriptors(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(descriptors, "make_room", lambda wanted: asked.append(wanted) or (wanted, wanted))

    async def work(hub: Hub) -> None:
        configure(hub, bench.config(engine="connections_max = 20000"))
        assert asked == [20_000]

    bench.run(bench.config(), work)


def test_the_same_once_more_is_nothing(bench: Bench) -> None:
    async def work(hub: Hub) -> None:
        before = hub.config
        configure(hub, bench.config(POP1))
        assert hub.config is before
        assert msgspec.structs.asdict(before) == msgspec.structs.asdict(bench.config(POP1))

    bench.run(bench.config(POP1), work)
