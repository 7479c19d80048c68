"""The client against the real engine: what the fake one was told to be, it is."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import PATIENCE_S, Engine
from wire.client import Client
from wire.errors import Refused
from wire.shards import worker_of
from wire.tasks import NewTask, TaskHead

HEAD = TaskHead("url")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(workers=2, proxies=["p1"]) as running:
        yield running


def client_of(engine: Engine, **options: object) -> Client:
    host, port = engine.address()
    return Client(f"{host}:{port}", **options)  # type: ignore[arg-type]


def tasks(count: int) -> Iterator[NewTask]:
    return (NewTask(f"t{number}", HEAD, (f"http://www.example.com/{number}",)) for number in range(count))


@pytest.mark.parametrize("zipped", [False, True])
def test_every_verb(engine: Engine, zipped: bool) -> None:
    async def body() -> None:
        async with client_of(engine, zip=zipped) as client:
            assert await client.ping()
            outcomes = [outcome async for outcome in client.post_many(tasks(500))]
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            assert (await client.post(next(tasks(1)))).dup
            states = [state.state async for state in client.watch("t7")]
            assert states[-1] == "complete"
            status = await client.get("t7")
            assert (status.done, status.failed, status.total) == (1, 0, 1)
            (proxy,) = await client.detail("t7")
            assert (proxy.proxy, proxy.state) == ("p1", "complete")
            listed = [status.task_id async for status in client.list_tasks(limit=600)]
            assert sorted(listed) == sorted(f"t{number}" for number in range(500))
            assert await client.cancel("t7") == "complete"
            assert await client.stats()
            with pytest.raises(Refused, match="not_found"):
                await client.get("nix")

    with engine.proxy("p1"):
        asyncio.run(body())


def test_paging_goes_through_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.client.client.LIST_PAGE", 7)

    async def body() -> None:
        async with client_of(engine) as client:
            async for _ in client.post_many(tasks(50)):
                pass
            listed = [status.task_id async for status in client.list_tasks()]
            assert len(listed) == len(set(listed)) == 50
            pending = [status.task_id async for status in client.list_tasks(state="pending")]
            assert sorted(pending) == sorted(listed)

    asyncio.run(body())


def test_a_killed_worker_costs_no_task(engine: Engine) -> None:
    count = 6000

    async def body() -> None:
        async with client_of(engine) as client:
            accepted = 0
            async for outcome in client.post_many(tasks(count)):
                assert outcome.error is None
                accepted += 1
                if accepted in (1000, 3000):
                    engine.kill_worker(accepted // 1000 % 2)
            assert accepted == count
            ends = await asyncio.gather(*(client.wait(f"t{number}") for number in range(0, count, 10)))
            assert {end.state for end in ends} == {"complete"}

    with engine.proxy("p1"):
        asyncio.run(body())


def test_a_watch_outlives_the_worker(engine: Engine) -> None:
    async def body() -> None:
        async with client_of(engine) as client:
            await client.post(next(tasks(1)))
            seen: list[str] = []

            async def watch() -> None:
                async for state in client.watch("t0"):
                    seen.append(state.state)

            watching = asyncio.ensure_future(watch())
            async with asyncio.timeout(PATIENCE_S):
                while not seen:
                    await asyncio.sleep(0.01)
            slot = worker_of(b"t0", 2)
            pid = engine.kill_worker(slot)
            await asyncio.to_thread(engine.wait_for_worker, slot, pid)
            with engine.proxy("p1"):
                await watching
            assert seen[-1] == "complete"

    asyncio.run(body())


def test_a_signed_greeting_is_accepted_and_others_are_not(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    key = f'[[key]]\nname = "acme"\nsecret_file = "{secret}"\ndomains = ["example.com"]\n'

    async def body(engine: Engine) -> None:
        async with client_of(engine, key="acme", secret=b"s3cret", zip=True) as client:
            outcomes = [outcome async for outcome in client.post_many(tasks(20))]
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            foreign = NewTask("f", HEAD, ("http://other.example.net/",))
            with pytest.raises(Refused, match="denied"):
                await client.post(foreign)
        async with client_of(engine, key="acme", secret=b"other") as stranger:
            with pytest.raises(Refused, match="does not hold"):
                await stranger.ping()
        async with client_of(engine) as nobody:
            with pytest.raises(Refused, match="auth"):
                await nobody.post(next(tasks(1)))

    with Engine(proxies=["p1"], settings='auth = "required"', more=key) as engine:
        asyncio.run(body(engine))
