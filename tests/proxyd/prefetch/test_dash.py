"""What DASH manifests name: good ones, odd ones, hostile ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.prefetch.dash import list_references
from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.playlists import list_children

NS = 'xmlns="urn:mpeg:dash:schema:mpd:2011" xmlns:xlink="http://www.w3.org/1999/xlink"'


def mpd(inner: str, attributes: str = 'mediaPresentationDuration="PT10S"') -> bytes:
    return f'<?xml version="1.0"?><MPD {NS} {attributes}>{inner}</MPD>'.encode()


def adaptation(inner: str, representation: str = '<Representation id="v1" bandwidth="500"/>') -> str:
    return f"<Period><AdaptationSet>{inner}{representation}</AdaptationSet></Period>"


def named(text: bytes) -> list[str]:
    """What is named, resolved against http://h/d/m.mpd."""
    found = []
    for child in list_children("dash", text, (b"h", b"/d/m.mpd")):
        assert isinstance(child, tuple)
        found.append(b"".join(child).decode())
    return found


def test_a_template_with_numbers() -> None:
    template = (
        '<SegmentTemplate media="$RepresentationID$/$Number%05d$-$Bandwidth$.m4s" '
        'initialization="$RepresentationID$/init.mp4" startNumber="3" duration="4000" timescale="1000"/>'
    )
    assert named(mpd(adaptation(template))) == [
        "h/d/v1/init.mp4",
        "h/d/v1/00003-500.m4s",
        "h/d/v1/00004-500.m4s",
        "h/d/v1/00005-500.m4s",
    ]


def test_a_template_with_a_timeline() -> None:
    timeline = (
        '<SegmentTemplate media="t$Time$.m4s$$"><SegmentTimeline>'
        '<S t="100" d="10" r="2"/><S d="5"/><S t="200" d="20" r="-1"/><S t="240" d="1"/>'
        "</SegmentTimeline></SegmentTemplate>"
    )
    times = [100, 110, 120, 130, 200, 220, 240]
    assert named(mpd(adaptation(timeline))) == [f"h/d/t{time}.m4s$" for time in times]


def test_a_timeline_that_repeats_to_the_end_of_the_period() -> None:
    timeline = (
        '<SegmentTemplate media="$Time$" timescale="2"><SegmentTimeline><S t="0" d="6" r="-1"/>'
        "</SegmentTimeline></SegmentTemplate>"
    )
    assert named(mpd(adaptation(timeline))) == ["h/d/0", "h/d/6", "h/d/12", "h/d/18"]
    with pytest.raises(BadPlaylist, match="an end that it does not tell"):
        named(mpd(adaptation(timeline), 'type="dynamic"'))


def test_what_is_inherited() -> None:
    """What a representation does not say, those around it do; each has a BaseURL of its own."""
    text = mpd(
        "<BaseURL>//cdn.example/r/</BaseURL>"
        '<Period duration="PT4S"><BaseURL>p1/</BaseURL>'
        '<SegmentTemplate timescale="1" duration="2" media="$Number$.m4s"/>'
        '<AdaptationSet><SegmentTemplate initialization="i-$RepresentationID$"/>'
        '<Representation id="a"><BaseURL>a/</BaseURL><BaseURL>other/</BaseURL></Representation>'
        '<Representation id="b"><SegmentTemplate startNumber="9" endNumber="9"/></Representation>'
        "</AdaptationSet></Period>"
    )
    base = "cdn.example/r/p1/"
    assert named(text) == [
        f"{base}a/i-a", f"{base}a/1.m4s", f"{base}a/2.m4s", f"{base}i-b", f"{base}9.m4s"
    ]  # fmt: skip


def test_lists_bases_and_whole_files() -> None:
    listed = (
        '<SegmentList><Initialization sourceURL="init.mp4"/><SegmentURL media="1.m4s"/>'
        '<SegmentURL mediaRange="0-99"/></SegmentList>'
    )
    one_file = (
        '<Representation id="f"><BaseURL>f.mp4</BaseURL><SegmentBase indexRange="0-9"/></Representation>'
    )
    subtitles = '<Representation id="s"><BaseURL>s.vtt</BaseURL></Representation>'
    whole = '<Representation id="x"><BaseURL>all.mp4</BaseURL></Representation>'
    assert named(mpd(adaptation(listed, whole))) == ["h/d/init.mp4", "h/d/1.m4s", "h/d/all.mp4"]
    assert named(mpd(adaptation("", one_file + subtitles))) == ["h/d/f.mp4", "h/d/s.vtt"]


def test_a_period_ends_where_the_next_begins() -> None:
    def period(start_s: int, name: str) -> str:
        template = f'<SegmentTemplate media="{name}-$Number$" duration="2"/>'
        return adaptation(template).replace("<Period>", f'<Period start="PT{start_s}S">')

    expected = ["h/d/a-1", "h/d/a-2", "h/d/b-1", "h/d/b-2", "h/d/b-3"]
    assert named(mpd(period(0, "a") + period(4, "b"))) == expected


BAD = {
    "not XML": (b"#EXTM3U", "not XML"),
    "cut": (mpd("")[:-3], "not XML"),
    "HTML": (b"<html/>", "wanted MPD"),
    "a DOCTYPE": (b'<!DOCTYPE x [<!ENTITY a "b">]><MPD>&a;</MPD>', "DOCTYPE"),
    "a DOCTYPE from elsewhere": (b'<!DOCTYPE MPD SYSTEM "file:///etc/passwd"><MPD/>', "DOCTYPE"),
    "too deep": (b"<MPD>" + b"<a>" * 100 + b"</a>" * 100 + b"</MPD>", "deep"),
    "elsewhere": (mpd('<Period xlink:href="http://x/"/>'), "not expanded"),
    "a live one that lists nothing": (
        mpd(adaptation('<SegmentTemplate media="$Number$" duration="2"/>'), 'type="dynamic"'),
        "lists nothing",
    ),
    "no number": (mpd(adaptation('<SegmentTemplate media="$Number$" duration="x"/>')), "wanted a number"),
    "a negative number": (mpd(adaptation('<SegmentTemplate media="$Number$" duration="-1"/>')), "a number"),
    "no duration": (mpd(adaptation(""), 'mediaPresentationDuration="10 s"'), "wanted a duration"),
    "a segment without a length": (
        mpd(
            adaptation(
                '<SegmentTemplate media="x"><SegmentTimeline><S t="1"/></SegmentTimeline></SegmentTemplate>'
            )
        ),
        "no duration",
    ),
    "parts of segments": (mpd(adaptation('<SegmentTemplate media="$SubNumber$" duration="2"/>')), "no value"),
}


@pytest.mark.parametrize(("text", "error"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_says_why(text: bytes, error: str) -> None:
    with pytest.raises(BadPlaylist, match=error):
        list(list_references(text))


def test_a_billion_segments_are_not_made_at_once() -> None:
    template = '<SegmentTemplate media="$Number$" duration="1" timescale="1000000000"/>'
    text = mpd(adaptation(template), 'mediaPresentationDuration="P1000Y"')
    assert [reference for _, reference in itertools.islice(list_references(text), 3)] == ["1", "2", "3"]
    timeline = (
        '<SegmentTemplate media="$Time$"><SegmentTimeline><S t="0" d="1" r="999999999999"/></SegmentTimeline>'
        "</SegmentTemplate>"
    )
    assert len(list(itertools.islice(list_references(mpd(adaptation(timeline))), 100))) == 100


@given(st.binary(max_size=200))
def test_no_bytes_are_too_odd(data: bytes) -> None:
    for text in (data, mpd(data.decode("latin-1"))):
        try:
            list(itertools.islice(list_references(text), 100))
        except BadPlaylist:
            pass
