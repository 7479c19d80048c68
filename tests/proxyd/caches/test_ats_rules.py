"""Directories, patterns and drops at a real Traffic Server, by rules of its regex_revalidate."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.caches import ats_rules as module
from proxyd.caches.ats_rules import ALL, HEAD, MARK, RETIRE_S, RULE_MATCHING, Book, RuleFile, pattern_fault
from proxyd.caches.ats_rules import _Failed as Failed
from proxyd.config import build
from proxyd.hands import Pulse, Work
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.http import get
from tests.proxyd.rig import run
from tests.proxyd.site import Ended, Site
from tools.servers import Origin, TrafficServer, wait_until
from wire.patterns import pattern_fault as re2_fault
from wire.tasks import PushHead

pytestmark = pytest.mark.needs("traffic_manager")
WEEK_S = 604_800


def section_of(ats: TrafficServer, **more: Any) -> dict[str, Any]:
    """Its [[cache]]."""
    return {
        "name": "c",
        "kind": "ats",
        "address": ats.address,
        "rules": str(ats.rules),
        "rules_state": str(ats.rules_state),
        "remap": str(ats.remap),
        "reload": ats.reload,
        **more,
    }


def do(section: dict[str, Any], *tasks: tuple[str, str], verify: bool = False) -> list[Ended]:
    """Does all these at once, each (task type, target)."""

    async def act() -> list[Ended]:
        with Site(section) as site:
            ids = [site.push(PushHead(task_type, verify=verify), target) for task_type, target in tasks]
            return await site.end_of(*ids)

    return run(act())


def refresh(ats: TrafficServer, task_type: str, *targets: str) -> None:
    """Does these at once, and all well."""
    ended = do(section_of(ats), *((task_type, target) for target in targets))
    assert [each for each in ended if not each.done] == []


def drop(section: dict[str, Any]) -> None:
    """Drops all that the cache holds."""

    async def act() -> None:
        with Site(section) as site:
            site.dispatcher.drop(site.box, b"d", asyncio.get_running_loop().time())
            (ended,) = await site.end_of(b"d")
            assert ended.done, ended

    run(act())


def is_hit(ats: TrafficServer, host: str, path: str) -> bool:
    """Whether a visitor is served from the cache; it is there afterwards in any case."""
    answer = get(ats.address, host, path)
    assert answer.status == 200
    return ats.was_hit(answer.headers["via"])


def fill(ats: TrafficServer, host: str, *paths: str) -> None:
    """Has objects in the cache that no rule of before finds, whatever other tests did in this second."""
    for path in paths:
        wait_until(functools.partial(is_hit, ats, host, path), what=f"{path} is kept")


def reads(ats: TrafficServer, host: str, path: str) -> bytes:
    """What a visitor gets: v=N."""
    return get(ats.address, host, path).body.split()[0]


# ── against the real one ──────────────────────────────────────────────────────────────────


def test_a_directory_is_gone_and_nothing_else(ats_rules: TrafficServer, origin: Origin, host: str) -> None:
    below = [f"/{host}/d/", f"/{host}/d/a", f"/{host}/d/deep/b?q"]
    beside = [f"/{host}/d", f"/{host}/da", f"/{host}/D/a", f"/x/{host}/d/a"]
    fill(ats_rules, host, *below, *beside)
    version = b"v=%d" % origin.bump()
    refresh(ats_rules, "dir", f"https://{host.upper()}:8080/{host}/d/")
    assert [reads(ats_rules, host, path) for path in below] == [version] * len(below)
    assert all(is_hit(ats_rules, host, path) for path in beside)
    # What was fetched since is kept.
    fill(ats_rules, host, *below)


def test_each_odd_directory_is_gone_and_only_it(ats_rules: TrafficServer, host: str) -> None:
    # Traffic Server takes //a for /a: below a name of its own no test meets another.
    folders = [f"/{host}{path.rstrip('/')}/" for path in ODD_PATHS if len(path) < 1000]
    fill(ats_rules, host, *(f"{folder}x" for folder in folders))
    refresh(ats_rules, "dir", *(f"http://{host}{folder}" for folder in folders[::2]))
    others = [is_hit(ats_rules, host, f"{folder}x") for folder in folders[1::2]]
    assert others == [True] * len(others)
    gone = [is_hit(ats_rules, host, f"{folder}x") for folder in folders[::2]]
    assert gone == [False] * len(gone)


def test_a_slash_too_many_at_the_start_is_dropped_as_it_is_for_a_visit(
    ats_rules: TrafficServer, host: str
) -> None:
    fill(ats_rules, host, f"//{host}//d/x")
    refresh(ats_rules, "dir", f"http://{host}//{host}//d/")
    assert not is_hit(ats_rules, host, f"//{host}//d/x")


def test_rules_follow_remap_config(ats_rules: TrafficServer, host: str) -> None:
    sites = [("apart.example", f"/{host}/a"), ("moved.example", f"/in/{host}/a"), (host, f"/{host}/a")]
    for number, (site, path) in enumerate(sites):
        for other, its_path in sites:
            fill(ats_rules, other, its_path)
        refresh(ats_rules, "dir", f"http://{site}{path.removesuffix('a')}")
        hits = [is_hit(ats_rules, other, its_path) for other, its_path in sites]
        assert hits == [at != number for at in range(3)], site
    for other, its_path in sites:
        fill(ats_rules, other, its_path)
    refresh(ats_rules, "dir", "http://moved.example/in/")
    hits = [is_hit(ats_rules, other, its_path) for other, its_path in sites]
    assert hits == [True, False, True]


def test_a_pattern_finds_whole_paths(ats_rules: TrafficServer, host: str) -> None:
    found = [f"/{host}/a/b.png", f"/{host}/C.PNG"]
    not_found = [f"/{host}/a.png?x", f"/{host}/apng", f"/x/{host}/a.png", f"/{host}/or"]
    fill(ats_rules, host, *found, *not_found)
    refresh(ats_rules, "regex", f"http://{host}/(?i){host}/.*[.]png", f"http://{host}/nothing|or")
    assert [is_hit(ats_rules, host, path) for path in not_found] == [True] * len(not_found)
    assert [is_hit(ats_rules, host, path) for path in found] == [False] * len(found)


def test_a_pattern_that_is_not_taken_says_why(ats_rules: TrafficServer, host: str) -> None:
    patterns = [r"/(a|b)*", r"/\x{263a}", "/" + "a" * 1900, r"/fine[#]"]
    ended = do(section_of(ats_rules), *(("regex", f"http://{host}{pattern}") for pattern in patterns))
    assert [each.done for each in ended] == [False, False, False, True]
    assert "repeats a group" in ended[0].error
    assert "its PCRE does not know all of it" in ended[1].error
    assert "more than 1900 characters" in ended[2].error
    (moved,) = do(section_of(ats_rules), ("regex", "http://moved.example/in/.*"))
    assert "it maps /in/ of moved.example to another path, and a pattern cannot follow" in moved.error
    (long,) = do(section_of(ats_rules), ("dir", f"http://{host}{LONGEST}/"))
    assert "more than 1900 characters; refresh a directory above" in long.error


def test_a_pattern_that_slips_through_does_not_take_the_server_down(
    ats_rules: TrafficServer, host: str
) -> None:
    path = f"/{host}/" + "ab" * 3500
    fill(ats_rules, host, path)
    # Without a bound of ours PCRE's stack is used up by that, and traffic_server ends.
    patterns = [f"/{host}/(?:a|b)*x", f"/{host}/.*.*.*.*x"]
    works = [Work(RULE_MATCHING, host.encode(), pattern.encode()) for pattern in patterns]
    rules = build({"cache": [section_of(ats_rules)]}, "", "test", Path()).caches[0].rules
    assert rules is not None
    assert RuleFile(rules).sweep(works, Pulse()) == [None, None]
    assert is_hit(ats_rules, host, path)


def test_a_drop_leaves_nothing(ats_rules: TrafficServer, host: str) -> None:
    refresh(ats_rules, "dir", f"http://{host}/d/")
    fill(ats_rules, host, "/a")
    fill(ats_rules, "apart.example", "/a")
    drop(section_of(ats_rules))
    assert not is_hit(ats_rules, host, "/a")
    assert not is_hit(ats_rules, "apart.example", "/a")
    # All other rules are of no use any more: no time in the file but those of the drop is far off.
    left = Book.parse(ats_rules.rules.read_text(), int(time.time()) + RETIRE_S)
    assert set(left.expiries) == {ALL, MARK}
    soon = time.time() + RETIRE_S
    assert {rule for rule, (_, expiry) in state(ats_rules).items() if expiry > soon} == {ALL, MARK}


def test_what_is_read_after_a_refresh_is_new_within_the_second_too(
    ats_rules: TrafficServer, origin: Origin, host: str
) -> None:
    read = []
    for _ in range(25):
        reads(ats_rules, host, f"/{host}/a")
        version = b"v=%d" % origin.bump()
        refresh(ats_rules, "dir", f"http://{host}/{host}/")
        read.append((reads(ats_rules, host, f"/{host}/a"), version))
    assert [got for got, _ in read] == [wanted for _, wanted in read]


def test_an_origin_may_be_ahead_by_what_is_configured(
    ats_rules: TrafficServer, origin: Origin, host: str
) -> None:
    origin.ahead_s = 1.5
    try:
        fill(ats_rules, host, f"/{host}/a", f"/{host}/b")
    finally:
        origin.ahead_s = 0.0
    folder = ("dir", f"http://{host}/{host}/")
    assert do(section_of(ats_rules, rules_skew_s=0), folder)[0].done
    # (It has the time to be wrong: this shows that the next can fail.)
    assert is_hit(ats_rules, host, f"/{host}/a")
    assert do(section_of(ats_rules, rules_skew_s=1.5), folder)[0].done
    assert not is_hit(ats_rules, host, f"/{host}/b")


def test_what_is_being_fetched_is_found_too(ats_rules: TrafficServer, origin: Origin, host: str) -> None:
    path = f"/{host}/held"
    origin.held.add(path.encode())
    visitor = threading.Thread(target=get, args=(ats_rules.address, host, path))
    visitor.start()
    wait_until(lambda: any(asked == path.encode() for _, asked in origin.asked), what="it is asked for")
    # Its answer is made, and on its way.
    version = b"v=%d" % origin.bump()
    refresh(ats_rules, "dir", f"http://{host}/{host}/")
    origin.release(path.encode())
    visitor.join()
    assert reads(ats_rules, host, path) == version


def test_urls_are_purged_by_request_meanwhile(ats_rules: TrafficServer, host: str) -> None:
    fill(ats_rules, host, f"/{host}/u", f"/{host}/d/a")
    url, directory = do(
        section_of(ats_rules), ("url", f"http://{host}/{host}/u"), ("dir", f"http://{host}/{host}/d/")
    )
    assert url.done
    assert directory.done
    assert not is_hit(ats_rules, host, f"/{host}/u")
    assert not is_hit(ats_rules, host, f"/{host}/d/a")


def test_that_it_took_effect_is_proof_enough(ats_rules: TrafficServer, host: str) -> None:
    for task_type, target in (("dir", "/p/"), ("regex", "/p/.*"), ("url", "/p/a")):
        (ended,) = do(section_of(ats_rules), (task_type, f"http://{host}{target}"), verify=True)
        assert ended.done, ended
        (seen,) = ended.evidence
        assert seen.verified_ms is not None


def test_many_at_once_are_one_load(ats_rules: TrafficServer, host: str, tmp_path: Path) -> None:
    loads = tmp_path / "loads"
    script = f'echo x >> {loads}; exec "$0" "$@"'
    section = section_of(ats_rules, reload=["sh", "-c", script, *ats_rules.reload])
    targets = [f"http://{host}/{host}/{number}/" for number in range(600)]
    ended = do(section, *(("dir", target) for target in targets), ("dir", f"http://{host}/{host}/7/"))
    assert all(each.done for each in ended)
    assert loads.read_text() == "x\n"
    # One above all of them takes their place.
    assert len(live(ats_rules, host)) == 600
    refresh(ats_rules, "dir", f"http://{host}/{host}/", f"http://{host}/{host}/9/")
    assert len(live(ats_rules, host)) == 1


def live(ats: TrafficServer, host: str) -> list[str]:
    """The rules for what a test has below its own name that hold for longer."""
    book = Book.parse(ats.rules.read_text(), int(time.time()) + RETIRE_S)
    return [rule for rule in book.expiries if re.escape(host) in rule]


def test_there_is_a_bound(ats_rules: TrafficServer, host: str) -> None:
    drop(section_of(ats_rules))
    section = section_of(ats_rules, rules_max=3)
    first = do(section, ("dir", f"http://{host}/d/1/"), ("dir", f"http://{host}/d/2/"))
    (third,) = do(section, ("dir", f"http://{host}/d/3/"))
    assert [each.done for each in [*first, third]] == [True, True, False]
    assert "holds 3 rules (rules_max); refresh a directory above" in third.error
    again, above = do(section, ("dir", f"http://{host}/d/2/")), do(section, ("dir", f"http://{host}/d/"))
    assert [each.done for each in again + above] == [True, True]
    assert do(section, ("dir", f"http://{host}/d/3/"))[0].done


def test_rules_outlive_a_restart(ats_rules: TrafficServer, host: str) -> None:
    refresh(ats_rules, "dir", f"http://{host}/{host}/kept/")
    before, written = state(ats_rules), ats_rules.rules_state.stat().st_mtime
    # Another second, or a rule that was made anew would look the same.
    wait_until(lambda: time.time() >= int(written) + 1, what="the second is over")
    restart = threading.Thread(target=ats_rules.restart)
    restart.start()
    # What comes meanwhile is done when it is back.
    refresh(ats_rules, "dir", f"http://{host}/{host}/meanwhile/")
    restart.join()
    after = state(ats_rules)
    now = time.time()
    unexpired = {rule for rule, (_, expiry) in before.items() if expiry > now} - {MARK}
    assert {rule: after[rule] for rule in unexpired} == {rule: before[rule] for rule in unexpired}
    (fresh,) = [rule for rule in after if "meanwhile" in rule and re.escape(host) in rule]
    assert after[fresh][0] > int(written)


def state(ats: TrafficServer) -> dict[str, tuple[int, int]]:
    """By rule: its epoch and its expiry, as the plugin has them."""
    return module._parse_state(ats.rules_state.read_text())


# ── what can be wrong ─────────────────────────────────────────────────────────────────────


def fails(section: dict[str, Any]) -> str:
    """The error of a directory refresh."""
    (ended,) = do(section, ("dir", "http://h.example/d/"))
    assert not ended.done
    return ended.error


def test_files_that_cannot_be_read_or_written(ats_rules: TrafficServer, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere" / "f")
    assert f"{nowhere}: No such file or directory" in fails(section_of(ats_rules, remap=nowhere))
    error = fails(section_of(ats_rules, rules=nowhere))
    assert f"{nowhere}." in error
    assert "No such file or directory (see docs/agent.md" in error
    assert "Is a directory" in fails(section_of(ats_rules, rules=str(tmp_path)))
    unknown = tmp_path / "remap.config"
    unknown.write_text("regex_map http://.*/ http://o/\n")
    assert f"{unknown}: line 1: 'regex_map'" in fails(section_of(ats_rules, remap=str(unknown)))
    unknown.write_text("map http://i.example/ http://o/\n")
    assert f"{unknown}: it maps no h.example" in fails(section_of(ats_rules, remap=str(unknown)))


def test_a_file_of_somebody_elses_is_left_alone(ats_rules: TrafficServer, tmp_path: Path) -> None:
    theirs = tmp_path / "rr.conf"
    theirs.write_text("^http://h/.* 1999999999 STALE\n")
    assert "lines that are not this agent's" in fails(section_of(ats_rules, rules=str(theirs)))
    assert theirs.read_text() == "^http://h/.* 1999999999 STALE\n"
    assert list(tmp_path.iterdir()) == [theirs]


def test_a_reload_that_fails(
    ats_rules: TrafficServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"rules": str(tmp_path / "rules"), "rules_state": str(tmp_path / "state")}
    # Nobody listens below that root.
    runroot = (ats_rules.folder / "runroot.yaml").read_text().replace(str(ats_rules.folder), str(tmp_path))
    (tmp_path / "runroot.yaml").write_text(runroot)
    nobody = [ats_rules.reload[0], f"--run-root={tmp_path}/runroot.yaml", "config", "reload"]
    with monkeypatch.context() as hasty:
        hasty.setattr(module, "LOADED_MAX_S", 0.1)
        error = fails(section_of(ats_rules, reload=nobody, **own))
    assert "traffic_ctl ended with 2 (does traffic_manager run, and may the agent's user ask it?): " in error
    assert "Error establishing socket connection" in error
    assert "reload: /no/such: No such file" in fails(section_of(ats_rules, reload=["/no/such"], **own))
    with monkeypatch.context() as hasty:
        hasty.setattr(module, "RELOAD_MAX_S", 0.2)
        assert "has not ended within 0.2 s" in fails(section_of(ats_rules, reload=["sleep", "60"], **own))
    # A plugin that is not there, or keeps no state, or another's.
    with monkeypatch.context() as hasty:
        hasty.setattr(module, "LOADED_MAX_S", 0.2)
        error = fails(section_of(ats_rules, rules_state=own["rules_state"]))
        assert "does not show the rules 0.2 s after a reload: is it the --state-file" in error
        assert "does not show the rules" in fails(section_of(ats_rules, reload=["true"]))
    # What was not loaded then is with the next.
    refresh(ats_rules, "dir", "http://h.example/d/")


# ── what is written: pure ─────────────────────────────────────────────────────────────────


def test_a_rule_is_new_to_the_plugin_each_time() -> None:
    book = Book({}, 1000)
    assert book.add(["^d/"], WEEK_S, 10) == frozenset()
    used = {book.expiries["^d/"]}
    # Whichever of these was loaded, the next is another one.
    for now in (1000, 1000, 1001, 1001, 1002, 990, 1003):
        book = Book.parse(book.text(), now)
        book.add(["^d/"], WEEK_S, 10)
        assert book.expiries["^d/"] == book.expiries[MARK]
        assert book.expiries["^d/"] not in used
        used.add(book.expiries["^d/"])


def test_what_has_expired_is_forgotten() -> None:
    book = Book.parse(f"{HEAD}^a/ 1000 MISS\n^b/ 1001 MISS\n", 1000)
    assert set(book.expiries) == {"^b/"}


@pytest.mark.parametrize("text", ["^a/ 5 STALE\n", "^a b/ 5 MISS\n", "# hello\n", "^a/\n"])
def test_lines_of_others_are_told_apart(text: str) -> None:
    with pytest.raises(Failed, match="not this agent's"):
        Book.parse(text, 0)


RULES = st.lists(st.sampled_from([ALL, "^a/", "^a/b/", "^a/b/c/", "^ab/", "^d/", "^d/e/"]), max_size=6)


@given(batches=st.lists(RULES, min_size=1, max_size=4), at_most=st.integers(1, 5))
def test_each_rule_is_there_with_the_newest_time_or_refused(batches: list[list[str]], at_most: int) -> None:
    book = Book({}, 1000)
    for number, rules in enumerate(batches):
        now = 1000 + number
        before = book.expiries
        book = Book.parse(book.text(), now)
        refused = book.add(rules, WEEK_S, at_most)
        holding = {rule for rule, expiry in book.expiries.items() if expiry > now + RETIRE_S} - {MARK}
        assert len(holding) <= at_most
        for rule in set(rules) - refused:
            stands = book.stands_for(rule)
            assert rule == stands or stands == ALL or rule.startswith(stands)
            assert stands in book.fresh
            assert book.expiries[stands] != before.get(stands)
            assert book.expiries[stands] >= now + WEEK_S
        # What nothing took the place of holds on.
        for rule in before:
            if rule not in holding and before[rule] > now + RETIRE_S and rule != MARK:
                assert any(fresh == ALL or rule.startswith(fresh) for fresh in book.fresh)


@pytest.mark.parametrize(
    ("pattern", "fine"),
    [
        ("/a.*", True), ("/(a|b)?c+", True), (r"/[)*]*\)*", True), ("/[]()*]*x", True), ("/[^])*]+", True),
        ("/[[:alpha:])*]*", True), (r"/\\(a)", True),
        ("/(a)*", False), ("/(?:a|b)+", False), ("/(a){2}", False), (r"/\\(a)*", False), ("/((a)?b)*", False),
        ("/[(](a)*", False),
    ],
)  # fmt: skip
def test_groups_may_not_be_repeated(pattern: str, fine: bool) -> None:
    assert re2_fault(pattern) is None
    assert (pattern_fault(pattern) is None) is fine


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
def test_what_is_quoted_stands_for_itself(text: str) -> None:
    quoted = module._quote(text)
    assert re.fullmatch(quoted, text)
    assert not re.search(r"\s", quoted)


def test_nothing_is_done_by_the_quick_hands() -> None:
    assert RuleFile(module.AtsRules("", "", "", (), 1, 60, 0)).act([], Pulse()) == []
