"""Prefetch through real caches: what is there afterwards, what the origin was asked."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest

from proxyd.evidence import Evidence
from proxyd.prefetch.limits import PrefetchLimits
from tests.proxyd.http import get
from tests.proxyd.prefetch.rig import PATIENT, fetch, limits
from tests.proxyd.rig import run, split_address
from tools.servers import Nginx, Origin, Squid, TrafficServer, Varnish

BIG = b"/big"
BIG_BYTES = 3_000_000


def warm(
    address: str, kind: str, host: str, path: str, how: PrefetchLimits = PATIENT
) -> tuple[str | None, Evidence]:
    """Prefetches one URL; returns what was told and seen."""

    async def test() -> tuple[str | None, Evidence]:
        target = f"http://{host}{path}".encode()
        told = await fetch(split_address(address), target, how=how, kind=kind)
        return told.errors[target][0], told.evidence[target]

    return run(test())


def check_hit_is_skipped(address: str, kind: str, origin: Origin, host: str, most_bytes: int) -> None:
    """The second prefetch says that it was there, and brings no more of it than `most_bytes`."""
    origin.sizes[BIG] = BIG_BYTES
    error, evidence = warm(address, kind, host, "/big")
    assert (error, evidence.hit, evidence.size_bytes, evidence.status) == (None, False, BIG_BYTES, 200)
    error, evidence = warm(address, kind, host, "/big")
    assert (error, evidence.hit, evidence.status) == (None, True, 200)
    assert evidence.size_bytes is not None
    assert evidence.size_bytes <= most_bytes
    assert origin.asked[host.encode(), BIG] == 1
    # Whoever does not pass it over gets all of it.
    error, evidence = warm(address, kind, host, "/big", limits(skip_hits=False))
    assert (error, evidence.size_bytes) == (None, BIG_BYTES)


@pytest.mark.needs("varnishd")
def test_a_hit_at_varnish_is_passed_over(varnish: Varnish, origin: Origin, host: str) -> None:
    check_hit_is_skipped(varnish.address, "varnish", origin, host, BIG_BYTES // 2)


@pytest.mark.needs("nginx")
def test_a_hit_at_nginx_is_passed_over(nginx: Nginx, origin: Origin, host: str) -> None:
    check_hit_is_skipped(nginx.address, "nginx", origin, host, BIG_BYTES // 2)


@pytest.mark.needs("squid")
def test_a_hit_at_squid_is_passed_over(squid: Squid, origin: Origin, host: str) -> None:
    check_hit_is_skipped(squid.address, "squid", origin, host, BIG_BYTES // 2)


@pytest.mark.needs("traffic_server")
def test_traffic_server_is_asked_first(ats: TrafficServer, origin: Origin, host: str) -> None:
    """It answers `only-if-cached` without filling: the second time nothing of the object comes."""
    check_hit_is_skipped(ats.address, "ats", origin, host, 0)


VARIANTS = tuple(((b"User-Agent", name),) for name in (b"desk", b"phone", b"desk"))


@pytest.mark.needs("varnishd")
def test_variants_are_there_afterwards(varnish: Varnish, origin: Origin, host: str) -> None:
    origin.varies[b"/varied"] = b"user-agent"
    error, evidence = warm(varnish.address, "varnish", host, "/varied", limits(variants=VARIANTS))
    assert (error, evidence.more) == (None, {"requests": 2, "variants": 2, "variants_wanted": 3})
    assert origin.asked[host.encode(), b"/varied"] == 2
    error, evidence = warm(varnish.address, "varnish", host, "/varied", limits(variants=VARIANTS))
    assert evidence.hit
    # What does not vary is fetched once, and asked for once.
    error, evidence = warm(varnish.address, "varnish", host, "/plain", limits(variants=VARIANTS))
    assert (error, evidence.more) == (None, {})
    assert origin.asked[host.encode(), b"/plain"] == 1


MEDIA = b'#EXTM3U\n#EXT-X-MAP:URI="init.mp4"\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n'


@pytest.mark.needs("nginx")
def test_an_hls_tree_is_there_afterwards(nginx: Nginx, origin: Origin, host: str) -> None:
    """Three deep, and the media playlists are compressed."""
    origin.bodies[b"/top.m3u8"] = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nmaster.m3u8\n"
    origin.bodies[b"/master.m3u8"] = b"#EXTM3U\n" + b"".join(
        b"#EXT-X-STREAM-INF:BANDWIDTH=%d\n%b/media.m3u8\n" % (number, name)
        for number, name in enumerate((b"low", b"high"))
    )
    for name in (b"low", b"high"):
        origin.bodies[b"/%b/media.m3u8" % name] = gzip.compress(MEDIA)
        origin.headers[b"/%b/media.m3u8" % name] = b"Content-Encoding: gzip\r\n"
    error, evidence = warm(nginx.address, "nginx", host, "/top.m3u8")
    assert (error, evidence.more, evidence.hit) == (None, {"requests": 1, "children": 9}, False)
    for path in ("/master.m3u8", "/low/media.m3u8", "/low/init.mp4", "/high/2.ts"):
        assert get(nginx.address, host, path).headers["x-cache"] == "HIT"
    error, evidence = warm(nginx.address, "nginx", host, "/top.m3u8")
    assert evidence.hit
    origin.statuses[b"/high/3.ts"] = 404
    origin.bodies[b"/other.m3u8"] = MEDIA + b"high/3.ts\n"
    error, evidence = warm(nginx.address, "nginx", host, "/other.m3u8")
    assert error == (
        f"cache c: 1 of 4 that its playlist names failed, first http://{host}/high/3.ts: GET was answered 404"
    )
    assert evidence.more["children_failed"] == 1


@pytest.mark.needs("varnishd")
def test_a_dash_presentation_is_there_afterwards(varnish: Varnish, origin: Origin, host: str) -> None:
    origin.types[b"/d/m"] = b"application/dash+xml"
    origin.bodies[b"/d/m"] = (
        b'<MPD mediaPresentationDuration="PT6S"><Period><AdaptationSet>'
        b'<SegmentTemplate initialization="i-$RepresentationID$" media="$RepresentationID$-$Number$" '
        b'duration="2"/>'
        b'<Representation id="a"/><Representation id="b"/></AdaptationSet></Period></MPD>'
    )
    error, evidence = warm(varnish.address, "varnish", host, "/d/m")
    assert (error, evidence.more) == (None, {"requests": 1, "children": 8})
    for path in ("/d/i-a", "/d/a-1", "/d/b-3"):
        assert get(varnish.address, host, path).headers["x-cache"] == "hit"


@pytest.fixture
def sliced(origin: Origin) -> Iterator[Nginx]:
    """An nginx that keeps slices of 64 KiB."""
    more = "slice 64k; proxy_set_header Range $slice_range; proxy_cache_valid 200 206 1h;"
    with Nginx(origin.address, key="$host$request_uri$slice_range", more=more) as server:
        yield server


@pytest.mark.needs("nginx")
def test_slices_are_warmed_in_ranges(sliced: Nginx, origin: Origin, host: str) -> None:
    origin.sizes[b"/sliced"] = 300_000
    slices = -(-300_000 // 65536)
    error, evidence = warm(sliced.address, "nginx", host, "/sliced", limits(range_bytes=65536))
    assert (error, evidence.size_bytes, evidence.status) == (None, 300_000, 206)
    assert evidence.more == {"requests": slices}
    assert origin.asked[host.encode(), b"/sliced"] == slices
    error, evidence = warm(sliced.address, "nginx", host, "/sliced", limits(range_bytes=65536))
    assert (evidence.hit, origin.asked[host.encode(), b"/sliced"]) == (True, slices)
