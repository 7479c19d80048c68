"""The whole agent beside a real nginx, while visitors read: what is reported is served old to nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.proxyd.fake_engine import FakeEngine, FakeLink
from tests.proxyd.http import get
from tools.servers import Agent, Nginx, Origin, wait_until

pytestmark = pytest.mark.needs("nginx")
KEY = "$scheme$host$request_uri"
# Whatever could bring an old one back: several workers, and files that are kept open.
MORE = "open_file_cache max=100 inactive=60s; open_file_cache_valid 60s;"
PATHS = [f"/d/{number}" for number in range(8)]


class Visitors:
    """Two of them, who read all the time."""

    def __init__(self, nginx: Nginx) -> None:
        self._nginx = nginx
        self._reads: list[tuple[float, bytes]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(number,)) for number in range(2)]

    def _read(self, number: int) -> None:
        at = number
        while not self._stop.is_set():
            began_at = time.monotonic()
            body = get(self._nginx.address, "h.example", PATHS[at % len(PATHS)]).body
            self._reads.append((began_at, body.partition(b" ")[0]))
            at += 1

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment: float) -> list[bytes]:
        """What was read by those who asked after that."""
        return [version for began_at, version in self._reads if began_at > moment]


@contextmanager
def agent_beside(nginx: Nginx, settings: str) -> Iterator[FakeLink]:
    """An agent for it, as its engine sees it."""
    more = f'[[cache]]\nname = "n1"\nkind = "nginx"\naddress = "{nginx.address}"\n{settings}'
    with FakeEngine() as engine, Agent([engine.address], [], more=more):
        yield engine.wait_link()


def end_of(link: FakeLink, task_id: str) -> dict[str, str]:
    """The end of a task as it was reported."""
    report = wait_until(lambda: link.ended(task_id), what=f"a report of {task_id}")
    assert report is not None
    return report


FOLDER = 'path = "{cache}"\nkey = "$scheme$host$request_uri"\n'
WAYS = {
    "url": (FOLDER, "url", PATHS),
    "url, no variants": (FOLDER + "variants = false\n", "url", PATHS),
    "dir": (FOLDER, "dir", ["/d/"]),
    "refetch": ("", "url", PATHS),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_reported_done_is_served_old_to_nobody(origin: Origin, way: str) -> None:
    settings, task_type, paths = WAYS[way]
    targets = [f"http://h.example{path}" for path in paths]
    nginx = Nginx(origin.address, key=KEY, workers=2, more=MORE)
    with nginx, agent_beside(nginx, settings.format(cache=nginx.cache)) as link:
        for round_number in range(5):
            change_and_refresh(nginx, origin, link, f"t{round_number}", task_type, targets)


def change_and_refresh(
    nginx: Nginx, origin: Origin, link: FakeLink, task_id: str, task_type: str, targets: list[str]
) -> None:
    """All of it is in the cache, and visitors read it; it changes, and is refreshed."""
    for path in PATHS:
        get(nginx.address, "h.example", path)
    with Visitors(nginx) as visitors:
        wait_until(lambda: len(visitors.since(0)) > 10, what="visitors read")
        version = b"v=%d" % origin.bump()
        link.push(task_id, *targets, type=task_type)
        assert end_of(link, task_id)["state"] == "done"
        done_at = time.monotonic()
        wait_until(lambda: len(visitors.since(done_at)) > 30, what="visitors read on")
    assert set(visitors.since(done_at)) == {version}


def test_each_type_and_what_is_refused(origin: Origin) -> None:
    with Nginx(origin.address, key=KEY) as nginx:
        with agent_beside(nginx, FOLDER.format(cache=nginx.cache)) as link:
            link.push("warm", "http://h.example/d/a", "http://h.example/b", type="prefetch")
            assert end_of(link, "warm")["state"] == "done"
            assert len(nginx.files()) == 2
            link.push("gone", "http://h.example/d/", "http://h.example/none/", type="dir")
            assert end_of(link, "gone")["state"] == "done"
            assert len(nginx.files()) == 1
            link.push("regex", "http://h.example/.*", type="regex")
            assert "cannot refresh by pattern yet" in end_of(link, "regex")["error"].replace("\\s", " ")
            nginx.cache.rename(nginx.folder / "elsewhere")
            link.push("lost", "http://h.example/b", "http://h.example/d/")
            report = end_of(link, "lost")
            assert (report["done"], report["failed"]) == ("0", "2")
            assert "is path what proxy_cache_path says" in report["error"].replace("\\s", " ")
        with agent_beside(nginx, "") as link:
            link.push("dir", "http://h.example/d/", type="dir")
            assert "without its cache folder (path)" in end_of(link, "dir")["error"].replace("\\s", " ")
