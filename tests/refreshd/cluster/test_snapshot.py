"""What one reading of the registry told, and how long it was read without a break."""

from __future__ import annotations

import msgspec
import pytest

from refreshd.cluster.names import Names
from refreshd.cluster.snapshot import Advert, Entry, Snapshot, Watch


def an_advert(number: int = 1, epoch: int = 1, **more: object) -> Advert:
    fields = {"id": f"e{number}", "address": f"127.0.0.1:{7000 + number}", "boot": "b"}
    return msgspec.convert({**fields, "number": number, "epoch": epoch, **more}, Advert)


def test_engines_are_found_by_id_and_number() -> None:
    first, second = Entry(an_advert(1), 5_000), Entry(an_advert(2), 6_000)
    snapshot = Snapshot((first, second), leader="e2 2.1 abc")
    assert snapshot.get("e1") is first
    assert snapshot.numbered(2) is second
    assert snapshot.get("e3") is None
    assert snapshot.numbered(3) is None
    assert snapshot.leader_id == "e2"
    assert Snapshot().leader_id == ""


def test_a_snapshot_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Snapshot().leader = "e1"  # type: ignore[misc] # that it cannot be set is what is tested


def test_fields_of_a_later_release_are_skipped() -> None:
    text = msgspec.json.encode({**msgspec.to_builtins(an_advert(3)), "colour": "blue"})
    assert msgspec.json.decode(text, type=Advert) == an_advert(3)


@pytest.mark.parametrize("wrong", [{"number": 0}, {"number": 64}, {"epoch": 0}, {"address": 7}])
def test_an_advert_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    text = msgspec.json.encode({**msgspec.to_builtins(an_advert()), **wrong})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Advert)


def test_the_watch_counts_from_the_first_reading() -> None:
    watch = Watch()
    assert watch.watched_ms(5_000) == 0
    watch.read("word", "run", 5_000)
    watch.read("word", "run", 6_000)
    assert watch.watched_ms(6_500) == 1_500


@pytest.mark.parametrize(("memory", "server"), [("another", "run"), ("word", "another"), ("", "run")])
def test_what_was_forgotten_begins_the_watch_anew(memory: str, server: str) -> None:
    watch = Watch()
    watch.read("word", "run", 0)
    watch.read(memory, server, 60_000)
    assert watch.watched_ms(60_000) == 0
    watch.read("word", "run", 61_000)
    assert watch.watched_ms(61_000) == 0


def test_an_answer_that_did_not_come_begins_the_watch_anew() -> None:
    watch = Watch()
    watch.read("word", "run", 0)
    watch.missed()
    assert watch.watched_ms(60_000) == 0
    watch.read("word", "run", 60_000)
    assert watch.watched_ms(60_000) == 0


def test_a_successor_goes_on_watching() -> None:
    watch, successor = Watch(), Watch()
    successor.inherit(watch.handed())
    assert successor.watched_ms(1) == 0
    watch.read("word", "run", 0)
    successor.inherit(watch.handed())
    successor.read("word", "run", 30_000)
    assert successor.watched_ms(30_000) == 30_000


def test_all_keys_of_a_cluster_have_one_hash_tag() -> None:
    names = Names("prod")
    keys = [names.engine("e1"), names.engines, names.leader, names.memory, names.news]
    assert all(key.startswith("refreshd:{prod}:") for key in keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("cluster", ["", "a b", "a{b", "a}", "x" * 65])
def test_a_cluster_has_a_plain_name(cluster: str) -> None:
    with pytest.raises(ValueError, match="a cluster's name"):
        Names(cluster)
