"""What Traffic Server is asked, against a real one with the settings that are shipped."""

import msgspec
import pytest

from proxyd.caches import KINDS, Deed
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.http import get
from tests.proxyd.rig import SHORT, perform, run, split_address
from tools.servers import Origin, TrafficServer

pytestmark = pytest.mark.needs("traffic_server")
DEEDS = KINDS["ats"].deeds
STREAMING = msgspec.structs.replace(SHORT, depth=1, streaming=True, answer_max_bytes=None)

# Traffic Server itself takes these for others, from whoever asks: it drops a "?" that nothing follows,
# and one of two slashes at the start. A purge goes the same way as a visit, so it meets what it means.
SAME_TO_ATS = {"/q?", "//double//slash"}


def do(ats: TrafficServer, deed: Deed, *targets: str) -> list[str | None]:
    """Does a deed for each target; what was told of each, in order."""
    raw = [target.encode() for target in targets]
    limits = STREAMING if deed.method == b"GET" else SHORT
    told = run(perform(split_address(ats.address), deed, raw, limits))
    return [errors[0] for errors in told.values()]


def is_hit(ats: TrafficServer, host: str, path: str) -> bool:
    """Whether a visitor is served from the cache; it is there afterwards in any case."""
    answer = get(ats.address, host, path)
    assert answer.status == 200
    return ats.was_hit(answer.headers["via"])


def fill(ats: TrafficServer, host: str, *paths: str) -> None:
    """Puts objects into the cache."""
    for path in paths:
        get(ats.address, host, path)
        assert is_hit(ats, host, path)


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_purge_reaches_each_odd_url_and_only_it(ats: TrafficServer, host: str, path: str) -> None:
    others = [other for other in ODD_PATHS[:8] if other != path]
    fill(ats, host, path, *others)
    assert do(ats, DEEDS["url"], f"http://{host}{path}") == [None]
    for other in others:
        assert is_hit(ats, host, other)
    assert not is_hit(ats, host, path)


def test_what_the_origin_is_asked_is_byte_exact(ats: TrafficServer, origin: Origin, host: str) -> None:
    paths = [path for path in ODD_PATHS if path not in SAME_TO_ATS]
    assert do(ats, DEEDS["prefetch"], *(f"http://{host}{path}" for path in paths)) == [None] * len(paths)
    asked = {path.decode() for name, path in origin.asked if name.decode() == host}
    assert asked == set(paths)


def test_purge_of_what_is_not_there_is_done(ats: TrafficServer, host: str) -> None:
    assert do(ats, DEEDS["url"], f"http://{host}/never") == [None]


def test_schemes_and_the_case_of_hosts_are_one(ats: TrafficServer, host: str) -> None:
    fill(ats, host, "/a")
    assert do(ats, DEEDS["url"], f"https://{host.upper()}/a") == [None]
    assert not is_hit(ats, host, "/a")


def test_a_site_is_a_key_of_its_own(ats: TrafficServer, host: str) -> None:
    fill(ats, host, "/a")
    fill(ats, f"www.{host}", "/a")
    assert do(ats, DEEDS["url"], f"http://{host}/a") == [None]
    assert is_hit(ats, f"www.{host}", "/a")


def test_prefetch_makes_the_next_visit_a_hit(ats: TrafficServer, origin: Origin, host: str) -> None:
    origin.sizes[b"/warm/big"] = 3_000_000
    targets = [f"http://{host}/warm/{name}" for name in ("a", "b", "big")]
    assert do(ats, DEEDS["prefetch"], *targets) == [None, None, None]
    assert [is_hit(ats, host, f"/warm/{name}") for name in ("a", "b", "big")] == [True] * 3


def test_what_is_not_built_is_refused() -> None:
    assert set(KINDS["ats"].refused) == {"dir", "regex", "tag"}
    assert "dir" not in DEEDS
