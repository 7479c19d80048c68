"""The election: its table, and many engines with a Redis and an SQL in which everything goes wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from refreshd.cluster.election import TRANSITIONS, Election, Event, State, Step
from refreshd.cluster.lease import Timing

TIMING = Timing()


def an_election(number: int = 1, epoch: int = 1) -> Election:
    terms = itertools.count(1)
    return Election(f"e{number}", number, epoch, TIMING, new_term=lambda: f"t{next(terms)}")


def a_leader(now_ms: int = 0) -> Election:
    election = an_election()
    election.tried("e1 1.1 t1", now_ms, now_ms)
    election.claimed("e1 1.1 t1", 7, now_ms)
    return election


def test_a_lead_from_its_beginning_to_its_end() -> None:
    changes: list[tuple[State, Event]] = []
    election = Election(
        "e1", 1, 4, TIMING, new_term=lambda: "t", on_change=lambda *all_: changes.append(all_)
    )
    assert election.step(0, "e2 2.1 x") is Step.WAIT
    assert election.step(0, "") is Step.TRY
    assert (election.prefix, election.fresh_term) == ("e1 1.4 ", "t")
    election.tried("e1 1.4 t", 0, 5)
    assert election.state is State.CANDIDATE
    assert not election.may_act(5)
    election.claimed("e1 1.4 t", 9, 50)
    assert election.may_act(50)
    assert election.leader_epoch == 9
    assert election.step(2_499, "") is Step.WAIT
    assert election.step(2_500, "") is Step.RENEW
    election.renewed("e1 1.4 t", 2_500, 2_510)
    assert election.held_ms(2_510) == 2_505
    election.stop(3_000)
    assert not election.may_act(3_000)
    assert election.step(3_000, "") is Step.RESIGN
    assert election.given_up == "e1 1.4 t"
    election.resigned()
    assert election.step(60_000, "") is Step.WAIT
    assert changes == [
        (State.FOLLOWER, Event.WON), (State.CANDIDATE, Event.CLAIMED), (State.LEADER, Event.STOPPED)
    ]  # fmt: skip


def test_it_stops_acting_before_its_lease_ends_whatever_redis_does() -> None:
    election = a_leader()
    for now_ms in (2_500, 4_000, 8_000):
        election.unreachable(now_ms)
    assert election.may_act(8_999)
    assert not election.may_act(9_000)
    election.tick(9_000)
    assert election.state is State.FOLLOWER
    # Others may have the key by now: there is nothing to give up.
    assert not election.given_up


def test_the_lease_counts_from_when_it_was_asked_for() -> None:
    election = a_leader()
    election.renewed("e1 1.1 t1", 2_500, 5_000)
    assert election.may_act(11_499)
    assert not election.may_act(11_500)


@pytest.mark.parametrize("found", ["", "e2 2.1 t1", "e1 1.2 t1", "e1 1.1 t8"])
def test_a_renewal_that_finds_another_value_has_lost(found: str) -> None:
    # Also one of this engine: between two terms anything may have been forgotten.
    election = a_leader()
    election.renewed(found, 2_500, 2_500)
    assert election.state is State.FOLLOWER
    assert not election.given_up


def test_a_claim_that_comes_back_too_late_makes_no_leader() -> None:
    election = an_election()
    election.tried("e1 1.1 t1", 0, 0)
    election.claimed("e1 1.1 t1", 7, 9_000)
    assert election.state is State.FOLLOWER
    assert election.leader_epoch == 0


def test_a_claim_for_an_earlier_term_makes_no_leader() -> None:
    election = an_election()
    election.tried("e1 1.1 t1", 0, 0)
    election.renewed("", 2_500, 2_500)
    election.tried("e1 1.1 t2", 3_000, 3_000)
    election.claimed("e1 1.1 t1", 7, 3_001)
    assert election.state is State.CANDIDATE


def test_a_try_without_an_answer_is_made_again_with_the_same_term() -> None:
    election = an_election()
    assert election.step(0, "") is Step.TRY
    election.unreachable(1_000)
    assert election.step(1_400, "") is Step.WAIT
    assert election.step(1_500, "e1 1.1 t1") is Step.TRY
    assert election.fresh_term == "t1"
    election.tried("e1 1.1 t1", 1_500, 1_501)
    assert election.fresh_term != "t1"


def test_the_key_of_its_own_incarnation_is_taken_over_that_of_an_earlier_one_is_not() -> None:
    election = an_election(epoch=2)
    assert election.step(0, "e1 1.2 t9") is Step.TRY
    assert election.step(0, "e1 1.1 t9") is Step.WAIT
    assert election.step(0, "e1 1.22 t9") is Step.WAIT
    election.tried("e1 1.2 t9", 0, 0)
    assert election.value == "e1 1.2 t9"


def test_a_successor_goes_on_with_the_lead() -> None:
    lead = a_leader().leave(4_000)
    assert lead is not None
    successor = an_election()
    successor.inherit(lead)
    assert successor.step(4_100, "e1 1.1 t1") is Step.TRY
    successor.tried("e1 1.1 t1", 4_100, 4_110)
    assert successor.may_act(4_110)
    assert successor.leader_epoch == 7
    assert successor.held_ms(4_110) == 4_110


def test_who_leaves_acts_no_more_and_gives_nothing_up() -> None:
    election = a_leader()
    election.leave(4_000)
    assert not election.may_act(4_000)
    assert election.step(4_000, "e1 1.1 t1") is Step.WAIT


def test_a_lead_that_was_lost_on_the_way_is_won_like_any_other() -> None:
    successor = an_election()
    successor.inherit(a_leader().leave(4_000))
    successor.tried("e1 1.1 t5", 4_100, 4_110)
    assert successor.state is State.CANDIDATE


def test_a_follower_hands_nothing_over() -> None:
    assert an_election().leave(0) is None


def test_who_cannot_reach_sql_stands_back_and_gives_the_key_up_at_once() -> None:
    election = a_leader()
    election.store_away(1_000)
    assert election.step(1_000, "e1 1.1 t1") is Step.RESIGN
    election.resigned()
    assert election.step(5_999, "") is Step.WAIT
    assert election.step(6_000, "") is Step.TRY


def test_a_resignation_is_tried_again_and_before_any_try() -> None:
    election = a_leader()
    election.outdone(1_000)
    election.unreachable(2_000)
    assert election.step(2_400, "") is Step.WAIT
    assert election.step(2_500, "e1 1.1 t1") is Step.RESIGN


def test_one_who_stops_resigns_once() -> None:
    election = a_leader()
    election.stop(1_000)
    election.unreachable(2_000)
    assert election.step(9_000, "") is Step.WAIT


def test_one_who_stopped_does_not_win() -> None:
    election = an_election()
    election.stop(0)
    election.tried("e1 1.1 t1", 0, 0)
    assert election.state is State.FOLLOWER


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_the_table_does_not_have_cannot_happen(state: State, event: Event) -> None:
    election = an_election()
    election.state = state
    if (state, event) in TRANSITIONS:
        election._on(event, 0)
        assert election.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(RuntimeError, match="cannot happen"):
            election._on(event, 0)


def test_only_a_claim_makes_a_leader_and_everything_else_leads_down() -> None:
    ways_up = {key for key, to in TRANSITIONS.items() if to is State.LEADER and key[0] is not State.LEADER}
    assert ways_up == {(State.CANDIDATE, Event.CLAIMED)}
    assert all(
        (state, event) in TRANSITIONS
        for state in (State.CANDIDATE, State.LEADER)
        for event in (Event.LOST, Event.LEASE_OVER, Event.OUTDONE, Event.STORE_AWAY, Event.STOPPED)
    )


ENGINES = 3
engines = st.integers(0, ENGINES - 1)
FATES = ("answered", "answered", "answer lost", "done late", "never done")
delays_ms = st.one_of(st.integers(0, 50), st.integers(0, 1_000), st.integers(0, 12_000))


class ElectionsWithRedis(RuleBasedStateMachine):
    """Three engines, one key with an expiry, one epoch in SQL; answers are late or lost, engines pause.

    While Redis forgets nothing, at most one may act, and it is the one whose epoch SQL has.
    """

    @initialize()
    def begin(self) -> None:
        self.now_ms = 0
        self.key = ""
        self.ends_ms = 0
        self.epoch = 0
        self.forgot = False
        self.late: list[tuple[Step, str, str]] = []
        self.elections = [an_election(number + 1) for number in range(ENGINES)]
        self.terms = itertools.count(1)
        for election in self.elections:
            election._new_term = lambda: f"t{next(self.terms)}"
            election._term = election._new_term()

    def passes(self, by_ms: int) -> None:
        self.now_ms += by_ms
        if self.now_ms >= self.ends_ms:
            self.key = ""

    def done_by_redis(self, step: Step, prefix: str, wanted: str) -> str:
        """As the scripts do it; `wanted` is the whole value."""
        if step is Step.RESIGN:
            self.key = "" if self.key == wanted else self.key
            return self.key
        if step is Step.TRY and not self.key:
            self.key = wanted
        if self.key.startswith(prefix) if step is Step.TRY else self.key and self.key == wanted:
            self.ends_ms = self.now_ms + TIMING.lease_ms
        return self.key

    @rule(engine=engines, there_ms=delays_ms, back_ms=delays_ms, fate=st.sampled_from(FATES))
    def step(self, engine: int, there_ms: int, back_ms: int, fate: str) -> None:
        """An engine does what is due."""
        election = self.elections[engine]
        sent_ms = self.now_ms
        election.tick(sent_ms)
        step = election.step(sent_ms, self.key)
        if step is Step.WAIT:
            return
        new = election.prefix + election.fresh_term
        wanted = {Step.TRY: new, Step.RENEW: election.value, Step.RESIGN: election.given_up}[step]
        self.passes(there_ms)
        value = ""
        if fate in ("answered", "answer lost"):
            value = self.done_by_redis(step, election.prefix, wanted)
        elif fate == "done late":
            self.late.append((step, election.prefix, wanted))
        self.passes(back_ms)
        if fate != "answered":
            election.unreachable(self.now_ms)
        elif step is Step.TRY:
            election.tried(value, sent_ms, self.now_ms)
        elif step is Step.RENEW:
            election.renewed(value, sent_ms, self.now_ms)
        else:
            election.resigned()

    @rule()
    def redis_reads_what_lay_in_its_sockets(self) -> None:
        for late in self.late:
            self.done_by_redis(*late)
        self.late.clear()

    @rule(engine=engines, late_ms=delays_ms)
    def claim(self, engine: int, late_ms: int) -> None:
        """SQL raises the epoch for a candidate; its answer may be late, and the key another's by then."""
        election = self.elections[engine]
        if election.state is State.CANDIDATE:
            self.epoch += 1
            epoch, value = self.epoch, election.value
            self.passes(late_ms)
            election.claimed(value, epoch, self.now_ms)

    @rule(engine=engines)
    def act(self, engine: int) -> None:
        """Whoever acts by an epoch that is not SQL's is told so."""
        election = self.elections[engine]
        if election.may_act(self.now_ms) and election.leader_epoch != self.epoch:
            election.outdone(self.now_ms)

    @rule(engine=engines)
    def store_away(self, engine: int) -> None:
        self.elections[engine].store_away(self.now_ms)

    @rule(by_ms=delays_ms)
    def time_goes_on(self, by_ms: int) -> None:
        self.passes(by_ms)

    @rule()
    def flush(self) -> None:
        self.key = ""
        self.forgot = True

    @invariant()
    def one_leader(self) -> None:
        if not hasattr(self, "elections"):
            return
        acting = [election for election in self.elections if election.may_act(self.now_ms)]
        # Each epoch leads at one engine only, and one of them at most is SQL's, whatever happens.
        epochs = [election.leader_epoch for election in acting]
        assert len(set(epochs)) == len(epochs)
        assert all(0 < epoch <= self.epoch for epoch in epochs)
        if not self.forgot:
            assert len(acting) <= 1
            assert all(election.value == self.key for election in acting)

    @invariant()
    def what_it_believes_is_whole(self) -> None:
        for election in getattr(self, "elections", ()):
            assert bool(election.leader_epoch) == (election.state is State.LEADER)
            assert bool(election.value) == (election.state is not State.FOLLOWER)


TestElections = ElectionsWithRedis.TestCase
TestElections.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(engines, delays_ms), max_size=60))
def test_somebody_leads_in_the_end(rows: list[tuple[int, int]]) -> None:
    """Whatever was before: once all is well again there is a leader within two leases."""
    machine = ElectionsWithRedis()
    machine.begin()
    for engine, late_ms in rows:
        machine.step(engine, late_ms, late_ms, FATES[late_ms % len(FATES)])
        machine.time_goes_on(late_ms)
    for _ in range(2 * TIMING.lease_ms // TIMING.poll_ms + 2):
        machine.time_goes_on(TIMING.poll_ms)
        for engine in range(ENGINES):
            machine.step(engine, 1, 1, "answered")
            machine.claim(engine, 1)
            machine.act(engine)
    acting = [election for election in machine.elections if election.may_act(machine.now_ms)]
    assert [election.leader_epoch for election in acting] == [machine.epoch]
