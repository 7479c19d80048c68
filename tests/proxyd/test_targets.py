"""Cutting targets: exact for what is allowed, a reason for what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.errors import BadTarget
from proxyd.targets import TARGET_MAX_BYTES, split_directory, split_target
from tests.proxyd.caches.odd import LONGEST, ODD_PATHS

PATH_BYTES = bytes(set(range(0x21, 0x7F)) - {ord("#")})


@pytest.mark.parametrize("path", [*ODD_PATHS, LONGEST], ids=lambda path: path[:24])
def test_paths_stay_as_they_are(path: str) -> None:
    assert split_target(b"http://h.example" + path.encode()) == (b"h.example", path.encode())


@given(st.lists(st.sampled_from(PATH_BYTES), max_size=60).map(bytes))
def test_any_path_of_allowed_bytes_stays_as_it_is(rest: bytes) -> None:
    assert split_target(b"https://h:1/" + rest) == (b"h:1", b"/" + rest)


@given(st.binary(max_size=60))
def test_no_byte_can_break_a_request(raw: bytes) -> None:
    try:
        host, path = split_target(b"http://" + raw)
    except BadTarget:
        return
    assert path.startswith(b"/")
    assert all(0x21 <= byte <= 0x7E for byte in host + path)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"http://h", (b"h", b"/")),
        (b"http://h?x=1", (b"h", b"/?x=1")),
        (b"http://h:8080/", (b"h:8080", b"/")),
        (b"https://[::1]:443/a", (b"[::1]:443", b"/a")),
        (b"http://under_score.example/", (b"under_score.example", b"/")),
    ],
)
def test_hosts(target: bytes, parts: tuple[bytes, bytes]) -> None:
    assert split_target(target) == parts


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"", "absolute"),
        (b"/a", "absolute"),
        (b"ftp://h/a", "absolute"),
        (b"HTTP://h/a", "absolute"),
        (b"http://h/a b", "0x21"),
        (b"http://h/a\r\nX: y", "0x21"),
        (b"http://h/\xc3\xa9", "0x21"),
        (b"http://h/\x7f", "0x21"),
        (b"http://h/a#b", "fragment"),
        (b"http://user@h/a", "host"),
        (b"http:///a", "host"),
        (b"http://h:/a", "host"),
        (b"http://h:123456/a", "host"),
        (b'http://h"/a', "host"),
        (b"http://h/" + b"x" * TARGET_MAX_BYTES, "bytes long"),
    ],
)
def test_refused(target: bytes, reason: str) -> None:
    with pytest.raises(BadTarget, match=reason):
        split_target(target)


def test_a_directory_ends_in_a_slash() -> None:
    assert split_directory(b"http://h/a/") == (b"h", b"/a/")
    with pytest.raises(BadTarget, match="ends in /"):
        split_directory(b"http://h/a")
