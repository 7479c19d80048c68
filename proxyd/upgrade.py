"""The code that is on disk takes over, in this very process (docs/agent.md, "Upgrade").

    REHEARSAL ──► PAUSE ──► EXEC ──► ADOPTION (in the new code: `Agent.adopt`)

Up to the exec every step can fail, and then the old code goes on as if nothing had been asked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from proxyd import __version__, carry
from proxyd.tasks import carry_tasks
from proxyd.waiting import wait_until

if TYPE_CHECKING:
    from proxyd.agent import Agent

REHEARSE = "--rehearse"
# An interpreter starts in 0.2 s here; a machine that takes longer than this has other troubles.
REHEARSAL_S = 30.0
# Of what a rehearsal that failed has said last.
LAST_WORDS_MAX_CHARS = 2000
# How long purges in hand are waited for while nothing is read: a cache that answers is done long before.
FINISH_S = 1.0
# How long what was written may take to leave; an engine that does not read is not waited for.
WRITTEN_S = 0.2
# Left to their defaults, as an exec leaves them, these would end the new code before it can handle them.
SIGNALS = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class UpgradeRefused(Exception):
    """The old code goes on. `str()` says why."""


async def upgrade(agent: Agent) -> None:
    """Does not return if it succeeds. Raises: UpgradeRefused, and nothing has changed."""
    command = [sys.executable, *sys.orig_argv[1:]]
    await rehearse([*command, REHEARSE])
    # What leaves for good is bounded itself, and is not carried.
    await wait_until(lambda: not agent.links.leaving, agent.config.stop_timeout_s)
    async with agent.links.standstill():
        paused_at = time.monotonic()
        await wait_until(lambda: agent.stopping or agent.caches.quick_is_idle, FINISH_S)
        agent.links.flush()
        await wait_until(lambda: agent.stopping or agent.links.flushed, WRITTEN_S)
        await agent.health.freeze()
        try:
            if agent.stopping:
                raise UpgradeRefused("the agent stops")
            execute(agent, command, paused_at)
        finally:
            await agent.health.thaw()


async def rehearse(command: list[str]) -> None:
    """Runs the code on disk with the configuration on disk, without engines. Raises: UpgradeRefused."""
    environ = {**os.environ}
    environ.pop("NOTIFY_SOCKET", None)
    try:
        child = await asyncio.create_subprocess_exec(
            *command,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise UpgradeRefused(f"the new code cannot be run: {error.strerror} ({command[0]})") from None
    said = bytearray()
    try:
        async with asyncio.timeout(REHEARSAL_S):
            status = await _listen(child, said)
    except TimeoutError:
        raise UpgradeRefused(f"the new code did not start within {REHEARSAL_S:g} s{_quote(said)}") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if status:
        raise UpgradeRefused(f"the new code ended with {status}{_quote(said)}")


async def _listen(child: asyncio.subprocess.Process, said: bytearray) -> int:
    """Keeps the child's last words; its exit status."""
    stream = child.stderr
    while stream is not None and (data := await stream.read(65536)):
        said += data
        del said[:-LAST_WORDS_MAX_CHARS]
    return await child.wait()


def _quote(said: bytearray) -> str:
    text = said.decode(errors="replace").strip()
    return f": {text}" if text else ""


def execute(agent: Agent, command: list[str], paused_at: float) -> None:
    """Replaces this program. Raises: UpgradeRefused; then all goes on."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    slots = agent.links.carry(carry_tasks(agent.caches.unended(), now))
    dispatcher = agent.dispatcher
    memory = carry.CarriedMemory(carry.ground_of(agent.config), dispatcher.era, dispatcher.done.carry(now))
    engines = agent.links.carry_engines()
    carried = carry.Carried(
        __version__, agent.generation, paused_at, slots, memory, engines, agent.carry_catching_up(now),
        agent.replayed, agent.health.carry(), agent.notary.seed,
    )  # fmt: skip
    inherited: list[int] = []
    try:
        inherited = carry.write(carried, os.environ)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        os.execv(command[0], command)  # noqa: S606 (no shell is what is wanted)
    except OSError as error:
        raise UpgradeRefused(f"cannot execute {command[0]}: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.environ.pop(carry.CARRIED_FDS, None)
        carry.close({*inherited, *carried.fds})
