"""What remap.config makes of directories and hosts. That Traffic Server does the same: test_ats_rules.py."""

import pytest

from proxyd.caches.ats_remap import BadRemap, NotMapped, Remap, Site

FILE = """\
# A comment, a filter, and what is not cached.
.definefilter local @action=allow @src_ip=127.0.0.1
redirect http://old.example/ http://www.example/
reverse_map http://o.example/ http://www.example/

map http://www.example/ http://o.example/ @plugin=cachekey.so
MAP https://WWW.example:8443/ \\
    http://o.example/
map http://www.example/deep/a/ https://Deep.example:8443/b
map http://bare.example http://o.example/base
map http://[::1]/ http://[::2]:81/
map ftp://files.example/ ftp://o.example/
"""
OWN = Site("o.example", "")
DEEP = Site("deep.example", "8443")


@pytest.mark.parametrize(
    ("host", "path", "leads_to"),
    [
        ("www.example", "/", [(OWN, ""), (DEEP, "b")]),
        ("WWW.example:8080", "/d/", [(OWN, "d/")]),
        ("www.example", "/deep/", [(OWN, "deep/"), (DEEP, "b")]),
        ("www.example", "/deep/a/x/", [(OWN, "deep/a/x/"), (DEEP, "bx/")]),
        ("www.example", "//d//", [(OWN, "d//")]),
        ("bare.example", "/", [(OWN, "base")]),
        ("bare.example", "/d/", [(OWN, "base/d/")]),
        ("[::1]", "/d/", [(Site("[::2]", "81"), "d/")]),
    ],
)
def test_where_a_directory_leads(host: str, path: str, leads_to: list[tuple[Site, str]]) -> None:
    assert Remap.parse(FILE).of_directory(host, path) == leads_to


def test_what_no_line_is_for_is_not_mapped() -> None:
    for host, path in (("other.example", "/"), ("files.example", "/"), ("old.example", "/")):
        with pytest.raises(NotMapped, match=f"it maps no {host}"):
            Remap.parse(FILE).of_directory(host, path)
    with pytest.raises(NotMapped):
        Remap.parse("map http://h/in/ http://o/\n").of_directory("h", "/out/")


def test_all_hosts_come_after_a_host_of_ones_own() -> None:
    remap = Remap.parse("map / http://all/\nmap http://h/in/ http://own/in/\n")
    own, everybody = Site("own", ""), Site("all", "")
    assert remap.of_directory("h", "/in/a/") == [(own, "in/a/")]
    assert remap.of_directory("h", "/") == [(own, "in/"), (everybody, "")]
    assert remap.of_directory("i", "/in/") == [(everybody, "in/")]
    assert remap.of_host("h") == [own, everybody]
    assert remap.of_host("i") == [everybody]


def test_a_pattern_cannot_follow_into_another_path() -> None:
    with pytest.raises(NotMapped, match="it maps /deep/a/ of"):
        Remap.parse(FILE).of_host("www.example")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("regex_map http://.*/ http://o/", "'regex_map' cannot be followed"),
        (".include more.config", ".include is not followed"),
        (
            "map http://h/ http://o/ @plugin=regex_remap.so @pparam=x",
            "'@plugin=regex_remap.so' makes of a URL",
        ),
        ("map http://h/", "is not map FROM TO"),
        ("map http://h/ /path", "is not map FROM TO"),
        ("nonsense", "'nonsense' cannot be followed"),
    ],
)
def test_a_line_that_cannot_be_followed_is_named(line: str, fault: str) -> None:
    with pytest.raises(BadRemap, match="line 3: ") as error:
        Remap.parse(f"map / http://o/\n\n{line}\n")
    assert fault in str(error.value)
