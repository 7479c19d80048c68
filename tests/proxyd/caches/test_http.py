"""What is configured, at real caches: as one of another kind it does what that one's own kind does."""

from __future__ import annotations

import httptools
import msgspec
import pytest

from proxyd.caches import CacheKind, Deed, Request, kind_of
from proxyd.errors import BadTarget
from proxyd.targets import split_directory, split_drop, split_tag, split_target
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.fake_engine import FakeEngine
from tests.proxyd.http import ask, get
from tests.proxyd.rig import SHORT, perform, run, split_address
from tools.servers import Agent, Origin, Squid, Varnish, wait_until

STREAMING = msgspec.structs.replace(SHORT, depth=1, streaming=True, answer_max_bytes=None)


def kind(**requests: Request) -> CacheKind:
    """As the configuration makes it."""
    made = kind_of("http", requests=tuple(requests.items()))
    assert made is not None
    return made


def asks(
    method: str, path: str = "{path}", headers: dict[str, str] | None = None, body: str = "", good: int = 200
) -> Request:
    """A [cache.TYPE]."""
    return Request(method, path, tuple((headers or {}).items()), body, (good, 204))


def do(address: str, deed: Deed, *targets: str) -> list[str | None]:
    """Does a deed for each target; what was told of each, in order."""
    limits = STREAMING if deed.method == b"GET" else SHORT
    told = run(perform(split_address(address), deed, [target.encode() for target in targets], limits))
    return [errors[0] for errors in told.values()]


def version(address: str, host: str, path: str, headers: str = "") -> bytes:
    """Which version of an object a visitor gets."""
    answer = ask(address, "GET", host, path, headers)
    assert answer.status == 200
    return answer.body.split()[0]


def test_what_is_not_configured_is_refused() -> None:
    deed, why = kind(url=asks("PURGE")).deed_of("dir")
    assert deed is None
    assert why == "its [[cache]] has no [cache.dir], which says what to ask for"
    assert kind(url=asks("PURGE")).deed_of("regex")[1] == "this agent cannot refresh by pattern yet"
    assert kind(url=asks("PURGE")).deed_of("drop")[0] is None
    assert kind(drop=asks("DELETE", "/")).deed_of("drop")[0] is not None


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_a_request_is_byte_exact(path: str) -> None:
    deed = kind(url=asks("PURGE")).deeds["url"]
    expected = f"PURGE {path} HTTP/1.1\r\nHost: h.example:81\r\n\r\n"
    assert deed.render(*split_target(f"http://h.example:81{path}".encode())) == expected.encode()


class Requests:
    """Reads requests as a server does."""

    def __init__(self, data: bytes) -> None:
        self.read: list[dict[str, bytes]] = []
        httptools.HttpRequestParser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self.read.append({"url": b"", "body": b""})

    def on_url(self, url: bytes) -> None:
        self.read[-1]["url"] += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.read[-1][name.decode().lower()] = value

    def on_body(self, body: bytes) -> None:
        self.read[-1]["body"] += body


def test_requests_with_bodies_can_stand_behind_each_other() -> None:
    headers = {"host": "api.local", "X-Host": "{host}"}
    deed = kind(dir=asks("POST", "/api", headers, '{"prefix": "é{path:json}"}')).deeds["dir"]
    paths = ['/a"b/', "/GET / HTTP/1.1/".replace(" ", "%20"), "/\\/", "/" + "x" * 9000 + "/"]
    targets = [f"http://h.example{path}".encode() for path in paths]
    read = Requests(b"".join(deed.render(*split_directory(target)) for target in targets)).read
    assert [msgspec.json.decode(request["body"])["prefix"] for request in read] == [
        f"é{path}" for path in paths
    ]
    assert {request["host"] for request in read} == {b"api.local"}
    assert {request["x-host"] for request in read} == {b"h.example"}


def test_a_post_without_a_body_says_so() -> None:
    request = kind(drop=asks("POST", "/all")).deed_of("drop")[0]
    assert request is not None
    assert request.render(*split_drop(b"")) == (
        b"POST /all HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    )


def test_tags_and_drops_have_no_host() -> None:
    made = kind(tag=asks("PURGE", "/tag/{tag:percent}"), drop=asks("DELETE", "/all"))
    assert (
        made.deeds["tag"].render(*split_tag(b"a,b"))
        == b"PURGE /tag/a%2Cb HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert made.drop is not None
    assert made.drop.render(*split_drop(b"")) == b"DELETE /all HTTP/1.1\r\nHost: localhost\r\n\r\n"


UP = [
    "/..",
    "/../admin",
    "/a/../../admin",
    "/%2e%2e/admin",
    "/a%2F..%2fadmin",
    "/a/..%5Cadmin",
    "/..;/admin",
    "/..?x",
]


@pytest.mark.parametrize("path", UP)
@pytest.mark.parametrize(
    "template", ["/purge{path}", "/purge/{host}{path}", "/purge/{path:percent}", "/p/{path:percent}?a"]
)
def test_nobody_gets_out_of_where_requests_are_taken(template: str, path: str) -> None:
    deed = kind(url=asks("PURGE", template)).deeds["url"]
    with pytest.raises(BadTarget, match=r"it has a \.\. in its path"):
        deed.render(*split_target(f"http://h.example{path}".encode()))
    deed.render(*split_target(b"http://h.example/a..b/..."))


@pytest.mark.parametrize("path", UP)
@pytest.mark.parametrize("template", ["{path}", "https://{host}{path}", "/purge?u={path:percent}"])
def test_its_own_path_leads_where_it_likes(template: str, path: str) -> None:
    deed = kind(url=asks("PURGE", template)).deeds["url"]
    assert deed.render(*split_target(f"http://h.example{path}".encode())).startswith(b"PURGE ")


@pytest.mark.needs("varnishd")
def test_at_a_varnish_all_types_work(varnish: Varnish, origin: Origin, host: str) -> None:
    made = kind(
        url=asks("PURGE"),
        dir=asks("BAN"),
        prefetch=asks("GET"),
        drop=asks("DROP", "/", {"Host": "any"}, good=299),
    )
    odd = [path for path in ODD_PATHS if not path.startswith("/dots")]
    assert do(varnish.address, made.deeds["prefetch"], *(f"http://{host}{path}" for path in odd)) == [
        None
    ] * len(odd)
    now, before = b"v=%d" % origin.bump(), b"v=%d" % (origin.version - 1)
    assert {version(varnish.address, host, path) for path in odd} == {before}
    assert do(varnish.address, made.deeds["url"], f"http://{host}{odd[0]}") == [None]
    assert [version(varnish.address, host, path) for path in odd[:2]] == [now, before]
    assert do(varnish.address, made.deeds["dir"], f"http://{host}/long/") == [None]
    assert [version(varnish.address, host, path) for path in odd[:2]] == [now, before]
    assert version(varnish.address, host, "/long/" + "x" * 2000) == now
    assert made.drop is not None
    assert do(varnish.address, made.drop, "http://any/") == [None]
    assert {version(varnish.address, host, path) for path in odd} == {now}


@pytest.mark.needs("squid")
def test_the_https_side_of_a_squid(squid: Squid, origin: Origin, host: str) -> None:
    """As docs/agent.md has it: keys of its own, which only a target in absolute form reaches."""
    absolute = "https://{host}{path}"
    made = kind(url=Request("PURGE", absolute, (), "", (200, 404)), prefetch=asks("GET", absolute))
    target = f"https://{host}/a"
    assert do(squid.address, made.deeds["prefetch"], target) == [None]
    before, now = b"v=%d" % origin.version, b"v=%d" % origin.bump()
    assert version(squid.address, host, target) == before
    assert ask(squid.address, "PURGE", host, "/a").status == 404
    assert version(squid.address, host, target) == before
    assert do(squid.address, made.deeds["url"], target) == [None]
    assert version(squid.address, host, target) == now


@pytest.mark.needs("squid")
def test_each_variant_at_a_squid_that_stores_them(origin: Origin) -> None:
    host, gzip = "listed.example", "Accept-Encoding: gzip\r\n"
    origin.varies[b"/v"] = b"accept-encoding"
    made = kind(url=asks("PURGE", headers={"Accept-Encoding": "gzip"}))
    with Squid(origin.address, access="acl purge method PURGE") as squid:
        for headers in ("", gzip):
            version(squid.address, host, "/v", headers)
        before, now = b"v=%d" % origin.version, b"v=%d" % origin.bump()
        assert do(squid.address, made.deeds["url"], f"http://{host}/v") == [None]
        assert version(squid.address, host, "/v", gzip) == now
        assert version(squid.address, host, "/v") == before


@pytest.mark.needs("squid")
def test_an_agent_does_what_is_configured(squid: Squid, origin: Origin, host: str) -> None:
    """The whole way: one Squid, listed once for each scheme, with a secret in a header of the second."""
    more = f"""
[[cache]]
name = "s1-tls"
kind = "http"
address = "{squid.address}"
[cache.url]
method = "PURGE"
path = "https://{{host}}{{path}}"
headers = {{ X-Key = "s3cret" }}
good = [200, 404]
[cache.prefetch]
method = "GET"
path = "/warm{{path}}"
"""
    get(squid.address, host, "/a")
    get(squid.address, host, f"https://{host}/a")
    now = b"v=%d" % origin.bump()
    with (
        FakeEngine() as engine,
        Agent([engine.address], [("s1", "squid", squid.address)], more=more) as agent,
    ):
        link = engine.wait_link()
        link.push("t1", f"http://{host}/a")
        wait_until(lambda: link.ended("t1"), what="the report")
        report = link.ended("t1")
        assert report is not None
        assert report["state"] == "done"
        assert version(squid.address, host, "/a") == version(squid.address, host, f"https://{host}/a") == now
        link.push("t2", f"http://{host}/a/", type="dir")
        wait_until(lambda: link.ended("t2"), what="the report")
        refused = link.ended("t2")
        assert refused is not None
        assert "[cache.dir]" in refused["error"]
        link.push("t3", f"http://{host}/../up", type="prefetch")
        wait_until(lambda: link.ended("t3"), what="the report")
        led_up = link.ended("t3")
        assert led_up is not None
        assert r"it\shas\sa\s..\sin\sits\spath" in led_up["error"]
        assert "s3cret" not in agent.log()
