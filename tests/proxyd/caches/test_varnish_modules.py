"""What a Varnish with varnish-modules does better (refreshd-modules.vcl)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.proxyd.http import ask, get
from tests.proxyd.rig import run, wait_until
from tests.proxyd.site import Ended, Site
from tools.servers import Origin, Varnish
from tools.servers.varnish import XKEY
from wire.tasks import PushHead

pytestmark = pytest.mark.needs("varnishd", XKEY)


@pytest.fixture(scope="module")
def modular(origin: Origin) -> Iterator[Varnish]:
    """A Varnish with the modules."""
    with Varnish(origin.address, modules=True) as server:
        yield server


def site_of(varnish: Varnish) -> Site:
    """An agent's part beside it."""
    return Site({"name": "v", "kind": "varnish", "address": varnish.address})


def test_a_tag_is_removed_without_a_ban(modular: Varnish, origin: Origin, host: str) -> None:
    tagged = {
        "/both": b"Surrogate-Key: red blue\r\n",
        "/red": b"Cache-Tag: red\r\n",
        "/blue": b"xkey: blue\r\n",
    }
    for path, header in tagged.items():
        origin.headers[f"{path}/{host}".encode()] = header.replace(b"red", f"red-{host}".encode())
        answer = get(modular.address, host, f"{path}/{host}")
        assert "x-hashtwo" not in answer.headers
    new = origin.bump()

    async def act() -> Ended:
        with site_of(modular) as site:
            return await site.do(PushHead("tag", verify=True), f"red-{host}")

    ended = run(act())
    assert ended.done, ended
    assert ended.evidence[0].verified_ms is not None
    assert modular.bans() == []
    bodies = {path: get(modular.address, host, f"{path}/{host}").body for path in tagged}
    is_new = {path: body.startswith(b"v=%d " % new) for path, body in bodies.items()}
    assert is_new == {"/both": True, "/red": True, "/blue": False}


@pytest.mark.parametrize("task_type", ["dir", "regex"])
def test_what_is_being_fetched_during_a_ban_is_not_kept(
    modular: Varnish, origin: Origin, host: str, task_type: str
) -> None:
    """Without the modules it is (docs/agent.md): it lands behind the ban, which does not find it."""
    path = f"/{host}/in-flight"
    origin.held.add(path.encode())

    async def act() -> None:
        with site_of(modular) as site:
            visit = asyncio.create_task(asyncio.to_thread(get, modular.address, host, path))
            await wait_until(lambda: origin.asked[host.encode(), path.encode()])
            origin.bump()
            target = f"http://{host}/{host}/" + (".*" if task_type == "regex" else "")
            assert (await site.do(PushHead(task_type), target)).done
            origin.release(path.encode())
            answer = await visit
            assert answer.status == 200

    run(act())
    assert get(modular.address, host, path).body.startswith(b"v=%d " % origin.version)


def test_who_may_not_purge_makes_no_fetch_uncacheable(modular: Varnish, host: str) -> None:
    for method in ("BAN", "BANTAG"):
        assert ask(modular.address, method, host, "/x/", "X-Forwarded-For: 192.0.2.1\r\n").status == 403
    get(modular.address, host, "/kept")
    assert get(modular.address, host, "/kept").headers["x-cache"] == "hit"
