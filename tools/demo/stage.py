"""The stage: origin, cache, engine and agent, started in this order on free ports, stopped in the reverse."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tools.demo import settings
from tools.demo.caches import Kind, free_port
from tools.demo.http1 import Address, HttpError, Request, Response, Server, fetch
from tools.demo.origin import Origin
from tools.demo.processes import Child
from tools.servers import MariaDb, RedisServer, ServerFailed
from wire.client import Client
from wire.errors import WireError

#: Everything is run from here: commands can be copied, and paths of sockets are short (107 bytes at most).
ROOT = Path(__file__).resolve().parents[2]
#: How long each part may take until it answers. A cold Varnish compiles its VCL first.
START_S = 20.0
POLL_S = 0.05
#: One question to the engine while it starts.
ASK_S = 2.0
#: A site that is nobody's (RFC 2606); visitors reach the cache by its address and name the site in `host`.
SITE = "www.example.com"


class NotReady(Exception):
    """A part of the stage did not answer in time."""


@dataclass(slots=True)
class Partner:
    """The second engine of two that share a database."""

    port: int
    config: Path
    socket: Path
    """Relative to ROOT."""
    child: Child | None = None
    start: Callable[[], Awaitable[None]] | None = None
    """Starts it, for the first time or again."""


@dataclass(slots=True)
class Stage:
    """What is up, and where."""

    folder: Path
    origin: Origin
    origin_address: Address
    cache_kind: Kind
    cache_address: Address = ("127.0.0.1", 0)
    engine_port: int = 0
    children: list[Child] = field(default_factory=list)
    partner: Partner | None = None
    """The second engine, if there are two."""

    @property
    def socket(self) -> Path:
        """The engine's admin socket, relative to ROOT."""
        return self.folder.relative_to(ROOT) / "data" / "admin.sock"

    async def kill_partner(self) -> None:
        """kill -9 of the second engine, all its processes at once."""
        if self.partner is not None and self.partner.child is not None:
            self.children.remove(self.partner.child)
            await self.partner.child.kill()

    async def restart_partner(self) -> None:
        """The second engine comes back. Raises: ChildDied, NotReady."""
        if self.partner is not None and self.partner.start is not None:
            await self.partner.start()
            await wait_until_partner_ready(self)

    def check(self) -> None:
        """Raises: ChildDied when one of the processes is gone."""
        for child in self.children:
            child.check()

    async def visit(self, target: str) -> Response:
        """What a visitor of SITE gets from the cache. Raises: OSError, TimeoutError, HttpError."""
        return await fetch(self.cache_address, Request("GET", target.encode(), {"host": SITE}))

    async def refreshctl(self, *words: str, timeout_s: float) -> tuple[int, str]:
        """Run refreshctl on the engine's socket: exit code, and what it wrote.

        Raises: TimeoutError; the command is killed then.
        """
        process = await asyncio.create_subprocess_exec(
            *self.refreshctl_command(*words),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, output.decode(errors="replace").strip()

    async def task_took_ms(self, task_id: str) -> int:
        """From the acceptance of a final task to its end, by the engine's clock. Raises: WireError."""
        async with self.client() as client:
            status = await client.get(task_id)
        return status.updated - status.created

    def client(self) -> Client:
        """Asks the engine over its admin socket."""
        return Client(f"unix:{self.socket}", timeout_s=ASK_S)

    def refreshctl_command(self, *words: str) -> list[str]:
        return [*program("refreshctl"), "--socket", str(self.socket), *words]


def program(name: str) -> list[str]:
    """The installed command NAME of the Python that runs this, as seen from ROOT."""
    path = Path(sys.executable).parent / name
    return [str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)]


@asynccontextmanager
async def set_up(folder: Path, cache_kind: Kind, engines: int = 1) -> AsyncIterator[Stage]:
    """Everything up and answering; on the way out, however it is taken, all of it stops.

    One engine keeps its tasks in its folder; two share a MariaDB and a Redis. Raises: ChildDied, NotReady.
    """
    async with AsyncExitStack() as stack:
        shared = share(stack) if engines == 2 else ""
        origin = Origin()
        server = await stack.enter_async_context(Server(origin.handle))
        stage = Stage(folder, origin, server.address, cache_kind)
        cache = await stack.enter_async_context(cache_kind.start(folder, server.address))
        stage.cache_address = cache.address
        if cache.child is not None:
            stage.children.append(cache.child)
        await start_engine(stage, stack, shared)
        if shared:
            await start_partner(stage, stack, shared)
        await start_agent(stage, stack)
        await wait_until_ready(stage)
        yield stage


def share(stack: AsyncExitStack) -> str:
    """Starts what engines share; nothing else is up yet, so this may block. What their files say of it.

    Raises: NotReady.
    """
    database, redis = MariaDb(), RedisServer()
    try:
        for server in (database, redis):
            stack.callback(server.stop)
            server.start()
    except ServerFailed as error:
        raise NotReady(f"two engines need a MariaDB and a Redis: {error}") from error
    return settings.SHARED.format(database=database.url, redis=redis.url)


async def start_engine(stage: Stage, stack: AsyncExitStack, shared: str) -> None:
    stage.engine_port = free_port()
    config = stage.folder / "refreshd.toml"
    data = stage.folder.relative_to(ROOT) / "data"
    (ROOT / data).mkdir()
    settings.write_engine(config, port=stage.engine_port, data=data, more=shared)
    await start_child(stage, stack, "refreshd", config)


async def start_partner(stage: Stage, stack: AsyncExitStack, shared: str) -> None:
    config = stage.folder / "refreshd2.toml"
    data = stage.folder.relative_to(ROOT) / "data2"
    (ROOT / data).mkdir()
    partner = stage.partner = Partner(free_port(), config, data / "admin.sock")
    settings.write_engine(config, port=partner.port, data=data, name="demo2", more=shared)
    partner.start = partial(run_partner, stage, stack, partner)
    await partner.start()


async def run_partner(stage: Stage, stack: AsyncExitStack, partner: Partner) -> None:
    await start_child(stage, stack, "refreshd", partner.config)
    partner.child = stage.children[-1]


async def start_agent(stage: Stage, stack: AsyncExitStack) -> None:
    config = stage.folder / "proxyd.toml"
    settings.write_agent(
        config,
        engine_ports=[stage.engine_port, *([stage.partner.port] if stage.partner else [])],
        cache_name=stage.cache_kind.name,
        cache_kind=stage.cache_kind.agent_kind,
        cache_port=stage.cache_address[1],
    )
    await start_child(stage, stack, "proxyd", config)


async def start_child(stage: Stage, stack: AsyncExitStack, name: str, config: Path) -> None:
    command = [*program(name), "--config", str(config.relative_to(ROOT))]
    child = await Child.start(name, command, log=stage.folder / f"{config.stem}.log", cwd=ROOT)
    stack.push_async_callback(child.stop)
    stage.children.append(child)


async def wait_until_ready(stage: Stage) -> None:
    await wait_until(stage, "the cache answers", lambda: cache_answers(stage))
    await wait_until(stage, "the agent is registered", lambda: agent_registered(stage.socket))
    if stage.partner is not None:
        await wait_until_partner_ready(stage)


async def wait_until_partner_ready(stage: Stage) -> None:
    """Raises: NotReady, ChildDied."""
    assert stage.partner is not None
    socket = stage.partner.socket
    await wait_until(stage, "the agent is registered with the second", lambda: agent_registered(socket))


async def wait_until(stage: Stage, what: str, is_so: Callable[[], Awaitable[bool]]) -> None:
    """Raises: NotReady after START_S seconds; ChildDied as soon as a part dies."""
    deadline = time.monotonic() + START_S
    while not await is_so():
        stage.check()
        if time.monotonic() > deadline:
            raise NotReady(f"waited {START_S:.0f} s until {what}; see the logs in {stage.folder}")
        await asyncio.sleep(POLL_S)


async def cache_answers(stage: Stage) -> bool:
    try:
        await stage.visit("/is-it-up")
    except (OSError, TimeoutError, HttpError):
        return False
    return True


async def agent_registered(socket: Path) -> bool:
    """Whether an engine has the agent online, one connection a worker, asked on its admin socket."""
    try:
        async with Client(f"unix:{socket}", patient=False, timeout_s=ASK_S) as client:
            answer = await client.request("list_proxies")
    except WireError:
        return False
    return any(row.get("online") == "1" and row.get("links") == str(settings.WORKERS) for row in answer.rows)
