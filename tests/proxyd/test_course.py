"""The steps of a course, and how it ends."""

from __future__ import annotations

from typing import Any

from proxyd.caches import KINDS
from proxyd.caches.nginx import NGINX_FILES
from proxyd.course import AGAIN_S, PURGES_MAX, End, Lane, Stage, Step
from proxyd.evidence import Evidence
from proxyd.proving import make_course, plan_proof
from proxyd.replay import Replay
from proxyd.route import Lanes
from proxyd.sight import Answer
from wire.tasks import PushHead

NOBODY: Any = None


class Walk:
    """A course at a kind of cache, walked by hand."""

    def __init__(self, kind: str, head: PushHead, path: bytes = b"/a") -> None:
        made = NGINX_FILES if kind == "files" else KINDS[kind]
        cache = Lanes("c", made, NOBODY, NOBODY, Replay(NOBODY, NOBODY))
        plan = plan_proof(cache, head)
        assert not isinstance(plan, str), plan
        self.evidence = Evidence("c", "t")
        self.course = make_course(cache, plan, b"h", path, self.evidence)
        self.step: Step | End = self.course.begin()
        self.taken: list[str] = []
        self._at = 10.0

    def answer(self, status: int = 200, **headers: str) -> Walk:
        """The step in hand is answered."""
        assert isinstance(self.step, Step), self.step
        self.taken.append(self.step.deed.method.decode())
        named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        self.course.sent_at, self._at = self._at, self._at + 0.1
        self.course.answer = Answer(status, named, self._at)
        self.step = self.course.after(77)
        return self


def look(walk: Walk, seen: str, begun: float = 0.0) -> Walk:
    """Answers a LOOK."""
    return walk.answer(299, x_refreshd_look=seen, x_refreshd_begun=f"{begun:.3f}", x_refreshd_ttl="9")


def test_varnish_is_purged_and_looked_at() -> None:
    walk = look(Walk("varnish", PushHead("url", verify=True)).answer(x_refreshd_now="5.000"), "Gone")
    assert walk.taken == ["PURGE", "LOOK"]
    assert walk.step == End(None)
    assert (walk.evidence.purges, walk.evidence.purged_ms, walk.evidence.verified_ms) == (1, 77, 77)


def test_what_was_asked_for_before_the_purge_is_purged_at_once() -> None:
    walk = look(Walk("varnish", PushHead("url", verify=True)).answer(x_refreshd_now="5.000"), "There", 4.9)
    assert isinstance(walk.step, Step)
    assert (walk.step.deed.method, walk.step.delay_s) == (b"PURGE", 0.0)
    look(walk.answer(x_refreshd_now="6.000"), "There", 6.1)
    assert walk.step == End(None)
    assert walk.evidence.purges == 2


def test_it_is_given_up_after_some_purges() -> None:
    walk = Walk("varnish", PushHead("url", verify=True))
    for _ in range(PURGES_MAX):
        look(walk.answer(x_refreshd_now="5.000"), "There", 4.0)
    assert isinstance(walk.step, End)
    assert "keeps a copy from before" in str(walk.step.error)
    assert walk.evidence.verified_ms is None


def test_others_are_looked_at_before_and_purged_again_later() -> None:
    walk = Walk("ats", PushHead("url", verify=True)).answer(200, age="0", etag="1").answer()
    walk.answer(200, age="0", etag="1")
    assert isinstance(walk.step, Step)
    assert (walk.step.deed.method, walk.step.delay_s) == (b"PURGE", AGAIN_S)
    walk.answer().answer(504)
    assert walk.taken == ["HEAD", "PURGE", "HEAD", "PURGE", "HEAD"]
    assert walk.step == End(None)


def test_a_look_that_fails_ends_it() -> None:
    walk = Walk("ats", PushHead("url", verify=True)).answer(403)
    assert walk.step == End("a look (HEAD, only-if-cached) was answered 403")


def test_then_warms_what_is_gone() -> None:
    walk = look(Walk("varnish", PushHead("url", then="prefetch")).answer(x_refreshd_now="5"), "Gone")
    assert isinstance(walk.step, Step)
    assert walk.step.lane is Lane.SLOW
    assert walk.course.stage is Stage.WARM
    assert walk.answer().step == End(None)


def test_files_that_are_unlinked_are_seen_to_be_gone_by_that() -> None:
    walk = Walk("files", PushHead("url", verify=True, then="prefetch"))
    assert isinstance(walk.step, Step)
    assert walk.step.lane is Lane.QUICK
    walk.answer()
    assert walk.evidence.verified_ms == 77
    assert walk.answer().step == End(None)


def test_where_nothing_can_be_looked_at_then_warms_without_proof() -> None:
    walk = Walk("nginx", PushHead("url", then="prefetch")).answer()
    assert walk.evidence.verified_ms is None
    assert walk.answer().step == End(None)


def test_a_ban_takes_a_canary_along() -> None:
    walk = Walk("varnish", PushHead("dir", verify=True), b"/d/")
    assert isinstance(walk.step, Step)
    planted = walk.step.request.split()[1]
    assert planted.startswith(b"/d/.refreshd-canary-")
    look(walk.answer(299), "There")
    assert isinstance(walk.step, Step)
    assert walk.step.request.startswith(b"BAN /d/ ")
    walk.answer()
    assert isinstance(walk.step, Step)
    assert walk.step.request.split()[1] == planted
    assert look(walk, "Gone").step == End(None)
    assert walk.taken == ["CANARY", "LOOK", "BAN", "LOOK"]


def test_a_canary_that_is_not_kept_proves_nothing() -> None:
    walk = look(Walk("varnish", PushHead("tag", verify=True), b"news").answer(299), "Gone")
    assert walk.taken == ["CANARY", "LOOK"]
    assert isinstance(walk.step, End)
    assert "cannot be verified" in str(walk.step.error)


def test_a_ban_that_leaves_the_canary_is_found_out() -> None:
    walk = look(Walk("varnish", PushHead("tag", verify=True), b"news").answer(299), "There")
    for _ in range(PURGES_MAX):
        look(walk.answer(299), "There")
    assert isinstance(walk.step, End)
    assert walk.step.error is not None


def test_a_prefetch_that_is_not_kept_has_failed() -> None:
    walk = look(Walk("varnish", PushHead("prefetch", verify=True)).answer(), "Gone")
    assert walk.step == End("was fetched through the cache, but the cache has not kept it")
    walk = look(Walk("varnish", PushHead("prefetch", verify=True)).answer(), "There")
    assert walk.step == End(None)
    assert walk.evidence.verified_ms == 77
