"""Lines: corpora of good and bad ones, escapes both ways, and the cutting of a stream."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import BadLine, LocalError, Refused
from wire.lines import (
    Line,
    LineReader,
    carriable,
    escape,
    format_line,
    format_refused,
    is_plain,
    parse,
    read_count,
    read_refused,
    unescape,
)

GOOD = [
    (b"ping", Line("ping", {})),
    (b"ping\r", Line("ping", {})),
    (b"!drain", Line("!drain", {})),
    (b"+ a=b", Line("+", {"a": "b"})),
    (b"+", Line("+", {})),
    (b"ok n=0", Line("ok", {"n": "0"})),
    (b"v a=", Line("v", {"a": ""})),
    (b"v a==", Line("v", {"a": "="})),
    (b"v a=--", Line("v", {"a": "--"})),
    (b"v a=b=c", Line("v", {"a": "b=c"})),
    (b"v --", Line("v", {}, ())),
    (b"v a=1 --", Line("v", {"a": "1"}, ())),
    (b"v -- x", Line("v", {}, ("x",))),
    (b"v -- -- x --", Line("v", {}, ("--", "x", "--"))),
    (b"v -- a=b", Line("v", {}, ("a=b",))),
    (rb"v a=\s\t\n\r\\", Line("v", {"a": " \t\n\r\\"})),
    (rb"v -- \\s", Line("v", {}, ("\\s",))),
    (rb"v -- \\\s", Line("v", {}, ("\\ ",))),
    ("v a=ü -- 漢字 🎈".encode(), Line("v", {"a": "ü"}, ("漢字", "🎈"))),
    # Spaces of other kinds are characters like any other.
    ("v a=\u00a0\u2028\u0085".encode(), Line("v", {"a": "\u00a0\u2028\u0085"})),
    (b"a_1 b_2=3", Line("a_1", {"b_2": "3"})),
]

BAD = [
    b"", b"\r", b" ", b"ping ", b" ping", b"ping  a=1", b"ping a=1 ", b"ping a", b"ping a b=1",
    b"Ping", b"1ping", b"_ping", b"pi-ng", b"?ping", b"!!ping", b"!", b"!+ping", b"-- x", b"--",
    b"ping A=1", b"ping 1=1", b"ping =1", b"ping a=1 a=2", b"ping --x", b"ping -- ", b"ping --  x",
    b"ping -- x ", b"ping -- x  y", b"ping  -- x", b"ping a=\tx", b"ping a=\x00", b"ping\x7f", b"ping a=\x1b",
    b"ping\r\r", b"pi\rng", b"ping a=\\", b"ping a=\\x", b"ping a=\\S", b"ping -- \\", b"ping -- a\\\\\\",
    b"ping a=\\\\\\", b"ping -- \\0", b"ping a=\xff", b"ping a=\xc3", b"ping a=\xed\xa0\x80",
    b"ping a=\xc0\xaf",
    b"\xef\xbb\xbfping", "ping ä=1".encode(), "pïng".encode(), b"+ x", b"ping +a=1",
]  # fmt: skip


@pytest.mark.parametrize(("raw", "line"), GOOD)
def test_good_lines(raw: bytes, line: Line) -> None:
    assert parse(raw) == line


@pytest.mark.parametrize("raw", BAD)
def test_bad_lines(raw: bytes) -> None:
    with pytest.raises(BadLine) as caught:
        parse(raw)
    # What a peer is told fits a line, and is not the line itself.
    message = str(caught.value)
    assert 5 < len(message) < 200
    format_refused(Refused("bad_line", message))


def test_a_long_bad_line_is_not_quoted_whole() -> None:
    with pytest.raises(BadLine) as caught:
        parse(b"x" * 10_000 + b"!")
    assert len(str(caught.value)) < 200


# Text that a line can carry: no controls but those that have an escape, no surrogates.
carried = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(" \t\n\r\\\u0085\u009f"), max_size=30
)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
verbs = st.from_regex(r"[!+]?[a-z][a-z0-9_]{0,8}", fullmatch=True)
lines = st.builds(
    Line,
    verbs,
    st.dictionaries(keys, carried, max_size=4),
    st.none() | st.lists(carried.filter(bool), max_size=4).map(tuple),
)


@given(lines)
def test_what_is_formatted_is_parsed_back(line: Line) -> None:
    raw = format_line(line.verb, line.fields, line.items)
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert parse(raw[:-1]) == line
    assert parse(raw[:-1] + b"\r") == line


@given(st.binary(max_size=60) | st.text(" =-\\snt!+ab\x00\r", max_size=30).map(str.encode))
def test_what_is_parsed_is_formatted_back(raw: bytes) -> None:
    try:
        line = parse(raw)
    except BadLine:
        return
    assert format_line(line.verb, line.fields, line.items) == raw.removesuffix(b"\r") + b"\n"


@given(carried)
def test_escapes_go_there_and_back(text: str) -> None:
    assert unescape(escape(text)) == text


@given(st.text(" \t\n\r\\stnrx", max_size=12))
def test_unescape_agrees_with_a_reader_that_goes_by_character(text: str) -> None:
    try:
        expected: str | None = slow_unescape(text)
    except KeyError:
        expected = None
    if expected is None:
        with pytest.raises(BadLine):
            unescape(text)
    else:
        assert unescape(text) == expected


def slow_unescape(text: str) -> str:
    out, characters = "", iter(text)
    for character in characters:
        if character == "\\":
            out += {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}[next(characters, "")]
        else:
            out += character
    return out


@pytest.mark.parametrize(
    ("fields", "items"),
    [
        ({"a": "\0"}, None), ({"a": "\x7f"}, None), ({"a": "\x1b"}, None), ({}, [""]), ({}, ["\0"]),
        ({"a": "\ud800"}, None), ({}, ["\udcff"]), ({"a": float("nan")}, None), ({"a": float("inf")}, None),
    ],
)  # fmt: skip
def test_what_no_line_can_carry_is_refused(fields: dict[str, str], items: list[str] | None) -> None:
    with pytest.raises(LocalError):
        format_line("v", fields, items)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-5, "-5"), (True, "1"), (False, "0"), (0.75, "0.75"), (1e-05, "0.00001"), (1e-9, "0"),
        (100.0, "100"), (1e16, "10000000000000000"), (2.5, "2.5"),
    ],
)  # fmt: skip
def test_numbers_have_no_exponent(value: float, text: str) -> None:
    assert format_line("v", {"a": value}) == f"v a={text}\n".encode()


def test_a_field_without_value_is_left_out() -> None:
    assert format_line("v", {"a": None, "b": ""}) == b"v b=\n"


@given(
    st.builds(
        Refused,
        keys,
        carried,
        field=st.none() | keys,
        retry_ms=st.none() | st.integers(0, 10**9),
        ref=st.none() | keys,
    )
)
def test_refusals_go_there_and_back(refused: Refused) -> None:
    back = read_refused(parse(format_refused(refused)[:-1]))
    assert (back.code, back.msg, back.field, back.retry_ms, back.ref) == (
        refused.code, refused.msg, refused.field, refused.retry_ms, refused.ref,
    )  # fmt: skip


def test_a_refusal_may_quote_anything() -> None:
    raw = format_refused(Refused("bad_line", "got \0 and\nmore, even \udc80"))
    assert read_refused(parse(raw[:-1])).msg == "got ? and\nmore, even ?"


@given(st.text())
def test_any_text_can_be_made_to_fit_a_line(text: str) -> None:
    fitting = carriable(text)
    assert len(fitting) == len(text)
    assert parse(format_line("ok", {"a": fitting})[:-1]).fields["a"] == fitting
    assert carriable(fitting) == fitting


@pytest.mark.parametrize("retry_ms", ["", "-1", "x", "1.5", "٣", "9" * 5000])
def test_a_retry_ms_that_is_no_number_is_ignored(retry_ms: str) -> None:
    assert read_refused(Line("err", {"code": "busy", "retry_ms": retry_ms})).retry_ms is None


def test_counts() -> None:
    assert read_count("0") == 0
    assert read_count("9" * 18) == 10**18 - 1
    for text in ("", "-1", "+1", " 1", "1_0", "٣", "9" * 19, "1\n"):
        assert read_count(text) is None


@given(st.binary(max_size=40))
def test_plain_means_printable_ascii(data: bytes) -> None:
    assert is_plain(data) == all(byte == 10 or (32 <= byte < 127 and byte != 92) for byte in data)


# -- the reader of streams


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bcdefgh", b"\\", b"\xff", b"x" * 11]), max_size=30),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_the_same_bytes_give_the_same_lines(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    whole, single, cut = LineReader(16), LineReader(16), LineReader(16)
    expected = whole.feed(data)
    assert [line for byte in data for line in single.feed(bytes([byte]))] == expected
    assert [line for piece in cut_at(data, places) for line in cut.feed(piece)] == expected
    assert (whole.overflow is None) == (single.overflow is None) == (cut.overflow is None)
    assert whole.rest == single.rest == cut.rest


@given(st.lists(st.sampled_from([b"a b\n", b"\\s\n", b"\r\n", b"x", b"\xff\n"]), max_size=8), st.data())
def test_lines_said_to_be_plain_are(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    reader = LineReader()
    for piece in cut_at(stream, data.draw(st.lists(st.integers(0, 40), max_size=4))):
        lines = reader.feed(piece)
        if lines and reader.plain:
            assert all(is_plain(line) for line in lines)
        if lines and is_plain(stream):
            assert reader.plain


@pytest.mark.parametrize("size", [0, 1, 14, 15])
def test_the_longest_line_is_line_max_with_its_lf(size: int) -> None:
    reader = LineReader(16)
    assert reader.feed(b"x" * size + b"\n") == [b"x" * size]
    assert reader.overflow is None


def test_a_line_too_long_ends_the_stream_behind_the_lines_before_it() -> None:
    reader = LineReader(16)
    assert reader.feed(b"one\ntwo\n" + b"x" * 16 + b"\nfour\n") == [b"one", b"two"]
    assert reader.overflow is not None
    assert "16 bytes" in str(reader.overflow)
    assert reader.feed(b"five\n") == []
    assert reader.rest == b""


def test_an_endless_line_is_not_kept() -> None:
    reader = LineReader(1000)
    for _ in range(10_000):
        assert reader.feed(b"x" * 1000) == []
    assert reader.overflow is not None
    assert "overflow" in repr(reader)
    assert reader.rest == b""


def test_the_rest_can_be_moved_to_another_reader() -> None:
    first, second = LineReader(), LineReader()
    assert first.feed(b"one\ntw") == [b"one"]
    assert "2 bytes held" in repr(first)
    assert second.feed(first.rest + b"o\n") == [b"two"]
