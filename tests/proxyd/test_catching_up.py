"""When an agent is behind, and when it has caught up, on a clock of the test's."""

from __future__ import annotations

from proxyd.catching_up import AWAY_S, CatchingUp, CaughtUp, EngineView, FellBehind, LinkView

WAIT_S = 300.0


class Clock:
    """An agent's links, as a test changes them, looked at every half second."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self.now = 1000.0
        self.wait_s = wait_s
        self.state = CatchingUp(self.now)
        self.links: dict[str, dict[int, LinkView]] = {}
        self.seen: list[FellBehind | CaughtUp] = []
        self.dropping = False

    def up(self, engine: str = "a", worker: int = 0, *, said: bool = False, left: int = 0) -> None:
        """A connection was greeted now."""
        of = self.links.setdefault(engine, {})
        of[worker] = LinkView(worker, self.now, self.now, said, left)

    def change(self, engine: str = "a", worker: int = 0, **how: object) -> None:
        self.links[engine][worker] = self.links[engine][worker]._replace(**how)  # type: ignore[arg-type]

    def down(self, engine: str = "a", worker: int = 0) -> None:
        """It has no connection."""
        self.links.setdefault(engine, {})[worker] = LinkView(worker, None, 0.0, False, 0)

    def views(self) -> list[EngineView]:
        return [EngineView(name, tuple(links.values())) for name, links in self.links.items()]

    def hear(self) -> None:
        """Each connection that is there is heard."""
        for links in self.links.values():
            for worker, link in links.items():
                if link.since is not None:
                    links[worker] = link._replace(heard_at=self.now)

    def look(self) -> FellBehind | CaughtUp | None:
        change = self.state.look(self.views(), self.now, self.wait_s, dropping=self.dropping)
        if change is not None:
            self.seen.append(change)
        return change

    def go_on(self, seconds: float) -> None:
        """Time goes by; what has a connection is heard."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.hear()
            self.look()

    @property
    def waits(self) -> tuple[str, ...]:
        self.look()
        return self.state.waits_for


def caught_up(*names: str, **how: float) -> Clock:
    """A clock at which engines of one worker have said it."""
    clock = Clock(**how)
    for name in names or ("a",):
        clock.up(name, said=True)
    clock.go_on(1)
    assert not clock.state.behind
    clock.seen.clear()
    return clock


def test_it_begins_behind_and_catches_up_once_each_worker_has_said_so_and_all_of_it_has_ended() -> None:
    clock = Clock()
    clock.links["a"] = {}
    assert clock.waits == ("a: cannot be reached",)
    clock.up(worker=0)
    clock.down(worker=1)
    assert clock.waits == ("a worker 0: has more to push", "a worker 1: no link")
    clock.up(worker=1)
    clock.go_on(20)
    clock.change(worker=0, said=True, left=2)
    assert clock.waits == ("a worker 0: 2 tasks", "a worker 1: has more to push")
    clock.change(worker=1, said=True)
    clock.change(worker=0, left=0)
    assert clock.look() == CaughtUp(20.0, [])
    assert not clock.state.behind
    assert clock.waits == ()


def test_all_engines_of_the_roster_count_until_they_are_gone() -> None:
    clock = Clock()
    clock.up("a", said=True)
    clock.up("b")
    assert clock.waits == ("b worker 0: has more to push",)
    # One that "a" names now, and is asked who it is.
    clock.links["c"] = {}
    del clock.links["b"]
    assert clock.waits == ("c: cannot be reached",)
    del clock.links["c"]
    assert isinstance(clock.look(), CaughtUp)


def test_links_that_are_lost_make_nobody_behind_only_their_return_does() -> None:
    clock = caught_up("a", "b")
    clock.down("a")
    clock.go_on(3600)
    assert clock.seen == []
    clock.up("a")
    assert clock.look() == FellBehind("a worker 0 is linked again after 3600 s")
    clock.go_on(5)
    assert clock.waits == ("a worker 0: has more to push",)
    clock.change("a", said=True)
    assert clock.look() == CaughtUp(5.0, [])


def test_a_link_that_is_back_soon_changes_nothing() -> None:
    clock = caught_up()
    clock.down()
    clock.go_on(AWAY_S - 1)
    clock.up()
    clock.go_on(60)
    assert clock.seen == []


def test_time_counts_from_when_the_engine_was_heard_last() -> None:
    """A connection that leads nowhere is noticed late."""
    clock = caught_up()
    clock.now += AWAY_S
    clock.look()
    clock.down()
    clock.look()
    clock.up()
    assert isinstance(clock.look(), FellBehind)


def test_a_connection_that_was_replaced_between_two_looks_counts() -> None:
    clock = caught_up()
    clock.now += AWAY_S + 1
    clock.up()
    assert isinstance(clock.look(), FellBehind)


def test_each_link_counts_for_itself() -> None:
    clock = caught_up()
    clock.up(worker=1, said=True)
    clock.go_on(1)
    clock.down(worker=1)
    clock.go_on(AWAY_S + 1)
    clock.up(worker=1, said=True)
    assert isinstance(clock.look(), FellBehind)
    assert isinstance(clock.look(), CaughtUp)


def test_an_engine_that_is_new_makes_nobody_behind() -> None:
    clock = caught_up()
    clock.links["b"] = {}
    clock.go_on(5)
    clock.up("b")
    clock.go_on(60)
    assert clock.seen == []


def test_an_engine_that_cannot_be_reached_is_given_up_in_the_end() -> None:
    clock = Clock()
    clock.links["b"] = {}
    clock.go_on(100)
    clock.up("a", said=True)
    clock.down("c", 0)
    clock.up("c", 1, said=True)
    clock.go_on(WAIT_S - 101)
    assert clock.seen == []
    clock.go_on(2)
    # "c" is known for 100 s less.
    assert clock.waits == ("c worker 0: no link",)
    clock.go_on(100)
    assert [change.without for change in clock.seen if isinstance(change, CaughtUp)] == [["b", "c"]]
    # And it is not waited for again when another one was away.
    clock.down("a")
    clock.go_on(20)
    clock.up("a", said=True)
    clock.look()
    assert clock.look() == CaughtUp(0.0, ["b", "c"])


def test_what_an_engine_can_be_reached_by_still_counts() -> None:
    clock = Clock()
    clock.up("a", 0)
    clock.down("a", 1)
    clock.go_on(WAIT_S + 10)
    assert clock.waits == ("a worker 0: has more to push",)
    clock.change("a", 0, said=True)
    assert clock.look() == CaughtUp(WAIT_S + 10, ["a"])


def test_for_ever() -> None:
    clock = Clock(wait_s=0)
    clock.links["b"] = {}
    clock.up("a", said=True)
    clock.go_on(4000)
    assert clock.waits == ("b: cannot be reached",)


def test_who_was_cut_off_waits_for_all_again() -> None:
    clock = caught_up("a", "b")
    clock.down("a")
    clock.down("b")
    clock.go_on(WAIT_S * 2)
    clock.up("a", said=True)
    clock.look()
    clock.go_on(WAIT_S / 2)
    assert clock.waits == ("b worker 0: no link",)
    clock.up("b", said=True)
    assert isinstance(clock.look(), CaughtUp)


def test_a_process_that_stood_still_has_waited_for_nobody() -> None:
    clock = Clock()
    clock.up("a", said=True)
    clock.down("b")
    clock.look()
    clock.now += 3600
    clock.look()
    clock.go_on(10)
    assert clock.state.behind


def test_an_engine_that_was_whole_again_is_waited_for_anew() -> None:
    clock = Clock()
    clock.up("a", said=True)
    clock.down("b")
    clock.go_on(WAIT_S - 10)
    clock.up("b")
    clock.go_on(5)
    clock.down("b")
    clock.go_on(WAIT_S - 10)
    assert clock.waits == ("b worker 0: no link",)


def test_a_drop_is_waited_for_whenever_it_comes() -> None:
    clock = caught_up()
    clock.dropping = True
    assert isinstance(clock.look(), FellBehind)
    assert clock.waits == ("a drop of the whole cache",)
    clock.dropping = False
    assert isinstance(clock.look(), CaughtUp)


def resumed(clock: Clock, pause_s: float = 0.3) -> None:
    """The code after an upgrade goes on; its links are taken over a little later."""
    carried = clock.state.carry(clock.views(), clock.now)
    clock.now += pause_s
    clock.state = CatchingUp(clock.now)
    clock.state.resume(carried, clock.now)


def test_an_upgrade_changes_nothing() -> None:
    clock = caught_up("a", "b")
    clock.down("b")
    clock.go_on(10)
    resumed(clock, 60.0)
    assert not clock.state.behind
    clock.down("a")
    clock.look()
    clock.up("a", said=True)
    clock.go_on(1)
    assert clock.seen == []
    clock.go_on(5)
    # Its age has crossed.
    clock.up("b", said=True)
    assert isinstance(clock.look(), FellBehind)


def test_an_agent_that_is_behind_stays_so_over_an_upgrade() -> None:
    clock = Clock()
    clock.up("a")
    clock.links["b"] = {}
    clock.go_on(WAIT_S - 20)
    resumed(clock, 1.0)
    clock.up("a", said=True)
    assert clock.waits == ("b: cannot be reached",)
    clock.go_on(21)
    assert clock.seen == [CaughtUp(WAIT_S + 1.0, ["b"])] or clock.seen[0].without == ["b"]  # type: ignore[union-attr]
