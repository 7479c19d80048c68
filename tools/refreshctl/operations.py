"""`reload`, `upgrade`, `drain` and `undrain`: what an operator has the engine do to itself."""

from __future__ import annotations

import asyncio
import sys

from tools.refreshctl.context import Context
from tools.refreshctl.documents import document, error_document
from tools.refreshctl.exits import Exit, Failure, usage
from tools.refreshctl.tables import printable
from tools.refreshctl.times import seconds
from wire.answers import OperationStatus, read_operation, read_operation_number
from wire.client import Client
from wire.errors import Refused

POLL_S = 0.1
# A roll of many workers with millions of tasks takes minutes; a pipeline must not hang for ever.
WAIT_S = 600
# An upgrade re-executes the master, which cuts connections to it; who does not answer for so long is gone.
ANSWER_TIMEOUT_S = 10.0


async def reload(context: Context) -> Exit:
    """Starts a reload and, with --wait, waits for its end."""
    return await _operate(context, "reload")


async def upgrade(context: Context) -> Exit:
    """Starts an upgrade and, with --wait, waits for its end."""
    return await _operate(context, "upgrade")


async def drain(context: Context) -> Exit:
    """Takes the engine out of service."""
    return await _set_draining(context, True, "the engine takes no new tasks; `refreshctl undrain` ends that")


async def undrain(context: Context) -> Exit:
    """Takes the engine back into service."""
    return await _set_draining(context, False, "the engine takes new tasks")


async def _set_draining(context: Context, on: bool, text: str) -> Exit:
    async with context.client() as client:
        await client.request("drain" if on else "undrain")
    context.show({"draining": on}, text + "\n")
    return Exit.OK


async def _operate(context: Context, verb: str) -> Exit:
    wait_s = _wait_s(context)
    async with context.client() as client:
        try:
            number = read_operation_number((await client.request(verb)).fields)
        except Refused as refused:
            if refused.field != "config":
                raise
            return _wrong_configuration(context, refused)
        if not context.args.wait:
            context.show({"operation": number}, f"{verb} {number} begins; see `refreshctl status`\n")
            return Exit.OK
        status = await _until_over(client, number, wait_s)
    if status.state == "done":
        context.show(document(status), describe(status) + "\n")
        return Exit.OK
    context.show(document(status), "")
    late = "" if status.over else f"not over after {wait_s} s, it goes on: "
    context.complain(late + describe(status))
    return Exit.FAILED


def _wait_s(context: Context) -> int:
    timeout = context.args.timeout
    if timeout is None:
        return WAIT_S
    if not context.args.wait:
        raise usage("--timeout is for --wait")
    return seconds(timeout, "--timeout")


def _wrong_configuration(context: Context, refused: Refused) -> Exit:
    """Each fault has a line of its own; the engine goes on as it was."""
    for fault in refused.msg.split("\n"):
        context.complain(printable(fault))
    context.complain("nothing was changed; mend the file and try again")
    if context.json:
        context.show({"error": error_document(refused)}, "")
    return Exit.FAILED


async def _until_over(client: Client, number: int, wait_s: int) -> OperationStatus:
    """The operation once it is over, or as it stands after `wait_s`.

    Connections may be lost meanwhile; the client makes new ones. Raises: Failure
    when the engine no longer knows it.
    """
    deadline = asyncio.get_running_loop().time() + wait_s
    told = ""
    while True:
        status = await _ask(client, number)
        if status.over or asyncio.get_running_loop().time() >= deadline:
            return status
        if status.step != told:
            told = status.step
            _tell_step(status)
        await asyncio.sleep(POLL_S)


async def _ask(client: Client, number: int) -> OperationStatus:
    try:
        answer = await client.request("operation", {"operation": number}, timeout_s=ANSWER_TIMEOUT_S)
    except Refused as refused:
        if refused.code != "not_found":
            raise
        raise Failure(
            Exit.FAILED,
            f"the engine does not know operation {number} any more: it was restarted; look at its log",
        ) from None
    return read_operation(answer.fields)


def _tell_step(status: OperationStatus) -> None:
    """A line for whoever watches; a log has the engine's own."""
    if sys.stderr.isatty():
        print(f"{status.ms / 1000:7.1f} s  {printable(status.step)}", file=sys.stderr)


def describe(status: OperationStatus) -> str:
    """One line: what it is, how it stands, what it does or why it ended so."""
    what = f"{status.kind} {status.operation} {status.state}"
    if status.state != "waiting":
        what += f" {'for' if status.state == 'running' else 'after'} {status.ms / 1000:.1f} s"
    more = status.why if status.over else status.step
    return printable(" ".join(f"{what}: {more}".split())) if more else what
