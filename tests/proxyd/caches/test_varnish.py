"""What Varnish is asked, against a real one with the VCL that is shipped."""

import msgspec
import pytest

from proxyd.caches import KINDS, Deed
from proxyd.errors import BadTarget
from proxyd.targets import split_pattern, split_tag
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS
from tests.proxyd.http import ask, get
from tests.proxyd.rig import SHORT, perform, run, split_address
from tools.servers import Origin, Varnish, wait_until
from tools.servers.varnish import SHIPPED_VCL

pytestmark = pytest.mark.needs("varnishd")
DEEDS = KINDS["varnish"].deeds
STREAMING = msgspec.structs.replace(SHORT, depth=1, streaming=True, answer_max_bytes=None)


def do(varnish: Varnish, deed: Deed, *targets: str) -> list[str | None]:
    """Does a deed for each target; what was told of each, in order."""
    raw = [target.encode() for target in targets]
    limits = STREAMING if deed.method == b"GET" else SHORT
    told = run(perform(split_address(varnish.address), deed, raw, limits))
    return [errors[0] for errors in told.values()]


def is_hit(varnish: Varnish, host: str, path: str) -> bool:
    """Whether a visitor is served from the cache; it is there afterwards in any case."""
    answer = get(varnish.address, host, path)
    assert answer.status == 200
    return answer.headers["x-cache"] == "hit"


def fill(varnish: Varnish, host: str, *paths: str) -> None:
    """Puts objects into the cache."""
    for path in paths:
        get(varnish.address, host, path)
        assert is_hit(varnish, host, path)


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_purge_reaches_each_odd_url_and_only_it(varnish: Varnish, host: str, path: str) -> None:
    others = [other for other in ODD_PATHS[:8] if other != path]
    fill(varnish, host, path, *others)
    assert do(varnish, DEEDS["url"], f"http://{host}{path}") == [None]
    for other in others:
        assert is_hit(varnish, host, other)
    assert not is_hit(varnish, host, path)


def test_what_the_origin_is_asked_is_byte_exact(varnish: Varnish, origin: Origin, host: str) -> None:
    assert do(varnish, DEEDS["prefetch"], *(f"http://{host}{path}" for path in ODD_PATHS)) == [None] * len(
        ODD_PATHS
    )
    asked = {path.decode() for name, path in origin.asked if name.decode() == host}
    assert asked == set(ODD_PATHS)


def test_purge_of_what_is_not_there_is_done(varnish: Varnish, host: str) -> None:
    assert do(varnish, DEEDS["url"], f"http://{host}/never") == [None]


def test_the_host_has_no_case_and_schemes_are_one(varnish: Varnish, host: str) -> None:
    fill(varnish, host, "/a", "/b/c")
    assert do(varnish, DEEDS["url"], f"https://{host.upper()}/a") == [None]
    assert do(varnish, DEEDS["dir"], f"http://{host.title()}/b/") == [None]
    assert not is_hit(varnish, host, "/a")
    assert not is_hit(varnish, host, "/b/c")


def test_the_port_is_part_of_the_key(varnish: Varnish, host: str) -> None:
    fill(varnish, f"{host}:8080", "/a")
    fill(varnish, host, "/a")
    assert do(varnish, DEEDS["url"], f"http://{host}:8080/a") == [None]
    assert is_hit(varnish, host, "/a")
    assert not is_hit(varnish, f"{host}:8080", "/a")


def test_a_directory_takes_what_lies_below_and_spares_the_rest(varnish: Varnish, host: str) -> None:
    below = ["/dir/", "/dir/a", "/dir/b/c?x=1", "/dir/?q", "/dir//", "/dir/../up"]
    beside = ["/dir", "/dirt/a", "/di/r", "/other/dir/a", "/x?u=/dir/", "/DIR/a", "/dir%2Fa"]
    fill(varnish, host, *below, *beside)
    fill(varnish, f"www.{host}", "/dir/a")
    fill(varnish, f"{host}:81", "/dir/a")
    assert do(varnish, DEEDS["dir"], f"http://{host}/dir/") == [None]
    assert [path for path in beside if not is_hit(varnish, host, path)] == []
    assert is_hit(varnish, f"www.{host}", "/dir/a")
    assert is_hit(varnish, f"{host}:81", "/dir/a")
    assert [path for path in below if is_hit(varnish, host, path)] == []


# Prefix, what it must take, what it must spare: each would be wrong if a byte of the prefix meant something.
ODD_DIRECTORIES = [
    ("/a.b/", "/a.b/x", "/axb/x"),
    ("/.*/", "/.*/x", "/any/x"),
    ("/(a|b)/", "/(a|b)/x", "/a/x"),
    ("/[ab]/", "/[ab]/x", "/a/x"),
    ("/a{2}/", "/a{2}/x", "/aa/x"),
    ("/a+/", "/a+/x", "/aa/x"),
    ("/a?b/", "/a?b/x", "/b/x"),
    ("/^$/", "/^$/x", "/x"),
    ("/a$/", "/a$/x", "/a/x"),
    ("/a|/", "/a|/x", "/other"),
    ("/\\d/", "/\\d/x", "/1/x"),
    ("/\\Qa\\E/", "/\\Qa\\E/x", "/a/x"),
    ("/(?i)A/", "/(?i)A/x", "/a/x"),
    ("/\\1/", "/\\1/x", "/x"),
    ('/"/', '/"/x', "/x"),
    ("/'/", "/'/x", "/x"),
    ("/&&/", "/&&/x", "/x"),
    ('/x"&&obj.status!=0||"/', '/x"&&obj.status!=0||"/y', "/x"),
    ("/%20&&%20/", "/%20&&%20/x", "/x"),
    ("/*/", "/*/x", "/y/x"),
    ("/a/?x=[1]&/", "/a/?x=[1]&/2", "/a/?x=1&/2"),
    ("//", "//x", "/x"),
    ("/a/../b/", "/a/../b/x", "/b/x"),
    ("/" + ".*" * 1000 + "/", "/" + ".*" * 1000 + "/x", "/a/x"),
]


@pytest.mark.parametrize(("prefix", "inside", "outside"), ODD_DIRECTORIES, ids=lambda text: text[:20])
def test_no_byte_of_a_directory_means_anything(
    varnish: Varnish, host: str, prefix: str, inside: str, outside: str
) -> None:
    fill(varnish, host, inside, outside)
    fill(varnish, f"b.{host}", inside)
    assert do(varnish, DEEDS["dir"], f"http://{host}{prefix}") == [None]
    assert is_hit(varnish, host, outside)
    assert is_hit(varnish, f"b.{host}", inside)
    assert not is_hit(varnish, host, inside)


def test_the_dot_in_a_host_means_a_dot(varnish: Varnish, host: str) -> None:
    twin = host.replace(".", "x")
    fill(varnish, twin, "/d/a")
    assert do(varnish, DEEDS["dir"], f"http://{host}/d/") == [None]
    assert is_hit(varnish, twin, "/d/a")


def test_bans_are_lurker_friendly(origin: Origin) -> None:
    """The lurker can only drop objects for bans that ask for nothing but obj.*."""
    fast_lurker = ("ban_lurker_age=0.1", "ban_lurker_sleep=0.01")
    with Varnish(origin.address, params=fast_lurker) as varnish:
        fill(varnish, "lurk.example", "/d/a", "/e")
        assert do(varnish, DEEDS["dir"], "http://lurk.example/d/") == [None]
        wait_until(lambda: "\nMAIN.n_object 1 " in _squeeze(varnish), what="the lurker dropped the object")
        assert is_hit(varnish, "lurk.example", "/e")


def _squeeze(varnish: Varnish) -> str:
    return "\n" + "\n".join(" ".join(line.split()) for line in varnish.stat().splitlines())


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("ok.example", "/fine/", 200),
        ("a b", "/x/", 400),
        ("a&&b", "/x/", 400),
        ('"a"', "/x/", 400),
        ("a||obj.status", "/x/", 400),
        ("a\tb", "/x/", 400),
        ("", "/x/", 400),
        ("ok.example", "http://ok.example/x/", 200),
        ("ok.example", "*", 400),
    ],
)
def test_the_vcl_takes_no_odd_host_from_anybody(varnish: Varnish, host: str, path: str, status: int) -> None:
    before = varnish.bans()
    assert ask(varnish.address, "BAN", host, path).status == status
    new = len(varnish.bans()) - len(before)
    assert new <= (1 if status == 200 else 0)


@pytest.mark.parametrize("method", ["PURGE", "BAN", "DROP"])
def test_what_a_proxy_passed_on_may_not_purge(varnish: Varnish, host: str, method: str) -> None:
    answer = ask(varnish.address, method, host, "/", "X-Forwarded-For: 203.0.113.9\r\n")
    assert answer.status == 403


def drop(varnish: Varnish) -> str | None:
    """Asks for a drop; what was told of it."""
    deed = KINDS["varnish"].drop
    assert deed is not None
    [error] = do(varnish, deed, "http://localhost/")
    return error


def test_a_drop_takes_all_that_is_there_and_nothing_that_comes(varnish: Varnish, host: str) -> None:
    fill(varnish, host, "/a", "/d/b?x=1")
    fill(varnish, f"b.{host}", "/a")
    assert drop(varnish) is None
    for name, path in ((host, "/a"), (host, "/d/b?x=1"), (f"b.{host}", "/a")):
        assert not is_hit(varnish, name, path)
        assert is_hit(varnish, name, path)


def test_a_drop_leaves_nothing_to_what_was_not_found(origin: Origin) -> None:
    """The lurker frees it all, and what an origin could not give is asked for again."""
    fast_lurker = ("ban_lurker_age=0.1", "ban_lurker_sleep=0.01")
    with Varnish(origin.address, params=fast_lurker) as varnish:
        fill(varnish, "lurk.example", "/d/a", "/e")
        assert drop(varnish) is None
        wait_until(lambda: "\nMAIN.n_object 0 " in _squeeze(varnish), what="the lurker dropped the objects")


def test_visitors_see_nothing_of_it(varnish: Varnish, host: str) -> None:
    answer = get(varnish.address, host, "/a")
    assert not [name for name in answer.headers if "refreshd" in name]


def test_prefetch_makes_the_next_visit_a_hit(varnish: Varnish, origin: Origin, host: str) -> None:
    origin.sizes[b"/warm/big"] = 3_000_000
    targets = [f"http://{host}/warm/{name}" for name in ("a", "b", "big")]
    assert do(varnish, DEEDS["prefetch"], *targets) == [None, None, None]
    assert [is_hit(varnish, host, f"/warm/{name}") for name in ("a", "b", "big")] == [True] * 3


def test_prefetch_of_what_the_origin_has_not(varnish: Varnish, origin: Origin, host: str) -> None:
    origin.statuses[b"/gone"] = 404
    assert do(varnish, DEEDS["prefetch"], f"http://{host}/gone") == ["cache c: GET was answered 404"]


X_CACHE = """sub vcl_deliver {
    set resp.http.X-Cache = "miss";
    if (obj.hits > 0) { set resp.http.X-Cache = "hit"; }
}"""


def test_the_vcl_can_be_loaded_into_a_running_varnish(origin: Origin) -> None:
    """As docs/agent.md has it: what was stored before is found by URL, and later by directory."""
    backend = f'backend b {{ .host = "127.0.0.1"; .port = "{origin.port}"; }}'
    with Varnish(origin.address, vcl=f"vcl 4.1; {backend} {X_CACHE}") as varnish:
        fill(varnish, "old.example", "/d/a", "/d/b")
        new = varnish.folder / "new.vcl"
        new.write_text(f'vcl 4.1;\ninclude "{SHIPPED_VCL}";\n{backend}\n{X_CACHE}\n')
        varnish.adm("vcl.load", "refresh1", str(new))
        varnish.adm("vcl.use", "refresh1")
        assert do(varnish, DEEDS["url"], "http://old.example/d/a") == [None]
        assert do(varnish, DEEDS["dir"], "http://old.example/d/") == [None]
        assert is_hit(varnish, "old.example", "/d/b")
        assert not is_hit(varnish, "old.example", "/d/a")
        assert do(varnish, DEEDS["dir"], "http://old.example/d/") == [None]
        assert not is_hit(varnish, "old.example", "/d/a")
        # What was stored before is dropped with the rest.
        assert is_hit(varnish, "old.example", "/d/b")
        assert drop(varnish) is None
        assert not is_hit(varnish, "old.example", "/d/b")


def test_a_rewrite_before_the_include_holds_for_purges(origin: Origin) -> None:
    vcl = f"""vcl 4.1;
    sub vcl_recv {{ set req.url = regsub(req.url, "^/shop/", "/"); set req.http.Host = "one.example"; }}
    include "{SHIPPED_VCL}";
    backend b {{ .host = "127.0.0.1"; .port = "{origin.port}"; }}
    {X_CACHE}
    """
    with Varnish(origin.address, vcl=vcl) as varnish:
        fill(varnish, "www.example", "/shop/a", "/shop/d/b")
        assert do(varnish, DEEDS["url"], "http://any.example/shop/a") == [None]
        assert do(varnish, DEEDS["dir"], "http://any.example/shop/d/") == [None]
        assert not is_hit(varnish, "www.example", "/shop/a")
        assert not is_hit(varnish, "www.example", "/shop/d/b")


def test_a_varnish_without_the_vcl_is_told_from_one_with_it(origin: Origin) -> None:
    vcl = f'vcl 4.1; backend b {{ .host = "127.0.0.1"; .port = "{origin.port}"; }}'
    origin.statuses[b"/unknown-method"] = 501
    with Varnish(origin.address, vcl=vcl) as varnish:
        [error] = do(varnish, DEEDS["url"], "http://h.example/unknown-method")
        assert error == "cache c: PURGE was answered 501 (include refreshd.vcl in the VCL, see docs/agent.md)"
        assert drop(varnish) is not None


# ── patterns and tags ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("/img/.*[.]png", {"/img/a.png", "/img/deep/b.png"}),
        ("/img/[a-z][.](png|gif)", {"/img/a.png", "/img/c.gif"}),
        ("/(?i)IMG/A[.]PNG", {"/img/a.png"}),
        # One word of the ban's expression, and one group of its pattern.
        ("/img/a.png|/other", {"/img/a.png", "/other"}),
        ("/img/a.png&&obj.status!=0", set()),
        ("/q[?]a=1&b=.*", {"/q?a=1&b=2"}),
        ("/.*", {"/img/a.png", "/img/deep/b.png", "/img/c.gif", "/other", "/q?a=1&b=2", "/img/a.png.bak"}),
    ],
)
def test_a_pattern_takes_all_that_it_matches_wholly_and_nothing_else(
    varnish: Varnish, host: str, pattern: str, gone: set[str]
) -> None:
    paths = ["/img/a.png", "/img/deep/b.png", "/img/c.gif", "/other", "/q?a=1&b=2", "/img/a.png.bak"]
    fill(varnish, host, *paths)
    fill(varnish, f"not.{host}", *paths)
    (host_of, path) = split_pattern(f"http://{host.upper()}{pattern}".encode())
    assert ask(varnish.address, "BANREGEX", host_of.decode(), path.decode()).status == 299
    assert {path for path in paths if not is_hit(varnish, host, path)} == gone
    assert all(is_hit(varnish, f"not.{host}", path) for path in paths)


@pytest.mark.parametrize(
    "pattern",
    ["/a)|(b", "/(a", "/a(?=b)", r"/\Qa", r"/\1", "/a{1001}", "/" + "a" * 2048, "/(*ACCEPT)", "/(?#"],
)
def test_what_would_be_another_expression_in_a_group_is_no_pattern(pattern: str) -> None:
    with pytest.raises(BadTarget):
        split_pattern(f"http://h{pattern}".encode())


@pytest.mark.parametrize("header", ["Surrogate-Key", "Cache-Tag", "xkey"])
def test_a_tag_takes_what_has_it_on_every_host(
    varnish: Varnish, origin: Origin, host: str, header: str
) -> None:
    tags = {
        "/t1": "news front",
        "/t2": "front,news",
        "/t3": "newsletter",
        "/t4": "a.b",
        "/t5": "a+b",
        "/t6": "",
    }
    for path, value in tags.items():
        origin.headers[path.encode()] = f"{header}: {value}\r\n".encode()
    for path in tags:
        for name in (host, f"also.{host}"):
            fill(varnish, name, path)

    def gone(tag: str) -> set[str]:
        host_of, path = split_tag(tag.encode())
        assert ask(varnish.address, "BANTAG", host_of.decode(), f"/{path.decode()}").status == 299
        away = {path for path in tags if not is_hit(varnish, host, path)}
        assert {path for path in tags if not is_hit(varnish, f"also.{host}", path)} == away
        return away

    assert gone("news") == {"/t1", "/t2"}
    assert gone("a.b") == {"/t4"}
    assert gone("nobody") == set()
    assert gone(".*") == set()
    answer = get(varnish.address, host, "/t1")
    assert not [name for name in answer.headers if name.startswith("x-refreshd")]
