"""What HLS playlists name: good ones, odd ones, hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.hls import VARIABLES_MAX, list_references

MASTER = """\
#EXTM3U
#EXT-X-VERSION:7
#EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-SESSION-KEY:METHOD=AES-128,URI="session.key"
#EXT-X-SESSION-DATA:DATA-ID="com.example.title",URI="title.json"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a,b",NAME="English, loud",DEFAULT=YES,URI="audio/en.m3u8"
#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="CC",INSTREAM-ID="CC1"
#EXT-X-STREAM-INF:BANDWIDTH=1280000,CODECS="avc1.4d401e,mp4a.40.2",AUDIO="a,b"
low/video.m3u8?token=a=b
#EXT-X-STREAM-INF:BANDWIDTH=2560000

mid/video.m3u8
#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=86000,URI="low/iframe.m3u8"
"""

MEDIA = """\
#EXTM3U\r
#EXT-X-TARGETDURATION:4\r
#EXT-X-MEDIA-SEQUENCE:2680\r
#EXT-X-MAP:URI="init.mp4",BYTERANGE="720@0"\r
#EXT-X-KEY:METHOD=AES-128,URI="https://keys.example/1",IV=0x1\r
#EXTINF:3.9,title, with a comma\r
a/1.ts\r
#EXT-X-KEY:METHOD=NONE\r
#EXT-X-BYTERANGE:100@0\r
#EXTINF:4,\r
all.ts\r
#EXT-X-GAP\r
#EXTINF:4,\r
not-there.ts\r
# a comment\r
#EXTINF:4,\r
  b/2.ts  \r
#EXT-X-PART:DURATION=0.5,URI="b/3.part1.ts"\r
#EXT-X-PRELOAD-HINT:TYPE=PART,URI="b/3.part2.ts"\r
#EXT-X-RENDITION-REPORT:URI="../other.m3u8"\r
#EXT-X-ENDLIST"""


def test_a_master_names_its_playlists() -> None:
    assert list(list_references(MASTER)) == [
        "session.key",
        "title.json",
        "audio/en.m3u8",
        "low/video.m3u8?token=a=b",
        "mid/video.m3u8",
        "low/iframe.m3u8",
    ]


def test_a_media_playlist_names_its_segments() -> None:
    expected = ["init.mp4", "https://keys.example/1", "a/1.ts", "all.ts", "b/2.ts", "b/3.part1.ts"]
    assert list(list_references(MEDIA)) == expected
    assert list(list_references("\ufeff" + MEDIA)) == expected
    assert list(list_references(MEDIA.replace("\r", ""))) == expected


def test_variables_are_put_in() -> None:
    text = '#EXTM3U\n#EXT-X-DEFINE:NAME="cdn",VALUE="//c.example/x"\n{$cdn}/1.ts\n#EXT-X-MAP:URI="{$cdn}/i"\n'
    assert list(list_references(text)) == ["//c.example/x/1.ts", "//c.example/x/i"]
    with pytest.raises(BadPlaylist, match="'nowhere' is not defined"):
        list(list_references("#EXTM3U\n{$nowhere}/1.ts"))
    many = "".join(f'#EXT-X-DEFINE:NAME="n{number}",VALUE="v"\n' for number in range(VARIABLES_MAX + 1))
    with pytest.raises(BadPlaylist, match=f"'n{VARIABLES_MAX}'"):
        list(list_references("#EXTM3U\n" + many + f"{{$n{VARIABLES_MAX}}}"))


def test_what_names_nothing_is_empty() -> None:
    assert list(list_references("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MAP:BYTERANGE=1\n")) == []


@pytest.mark.parametrize("text", ["", "<html>", "a.ts\n", "\n#EXTM3U\n", "#extm3u\n"])
def test_what_does_not_begin_as_one_is_none(text: str) -> None:
    with pytest.raises(BadPlaylist, match="wanted #EXTM3U"):
        list(list_references(text))


@given(
    st.lists(st.sampled_from([*MASTER.split("\n"), *MEDIA.split("\n"), '#EXT-X-KEY:URI="', "#EXT-X-DEFINE:"]))
)
def test_any_lines_give_references_or_a_reason(lines: list[str]) -> None:
    try:
        references = list(list_references("#EXTM3U\n" + "\n".join(lines)))
    except BadPlaylist:
        return
    assert all(reference and not reference.startswith("#") for reference in references)


@given(st.text(max_size=200))
def test_no_text_is_too_odd(text: str) -> None:
    try:
        list(list_references("#EXTM3U" + text))
    except BadPlaylist:
        pass
