"""The fleet: scopes, groups, plans, and plans as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd import fleet as module
from refreshd.fleet import Fleet, Plan, Proxy, plan_size
from tests.refreshd.making import a_plan
from wire.errors import Refused

names = st.text("abcdXYZ019._:-", min_size=1, max_size=6)
proxies = st.builds(Proxy, names, st.sampled_from(["eu", "us", "a"]), st.integers(0, 4), st.booleans())
fleets = st.lists(proxies, min_size=1, max_size=12, unique_by=lambda proxy: proxy.name)
EU, US, EDGE = Proxy("p1", "eu", 0, True), Proxy("p2", "us", 0, True), Proxy("e1", "eu", 3, False)


def members(plan: Plan) -> set[str]:
    return {name for layer in plan.layers for name in layer.proxies}


@given(fleets, st.data())
def test_a_scope_means_the_named_and_those_of_the_named_groups(
    fleet: list[Proxy], data: st.DataObject
) -> None:
    known = sorted({proxy.name for proxy in fleet} | {proxy.group for proxy in fleet})
    scope = tuple(data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True)))
    plan = Fleet(fleet).plan(scope)
    assert members(plan) == {proxy.name for proxy in fleet if proxy.name in scope or proxy.group in scope}
    assert members(Fleet(fleet).plan(None)) == {proxy.name for proxy in fleet}


@given(fleets)
def test_a_plan_is_in_order(fleet: list[Proxy]) -> None:
    plan = Fleet(fleet).plan(None)
    numbers = [layer.number for layer in plan.layers]
    assert numbers == sorted(set(numbers))
    assert [layer.next for layer in plan.layers] == [*plan.layers[1:], None]
    assert plan.size == len(plan.ranks) == len(fleet)
    layer_of = {proxy.name: proxy.layer for proxy in fleet}
    for rank, (name, layer) in enumerate(plan.ranks):
        assert layer.places[name][2] == rank
        assert layer.number == layer_of[name]
    for layer in plan.layers:
        assert list(layer.proxies) == sorted(layer.proxies)
        bits = [byte * 8 + bit.bit_length() - 1 for byte, bit, _ in layer.places.values()]
        assert bits == list(range(layer.size))
        assert int.from_bytes(layer.full, "little") == (1 << layer.size) - 1


@given(fleets)
def test_a_plan_comes_back_from_its_text(fleet: list[Proxy]) -> None:
    plan = Fleet(fleet).plan(None)
    again = Plan.from_text(plan.text)
    assert (again.text, again.number, again.size) == (plan.text, plan.number, plan.size)
    assert [(layer.number, layer.proxies) for layer in again.layers] == [
        (layer.number, layer.proxies) for layer in plan.layers
    ]
    assert plan_size(plan.text) == plan.size
    # The store's integers are signed.
    assert 0 <= plan.number < 1 << 63


@given(fleets, st.data())
def test_the_same_proxies_are_the_same_plan(fleet: list[Proxy], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(fleet))
    assert Fleet(shuffled).plan(None).number == Fleet(fleet).plan(None).number


@pytest.mark.parametrize("text", ["", "0", "0=", "x=a", "0=a;", "=a", "0=a;1="])
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Plan.from_text(text)


def test_nobody_and_nobody_of_that_name() -> None:
    with pytest.raises(Refused, match="the fleet is empty") as caught:
        Fleet([]).plan(None)
    assert (caught.value.code, caught.value.field) == ("bad_field", "scope")
    with pytest.raises(Refused, match="called asia; the fleet has eu, p1, p2, us") as caught:
        Fleet([EU, US]).plan(("asia", "eu"))
    assert (caught.value.code, caught.value.field) == ("bad_field", "scope")
    many = Fleet(Proxy(f"p{i:03}", "g", 0, True) for i in range(500))
    with pytest.raises(Refused, match="and 493 more"):
        many.plan(("nobody",))


def test_a_name_may_also_be_a_group() -> None:
    fleet = Fleet([Proxy("eu", "x", 0, True), EU])
    assert members(fleet.plan(("eu",))) == {"eu", "p1"}


def test_plans_are_shared_until_the_fleet_changes() -> None:
    fleet = Fleet([EU, US])
    before = fleet.plan(None)
    assert fleet.plan(None) is before
    assert not fleet.add(EU)
    assert fleet.plan(None) is before
    assert fleet.add(EDGE)
    assert members(fleet.plan(None)) == {"p1", "p2", "e1"}
    assert members(before) == {"p1", "p2"}
    assert fleet.add(EDGE._replace(layer=1))
    assert [layer.number for layer in fleet.plan(("e1",)).layers] == [1]
    assert fleet.remove("e1")
    assert not fleet.remove("e1")
    assert fleet.plan(None).number == before.number
    assert list(fleet) == [EU, US]
    assert len(fleet) == 2
    assert fleet.get("p1") is EU
    assert fleet.get("e1") is None


def test_scopes_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLANS_MAX", 3)
    fleet = Fleet(Proxy(f"p{i}", "g", 0, True) for i in range(10))
    for i in range(10):
        assert members(fleet.plan((f"p{i}",))) == {f"p{i}"}
        assert len(fleet._plans) <= 3


def test_repr() -> None:
    assert repr(a_plan(2, 3)) == "<Plan 5 proxies in 2 layers>"


@given(fleets, fleets, fleets)
def test_another_configuration_leaves_what_a_restart_with_it_would(
    registered: list[Proxy], old: list[Proxy], new: list[Proxy]
) -> None:
    """The store keeps what registered, also of proxies that were listed at that time."""
    registered = [proxy._replace(listed=False) for proxy in registered]
    old, new = ([proxy._replace(listed=True) for proxy in proxies] for proxies in (old, new))
    fleet = Fleet(old)
    for proxy in registered:
        known = fleet.get(proxy.name)
        assert fleet.add(proxy) == (known is None or not known.listed)
    plan = fleet.plan(None)
    before = list(fleet)
    changed = fleet.expect(new)
    fresh = Fleet(new)
    for proxy in registered:
        fresh.add(proxy)
    assert list(fleet) == list(fresh)
    assert changed == (list(fleet) != before)
    assert (fleet.plan(None) is plan) == (not changed)
    assert not fleet.expect(reversed(new))


def test_a_proxy_that_is_taken_out_is_not_remembered() -> None:
    fleet = Fleet([EDGE])
    fleet.add(EDGE._replace(listed=True))
    assert fleet.remove("e1")
    fleet.expect([EU])
    assert fleet.get("e1") is None
