"""What Squid is asked, against a real one with the settings that are shipped."""

import msgspec
import pytest

from proxyd.caches import KINDS, Deed
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.http import ask, get
from tests.proxyd.rig import SHORT, perform, run, split_address
from tools.servers import Origin, Squid

pytestmark = pytest.mark.needs("squid")
DEEDS = KINDS["squid"].deeds
STREAMING = msgspec.structs.replace(SHORT, depth=1, streaming=True, answer_max_bytes=None)


def do(squid: Squid, deed: Deed, *targets: str) -> list[str | None]:
    """Does a deed for each target; what was told of each, in order."""
    raw = [target.encode() for target in targets]
    limits = STREAMING if deed.method == b"GET" else SHORT
    told = run(perform(split_address(squid.address), deed, raw, limits))
    return [errors[0] for errors in told.values()]


def is_hit(squid: Squid, host: str, path: str, headers: str = "") -> bool:
    """Whether a visitor is served from the cache; it is there afterwards in any case."""
    answer = ask(squid.address, "GET", host, path, headers)
    assert answer.status == 200
    return squid.was_hit(answer.headers["x-cache"])


def fill(squid: Squid, host: str, *paths: str) -> None:
    """Puts objects into the cache."""
    for path in paths:
        get(squid.address, host, path)
        assert is_hit(squid, host, path)


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_purge_reaches_each_odd_url_and_only_it(squid: Squid, host: str, path: str) -> None:
    others = [other for other in ODD_PATHS[:8] if other != path]
    fill(squid, host, path, *others)
    assert do(squid, DEEDS["url"], f"http://{host}{path}") == [None]
    for other in others:
        assert is_hit(squid, host, other)
    assert not is_hit(squid, host, path)


def test_what_the_origin_is_asked_is_byte_exact(squid: Squid, origin: Origin, host: str) -> None:
    paths = [*ODD_PATHS, LONGEST]
    assert do(squid, DEEDS["prefetch"], *(f"http://{host}{path}" for path in paths)) == [None] * len(paths)
    asked = {path.decode() for name, path in origin.asked if name.decode() == host}
    assert asked == set(paths)


def test_many_purges_on_one_connection(squid: Squid, host: str) -> None:
    """Squid works pipelined requests off one by one; none may be lost, however long."""
    paths = [f"/{number}/{'x' * 4000}" for number in range(100)]
    fill(squid, host, *paths[::10])
    limits = msgspec.structs.replace(SHORT, connections=1, depth=64)
    targets = [f"http://{host}{path}".encode() for path in paths]
    told = run(perform(split_address(squid.address), DEEDS["url"], targets, limits))
    assert list(told.values()) == [[None]] * len(paths)
    assert not any(is_hit(squid, host, path) for path in paths[::10])


def test_purge_of_what_is_not_there_is_done(squid: Squid, host: str) -> None:
    assert do(squid, DEEDS["url"], f"http://{host}/never") == [None]


def test_schemes_and_the_case_of_hosts_are_one(squid: Squid, host: str) -> None:
    fill(squid, host, "/a")
    assert do(squid, DEEDS["url"], f"https://{host.upper()}/a") == [None]
    assert not is_hit(squid, host, "/a")


def test_the_port_is_part_of_the_key(squid: Squid, host: str) -> None:
    fill(squid, f"{host}:8080", "/a")
    fill(squid, host, "/a")
    assert do(squid, DEEDS["url"], f"http://{host}:8080/a") == [None]
    assert is_hit(squid, host, "/a")
    assert not is_hit(squid, f"{host}:8080", "/a")


def test_a_url_that_is_too_long_is_told(squid: Squid, host: str) -> None:
    start = f"http://{host}/"
    longest = start.ljust(8191, "z")
    fill(squid, host, longest.removeprefix(f"http://{host}"))
    [good] = do(squid, DEEDS["url"], longest)
    [bad] = do(squid, DEEDS["url"], longest + "z")
    assert good is None
    assert bad is not None
    assert bad.startswith("cache c: PURGE was answered 400 (Squid takes URLs below 8192 bytes")


def test_prefetch_makes_the_next_visit_a_hit(squid: Squid, origin: Origin, host: str) -> None:
    origin.sizes[b"/warm/big"] = 3_000_000
    targets = [f"http://{host}/warm/{name}" for name in ("a", "b", "big")]
    assert do(squid, DEEDS["prefetch"], *targets) == [None, None, None]
    assert [is_hit(squid, host, f"/warm/{name}") for name in ("a", "b", "big")] == [True] * 3


def test_prefetch_of_what_the_origin_has_not(squid: Squid, origin: Origin, host: str) -> None:
    origin.statuses[b"/gone"] = 404
    assert do(squid, DEEDS["prefetch"], f"http://{host}/gone") == ["cache c: GET was answered 404"]


GZIP, BROTLI = "Accept-Encoding: gzip\r\n", "Accept-Encoding: br\r\n"


def test_what_varies_is_not_stored(squid: Squid, origin: Origin, host: str) -> None:
    """Or a purge would leave all variants but one, see below."""
    origin.varies[b"/varies"] = b"accept-encoding"
    assert [is_hit(squid, host, "/varies", kind) for kind in (GZIP, BROTLI, GZIP, BROTLI)] == [False] * 4


def test_a_purge_takes_one_variant_only(origin: Origin) -> None:
    """What docs/agent.md warns of: should a later Squid take all, the two lines can go."""
    host = "variants.example"
    origin.varies[b"/v"] = b"accept-encoding"
    with Squid(origin.address, access="acl purge method PURGE") as bare:
        for kind in (GZIP, BROTLI, "", GZIP, BROTLI, ""):
            hit = is_hit(bare, host, "/v", kind)
        assert hit
        assert do(bare, DEEDS["url"], f"http://{host}/v") == [None]
        assert [is_hit(bare, host, "/v", kind) for kind in (GZIP, BROTLI, "")] == [True, True, False]


@pytest.mark.parametrize("access", ["", "acl purge method PURGE\nhttp_access deny purge"])
def test_a_squid_that_does_not_allow_it_is_told(origin: Origin, access: str) -> None:
    with Squid(origin.address, access=access) as squid:
        get(squid.address, "h.example", "/a")
        [error] = do(squid, DEEDS["url"], "http://h.example/a")
        assert error is not None
        assert error.startswith("cache c: PURGE was answered 403 (include refreshd.conf in squid.conf")
        assert is_hit(squid, "h.example", "/a")


def test_what_a_proxy_passed_on_may_not_purge(squid: Squid, host: str) -> None:
    fill(squid, host, "/a")
    assert ask(squid.address, "PURGE", host, "/a", "X-Forwarded-For: 203.0.113.9\r\n").status == 403
    assert is_hit(squid, host, "/a")


def test_it_reaches_one_squid_only(origin: Origin, squid: Squid, host: str) -> None:
    """A second one, beside the first, keeps what it has: each needs a [[cache]] of its own."""
    peer = f"cache_peer 127.0.0.1 sibling {squid.port} 0 no-query no-digest"
    with Squid(origin.address, more=peer) as other:
        fill(squid, host, "/a")
        fill(other, host, "/a")
        assert do(squid, DEEDS["url"], f"http://{host}/a") == [None]
        assert is_hit(other, host, "/a")


def test_what_it_cannot_do_is_refused() -> None:
    kind = KINDS["squid"]
    assert set(kind.refused) == {"dir", "regex", "tag"}
    assert kind.drop is None
