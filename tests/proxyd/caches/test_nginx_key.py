"""Keys from templates; what nginx itself makes of a path stands in test_nginx.py."""

import pytest

from proxyd.caches.nginx_key import BadKey, KeyTemplate, Sought, normalise


def url(template: str, host: str, path: str, proxy_host: str = "") -> list[str]:
    """The keys of a URL."""
    sought = KeyTemplate(template, proxy_host).of_url(host.encode(), path.encode())
    assert not sought.patterns
    return [key.decode("latin-1") for key in sought.keys]


def below(template: str, prefix: str, proxy_host: str = "") -> Sought:
    """What a directory is sought by."""
    return KeyTemplate(template, proxy_host).of_directory(b"h.example", prefix.encode())


KEYS = [
    ("$scheme$proxy_host$request_uri", "/a?b", ["httpback:80/a?b", "httpsback:80/a?b"]),
    ("$scheme://$host$request_uri", "/a%2F/", ["http://h.example/a%2F/", "https://h.example/a%2F/"]),
    ("https$host$request_uri", "/", ["httpsh.example/"]),
    ("$http_host|$request_uri", "/q?", ["H.Example.:8080|/q?", "h.example.:8080|/q?"]),
    ("${host}x${uri}$is_args$args", "/a%2Fb/../c?d=%41", ["h.examplex/a/c?d=%41"]),
    ("$host$uri$is_args$query_string", "/a?", ["h.example/a"]),
    ("$request_uri", "/a", ["/a"]),
    ("$uri!$uri", "/a", ["/a!/a"]),
    ("$uri", "/%zz", []),
]


@pytest.mark.parametrize(("template", "path", "keys"), KEYS)
def test_the_keys_of_a_url(template: str, path: str, keys: list[str]) -> None:
    assert sorted(url(template, "H.Example.:8080", path, "back:80")) == sorted(keys)


BELOW = [
    (
        "$host$request_uri",
        "/d/",
        ["h.example/d/", "h.example/d/a?b", "h.example/d/\n"],
        ["h.example/d", "x/d/"],
    ),
    (
        "$scheme$host$uri$is_args$args",
        "/d/",
        ["httph.example/d/?x", "httpsh.example/d/x"],
        ["httph.example/D/x"],
    ),
    ("$host$uri$is_args$args", "/d//./", ["h.example/d/x"], ["h.example/e/x"]),
    ("$host$uri$is_args$args", "/d/x?u=/", ["h.example/d/x?u=/y"], ["h.example/d/x?u=", "h.example/d/x"]),
    ("$request_uri@$host", "/.*/", ["/.*/x@h.example"], ["/a/x@h.example", "/.*/x@i.example"]),
    ("$args|$host|$uri", "/d/", ["a=b|h.example|/d/x", "|h.example|/d/"], ["a=b|h.example|/e/x"]),
    ("$host$uri$slice_range", "/d/", ["h.example/d/x", "h.example/d/xbytes=0-1"], ["h.example/dbytes=0-1"]),
]


@pytest.mark.parametrize(("template", "prefix", "inside", "outside"), BELOW)
def test_what_lies_below_a_directory(
    template: str, prefix: str, inside: list[str], outside: list[str]
) -> None:
    sought = below(template, prefix)
    assert [key for key in inside if not sought.fits(key.encode())] == []
    assert [key for key in outside if sought.fits(key.encode())] == []


def test_the_slices_of_a_url() -> None:
    sought = KeyTemplate("$host$request_uri$slice_range", "").of_url(b"h", b"/a.b")
    assert not sought.keys
    for key in (b"h/a.b", b"h/a.bbytes=0-1023", b"h/a.bbytes=1024-2047"):
        assert sought.fits(key)
    for key in (b"h/axbbytes=0-1", b"h/a.bc", b"h/a.bbytes=0-", b"h/a.bbytes=0-1bytes=0-1"):
        assert not sought.fits(key)


BAD = [
    ("$host", "neither \\$request_uri nor \\$uri"),
    ("$proxy_host$request_uri", "say in proxy_host"),
    ("$host$request_uri$cookie_user", "\\$cookie_user is not one of"),
    ("$request_method$uri", "\\$request_method is not one of"),
    ("$uri$", "\\$ is not one of"),
    ("$uri${host", "\\$\\{ is not one of"),
]


@pytest.mark.parametrize(("template", "why"), BAD)
def test_what_no_key_can_be_computed_from_is_refused(template: str, why: str) -> None:
    with pytest.raises(BadKey, match=why):
        KeyTemplate(template, "")


def test_a_long_hostile_path_is_no_slower() -> None:
    sought = below("$args|$uri|$host", "/" + "a|" * 5000 + "/")
    assert not sought.fits(b"|" * 10_000)


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (b"/", b"/"), (b"/a//b/./c/../d/", b"/a/b/d/"), (b"/a/..", b"/"), (b"/..", None), (b"/%2e%2e/", None),
        (b"/a/%2e%2e/b", b"/b"), (b"/%252e", b"/%2e"), (b"/%00", None), (b"/%4", None), (b"/...", b"/..."),
        (b"/a%3Fb%23", b"/a?b#"), (b"/a/.", b"/a/"),
    ],
)  # fmt: skip
def test_normalise(path: bytes, uri: bytes | None) -> None:
    assert normalise(path) == uri
