"""Templates: what is refused, and that nothing breaks out of what is not."""

import json
import re
from urllib.parse import parse_qs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxyd.caches.template import Template, count_places, find_fault
from proxyd.targets import split_tag, split_target

URL_PLACES = ("host", "path")

GOOD = [
    "", "no place", '{"json": [{}]}', "{path}", "{host}", "https://{host}{path}", "/purge{path}",
    "/api/v1/{host}{path}", "/p?u={path:percent}", "/p/{path:percent}/more", '"{path:json}"',
    '"{path:percent}"', 'host == "{host}" && req.url ~ "^{path:regex:json}" && x',
    '{"a=": "{host}", "b": ["x?y=1&z={path:json}"]}', '{"a": "it\'s \\" {path:json}"}', "^{path:regex}",
    "^{path:regex}.*$", "a == 1 && url ~ ^{path:regex}",
    "'{path:percent}'", "a=1&u={path:percent}", "<u>{path:percent}</u>", "path={path:percent} host={host}",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_is_safe_is_taken(text: str) -> None:
    assert find_fault(text, URL_PLACES) is None


BREAKS = [
    ("/p?u={path}", "{path:percent}"),
    ("/p?u={path:regex}", "{path:percent}"),
    ("/p?u={path:json}", "{path:percent}"),
    ("{path}/more", "{path:percent} or {path:regex}"),
    ("{path}{path}", "{path:percent} or {path:regex}"),
    ("req.url ~ ^{path}", "{path:percent} or {path:regex}"),
    ("a b{path}", "{path:percent} or {path:regex}"),
    ("obj.status==1&&{path}", "{path:percent}"),
    ('{"a": "{path}"}', "{path:json} or {path:percent}"),
    ('{"a": "{path:regex}"}', "{path:regex:json} or {path:percent}"),
    ('{"a": "b\'{path}"}', "{path:json} or {path:percent}"),
    ("{path:json}", "{path:percent}"),
    ('"a"{path:json}', "{path:percent}"),
    ("'{path:regex}'", "{path:percent}"),
    ("<u>{path:regex}</u>", "{path:percent}"),
    ('<a u="{path:json}">', "{path:percent}"),
    ('a="{path:json}"', "{path:percent}"),
    ('"a\\"" {path:json}', "{path:percent}"),
]


@pytest.mark.parametrize(("text", "wanted"), BREAKS)
def test_what_a_target_could_break_out_of_is_refused(text: str, wanted: str) -> None:
    fault = find_fault(text, URL_PLACES)
    assert fault is not None
    assert fault.endswith(f"where a target could break out; wanted {wanted}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{pth}", "got {pth}, wanted {host} or {path}"),
        ("{tag}", "got {tag}, wanted {host} or {path}"),
        ("{path:base64}", "got {path:base64}, wanted percent or json or regex behind the colon"),
    ],
)
def test_what_is_not_known_is_named(text: str, fault: str) -> None:
    assert find_fault(text, URL_PLACES) == fault


def test_in_a_path_nothing_else_fits() -> None:
    assert find_fault('/"{path:json}"', URL_PLACES, is_path=True) == (
        "got {path:json}, wanted percent behind the colon"
    )
    assert find_fault("/{path}/x", URL_PLACES, is_path=True) == (
        "got {path}, where a target could break out; wanted {path:percent}"
    )
    assert find_fault("/p?u={path:percent}&v={host}", URL_PLACES, is_path=True) is None
    # A ? in a tag would begin a query.
    assert find_fault("/tag/{tag:percent}", ["tag"], is_path=True) is None
    assert find_fault("/tag/{tag}", ["tag"], is_path=True) == (
        "got {tag}, where a target could break out; wanted {tag:percent}"
    )


paths = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)
tags = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
ODD = '/"\\{path}$0\\1%41&a=b\'`<>;||"]}'


def fill(text: str, path: str) -> str:
    """The text, with a path that was checked."""
    host, checked = split_target(b"http://h.example/" + path.encode())
    assert checked.decode() == "/" + path
    return Template.parse(text).fill({"host": host, "path": checked}).decode()


@given(paths)
@example(ODD)
def test_none_breaks_out_of_json(path: str) -> None:
    assert json.loads(fill('{"u": ["x", "{path:json}"]}', path)) == {"u": ["x", "/" + path]}


@given(paths)
@example(ODD)
def test_none_breaks_out_of_a_query(path: str) -> None:
    filled = fill("/p?a=1&u={path:percent}&b=2", path)
    assert parse_qs(filled.partition("?")[2]) == {"a": ["1"], "u": ["/" + path], "b": ["2"]}


@given(paths, paths)
@example(ODD, "x")
@example("a|", "other")
@example(".*", "other")
def test_none_breaks_out_of_a_pattern(path: str, other: str) -> None:
    pattern = re.compile(fill("^{path:regex}$", path))
    assert pattern.fullmatch("/" + path)
    assert bool(pattern.fullmatch("/" + other)) is (path == other)
    quoted = json.loads(fill('["^{path:regex:json}$"]', path))[0]
    assert quoted == pattern.pattern


@given(st.sampled_from(GOOD), paths)
@example("/purge{path}", ODD)
def test_none_ends_a_line_or_parts_words(text: str, path: str) -> None:
    filled = fill(text, path)
    assert filled.split(" ") == [fill(word, path) for word in text.split(" ")]
    assert not set(filled) & {"\r", "\n", "\0"}


@given(tags)
def test_a_tag_is_a_target_like_others(tag: str) -> None:
    _, value = split_tag(tag.encode())
    assert json.loads(Template.parse('"{tag:json}"').fill({"tag": value})) == tag


def test_places_are_counted() -> None:
    assert count_places('{"a": "{path:json}"} {host}{host}') == 3
