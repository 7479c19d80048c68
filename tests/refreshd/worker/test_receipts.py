"""Receipts in one worker: whose are kept, beside what, and what becomes of them when the store is away."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from refreshd.fleet import Proxy
from refreshd.store.base import ReceiptRow
from refreshd.worker import saver, views
from tests.refreshd.worker.core import Core
from wire.errors import Refused
from wire.lines import Line, format_line, parse
from wire.receipts import RECEIPT_MAX_BYTES, Receipt

FLEET = [Proxy("a", "origin", 0, True), Proxy("b", "edge", 1, True), Proxy("c", "edge", 1, True)]


@pytest.fixture
def core() -> Iterator[Core]:
    with pytest.MonkeyPatch.context() as patch:
        made = Core(patch, FLEET)
        made.post(b"post_task task_id=t type=url scope=a,b -- http://h/")
        made.commit()
        for name in ("a", "b", "c"):
            made.connect(name, 10)
        yield made


def receipt(proxy: str = "a", task: str = "t", more: str = "") -> str:
    payload = f'{{"proxy":"{proxy}","task":"{task}"{more}}}'
    return Receipt(payload, "0" * 64, "0" * 128).text()


def give(core: Core, proxy: str, *items: str, task: str = "t") -> None:
    """As the connection of a proxy does. Raises: Refused."""
    line = parse(format_line("receipt", {"task_id": task}, items)[:-1])
    core.proxies.sessions[proxy].receipt(line, {"task_id": task})


def test_it_is_saved_no_later_than_the_end(core: Core) -> None:
    give(core, "a", receipt())
    core.report("a", b"t")
    give(core, "b", receipt("b"))
    core.report("b", b"t")
    assert core.table.receipts == {}
    core.commit()
    (serial,) = core.table.results
    assert core.table.receipts == {
        (serial, "a"): receipt().encode(),
        (serial, "b"): receipt("b").encode(),
    }


def test_a_store_that_is_away_loses_none(core: Core) -> None:
    give(core, "a", receipt())
    core.commit("away")
    assert core.table.receipts == {}
    give(core, "a", receipt(more=',"again":1'))
    core.commit()
    assert [text.decode() for text in core.table.receipts.values()] == [receipt(more=',"again":1')]


def test_those_that_find_no_room_are_counted(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "RECEIPTS_MAX_BYTES", len(receipt()))
    give(core, "a", receipt())
    give(core, "b", receipt("b"))
    assert (core.engine.counters.receipts, core.engine.counters.receipts_dropped) == (1, 1)
    core.commit()
    assert [key[1] for key in core.table.receipts] == ["a"]


def test_of_what_is_not_there_or_none_of_its_business_nothing_is_kept(core: Core) -> None:
    give(core, "a", receipt(task="other"), task="other")
    give(core, "c", receipt("c"))
    core.report("a", b"t")
    core.report("b", b"t")
    core.commit()
    give(core, "a", receipt())
    core.commit()
    assert core.table.receipts == {}


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([receipt("b")], "got 'b t', wanted a t"),
        ([receipt(task="u")], "got 'a u', wanted a t"),
        (["rubbish"], "not a JSON object"),
        ([receipt(), receipt()], "got '2 items'"),
        ([receipt(more=f',"x":"{"y" * RECEIPT_MAX_BYTES}"')], f"at most {RECEIPT_MAX_BYTES}"),
    ],
)
def test_what_is_no_receipt_of_its_own_is_refused(core: Core, items: list[str], why: str) -> None:
    with pytest.raises(Refused) as caught:
        give(core, "a", *items)
    assert (caught.value.code, caught.value.field) == ("bad_field", "receipt")
    assert why in caught.value.msg
    assert len(caught.value.msg) < 1000
    core.commit()
    assert core.table.receipts == {}


def test_one_for_a_sibling_is_passed_on_and_taken_in_there(core: Core) -> None:
    owner = core.shards.owner
    core.shards = SimpleNamespace(owner=lambda _: 1, slot=0)  # type: ignore[assignment] # has what is used
    core.mesh.told.clear()
    give(core, "a", receipt())
    (told,) = core.mesh.told
    core.shards = SimpleNamespace(owner=owner, slot=0)  # type: ignore[assignment]
    core.proxies.receipt_passed_on(told)
    core.commit()
    assert [text.decode() for text in core.table.receipts.values()] == [receipt()]


def test_a_page_is_bounded_by_bytes_and_has_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "RECEIPTS_MAX_BYTES", 100)
    rows = [ReceiptRow(1, f"p{number}", b"x" * size) for number, size in enumerate((60, 40, 1, 500))]

    def page(found: list[ReceiptRow], *, may_be_more: bool) -> tuple[str | None, list[str]]:
        lines: list[Line] = [
            parse(raw) for raw in views.receipts(found, may_be_more=may_be_more).splitlines()
        ]
        assert lines[0].fields["n"] == str(len(lines) - 1)
        assert all(line.fields["bytes"] == str(len(line.fields["receipt"])) for line in lines[1:])
        return lines[0].fields.get("more"), [line.fields["proxy"] for line in lines[1:]]

    assert page(rows, may_be_more=False) == ("1", ["p0", "p1"])
    assert page(rows[3:], may_be_more=False) == (None, ["p3"])
    assert page(rows[:2], may_be_more=True) == ("1", ["p0", "p1"])
    assert page([], may_be_more=False) == (None, [])
