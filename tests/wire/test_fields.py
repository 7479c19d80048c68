"""Fields and targets: what may stand in each."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import fields as f
from wire.lines import is_plain

GOOD_URLS = [
    "http://a", "https://a/", "http://a.b-c_d:8080/x?y=z", "http://[::1]:80/", "http://a?q",
    "http://a/%2F//..;x",
    "http://A/b'\"<>[]{}|^`", "https://a:65535/",
]  # fmt: skip
BAD_URLS = [
    ("", "absolute"), ("a/b", "absolute"), ("ftp://a/", "absolute"), ("HTTP://a/", "absolute"),
    ("http:/a", "absolute"), ("http://", "host"), ("http:///x", "host"), ("http://a:/", "host"),
    ("http://a:x/", "host"), ("http://a:0/", "port"), ("http://a:65536/", "port"),
    ("http://a:99999/", "port"),
    ("http://u@a/", "user"), ("http://u:p@a/", "user"), ("http://a/ b", "0x21"), ("http://ä/", "0x21"),
    ("http://a/\n", "0x21"), ("http://a/ü", "0x21"), ("http://a/b#c", "fragment"), ("http://a#c", "host"),
    ("http://[::1/", "host"), ("http://a b", "0x21"), ("http://" + "a" * 254 + "/", "host"),
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD_URLS)
def test_good_urls(url: str) -> None:
    assert f.url_fault(url) is None
    assert f.read_url(url) == url


@pytest.mark.parametrize(("url", "why"), BAD_URLS)
def test_bad_urls_are_explained(url: str, why: str) -> None:
    assert why in (f.url_fault(url) or "")
    with pytest.raises(ValueError, match=r"\A\Z"):
        f.read_url(url)


@pytest.mark.parametrize(
    ("task_type", "target", "why"),
    [
        ("url", "http://a/b", None), ("prefetch", "http://a/b", None), ("dir", "http://a/b/", None),
        ("dir", "http://a/b", "ends in /"), ("dir", "http://a", "ends in /"), ("tag", "news-2026", None),
        ("tag", "http://a/", None), ("tag", "", "tag"), ("tag", "a b", "tag"), ("tag", "ü", "tag"),
        ("tag", "x" * 256, None), ("tag", "x" * 257, "tag"), ("regex", r"http://a/.*\.(png|jpg)$", None),
        ("regex", "http://a/a?b#c", None),
        ("regex", "http://a/(", "missing )"), ("regex", "http://a/x)|(y", "unexpected )"),
        ("regex", "http://a", "begins with the /"),
        ("regex", "http://a?x", "begins with the /"), ("regex", "/x", "absolute"),
        ("url", "http://a/#", "fragment"),
    ],
)  # fmt: skip
def test_targets(task_type: str, target: str, why: str | None) -> None:
    fault = f.target_fault(task_type, target)
    assert (fault is None) if why is None else (why in (fault or ""))


urls = st.text("htps:/.[]ab0@?#%- \\é\n", max_size=25).map(lambda text: "http://" + text) | st.text(
    max_size=20
)


@given(urls, st.sampled_from(["url", "prefetch"]))
def test_the_shortcut_never_lets_more_in(target: str, task_type: str) -> None:
    if is_plain(target.encode()) and "\n" not in target and f.is_one_plain_url(target.encode()):
        assert f.target_fault(task_type, target) is None
        assert " " not in target


@given(st.from_regex(rb"\Ahttps?://[a-z.]{1,20}(/[!-~]{0,20})?\Z"))
def test_the_shortcut_knows_the_common_url(target: bytes) -> None:
    assert f.is_one_plain_url(target) == (b"#" not in target)


@given(urls)
def test_a_url_that_is_good_fits_a_line_without_escapes(url: str) -> None:
    if f.url_fault(url) is None and "\\" not in url:
        assert url.isascii()
        assert " " not in url


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (f.integer(0, 9), "0", 0), (f.integer(0, 9), "9", 9), (f.integer(0, 9), "09", 9),
        (f.integer(-5, 9), "-5", -5), (f.read_number, "0", 0.0), (f.read_number, "0.75", 0.75),
        (f.read_flag, "1", True), (f.read_flag, "0", False), (f.one_of("a", "b"), "b", "b"),
        (f.read_text, "", ""), (f.read_nonempty, "x" * 128, "x" * 128), (f.read_sig, "0f" * 32, "0f" * 32),
        (f.read_names, "b,a,b", ("a", "b")), (f.read_id, "A.b_c:1-2", "A.b_c:1-2"),
    ],
)  # fmt: skip
def test_values_are_read(read: Callable[[str], Any], text: str, value: Any) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (f.integer(0, 9), ""), (f.integer(0, 9), "10"), (f.integer(0, 9), "-1"), (f.integer(0, 9), "+1"),
        (f.integer(0, 9), "1.0"), (f.integer(0, 9), " 1"), (f.integer(0, 9), "٣"), (f.integer(0, 9), "1\n"),
        (f.integer(0, 1 << 70), "1" * 5000), (f.read_number, "1e3"), (f.read_number, "nan"),
        (f.read_number, "-1"), (f.read_number, "1."), (f.read_flag, "true"), (f.read_flag, ""),
        (f.one_of("a", "b"), "A"), (f.read_nonempty, ""), (f.read_nonempty, "x" * 129),
        (f.read_sig, "0F" * 32), (f.read_sig, "0f" * 31), (f.read_names, ""), (f.read_names, "a,,b"),
        (f.read_names, "a b"), (f.read_id, ""), (f.read_id, "x" * 65), (f.read_id, "a/b"), (f.read_id, "a\n"),
    ],
)  # fmt: skip
def test_values_that_are_not_allowed(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"\A\Z"):
        read(text)


def test_refusals_quote_a_bounded_part() -> None:
    refused = f.bad_field("due", "x" * 1000, "Unix seconds")
    assert refused.code == "bad_field"
    assert refused.field == "due"
    assert len(refused.msg) < 150
    missing = f.missing_field("type", "one of url, dir")
    assert (missing.code, missing.field) == ("missing_field", "type")
    assert "one of url, dir" in missing.msg


def test_states() -> None:
    assert set(f.STATES) - f.FINAL_STATES == {"pending", "active"}
