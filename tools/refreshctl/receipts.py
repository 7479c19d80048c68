"""`receipt`: what proxies have signed of a task, and whether the signatures hold."""

from __future__ import annotations

import json
from typing import Any

from tools.refreshctl.asking import dicts
from tools.refreshctl.context import Context
from tools.refreshctl.exits import Exit, usage
from tools.refreshctl.tables import Cell, count, printable, table, when
from wire.client import Client
from wire.fields import read_id
from wire.receipts import BadReceipt, Receipt, is_genuine, read_named, read_receipt

# Lines of the table; --json has all.
SHOWN_MAX = 200
_COLUMNS = (
    "proxy",
    "cache",
    "target",
    "purged",
    "purges",
    "verified",
    "status",
    "bytes",
    "took_ms",
    "hit",
    "error",
)


async def receipt(context: Context) -> Exit:
    """The receipts of a task; a proxy that has none yet makes it partly done."""
    try:
        task_id = read_id(context.args.id)
    except ValueError:
        raise usage(f"{context.args.id[:80]!r} is not a task id; wanted 1 to 64 of A-Za-z0-9._:-") from None
    async with context.client() as client:
        texts = await _fetch(client, task_id)
        proxies = [row["proxy"] for row in (await client.request("task_detail", {"task_id": task_id})).rows]
        keys = await _announced(client) if context.args.check else {}
    read = [_Read(name, text, task_id) for name, text in texts.items()]
    if context.args.check:
        for one in read:
            one.check(keys.get(one.name))
    missing = [name for name in proxies if name not in texts]
    document = {"task_id": task_id, "receipts": [one.document() for one in read], "missing": missing}
    context.show(document, _text(read))
    return _code(context, read, missing)


async def _fetch(client: Client, task_id: str) -> dict[str, str]:
    """Proxy → receipt, page by page."""
    texts: dict[str, str] = {}
    after: str | None = None
    while True:
        answer = await client.request("task_receipt", {"task_id": task_id, "after": after})
        texts.update((row["proxy"], row["receipt"]) for row in answer.rows)
        if not answer.rows or answer.fields.get("more") != "1":
            return texts
        after = answer.rows[-1]["proxy"]


async def _announced(client: Client) -> dict[str, str]:
    """Proxy → the key that it says it signs with; of those that are connected."""
    rows = (await client.request("list_proxies")).rows
    return {row["proxy"]: row["receipt_key"] for row in rows if row.get("receipt_key")}


_WHOSE = {
    True: "which the proxy announces",
    False: "NOT the one that the proxy announces now",
    None: "of which the proxy says nothing now",
}


class _Read:
    """A proxy's receipt, and what is thought of it."""

    def __init__(self, name: str, text: str, task_id: str) -> None:
        self.name = name
        self.text = text
        self.receipt: Receipt | None = None
        self.payload: dict[str, Any] = {}
        self.fault = ""
        self.checked: dict[str, Any] = {}
        try:
            self.receipt = read_receipt(text)
            named = read_named(self.receipt)
            self.payload = json.loads(self.receipt.payload)
            if (named.proxy, named.task) != (name, task_id):
                self.fault = f"it is of proxy {named.proxy} and task {named.task}"
        except (BadReceipt, ValueError) as error:
            self.fault = str(error)

    def check(self, announced: str | None) -> None:
        """Whether the signature holds, and whether the key is the one that the proxy greets with now."""
        genuine = self.receipt is not None and is_genuine(self.receipt)
        if not genuine and not self.fault:
            self.fault = "its signature is not that of its key"
        known = None if announced is None or self.receipt is None else announced == self.receipt.key
        self.checked = {"genuine": genuine and not self.fault, "key_is_announced": known}

    def document(self) -> dict[str, Any]:
        """As --json has it: what was signed, byte for byte, is in `receipt`."""
        found: dict[str, Any] = {
            "proxy": self.name,
            "receipt": self.text,
            "payload": self.payload,
            **self.checked,
        }
        if self.receipt is not None:
            found["key"] = self.receipt.key
        return found | ({"fault": self.fault} if self.fault else {})

    def rows(self) -> list[dict[str, Cell]]:
        """A row each target and cache."""
        return [_row(self.name, each) for each in dicts(self.payload.get("evidence"))]

    def summary(self) -> str:
        """One line: how much there is, and what a check has shown."""
        payload = self.payload
        counts = f"{payload.get('done')} done, {payload.get('failed')} failed of {payload.get('targets')}"
        line = f"{self.name}: {printable(counts)}, signed {_time(payload.get('ended_ms'))}"
        if payload.get("listed") != payload.get("of"):
            line += f", {payload.get('listed')} of {payload.get('of')} listed"
        if self.checked and self.receipt is not None:
            holds = "the signature holds" if self.checked["genuine"] else f"NOT GENUINE: {self.fault}"
            return f"{line}; {holds}; key {self.receipt.key}, {_WHOSE[self.checked['key_is_announced']]}"
        return line + (f"; {self.fault}" if self.fault else "")


def _row(name: str, evidence: dict[str, Any]) -> dict[str, Cell]:
    row = {key: evidence.get(key) for key in ("cache", "target", "purges", "status", "took_ms", "error")}
    row |= {"proxy": name, "bytes": evidence.get("size_bytes"), "hit": "yes" if evidence.get("hit") else None}
    row |= {"purged": _time(evidence.get("purged_ms")), "verified": _time(evidence.get("verified_ms"))}
    return {key: value if isinstance(value, str | int | float) else None for key, value in row.items()}


def _time(unix_ms: Any) -> str | None:
    """To the millisecond: what came before what is what a receipt is for."""
    if not isinstance(unix_ms, int) or unix_ms <= 0:
        return None
    return f"{when(unix_ms)}.{unix_ms % 1000:03}"


def _text(read: list[_Read]) -> str:
    if not read:
        return ""
    rows = [row for one in read for row in one.rows()]
    # Columns of which nothing is known say nothing.
    columns = [column for column in _COLUMNS if any(row.get(column) not in (None, "", 0) for row in rows)]
    text = table(columns, rows[:SHOWN_MAX]) + "\n" if rows else ""
    if len(rows) > SHOWN_MAX:
        text += f"{count(len(rows) - SHOWN_MAX, 'row')} more; --json has all\n\n"
    return text + "".join(one.summary() + "\n" for one in read)


def _code(context: Context, read: list[_Read], missing: list[str]) -> Exit:
    bad = [one for one in read if one.fault]
    for one in bad:
        context.complain(f"{one.name}: {one.fault}")
    if bad:
        return Exit.FAILED
    if not missing:
        return Exit.OK
    some = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    if not read:
        context.complain(f"no receipt yet of {some}; tasks with --verify or --then, and prefetches, have any")
        return Exit.FAILED
    context.complain(f"no receipt yet of {some}")
    return Exit.PARTLY
