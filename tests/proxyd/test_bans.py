"""Bans: merged, put together, bounded; and what a real Varnish makes of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.bans import ALTERNATIVES_MAX, LIFE_S, Bans, make_alternatives
from proxyd.caches import KINDS
from proxyd.tasks import Exchange
from tests.proxyd.http import get
from tests.proxyd.rig import make_refresh, run
from tests.proxyd.site import Site
from tools.servers import Origin, Varnish
from wire.tasks import PushHead

DEEDS = KINDS["varnish"].deeds


def make_bans(bans_max: int = 1000) -> Bans:
    """Those of a Varnish."""
    return Bans("v", DEEDS["regex"], bans_max=bans_max)


def ban(task_type: str, target: str) -> Exchange:
    """One that waits."""
    return make_refresh(task_type, target, deed=DEEDS[task_type])


def shown(given: list[Exchange]) -> list[str]:
    """Each as "METHOD", and how many it stands for."""
    return [f"{each.deed.method.decode()} {1 + len(each.followers or ())}" for each in given]


def test_what_is_no_ban_passes() -> None:
    url, directory = ban("url", "http://h/a"), ban("dir", "http://h/d/")
    bans = make_bans()
    assert bans.take_in([url, directory]) == [url]
    assert bans.waiting == 1
    assert bans.give_out(0.0, 10) == [directory]
    assert directory.deed is DEEDS["dir"]


def test_repeats_and_what_lies_below_are_merged() -> None:
    bans = make_bans()
    targets = ["http://h/a/b/", "http://h/a/", "http://h/a/", "http://h/a/c/d/"]
    bans.take_in([ban("dir", target) for target in targets])
    bans.take_in([ban("tag", "x"), ban("tag", "x"), ban("tag", "y"), ban("regex", "http://h/.*")])
    bans.take_in([ban("regex", "http://h/.*"), ban("regex", "http://i/.*")])
    assert shown(bans.give_out(0.0, 100)) == ["BAN 4", "BANTAG 2", "BANTAG 1", "BANREGEX 2", "BANREGEX 1"]
    assert bans.waiting == 0


def test_directories_of_a_host_go_as_one() -> None:
    bans = make_bans()
    bans.take_in([ban("dir", f"http://{host}/d{n}/") for n in range(3) for host in ("h", "i")])
    first, second = bans.give_out(0.0, 100)
    assert shown([first, second]) == ["BANREGEX 3", "BANREGEX 3"]
    assert first.request.startswith(b"BANREGEX /(?:d0/|d1/|d2/).* HTTP/1.1\r\nHost: h\r\n")


def test_one_ban_does_not_grow_without_end() -> None:
    bans = make_bans()
    bans.take_in([ban("dir", f"http://h/{n}/") for n in range(ALTERNATIVES_MAX * 2 + 1)])
    assert [1 + len(each.followers or ()) for each in bans.give_out(0.0, 100)] == [100, 100, 1]
    bans.take_in([ban("dir", f"http://h/{n}{'x' * 1500}/") for n in range(3)])
    for each in bans.give_out(0.0, 100):
        assert len(each.request) < 8000


def test_their_number_is_bounded_and_what_waits_is_merged_further() -> None:
    bans = make_bans(bans_max=2)
    bans.take_in([ban("tag", str(n)) for n in range(3)])
    assert shown(bans.give_out(0.0, 100)) == ["BANTAG 1", "BANTAG 1"]
    assert bans.alive(0.0) == 2
    bans.take_in([ban("tag", "2")])
    assert bans.give_out(LIFE_S, 100) == []
    assert shown(bans.give_out(LIFE_S + 0.1, 100)) == ["BANTAG 2"]
    assert bans.alive(LIFE_S + 0.1) == 1


def test_what_was_merged_says_into_what() -> None:
    bans = make_bans()
    below, above = ban("dir", "http://h/a/b/"), ban("dir", "http://h/a/")
    below.task.id = b"small"
    above.task.id = b"large"
    bans.take_in([below, above])
    assert bans.give_out(0.0, 9) == [above]
    assert below.evidence is not None
    assert below.evidence.more == {"merged_into": "large"}
    assert below.task.evidence == []
    assert (below.task.merged_into, above.task.merged_into) == (b"large", b"")
    assert above.evidence is None


@given(
    st.lists(st.text("ab./+*()[]\\^$|?~-_%'\"", max_size=6), min_size=1, max_size=4),
    st.text("ab./+*", max_size=9),
)
def test_alternatives_match_what_begins_with_one_of_them(names: list[str], rest: str) -> None:
    paths = [f"/{name}/" for name in names]
    pattern = make_alternatives([path.encode() for path in paths]).decode()
    assert not re.search(r"\s", pattern)
    for path in (*(path + rest for path in paths), "/" + rest):
        matches = re.fullmatch(pattern, path) is not None
        assert matches == any(path.startswith(each) for each in paths)


@pytest.mark.needs("varnishd")
def test_a_burst_of_directories_is_a_few_bans(varnish: Varnish, origin: Origin, host: str) -> None:
    directories = [f"/burst/{n}(+.'{n}/" for n in range(150)]
    for path in directories:
        get(varnish.address, host, f"{path}page")
    beside = f"/burst/{len(directories)}/page"
    get(varnish.address, host, beside)
    before = len(varnish.bans())

    async def act() -> list[str]:
        with Site({"name": "v", "kind": "varnish", "address": varnish.address}) as site:
            ids = [site.push(PushHead("dir"), f"http://{host}{path}") for path in directories]
            ended = await site.end_of(*ids)
            assert all(each.done for each in ended), ended
            for each in ended:
                assert [seen.more["merged_into"] for seen in each.evidence] == (
                    [each.merged_into] if each.merged_into else []
                )
            return [each.merged_into for each in ended]

    merged_into = run(act())
    assert merged_into.count("") <= 30
    assert len(varnish.bans()) - before <= 30
    new = b"v=%d" % origin.bump()
    for path in directories:
        assert get(varnish.address, host, f"{path}page").body.startswith(new)
    assert not get(varnish.address, host, beside).body.startswith(new)
