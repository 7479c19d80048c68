"""What is done is seen to be done: against real caches, and against one that lies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxyd.course import PURGES_MAX
from tests.proxyd.caches.odd import ODD_PATHS
from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.http import ask, get
from tests.proxyd.rig import Scripted, Visit, run, wait_until
from tests.proxyd.site import Ended, Site
from tools.servers import Nginx, Origin, Varnish
from wire.tasks import PushHead

VERIFIED = PushHead("url", verify=True)
WARMED = PushHead("url", verify=True, then="prefetch")


@pytest.fixture(
    params=[
        pytest.param("varnish", marks=pytest.mark.needs("varnishd")),
        pytest.param("ats", marks=pytest.mark.needs("traffic_server")),
        pytest.param("squid", marks=pytest.mark.needs("squid")),
        pytest.param("nginx", marks=pytest.mark.needs("nginx")),
    ]
)
def cache_of(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """A real cache, and its [[cache]]."""
    server = request.getfixturevalue(request.param)
    section = {"name": "c", "kind": request.param, "address": server.address}
    if isinstance(server, Nginx):
        section |= {"path": str(server.cache), "key": "$scheme$host$request_uri"}
    return server, section


def do(section: dict[str, Any], head: PushHead, *targets: str) -> Ended:
    """One task at one cache."""

    async def act() -> Ended:
        with Site(section) as site:
            return await site.do(head, *targets)

    return run(act())


def version(server: Any, host: str, path: str) -> bytes:
    """What a visitor gets: `v=N`."""
    return get(server.address, host, path).body.split()[0]


def test_what_was_purged_is_seen_to_be_gone(
    cache_of: tuple[Any, dict[str, Any]], origin: Origin, host: str
) -> None:
    server, section = cache_of
    before = version(server, host, "/a")
    origin.bump()
    assert version(server, host, "/a") == before
    ended = do(section, VERIFIED, f"http://{host}/a", f"http://{host}/not-there")
    assert ended.done, ended
    assert sorted(seen.target for seen in ended.evidence) == [f"http://{host}/a", f"http://{host}/not-there"]
    for seen in ended.evidence:
        assert seen.purges == 1
        assert seen.purged_ms is not None
        assert seen.verified_ms is not None
        assert seen.verified_ms >= seen.purged_ms
    assert version(server, host, "/a") == b"v=%d" % origin.version


def test_each_odd_url_is_looked_at_byte_for_byte(
    cache_of: tuple[Any, dict[str, Any]], origin: Origin, host: str
) -> None:
    server, section = cache_of
    # (nginx refuses what is no percent-encoding.)
    paths = [path for path in ODD_PATHS if get(server.address, host, path).status == 200]
    assert len(paths) >= len(ODD_PATHS) - 2
    new = b"v=%d" % origin.bump()
    ended = do(section, VERIFIED, *(f"http://{host}{path}" for path in paths))
    assert ended.done, ended
    assert all(seen.verified_ms for seen in ended.evidence)
    assert [path for path in paths if version(server, host, path) != new] == []


def test_a_look_fetches_nothing(cache_of: tuple[Any, dict[str, Any]], origin: Origin, host: str) -> None:
    _, section = cache_of
    assert do(section, VERIFIED, f"http://{host}/never").done
    assert origin.asked[host.encode(), b"/never"] == 0


def test_what_is_gone_is_warmed(cache_of: tuple[Any, dict[str, Any]], origin: Origin, host: str) -> None:
    server, section = cache_of
    version(server, host, "/a")
    new = origin.bump()
    assert do(section, WARMED, f"http://{host}/a").done
    asked = origin.asked[host.encode(), b"/a"]
    assert version(server, host, "/a") == b"v=%d" % new
    assert origin.asked[host.encode(), b"/a"] == asked


@pytest.mark.needs("varnishd")
def test_what_varnish_was_fetching_is_purged_again(varnish: Varnish, origin: Origin, host: str) -> None:
    """Its origin had answered before the content changed; Varnish stores that after the purge."""
    path = f"/in-flight/{host}".encode()
    origin.held.add(path)

    async def act() -> Ended:
        section = {"name": "v", "kind": "varnish", "address": varnish.address}
        with Site(section) as site:
            visit = asyncio.create_task(asyncio.to_thread(get, varnish.address, host, path.decode()))
            await wait_until(lambda: origin.asked[host.encode(), path])
            origin.bump()
            task_id = site.push(VERIFIED, f"http://{host}{path.decode()}")
            # It waits for the fetch.
            await wait_until(lambda: varnish_waits(varnish))
            assert site.dispatcher.tasks == 1
            origin.release(path)
            await visit
            (ended,) = await site.end_of(task_id)
        return ended

    ended = run(act())
    assert ended.done
    assert ended.evidence[0].purges == 2
    assert version(varnish, host, path.decode()) == b"v=%d" % origin.version


def varnish_waits(varnish: Varnish) -> bool:
    """Whether a request of it waits for what another one fetches."""
    return varnish.counter("MAIN.busy_sleep") > varnish.counter("MAIN.busy_wakeup")


@pytest.mark.needs("varnishd")
@pytest.mark.parametrize(("task_type", "target"), [("dir", "http://{host}/d/"), ("tag", "tag-of-{host}")])
def test_a_ban_is_seen_to_take_a_canary_along(
    varnish: Varnish, origin: Origin, host: str, task_type: str, target: str
) -> None:
    path = f"/d/{host}"
    origin.headers[path.encode()] = b"Surrogate-Key: a tag-of-%b b\r\n" % host.encode()
    version(varnish, host, path)
    new = origin.bump()
    section = {"name": "v", "kind": "varnish", "address": varnish.address}
    ended = do(section, PushHead(task_type, verify=True), target.format(host=host))
    assert ended.done, ended
    assert ended.evidence[0].verified_ms is not None
    assert version(varnish, host, path) == b"v=%d" % new


@pytest.mark.needs("varnishd")
def test_soft_is_out_of_date_and_force_is_gone(varnish: Varnish, origin: Origin, host: str) -> None:
    section = {"name": "v", "kind": "varnish", "address": varnish.address, "soft": True}
    path, target = f"/{host}", f"http://{host}/{host}"
    old = version(varnish, host, path)
    origin.held.add(path.encode())
    new = b"v=%d" % origin.bump()
    assert do(section, VERIFIED, target).done
    # Served as it is while it is fetched anew.
    assert version(varnish, host, path) == old
    origin.release(path.encode())
    assert do(section, PushHead("url", verify=True, force=True), target).done
    assert version(varnish, host, path) == new


@pytest.mark.needs("varnishd")
def test_a_prefetch_is_seen_to_be_kept(varnish: Varnish, origin: Origin, host: str) -> None:
    section = {"name": "v", "kind": "varnish", "address": varnish.address}
    origin.headers[f"/not-kept/{host}".encode()] = b"Set-Cookie: a=b\r\n"
    kept, not_kept = f"http://{host}/kept", f"http://{host}/not-kept/{host}"
    assert do(section, PushHead("prefetch", verify=True), kept).done
    ended = do(section, PushHead("prefetch", verify=True), not_kept)
    assert "has not kept it" in ended.error


@pytest.mark.parametrize(
    ("section", "head", "target", "error"),
    [
        (
            {"kind": "varnish"},
            PushHead("regex", verify=True),
            "http://h/.*",
            "verify=1 refused: nothing tells",
        ),
        ({"kind": "nginx"}, VERIFIED, "http://h/a", "verify=1 refused: nginx cannot be asked"),
        ({"kind": "squid"}, PushHead("dir", verify=True), "http://h/a/", "type=dir refused"),
        (
            {"kind": "http", "url": {"method": "PURGE"}},
            VERIFIED,
            "http://h/a",
            "verify=1 refused: there is nothing that it can be asked",
        ),
        (
            {"kind": "http", "url": {"method": "PURGE"}},
            PushHead("url", then="prefetch"),
            "http://h/a",
            "then=prefetch refused",
        ),
    ],
)
def test_what_cannot_be_proved_is_refused(
    section: dict[str, Any], head: PushHead, target: str, error: str, cache: FakeCache
) -> None:
    ended = do({"name": "c", "address": cache.address, **section}, head, target)
    assert not ended.done
    assert error in ended.error
    assert not cache.asked


class Liar:
    """Says that it has purged, and keeps what it has: its `Age` goes on."""

    def __init__(self, *, honest_after: int = 1000) -> None:
        self.purges = 0
        self._honest_after = honest_after
        self._age = 100

    async def serve(self, visit: Visit) -> None:
        """Answers as a Traffic Server would."""
        while request := await visit.request():
            if request.startswith(b"PURGE"):
                self.purges += 1
                await visit.send(b"HTTP/1.1 200 Ok\r\nContent-Length: 0\r\n\r\n")
            elif self.purges >= self._honest_after:
                await visit.send(b"HTTP/1.1 504 Not cached\r\nContent-Length: 5\r\n\r\n")
            else:
                self._age += 2
                head = b'HTTP/1.1 200 Ok\r\nAge: %d\r\nETag: "1"\r\nContent-Length: 1000\r\n\r\n'
                await visit.send(head % self._age)


def lied_to(liar: Liar) -> Ended:
    """Purges at a liar."""

    async def act() -> Ended:
        async with Scripted(liar.serve) as server:
            address = f"{server.address[0]}:{server.address[1]}"
            with Site({"name": "c", "kind": "ats", "address": address}) as site:
                return await site.do(VERIFIED, "http://h/a")

    return run(act())


def test_a_cache_that_lies_is_found_out() -> None:
    liar = Liar()
    ended = lied_to(liar)
    assert not ended.done
    assert "cache c: says that it was purged (3 times), but keeps a copy that is" in ended.error
    assert liar.purges == PURGES_MAX
    assert ended.evidence[0].verified_ms is None
    assert ended.evidence[0].error == ended.error


def test_a_copy_that_came_back_is_purged_again() -> None:
    liar = Liar(honest_after=2)
    ended = lied_to(liar)
    assert ended.done
    assert liar.purges == 2
    assert ended.evidence[0].purges == 2


@pytest.mark.needs("varnishd")
def test_by_configuration_what_can_be_verified_is(varnish: Varnish, host: str) -> None:
    async def act() -> list[Ended]:
        section = {"name": "v", "kind": "varnish", "address": varnish.address}
        with Site(section, agent={"name": "p", "verify": True}) as site:
            url = await site.do(PushHead("url"), f"http://{host}/a")
            return [url, await site.do(PushHead("regex"), f"http://{host}/a.*")]

    url, pattern = run(act())
    assert url.done
    assert url.evidence[0].verified_ms is not None
    assert pattern.done
    assert pattern.evidence == []


@pytest.mark.needs("varnishd")
def test_a_varnish_without_look_is_told_apart(origin: Origin) -> None:
    """An older refreshd.vcl passes LOOK on, and the origin says what it likes."""
    host, _, port = origin.address.rpartition(":")
    vcl = f"""vcl 4.1; backend o {{ .host = "{host}"; .port = "{port}"; }}
    sub vcl_recv {{ if (req.method == "PURGE") {{ return (purge); }}
                    if (req.method == "LOOK") {{ return (pass); }} }}"""
    with Varnish(origin.address, vcl=vcl) as varnish:
        section = {"name": "v", "kind": "varnish", "address": varnish.address}
        ended = do(section, VERIFIED, "http://h/a")
    assert "include the refreshd.vcl of this version" in ended.error


@pytest.mark.needs("varnishd")
def test_nobody_else_makes_canaries_or_looks(varnish: Varnish, host: str) -> None:
    for method in ("LOOK", "CANARY", "SOFTPURGE"):
        assert ask(varnish.address, method, host, "/a", "X-Forwarded-For: 192.0.2.1\r\n").status == 403
    # What asks for one in a visit is taken off.
    visit = ask(varnish.address, "GET", host, "/a", "X-Refreshd-Canary: x\r\n")
    assert visit.status == 200
    assert not [name for name in visit.headers if name.startswith("x-refreshd")]
