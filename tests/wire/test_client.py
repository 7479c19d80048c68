"""The client against an engine that is scripted to go wrong, on both event loops."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.wire.fake_engine import Connection, FakeEngine, accept_then_cut, cut
from wire.answers import Accepted, TaskState
from wire.client import Client
from wire.compress import Decompressor
from wire.errors import ConnectionLost, LocalError, PeerMisbehaved, Refused, TimedOut
from wire.lines import Line, format_line, parse
from wire.signatures import check_hello
from wire.tasks import NewTask, TaskHead

Run = Callable[[Coroutine[Any, Any, None]], None]
HEAD = TaskHead("url")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine; whatever a callback lets fall fails the test."""
    fallen: list[dict[str, Any]] = []

    async def watched(test: Coroutine[Any, Any, None]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: fallen.append(context))
        async with asyncio.timeout(60):
            await test

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda test: runner.run(watched(test))
    assert fallen == []


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def task(number: int | str = 0, *targets: str) -> NewTask:
    return NewTask(f"t{number}", HEAD, targets or ("http://a/b",))


@contextlib.asynccontextmanager
async def setup(workers: int = 1, **options: Any) -> AsyncIterator[tuple[FakeEngine, Client]]:
    async with FakeEngine(workers) as engine, Client(engine.address, **options) as client:
        yield engine, client


# -- the verbs


def test_every_verb(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            assert await client.ping() == 1795250000123
            assert await client.post(task(1)) == Accepted("t1", "pending", 1)
            assert await client.post(task(1)) == Accepted("t1", "pending", 1, dup=True)
            engine.set_state("t1", "active", 0, 0)
            assert (await client.get("t1")).state == "active"
            assert [row.proxy for row in await client.detail("t1")] == ["pop1", "pop2"]
            assert await client.cancel("t1") == "cancelled"
            assert await client.stats() == {"tasks": 1, "accept_rate_1m": 12.5, "engine": "e1"}
            answer = await client.request("list_proxies")
            assert answer.fields == {"n": "1"}
            assert answer.rows[0]["proxy"] == "pop1"
            assert "in flight" in repr(client)

    run(body())


def test_listing_pages_through(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wire.client.client.LIST_PAGE", 4)

    async def body() -> None:
        async with setup() as (engine, client):
            for number in range(10):
                await client.post(task(number))
            engine.set_state("t3", "complete", 1)
            listed = [status.task_id async for status in client.list_tasks()]
            assert listed == [f"t{number}" for number in reversed(range(10))]
            assert [status.task_id async for status in client.list_tasks(limit=6, after="t8")] == listed[2:8]
            assert [status.task_id async for status in client.list_tasks(state="complete")] == ["t3"]
            assert [line.fields["limit"] for line in engine.requests("list_tasks")[3:5]] == ["4", "2"]

    run(body())


@pytest.mark.parametrize(
    "code", ["bad_field", "missing_field", "conflict", "not_found", "denied", "auth", "new"]
)
def test_what_may_not_be_retried_is_raised_at_once(run: Run, code: str) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("get_task", f"err code={code} field=x msg=so\\sit\\sis\n".encode())
            with pytest.raises(Refused, match="so it is") as caught:
                await client.get("t1")
            assert (caught.value.code, caught.value.field) == (code, "x")
            assert len(engine.requests("get_task")) == 1

    run(body())


# -- greeting and routing


def test_it_greets_signed_and_zipped(run: Run) -> None:
    async def body() -> None:
        async with setup(key="acme", secret=b"s3cret", zip=True) as (engine, client):
            await client.post(task(1))
            hello = engine.greetings[0].fields
            check_hello(
                b"s3cret", "client", "acme", int(hello["ts"]), hello["nonce"], hello["sig"], int(hello["ts"])
            )
            assert isinstance(engine.connections[0].packer[1], Decompressor)  # type: ignore[index]
            assert await client.ping()

    run(body())


def test_each_connection_has_a_nonce_of_its_own(run: Run) -> None:
    async def body() -> None:
        async with setup(4, key="acme", secret=b"s") as (engine, client):
            await asyncio.gather(*(client.post(task(number)) for number in range(30)))
            nonces = [line.fields["nonce"] for line in engine.greetings]
            assert len(set(nonces)) == len(nonces) == 4

    run(body())


def test_tasks_go_to_their_owner(run: Run) -> None:
    async def body() -> None:
        async with setup(4) as (engine, client):
            outcomes = [outcome async for outcome in client.post_many(task(number) for number in range(200))]
            assert [outcome.task_id for outcome in outcomes] == [f"t{number}" for number in range(200)]
            assert all(outcome.accepted for outcome in outcomes)
            assert engine.misrouted == 0
            assert engine.accepted == 4
            assert sorted(line.fields.get("worker", "") for line in engine.greetings)[1:] != ["", "", ""]

    run(body())


def test_the_number_of_workers_may_change(run: Run) -> None:
    async def body() -> None:
        async with setup(4) as (engine, client):
            await asyncio.gather(*(client.post(task(number)) for number in range(50)))
            engine.workers = 2
            for connection in list(engine.connections):
                connection.abort()
            engine.misrouted = 0
            await asyncio.gather(*(client.post(task(number)) for number in range(50, 100)))
            # Those that were on their way may have been asked of the wrong worker; no more.
            await asyncio.gather(*(client.post(task(number)) for number in range(100, 150)))
            assert len(engine.tasks) == 150

    run(body())


def test_over_a_unix_socket_nobody_greets(run: Run, tmp_path: Path) -> None:
    async def body() -> None:
        async with FakeEngine(4, path=tmp_path / "s") as engine, Client(engine.address) as client:
            await asyncio.gather(*(client.post(task(number)) for number in range(30)))
            assert engine.greetings == []
            assert engine.accepted == 1

    run(body())


def test_an_auth_error_ends_every_call(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("hello", *[b"err code=auth msg=no\n"] * 3)
            results = await asyncio.gather(client.ping(), client.post(task(1)), return_exceptions=True)
            assert [getattr(result, "code", None) for result in results] == ["auth", "auth"]
            engine._scripts.clear()
            assert await client.ping()

    run(body())


def test_a_busy_greeting_is_tried_again(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script(
                "hello", b"err code=busy retry_ms=10 msg=later\n", cut, b"err code=internal msg=x\n"
            )
            assert await client.ping()
            assert len(engine.greetings) == 4

    run(body())


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xfe\n", b"ok\n"])
def test_not_an_engine(run: Run, garbage: bytes) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("hello", garbage)
            with pytest.raises(PeerMisbehaved):
                await client.ping()
            assert await client.ping()

    run(body())


# -- retries


def test_codes_that_may_be_retried_are(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            codes = ("busy", "limited", "unavailable", "internal", "draining")
            engine.script("post_task", *(f"err code={code} retry_ms=1 msg=x\n".encode() for code in codes))
            assert await client.post(task(1)) == Accepted("t1", "pending", 1)
            posted = engine.requests("post_task")
            assert len(posted) == 6
            assert {line.fields["task_id"] for line in posted} == {"t1"}

    run(body())


def test_retry_ms_is_honoured(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            loop = asyncio.get_running_loop()
            start = loop.time()
            engine.script("ping", b"err code=busy retry_ms=200 msg=x\n")
            await client.ping()
            assert loop.time() - start >= 0.2

    run(body())


def test_a_retry_beyond_the_deadline_is_not_waited_for(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("ping", b"err code=limited retry_ms=3600000 msg=quota\n")
            with pytest.raises(Refused, match="quota"):
                await client.ping(timeout_s=50)
            assert len(engine.requests("ping")) == 1

    run(body())


def test_refused_until_the_deadline_is_refused(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("ping", *[b"err code=busy msg=full\n"] * 1000)
            with pytest.raises(Refused, match="full"):
                await client.ping(timeout_s=0.3)

    run(body())


def test_a_lost_reply_is_asked_for_again_with_the_same_id(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.script("post_task", accept_then_cut, cut)
            assert await client.post(task(1)) == Accepted("t1", "pending", 1, dup=True)
            assert len(engine.tasks) == 1

    run(body())


def test_resets_amid_a_pipeline_lose_nothing(run: Run) -> None:
    async def body() -> None:
        async with setup(2) as (engine, client):
            answer: Any = engine.do_post_task
            every_7th = [accept_then_cut if number % 7 == 3 else answer for number in range(120)]
            engine.script("post_task", *every_7th)
            posts = client.post_many(task(number) for number in range(300))
            outcomes = [outcome async for outcome in posts]
            assert [outcome.error for outcome in outcomes if outcome.error] == []
            assert len(outcomes) == len(engine.tasks) == 300
            assert client._exchange.gate.window.requests == client._exchange.gate.window.bytes == 0

    run(body())


@pytest.mark.parametrize(
    "garbage", [b"ok\n+ what=1\n", b"\xff\n", b"ok\nok\nok\n", b"nonsense\n", b"x" * 100_000 + b"\n"]
)
def test_garbage_ends_the_connection_not_the_client(run: Run, garbage: bytes) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.ping()
            engine.script("get_task", garbage)
            with pytest.raises(PeerMisbehaved):
                await client.get("t1")
            await client.post(task(1))
            assert (await client.get("t1")).state == "pending"

    run(body())


def test_a_listing_cut_in_the_middle(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):

            def half(connection: Connection, line: Line) -> None:
                connection.write(b"ok n=2\n+ name=a value=1\n")
                connection.close()

            engine.script("stats", half)
            assert "tasks" in await client.stats()
            assert len(engine.requests("stats")) == 2

    run(body())


def test_slow_bytes(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):

            def slowly(connection: Connection, line: Line) -> None:
                async def drip() -> None:
                    # The reply comes slowly: one byte a read.
                    for byte in b"ok now=5\n":
                        connection.write(bytes([byte]))
                        await asyncio.sleep(0.002)

                dripping.append(asyncio.ensure_future(drip()))

            dripping: list[asyncio.Future[None]] = []
            engine.script("ping", slowly)
            assert await client.ping() == 5
            await asyncio.gather(*dripping)

    run(body())


# -- deadlines, silence, bounds


def test_every_call_has_a_deadline(run: Run) -> None:
    async def body() -> None:
        async with setup(timeout_s=0.1) as (engine, client):
            engine.script("ping", None, None)
            with pytest.raises(TimedOut, match="not known"):
                await client.ping()
            engine.script("hello", None)
            for connection in engine.connections:
                connection.abort()
            with pytest.raises((TimedOut, ConnectionLost)):
                await client.ping()

    run(body())


def test_an_engine_that_is_not_there(run: Run) -> None:
    async def body() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{bound.getsockname()[1]}"
            async with Client(address, timeout_s=0.2) as patient:
                with pytest.raises(ConnectionLost, match="is refreshd running"):
                    await patient.ping()
            async with Client([address, address], timeout_s=50, patient=False) as hasty:
                with pytest.raises(ConnectionLost, match=address):
                    await hasty.ping()

    run(body())


def test_a_patient_client_waits_for_the_engine(run: Run) -> None:
    async def body() -> None:
        engine = FakeEngine()
        async with engine:
            pass
        async with Client(engine.address) as client:
            posting = asyncio.ensure_future(client.post(task(1)))
            await until(lambda: client._exchange.lanes.rotation.failures >= 2)
            async with engine:
                assert await posting == Accepted("t1", "pending", 1)

    run(body())


def test_a_silent_link_is_given_up(run: Run) -> None:
    async def body() -> None:
        async with setup(silence_s=0.2) as (engine, client):
            await client.ping()
            engine.script("get_task", None)
            await client.post(task(1))
            assert (await client.get("t1")).state == "pending"
            assert engine.accepted == 2

    run(body())


def test_an_idle_link_is_asked_whether_it_lives(run: Run) -> None:
    async def body() -> None:
        async with setup(silence_s=0.1) as (engine, client):
            await client.post(task(1))
            await until(lambda: len(engine.requests("ping")) >= 3)
            assert engine.accepted == 1
            assert client._exchange.gate.window.requests <= 1
            engine.script("ping", *[None] * 3)
            await until(lambda: not client._exchange.lanes.links)

    run(body())


def test_in_flight_is_bounded(run: Run) -> None:
    async def body() -> None:
        async with setup(requests_max=5) as (engine, client):
            held: list[Connection] = []

            def hold(connection: Connection, line: Line) -> None:
                held.append(connection)

            engine.script("ping", *[hold] * 5)
            calls = [asyncio.ensure_future(client.ping()) for _ in range(8)]
            await until(lambda: len(held) == 5)
            assert len(client._exchange.gate.waiting) == 3
            with pytest.raises(TimedOut, match="in flight"):
                await client.ping(timeout_s=0.05)
            for connection in held:
                connection.write(b"ok now=1\n")
            assert len(await asyncio.gather(*calls)) == 8
            assert client._exchange.gate.window.requests == 0

    run(body())


def test_post_many_reads_no_further_ahead_than_the_window(run: Run) -> None:
    async def body() -> None:
        async with setup(requests_max=5) as (_, client):
            read: list[int] = []

            def tasks() -> Iterator[NewTask]:
                for number in range(100):
                    read.append(number)
                    yield task(number)

            seen = 0
            async for _ in client.post_many(tasks()):
                seen += 1
                assert len(read) - seen <= 6
            assert seen == 100

    run(body())


def test_post_many_tells_of_each_task_apart(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            engine.line_max = 1000
            await client.ping()
            tasks = [
                task(1),
                task(2, "http://a/" + "x" * 2000),
                task(3, "bad\0"),
                task(1, "http://other/"),
                task(4),
            ]
            outcomes = [outcome async for outcome in client.post_many(tasks)]
            assert [bool(outcome.accepted) for outcome in outcomes] == [True, False, False, False, True]
            assert isinstance(outcomes[1].error, LocalError)
            assert "split" in str(outcomes[1].error)
            assert isinstance(outcomes[2].error, LocalError)
            assert isinstance(outcomes[3].error, Refused)

    run(body())


def test_post_many_tells_of_a_task_that_found_no_room(run: Run) -> None:
    async def body() -> None:
        async with setup(requests_max=1) as (engine, client):
            engine.script("ping", None)
            held = asyncio.ensure_future(client.ping())
            await until(lambda: engine.requests("ping"))
            outcomes = [outcome async for outcome in client.post_many([task(1), task(2)], timeout_s=0.05)]
            assert [type(outcome.error) for outcome in outcomes] == [TimedOut, TimedOut]
            held.cancel()

    run(body())


def test_post_many_may_be_left_early(run: Run) -> None:
    async def body() -> None:
        async with setup() as (_, client):
            async with contextlib.aclosing(client.post_many(task(number) for number in range(50))) as posts:
                async for _ in posts:
                    break
            await until(lambda: client._exchange.gate.window.requests == 0)
            assert await client.ping()

    run(body())


def test_a_cancelled_call_leaves_nothing_behind(run: Run) -> None:
    async def body() -> None:
        async with setup(requests_max=2) as (engine, client):
            engine.script("ping", None)
            calls = [asyncio.ensure_future(client.ping()) for _ in range(3)]
            await until(lambda: engine.requests("ping"))
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert not client._exchange.calls
            assert not client._exchange.gate.waiting
            for connection in engine.connections:
                connection.abort()
            await until(lambda: client._exchange.gate.window.requests == 0)
            assert await client.ping()

    run(body())


def test_closing_ends_every_call(run: Run) -> None:
    async def body() -> None:
        async with FakeEngine() as engine:
            client = Client(engine.address, requests_max=2)
            engine.script("ping", None, None, None)
            calls = [asyncio.ensure_future(client.ping()) for _ in range(4)]
            await until(lambda: len(engine.requests("ping")) == 2)
            await client.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {ConnectionLost}
            with pytest.raises(LocalError, match="closed"):
                await client.ping()
            await client.close()
            await until(lambda: not engine.connections)

    run(body())


# -- several engines, and going away


def test_a_dead_engine_is_left_for_the_next(run: Run) -> None:
    async def body() -> None:
        async with (
            FakeEngine(name="e1") as first,
            FakeEngine(2, name="e2") as second,
            Client([first.address, second.address]) as client,
        ):
            await client.ping()
            await first.stop()
            await asyncio.gather(*(client.post(task(number)) for number in range(20)))
            assert len(second.tasks) == 20
            assert second.misrouted == 0

    run(body())


def test_a_draining_engine_is_left_at_once(run: Run) -> None:
    async def body() -> None:
        async with (
            FakeEngine() as first,
            FakeEngine() as second,
            Client([first.address, second.address]) as client,
        ):
            first.script("post_task", *[b"err code=draining retry_ms=60000 msg=x\n"] * 99)
            await asyncio.gather(*(client.post(task(number)) for number in range(20)))
            assert len(second.tasks) == 20
            await until(lambda: not first.connections)

    run(body())


def test_drain_lets_what_was_asked_be_answered(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            held: list[Connection] = []

            def drain(connection: Connection, line: Line) -> None:
                held.append(connection)
                connection.write(b"!drain\n")

            engine.script("ping", drain)
            first = asyncio.ensure_future(client.ping())
            await until(lambda: held)
            await client.post(task(1))
            assert engine.accepted == 2
            held[0].write(b"ok now=7\n")
            assert await first == 7
            await until(lambda: len(engine.connections) == 1)

    run(body())


@pytest.mark.parametrize("named", [True, False])
def test_drain_sends_the_client_elsewhere(run: Run, named: bool) -> None:
    async def body() -> None:
        async with FakeEngine() as first, FakeEngine() as second:
            known = [first.address] if named else [first.address, second.address]
            async with Client(known) as client:
                await client.ping()
                first.drain(second.address if named else None)
                await until(lambda: not first.connections)
                await client.post(task(1))
                assert len(second.tasks) == 1

    run(body())


def test_a_drain_to_nonsense_is_only_a_drain(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.ping()
            engine.drain("nowhere,:::")
            await until(lambda: not engine.connections)
            assert await client.ping()

    run(body())


# -- watching


def test_watching_ends_at_the_final_state(run: Run) -> None:
    async def body() -> None:
        async with setup(2) as (engine, client):
            await client.post(task(1, "http://a/1", "http://a/2"))
            seen: list[TaskState] = []
            async with asyncio.TaskGroup() as group:
                group.create_task(collect(client, "t1", seen))
                waiting = group.create_task(client.wait("t1"))
                await until(lambda: len(seen) == 1 and engine.requests("watch_task"))
                engine.set_state("t1", "active", 0)
                engine.set_state("t1", "active", 1)
                engine.set_state("t1", "failed", 1, 1)
            assert [(state.state, state.done, state.failed) for state in seen] == [
                ("pending", 0, 0), ("active", 0, 0), ("active", 1, 0), ("failed", 1, 1),
            ]  # fmt: skip
            assert waiting.result() == seen[-1]
            assert await client.wait("t1") == seen[-1]
            assert client._exchange.watchers == {}

    run(body())


async def collect(client: Client, task_id: str, seen: list[TaskState]) -> None:
    async for state in client.watch(task_id):
        seen.append(state)


def test_watching_survives_lost_connections_and_drains(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.post(task(1))
            seen: list[TaskState] = []
            watching = asyncio.ensure_future(collect(client, "t1", seen))
            await until(lambda: seen)
            for count, interrupt in enumerate([engine.drain, lambda: engine.connections[-1].abort()], 2):
                interrupt()
                await until(lambda count=count: len(engine.requests("watch_task")) == count)
            await until(lambda: any("t1" in connection.watched for connection in engine.connections))
            address, tasks = engine.address, engine.tasks
            await engine.stop()
            tasks["t1"].update(state="complete", done=1)
            await engine.start()
            assert engine.address == address
            await watching
            assert [state.state for state in seen] == ["pending", "complete"]

    run(body())


def test_an_engine_that_restarts_keeps_its_watchers(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.post(task(1))
            seen: list[TaskState] = []
            watching = asyncio.ensure_future(collect(client, "t1", seen))
            await until(lambda: seen)
            await engine.stop()
            await engine.start()
            await until(lambda: any("t1" in connection.watched for connection in engine.connections))
            engine.set_state("t1", "complete", 1)
            await watching
            assert seen[-1].final

    run(body())


def test_watching_a_task_that_is_not_there(run: Run) -> None:
    async def body() -> None:
        async with setup() as (_, client):
            with pytest.raises(Refused, match="not_found"):
                await client.wait("nix")

    run(body())


def test_a_watch_has_a_deadline(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.post(task(1))
            with pytest.raises(TimedOut, match="goes on"):
                await client.wait("t1", timeout_s=0.1)
            engine.set_state("t1", "complete", 1)
            assert (await client.wait("t1")).final

    run(body())


def test_a_slow_reader_misses_states_but_not_the_last(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.post(task(1, *(f"http://a/{number}" for number in range(500))))
            states = client.watch("t1")
            await anext(states)
            for done in range(1, 500):
                engine.set_state("t1", "active", done)
            engine.set_state("t1", "complete", 500)
            await client.ping()
            rest = [state async for state in states]
            assert len(rest) <= 64
            assert rest[-1].state == "complete"

    run(body())


@pytest.mark.parametrize("push", [b"!state task_id=t1\n", b"!state\n"])
def test_a_push_that_makes_no_sense_ends_the_connection(run: Run, push: bytes) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.ping()
            engine.connections[0].write(push + b"!whatever new=1\n")
            await until(lambda: not client._exchange.lanes.links)
            assert await client.ping()

    run(body())


def test_unknown_pushes_are_ignored(run: Run) -> None:
    async def body() -> None:
        async with setup() as (engine, client):
            await client.ping()
            engine.connections[0].write(b"!whatever new=1 -- x y\n!state " + b"task_id=z state=active")
            engine.connections[0].write(b" done=0 failed=0 total=1\n")
            await client.ping()
            assert engine.accepted == 1

    run(body())


# -- what the caller got wrong


def test_what_the_caller_got_wrong(run: Run) -> None:
    async def body() -> None:
        for addresses in ([], "nowhere", ["127.0.0.1:1", "x"]):
            with pytest.raises(LocalError):
                Client(addresses)
        with pytest.raises(LocalError, match="go together"):
            Client("127.0.0.1:1", key="acme")
        async with setup() as (_, client):
            with pytest.raises(LocalError):
                await client.post(task("x", ""))
            with pytest.raises(LocalError, match="split"):
                await client.post(task(1, "http://a/" + "x" * (1 << 20)))

    run(body())


def test_the_lines_are_those_of_the_page() -> None:
    line = NewTask("t1", TaskHead("dir", scope=("eu",), priority=9), ("http://a/b/",)).line()
    assert line == b"post_task task_id=t1 type=dir scope=eu priority=9 -- http://a/b/\n"
    assert parse(line[:-1]).fields["scope"] == "eu"
    assert format_line("ping") == b"ping\n"
