"""What nginx is asked, and what is done to its files: against a real one, with what is shipped for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from proxyd.caches import Deed, nginx_files
from proxyd.caches.nginx import NGINX_FILES, NGINX_PURGE, NGINX_REFETCH, nginx_kind
from proxyd.caches.nginx_files import NginxFiles, NginxFolder
from proxyd.caches.nginx_key import normalise
from proxyd.hands import Hands, Pulse, Work
from proxyd.local import LocalClient
from proxyd.pipeline import CacheClient
from proxyd.tasks import Exchange
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.http import ask, get
from tests.proxyd.rig import SHORT, make_exchange, make_refresh, perform, run, split_address, wait_until
from tools.servers import Nginx, Origin
from wire.fields import TASK_TYPES

pytestmark = pytest.mark.needs("nginx")
STREAMING = msgspec.structs.replace(SHORT, depth=1, streaming=True, answer_max_bytes=None)
REFETCH = NGINX_REFETCH.deeds["url"]
REFETCHING = msgspec.structs.replace(STREAMING, until_closed=True)
HOST_KEY = "$scheme$host$request_uri"
NOBODY = 65534


def files_of(
    nginx: Nginx, *, key: str = HOST_KEY, levels: tuple[int, ...] = (1, 2), variants: bool = False
) -> NginxFiles:
    """What an agent is told of it."""
    return NginxFiles(str(nginx.cache), levels, key, "", variants)


def do(files: NginxFiles, *works: tuple[str, str]) -> list[str | None]:
    """Does all that at once, each (task type, target), by hand; what was told of each, in order."""
    return do_with(NginxFolder(files), *works)


def do_with(hands: Hands, *works: tuple[str, str]) -> list[str | None]:
    """As `do`."""
    told: dict[Exchange, str | None] = {}

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        for exchange in exchanges:
            client.put(exchange, 5)
        await wait_until(lambda: len(told) == len(works), f"an end of all of {client}")
        assert not client.waiting
        assert not client.in_flight
        client.close()

    exchanges = [
        make_refresh(task_type, target, deed=NGINX_FILES.deed_of(task_type)[0]) for task_type, target in works
    ]
    run(test())
    return [told[exchange] for exchange in exchanges]


def request(nginx: Nginx, deed: Deed, *targets: str) -> list[str | None]:
    """Sends a deed for each target; what was told of each, in order."""
    raw = [target.encode() for target in targets]
    limits = REFETCHING if deed is REFETCH else STREAMING
    told = run(perform(split_address(nginx.address), deed, raw, limits))
    return [errors[0] for errors in told.values()]


def is_hit(nginx: Nginx, host: str, path: str, headers: str = "") -> bool:
    """Whether a visitor is served from the cache; it is there afterwards in any case."""
    answer = ask(nginx.address, "GET", host, path, headers)
    assert answer.status in (200, 206)
    return answer.headers["x-cache"] == "HIT"


def fill(nginx: Nginx, host: str, *paths: str) -> None:
    """Puts objects into the cache."""
    for path in paths:
        get(nginx.address, host, path)
        assert is_hit(nginx, host, path)


# ── a URL, by its file ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_each_odd_url_is_unlinked_and_only_it(nginx: Nginx, host: str, path: str) -> None:
    if normalise(path.partition("?")[0].encode()) is None:
        assert get(nginx.address, host, path).status == 400
        assert do(files_of(nginx), ("url", f"http://{host}{path}")) == [None]
        return
    others = [other for other in ODD_PATHS[:8] if other != path]
    fill(nginx, host, path, *others)
    assert do(files_of(nginx), ("url", f"http://{host}{path}")) == [None]
    for other in others:
        assert is_hit(nginx, host, other)
    assert not is_hit(nginx, host, path)


def test_what_the_origin_is_asked_is_byte_exact(nginx: Nginx, origin: Origin, host: str) -> None:
    paths = [path for path in ODD_PATHS if normalise(path.partition("?")[0].encode()) is not None]
    targets = [f"http://{host}{path}" for path in paths]
    assert request(nginx, NGINX_FILES.deeds["prefetch"], *targets) == [None] * len(paths)
    asked = {path.decode() for name, path in origin.asked if name.decode() == host}
    assert asked == set(paths)


def test_what_is_not_there_is_done(nginx: Nginx, host: str) -> None:
    for variants in (False, True):
        assert do(files_of(nginx, variants=variants), ("url", f"http://{host}/never")) == [None]


def test_schemes_ports_and_the_case_of_hosts_are_one(nginx: Nginx, host: str) -> None:
    fill(nginx, host, "/a")
    assert do(files_of(nginx), ("url", f"https://{host.upper()}:8080/a")) == [None]
    assert not is_hit(nginx, host, "/a")


def test_what_is_read_after_a_refresh_is_new(nginx: Nginx, origin: Origin, host: str) -> None:
    for task_type, target in (("url", "/d/a"), ("dir", "/d/"), ("drop", "")):
        fill(nginx, host, "/d/a")
        version = origin.bump()
        assert do(files_of(nginx), (task_type, target and f"http://{host}{target}")) == [None]
        assert get(nginx.address, host, "/d/a").body.startswith(b"v=%d " % version)


TEMPLATES = [
    ("$host$uri$is_args$args", "/x//y/../%61b?q=%41&", "/x/ab?q=%41&"),
    ("${scheme}|$http_host|$request_uri", "/x//y/?a", "/x//y/?a"),
    ("$args@$host@$uri", "/x/y?b=/", "/x/y?b=/"),
]


@pytest.mark.parametrize(("key", "visited", "refreshed"), TEMPLATES)
def test_templates(origin: Origin, key: str, visited: str, refreshed: str) -> None:
    with Nginx(origin.address, key=key) as nginx:
        files = files_of(nginx, key=key)
        for task_type, target in (("url", refreshed), ("dir", "/x/")):
            fill(nginx, "h.example", visited, "/z/y?b=/")
            assert do(files, (task_type, f"http://h.example{target}")) == [None]
            assert is_hit(nginx, "h.example", "/z/y?b=/")
            assert not is_hit(nginx, "h.example", visited)


def test_the_key_that_nginx_takes_by_itself(origin: Origin) -> None:
    with Nginx(origin.address) as nginx:
        files = msgspec.structs.replace(
            files_of(nginx, key="$scheme$proxy_host$request_uri"), proxy_host=origin.address
        )
        fill(nginx, "h.example", "/d/a?b", "/c")
        for task_type, target in (("url", "/d/a?b"), ("dir", "/d/")):
            assert do(files, (task_type, f"http://any.example{target}")) == [None]
            assert not is_hit(nginx, "h.example", "/d/a?b")
        assert is_hit(nginx, "h.example", "/c")


@pytest.mark.parametrize(("text", "levels"), [("1", (1,)), ("2:2:1", (2, 2, 1)), ("2:1", (2, 1))])
def test_levels(origin: Origin, text: str, levels: tuple[int, ...]) -> None:
    with Nginx(origin.address, key=HOST_KEY, levels=text) as nginx:
        for task_type, target in (("url", "/d/a"), ("dir", "/d/")):
            fill(nginx, "h.example", "/d/a", "/c")
            assert do(files_of(nginx, levels=levels), (task_type, f"http://h.example{target}")) == [None]
            assert is_hit(nginx, "h.example", "/c")
            assert not is_hit(nginx, "h.example", "/d/a")
        for wrong in ((), (1, 2), (1, 1), (2, 2), (2,)):
            if wrong != levels:
                for task_type, target in (("url", "/d/a"), ("dir", "/d/")):
                    [error] = do(files_of(nginx, levels=wrong), (task_type, f"http://h.example{target}"))
                    assert "does not fit levels" in str(error)


def test_uri_is_what_nginx_makes_of_it(origin: Origin) -> None:
    """Random paths, from pieces that mean something, shown to a real one."""
    pieces = (
        "/", "//", ".", "..", "a", "b", "%2e", "%2E", "%2f", "%25", "%3f", "%23", "%00", "%zz", "%4", "+",
        "%2b", "\\", ";", "~", "%41", "%0a", "%c3%a9", "...",
    )  # fmt: skip
    choose = random.Random(5)
    paths = ["/" + "".join(choose.choices(pieces, k=choose.randint(0, 9))) for _ in range(500)]
    with Nginx(origin.address, server_more='location ~ ^ { return 200 "$uri"; }') as nginx:
        answers = [get(nginx.address, "h.example", path) for path in paths]
    assert {answer.status for answer in answers} == {200, 400}
    for path, answer in zip(paths, answers, strict=True):
        assert normalise(path.encode()) == (answer.body if answer.status == 200 else None), path


# ── variants, slices, open files ──────────────────────────────────────────────────────────

ENCODINGS = tuple(f"Accept-Encoding: {name}\r\n" for name in ("gzip", "br", "zstd"))


def test_all_variants_go(nginx: Nginx, origin: Origin, host: str) -> None:
    path = f"/{host}/v"
    origin.headers[path.encode()] = b"Vary: Accept-Encoding\r\n"
    for task_type, target in (("url", path), ("dir", f"/{host}/"), ("url", path)):
        for encoding in ENCODINGS:
            is_hit(nginx, host, path, encoding)
        assert all(is_hit(nginx, host, path, encoding) for encoding in ENCODINGS)
        assert do(files_of(nginx, variants=True), (task_type, f"http://{host}{target}")) == [None]
        assert not any(is_hit(nginx, host, path, encoding) for encoding in ENCODINGS)


def test_variants_whose_first_file_is_gone_go(nginx: Nginx, origin: Origin, host: str) -> None:
    """As after an agent that was killed between the two, or where nginx threw the first one out."""
    path = f"/{host}/v"
    origin.headers[path.encode()] = b"Vary: Accept-Encoding\r\n"
    for encoding in ENCODINGS:
        is_hit(nginx, host, path, encoding)
    assert do(files_of(nginx, variants=False), ("url", f"http://{host}{path}")) == [None]
    assert not is_hit(nginx, host, path, ENCODINGS[0])
    # This is what `variants` is for.
    assert is_hit(nginx, host, path, ENCODINGS[1])
    assert do(files_of(nginx, variants=False), ("url", f"http://{host}{path}")) == [None]
    assert do(files_of(nginx, variants=True), ("url", f"http://{host}{path}")) == [None]
    assert not any(is_hit(nginx, host, path, encoding) for encoding in ENCODINGS)


SLICES = "slice 1k; proxy_set_header Range $slice_range; proxy_cache_valid 200 206 1h;"


@pytest.mark.parametrize("deed", ["url", "dir", "refetch"])
def test_all_slices_go(origin: Origin, deed: str) -> None:
    key = f"{HOST_KEY}$slice_range"
    for path in (b"/s/big", b"/s/bigger", b"/t"):
        origin.sizes[path] = 5000
    with Nginx(origin.address, key=key, more=SLICES) as nginx:
        fill(nginx, "h.example", "/s/big", "/s/bigger", "/t")
        assert len(nginx.files()) == 15
        # The first slice is not always there.
        get_slice = "Range: bytes=2048-2050\r\n"
        version = origin.bump()
        if deed == "refetch":
            [error] = request(nginx, NGINX_REFETCH.deeds["url"], "http://h.example/s/big")
        else:
            target = "http://h.example/s/" + ("big" if deed == "url" else "")
            [error] = do(files_of(nginx, key=key), (deed, target))
        assert error is None
        assert is_hit(nginx, "h.example", "/t", get_slice)
        assert is_hit(nginx, "h.example", "/s/bigger", get_slice) is (deed != "dir")
        assert is_hit(nginx, "h.example", "/s/big", get_slice) is (deed == "refetch")
        assert get(nginx.address, "h.example", "/s/big").body.startswith(b"v=%d " % version)


def test_an_nginx_that_keeps_files_open_serves_no_old_one(origin: Origin) -> None:
    keep = "open_file_cache max=100 inactive=60s; open_file_cache_valid 60s;"
    with Nginx(origin.address, key=HOST_KEY, more=keep) as nginx:
        for task_type, target in (("url", "/d/a"), ("dir", "/d/")):
            fill(nginx, "h.example", "/d/a", "/b")
            assert do(files_of(nginx), (task_type, f"http://h.example{target}")) == [None]
            assert is_hit(nginx, "h.example", "/b")
            assert not is_hit(nginx, "h.example", "/d/a")


# ── directories ───────────────────────────────────────────────────────────────────────────


def test_a_directory_takes_what_lies_below_and_spares_the_rest(nginx: Nginx, host: str) -> None:
    below = ["/dir/", "/dir/a", "/dir/b/c?x=1", "/dir/?q", "/dir//", "/dir/x/../up"]
    beside = ["/dir", "/dirt/a", "/di/r", "/other/dir/a", "/x?u=/dir/", "/DIR/a", "/dir%2Fa"]
    fill(nginx, host, *below, *beside)
    fill(nginx, f"www.{host}", "/dir/a")
    assert do(files_of(nginx), ("dir", f"http://{host}/dir/")) == [None]
    assert [path for path in beside if not is_hit(nginx, host, path)] == []
    assert is_hit(nginx, f"www.{host}", "/dir/a")
    assert [path for path in below if is_hit(nginx, host, path)] == []


def clone(nginx: Nginx, before: str, after: str) -> None:
    """Makes another object of one that nginx (levels=2) has stored, under a key as long; quick."""
    old, new = (f"httph.example{path}".encode() for path in (before, after))
    names = [hashlib.md5(key).hexdigest() for key in (old, new)]
    there, made = (nginx.cache / name[-2:] / name for name in names)
    made.parent.mkdir(exist_ok=True)
    made.write_bytes(there.read_bytes().replace(b"KEY: %b\n" % old, b"KEY: %b\n" % new, 1))


class Counted(NginxFolder):
    """Counts what each sweep is for."""

    def __init__(self, files: NginxFiles) -> None:
        super().__init__(files)
        self.sweeps: list[int] = []

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        self.sweeps.append(len(works))
        return super().sweep(works, pulse)


def test_500_of_5000_go_and_one_sweep_does_many(origin: Origin) -> None:
    # (One level: thousands of folders would take longer to make than all else here.)
    with Nginx(origin.address, key=HOST_KEY, levels="2") as nginx:
        names = ["gone", *(f"not{number}" for number in range(9))]
        fetched = [f"/{name}/{number:03}" for name in names for number in range(30)]
        fill(nginx, "h.example", *fetched)
        for name in names:
            for number in range(30, 500):
                clone(nginx, f"/{name}/000", f"/{name}/{number:03}")
        before = {file.name for file in nginx.files()}
        assert len(before) == 5000
        folder = Counted(files_of(nginx, levels=(2,)))
        others = [("dir", f"http://h.example/other{number}/") for number in range(300)]
        assert do_with(folder, ("dir", "http://h.example/gone/"), *others) == [None] * 301
        assert sum(folder.sweeps) == 301
        # The first of them may have begun before the others were put in.
        assert len(folder.sweeps) <= 2
        gone = {hashlib.md5(f"httph.example/gone/{number:03}".encode()).hexdigest() for number in range(500)}
        assert before - {file.name for file in nginx.files()} == gone
        for path in fetched:
            assert is_hit(nginx, "h.example", path) is not path.startswith("/gone/")


def test_a_drop_takes_all(nginx: Nginx, host: str) -> None:
    fill(nginx, host, "/a", "/d/b?x=1")
    fill(nginx, f"b.{host}", "/a")
    assert do(files_of(nginx), ("drop", "")) == [None]
    assert nginx.files() == []
    assert not is_hit(nginx, f"b.{host}", "/a")
    assert is_hit(nginx, f"b.{host}", "/a")


# ── what can be wrong with the folder ─────────────────────────────────────────────────────


@pytest.fixture
def store(origin: Origin) -> Iterator[Nginx]:
    """An nginx whose folder is the test's own, with two objects in it."""
    with Nginx(origin.address, key=HOST_KEY) as nginx:
        fill(nginx, "h.example", "/d/a", "/b")
        yield nginx


WORKS = (("url", "http://h.example/d/a"), ("dir", "http://h.example/d/"), ("drop", ""))


@contextlib.contextmanager
def as_a_stranger(folder: Path) -> Iterator[None]:
    """For a while we are somebody who may not look into the folder."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(mode)


def test_a_folder_of_another_user_is_told_so(store: Nginx) -> None:
    assert stat.S_IMODE(store.cache.stat().st_mode) == 0o700
    with as_a_stranger(store.cache):
        errors = do(files_of(store), *WORKS)
    for error in errors:
        assert re.search(
            "Permission denied .run the agent as the user that nginx's workers run as", str(error)
        )
    assert is_hit(store, "h.example", "/d/a")


def test_a_folder_below_that_may_not_be_read_fails_what_may_be_in_it(store: Nginx) -> None:
    name = hashlib.md5(b"httph.example/d/a").hexdigest()
    below = store.cache / name[-1]
    folder = NginxFolder(files_of(store))
    # Else the look at the levels would meet it first.
    assert do_with(folder, ("url", "http://h.example/never")) == [None]
    store.cache.chmod(0o755)
    store.folder.chmod(0o755)
    with as_a_stranger(below):
        errors = do_with(folder, *WORKS)
    assert [bool(error and "Permission denied" in error) for error in errors] == [True] * 3


def test_a_folder_that_is_not_there_is_told_so(store: Nginx, tmp_path: Path) -> None:
    files = msgspec.structs.replace(files_of(store), path=str(tmp_path / "none"))
    for error in do(files, *WORKS):
        assert "No such file or directory (is path what proxy_cache_path says" in str(error)


def test_nothing_is_followed_out_of_the_folder(store: Nginx, tmp_path: Path) -> None:
    name = hashlib.md5(b"httph.example/d/a").hexdigest()
    there = store.cache / name[-1] / name[-3:-1] / name
    victim = tmp_path / "victim"
    there.rename(victim)
    before = victim.read_bytes()
    there.symlink_to(victim)
    errors = do(files_of(store), *WORKS)
    # It is an error: nginx itself would follow it.
    assert all(errors)
    assert victim.read_bytes() == before
    there.unlink()
    there.parent.rename(tmp_path / "folder")
    there.parent.symlink_to(tmp_path / "folder")
    victim.rename(tmp_path / "folder" / name)
    assert all(do(files_of(store), *WORKS))
    assert (tmp_path / "folder" / name).read_bytes() == before


def test_only_files_of_nginx_are_touched(store: Nginx) -> None:
    """Not what is being written, nor what somebody put there."""
    name = hashlib.md5(b"httph.example/d/a").hexdigest()
    folder = store.cache / name[-1] / name[-3:-1]
    content = (folder / name).read_bytes()
    others = [
        folder / f"{name}.0000000017",
        folder / "README",
        store.cache / "lost+found",
        store.cache / f"{name}x",
    ]
    for other in others:
        other.write_bytes(content)
    assert do(files_of(store), *WORKS) == [None] * 3
    assert [other.read_bytes() for other in others] == [content] * 4
    assert not (folder / name).exists()


@pytest.mark.parametrize("head", [b"\x06", b"\x03\0\0\0\0\0\0\0rest"], ids=["version", "versions"])
def test_a_head_of_another_version_is_told_so(store: Nginx, head: bytes) -> None:
    """It may be what is sought; by its name a URL is found all the same."""
    name = hashlib.md5(b"httph.example/b").hexdigest()
    with (store.cache / name[-1] / name[-3:-1] / name).open("r+b") as file:
        file.write(head)
    [error] = do(files_of(store), ("dir", "http://h.example/d/"))
    assert re.search(rf"{name}: its head \(version {head[0]}\) is not of the form", str(error))
    assert not is_hit(store, "h.example", "/d/a")
    assert do(files_of(store), ("url", "http://h.example/b"), ("dir", "http://h.example/d/"))[0] is None


def test_a_file_that_was_cut_off_is_passed_over(store: Nginx) -> None:
    name = hashlib.md5(b"httph.example/b").hexdigest()
    path = store.cache / name[-1] / name[-3:-1] / name
    path.write_bytes(path.read_bytes()[:100])
    assert do(files_of(store), ("dir", "http://h.example/")) == [None]
    assert not is_hit(store, "h.example", "/d/a")
    assert not is_hit(store, "h.example", "/b")


def test_an_agent_that_dies_between_the_two_leaves_nothing_old(
    store: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", die)
        assert do(files_of(store), ("dir", "http://h.example/d/")) != [None]
    assert len(store.files()) == 2
    assert not is_hit(store, "h.example", "/d/a")
    assert is_hit(store, "h.example", "/b")


def test_a_sweep_rests_as_long_as_it_works(store: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it stops when it is told to."""
    rests: list[float] = []
    pulse = Pulse()
    monkeypatch.setattr(pulse.stop, "wait", rests.append)
    monkeypatch.setattr(nginx_files, "REST_EVERY_S", 0.0)
    folder = NginxFolder(files_of(store))
    assert folder.sweep([Work(b"UNLINK-BELOW", b"h.example", b"/d/")], pulse) == [None]
    assert len(rests) >= 2
    assert pulse.beats >= 2
    pulse.stop.set()
    assert folder.sweep([Work(b"UNLINK-ALL", b"", b"")], pulse) == ["told to stop"]


# ── without its folder ────────────────────────────────────────────────────────────────────


def test_a_refetch_puts_the_new_one_in_the_place_of_the_old(nginx: Nginx, origin: Origin, host: str) -> None:
    origin.sizes[b"/big"] = 3_000_000
    fill(nginx, host, "/a", "/big", "/b")
    version = origin.bump()
    assert request(nginx, REFETCH, f"http://{host}/a", f"https://{host}/big") == [None, None]
    for path in ("/a", "/big"):
        answer = get(nginx.address, host, path)
        assert answer.headers["x-cache"] == "HIT"
        assert answer.body.startswith(b"v=%d " % version)
    assert get(nginx.address, host, "/b").body.startswith(b"v=%d " % (version - 1))
    # And what was not there is there now.
    assert request(nginx, REFETCH, f"http://{host}/new") == [None]
    assert is_hit(nginx, host, "/new")


def test_after_a_refetch_no_worker_serves_the_old_one(origin: Origin) -> None:
    """Not even in the moment in which it is told: the object is sent before it is in its place."""
    rounds = 100
    told: list[str | None] = []
    versions: list[tuple[bytes, bytes]] = []

    async def test(nginx: Nginx, visitors: list[socket.socket]) -> None:
        def ended(_: Exchange, error: str | None) -> None:
            told.append(error)
            for visitor in visitors:
                visitor.sendall(b"GET /a HTTP/1.1\r\nHost: h.example\r\n\r\n")
                answer = b""
                while b"h.example /a\n" not in answer:
                    answer += visitor.recv(4096)
                versions.append((answer.rpartition(b"v=")[2].partition(b" ")[0], b"%d" % origin.version))

        client = CacheClient("c", *split_address(nginx.address), REFETCHING, ended)
        for number in range(rounds):
            origin.bump()
            client.put(make_exchange(b"http://h.example/a", REFETCH), 5)
            while len(told) == number:
                await asyncio.sleep(0)
        client.close()

    with contextlib.ExitStack() as stack:
        nginx = stack.enter_context(Nginx(origin.address, key=HOST_KEY, workers=2))
        address = split_address(nginx.address)
        # Enough of them for both workers to have some.
        visitors = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(3)]
        run(test(nginx, visitors))
    assert told == [None] * rounds
    assert [pair for pair in versions if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    "headers",
    ["", *(f"Refreshd-Refetch: 1\r\n{name}: x\r\n" for name in ("X-Forwarded-For", "Forwarded", "Via"))],
)
def test_visitors_may_not_have_it_refetched(nginx: Nginx, host: str, headers: str) -> None:
    fill(nginx, host, "/a")
    assert is_hit(nginx, host, "/a", headers)


@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:24])
def test_each_odd_url_is_refetched(nginx: Nginx, origin: Origin, host: str, path: str) -> None:
    valid = normalise(path.partition("?")[0].encode()) is not None
    [error] = request(nginx, REFETCH, f"http://{host}{path}")
    assert (error is None) is valid
    if valid:
        assert is_hit(nginx, host, path)
        assert origin.asked[host.encode(), path.encode()] == 1


def test_where_the_origin_has_it_no_more_the_refetch_fails(nginx: Nginx, origin: Origin, host: str) -> None:
    path = f"/{host}/gone"
    fill(nginx, host, path)
    origin.statuses[path.encode()] = 404
    [error] = request(nginx, REFETCH, f"http://{host}{path}")
    assert str(error).startswith("cache c: GET was answered 404 (the origin has it no more")


def test_what_may_not_be_stored_any_more_stays(nginx: Nginx, origin: Origin, host: str) -> None:
    """The limit of this way, which docs/agent.md tells: nginx forgets nothing because of an answer."""
    path = f"/{host}/a"
    fill(nginx, host, path)
    version = origin.bump()
    origin.headers[path.encode()] = b"Set-Cookie: a=b\r\n"
    assert request(nginx, REFETCH, f"http://{host}{path}") == [None]
    answer = get(nginx.address, host, path)
    assert answer.headers["x-cache"] == "HIT"
    assert answer.body.startswith(b"v=%d " % (version - 1))
    # With the folder it goes.
    assert do(files_of(nginx), ("url", f"http://{host}{path}")) == [None]
    assert get(nginx.address, host, path).body.startswith(b"v=%d " % version)


def test_a_refetch_is_of_one_variant(nginx: Nginx, origin: Origin, host: str) -> None:
    """The other limit of this way."""
    path = f"/{host}/v"
    origin.headers[path.encode()] = b"Vary: Accept-Encoding\r\n"
    for encoding in ENCODINGS:
        is_hit(nginx, host, path, encoding)
    version = origin.bump()
    assert request(nginx, REFETCH, f"http://{host}{path}") == [None]
    bodies = [ask(nginx.address, "GET", host, path, encoding).body for encoding in ENCODINGS]
    assert [body.startswith(b"v=%d " % version) for body in bodies] == [True, False, False]


# ── what there is ─────────────────────────────────────────────────────────────────────────


def test_which_way_can_what() -> None:
    assert nginx_kind("/c", purge=False) is NGINX_FILES
    assert nginx_kind("", purge=False) is NGINX_REFETCH
    assert nginx_kind("", purge=True) is NGINX_PURGE
    assert set(NGINX_FILES.deeds) == {"url", "dir", "prefetch"}
    for kind in (NGINX_FILES, NGINX_REFETCH, NGINX_PURGE):
        assert set(kind.deeds) | set(kind.refused) == set(TASK_TYPES)
        assert not set(kind.deeds) & set(kind.refused)
        assert (kind.drop is None) is bool(kind.no_drop)
    for kind in (NGINX_REFETCH, NGINX_PURGE):
        assert "path" in kind.refused["dir"]


@pytest.mark.parametrize(
    ("status", "done"), [(200, True), (404, True), (412, True), (405, False), (403, False)]
)
def test_what_a_purge_module_answers(status: int, done: bool) -> None:
    deed = NGINX_PURGE.deeds["url"]
    assert deed.render(b"h", b"/a") == b"PURGE /a HTTP/1.1\r\nHost: h\r\n\r\n"
    assert (deed.judge(status) is None) is done
