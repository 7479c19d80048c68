"""References resolved as players do, and no byte of a path changed that they would not change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import BadTarget
from proxyd.prefetch.urls import Elsewhere, resolve

BASE = (b"h.example:8080", b"/b/c/d;p?q")


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        # RFC 3986, 5.4.1 and 5.4.2
        ("g", "/b/c/g"),
        ("./g", "/b/c/g"),
        ("g/", "/b/c/g/"),
        ("/g", "/g"),
        ("?y", "/b/c/d;p?y"),
        ("g?y", "/b/c/g?y"),
        ("", "/b/c/d;p?q"),
        ("#s", "/b/c/d;p?q"),
        ("g#s", "/b/c/g"),
        (";x", "/b/c/;x"),
        (".", "/b/c/"),
        ("./", "/b/c/"),
        ("..", "/b/"),
        ("../g", "/b/g"),
        ("../../g", "/g"),
        ("../../../g", "/g"),
        ("/../g", "/g"),
        ("g.", "/b/c/g."),
        ("..g", "/b/c/..g"),
        ("./g/.", "/b/c/g/"),
        ("g;x=1/../y", "/b/c/y"),
        ("g?y/../x", "/b/c/g?y/../x"),
        # A cache's key is bytes.
        ("a//b", "/b/c/a//b"),
        ("//", None),
        ("a%2Fb/%7e", "/b/c/a%2Fb/%7e"),
        (" a b.ts ", "/b/c/a%20b.ts"),
        ("é.ts", "/b/c/%C3%A9.ts"),
        ('a"b\\c', "/b/c/a%22b\\c"),
    ],
)
def test_within_a_host(reference: str, path: str | None) -> None:
    if path is None:
        with pytest.raises(BadTarget):
            resolve(*BASE, reference)
    else:
        assert resolve(*BASE, reference) == (BASE[0], path.encode())


def test_other_hosts() -> None:
    assert resolve(*BASE, "//o.example/x") == (b"o.example", b"/x")
    assert resolve(*BASE, "https://o.example") == (b"o.example", b"/")
    assert resolve(*BASE, "HTTP://o.example/a/../b//c?d") == (b"o.example", b"/b//c?d")


@pytest.mark.parametrize("reference", ["data:text/plain,x", "skd://key", "urn:x", "mailto:a@b"])
def test_what_no_cache_has(reference: str) -> None:
    with pytest.raises(Elsewhere):
        resolve(*BASE, reference)


@pytest.mark.parametrize("reference", ["http://", "http:///x", "http://a b/", "http://u@h/", "x" * 20_000])
def test_what_cannot_be_a_target(reference: str) -> None:
    with pytest.raises(BadTarget):
        resolve(*BASE, reference)


@given(st.text(max_size=60))
def test_nothing_breaks_out_of_a_request_line(reference: str) -> None:
    try:
        host, path = resolve(*BASE, reference)
    except (BadTarget, Elsewhere):
        return
    assert path.startswith(b"/")
    assert all(0x21 <= byte <= 0x7E for byte in host + path)
