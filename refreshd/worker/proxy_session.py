"""A proxy's connection to this worker: its credit, its reports, its beats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refreshd.worker.handover.connections import MovedProxy
from refreshd.worker.links import Link, Relayed
from refreshd.worker.turns import Turn
from wire.errors import BadLine, Refused
from wire.fields import bad_field, missing_field
from wire.lines import Line, parse
from wire.receipts import BadReceipt, read_named, read_receipt
from wire.verbs import VERBS, read_fields

if TYPE_CHECKING:
    from refreshd.worker.links import Wire
    from refreshd.worker.proxies import Proxies

ERROR_MAX_CHARS = 500


class ProxySession:
    """A proxy's connection to this worker."""

    def __init__(
        self,
        proxies: Proxies,
        name: str,
        wire: Wire,
        close: Any,
        link: Link | None = None,
        *,
        learns: bool = False,
    ) -> None:
        """`link`: the one that was kept for it, if the connection comes from another process."""
        self.learns = learns
        """Whether it wants to be told of other engines."""
        self.answers = False
        """Whether it answers questions."""
        self.verifies = False
        """Whether it knows what `verify=1` means."""
        self.receipt_key = ""
        """What it signs its receipts with, as it says."""
        self.name = name
        self.wire = wire
        self.link = link or Link(name, wire)
        self.heard_ms = proxies.hub.engine.clock.mono_ms
        """When a line came last, monotonic; the connection keeps it up to date."""
        self.close = close
        self.figures: dict[str, Any] = {}
        """What the proxy said of itself in its last beat."""
        self._proxies = proxies

    def ready(self, credit: int) -> None:
        """The engine may have `credit` more targets outstanding here."""
        self.link.credit = min(self.link.credit + credit, 1 << 40)
        self._proxies.hub.pusher.due(self.link)

    def beat(self, values: dict[str, Any]) -> None:
        """The proxy is alive."""
        self.figures = values

    def tell_engines(self, push: bytes) -> None:
        """Tells the proxy which engines there are, if there is anything to tell."""
        if push and self.learns:
            self.wire.send(push)

    def pack(self) -> MovedProxy:
        """All that belongs to it, for the process that the connection moves to."""
        link = self.link
        return MovedProxy(
            name=self.name,
            credit=link.credit,
            outstanding=link.outstanding,
            heard_ms=self.heard_ms,
            figures=self.figures,
            learns=self.learns,
            cancelled=link.cancelled,
            catch_up=link.tell_caught_up,
            drop_after_s=link.drop_after_s,
            answers=self.answers,
            verifies=self.verifies,
            receipt_key=self.receipt_key,
            relayed=[(task_id, *of) for task_id, of in link.relayed.items()],
            waiting=[(p.task_id, p.targets, p.line, p.slot) for p in link.relay],
        )

    def unpack(self, moved: MovedProxy) -> None:
        """Goes on where the other process left it; what was reported here meanwhile is not outstanding."""
        link = self.link
        link.arrive(self.wire, moved.credit, moved.outstanding)
        link.cancelled += moved.cancelled
        link.relayed = {task_id: (targets, slot) for task_id, targets, slot in moved.relayed}
        link.relay.extend(Relayed(*push) for push in moved.waiting)
        self.heard_ms = moved.heard_ms
        self.figures = moved.figures
        self.learns = moved.learns
        self.answers = moved.answers
        self.verifies = moved.verifies
        self.receipt_key = moved.receipt_key
        link.tell_caught_up = moved.catch_up
        link.drop_after_s = moved.drop_after_s

    def report_done(self, turn: Turn, raw: bytes) -> None:
        """The hot line: `report state=done [ms=M] -- ID…`, plain.

        Raises: BadLine, Refused.
        """
        front, _, tail = raw.partition(b" -- ")
        ms_text = front[21:]
        if not tail or (
            len(front) > 17 and not (front.startswith(b"report state=done ms=") and ms_text.isdigit())
        ):
            self.report(turn, *_read_report(raw))
            return
        ids = tail.rstrip(b"\r").split(b" ")
        if b"" in ids:
            raise BadLine("an empty item; put exactly one space between items")
        self._done(turn, ids, int(ms_text) if ms_text else None)

    def _done(self, turn: Turn, ids: list[bytes], ms: int | None) -> None:
        verifies = self.verifies
        missing = self._proxies.done(self.name, ids, ms, verifies=verifies)
        self._proxies.reported(self.link, missing, ms, verifies=verifies)
        turn.parts.append(b"ok n=%d\n" % len(ids))

    def report(self, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        """Any report. Raises: Refused."""
        if values["state"] == "done":
            if not line.items:
                raise missing_field("id", "at least one task id after --")
            self._done(turn, [item.encode() for item in line.items], values.get("ms"))
            return
        for name in ("task_id", "done", "failed"):
            if name not in values:
                raise missing_field(name, "it goes with state=" + values["state"])
        task_id = values["task_id"].encode()
        proxies = self._proxies
        task = proxies.hub.engine.tasks.get(task_id)
        if task is not None and proxies.hub.shards.owns(task_id):
            proxies.one(self.name, task, values)
        else:
            proxies.pass_on_one(self.link, task_id, values)
        turn.parts.append(b"ok n=1\n")

    def receipt(self, line: Line, values: dict[str, Any]) -> None:
        """What it has signed of a task is kept. Raises: Refused, for what is no receipt of its own."""
        items = line.items or ()
        if len(items) != 1:
            raise bad_field("receipt", f"{len(items)} items", "one JSON object")
        try:
            receipt = read_receipt(items[0])
            named = read_named(receipt)
        except BadReceipt as error:
            raise Refused("bad_field", f"receipt: {error}", field="receipt") from None
        task_id = values["task_id"]
        if (named.proxy, named.task) != (self.name, task_id):
            wanted = f"{self.name} {task_id}, as proxy and task of its payload"
            raise bad_field("receipt", f"{named.proxy} {named.task}", wanted)
        self._proxies.receipt(self.name, task_id.encode(), items[0])


def _read_report(raw: bytes) -> tuple[Line, dict[str, Any]]:
    line = parse(raw)
    return line, read_fields(VERBS["report"], line)
