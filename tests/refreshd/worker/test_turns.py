"""Turns: the replies of one read, in order, whatever order they come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from refreshd.worker.turns import Turn
from tests.refreshd.worker.core import Client


@given(st.lists(st.booleans(), max_size=20), st.data())
def test_parts_keep_the_order_of_the_requests(held: list[bool], data: st.DataObject) -> None:
    client = Client()
    turn = Turn(client)
    places = {}
    for number, later in enumerate(held):
        if later:
            places[turn.hold()] = number
        else:
            turn.parts.append(b"%d\n" % number)
    early = data.draw(st.sets(st.sampled_from(sorted(places)))) if places else set()
    for place in early:
        turn.fill(place, b"%d\n" % places[place])
    assert not client.reply, "still being read"
    turn.release()
    for place in data.draw(st.permutations(sorted(set(places) - early))):
        assert not client.reply
        turn.fill(place, b"%d\n" % places[place])
    assert client.replies == [b"%d\n" % number for number in range(len(held))]
    assert turn.waiting == 0


def test_replies_that_a_save_stood_for_are_replaced() -> None:
    client = Client()
    turn = Turn(client)
    turn.parts += [b"ok a\n", b"ok b\n"]
    place = turn.hold()
    turn.replace({b"ok a\n": b"err a\n"})
    turn.release()
    assert repr(turn) == "<Turn 3 parts, waits for 1>"
    turn.fill(place, b"ok c\n")
    assert client.replies == [b"err a\n", b"ok b\n", b"ok c\n"]


def test_where_the_reply_to_a_watch_will_stand() -> None:
    turn = Turn(Client())
    turn.parts.append(b"ok\n")
    assert turn.watches is None
    turn.watch(b"t")
    turn.hold()
    turn.watch(b"u")
    assert turn.watches == [(1, b"t"), (2, b"u")]
