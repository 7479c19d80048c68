"""[cache.url], [cache.dir]… of proxyd.toml: what is read, and every way to get it wrong."""

from pathlib import Path

import pytest

from proxyd.caches import Request
from proxyd.config import load
from tests.proxyd.test_config import GOOD, read

CONFIGURED = (
    GOOD.replace('kind = "ats"', 'kind = "http"')
    + """
[cache.url]
method = "PURGE"
good = [200, 404]

[cache.tag]
method = "POST"
path = "/api/purge"
headers = { Host = "api.local", Content-Type = "application/json" }
body = '{"tags": ["{tag:json}"]}'

[[cache]]
name = "n2"
kind = "http"
address = "127.0.0.1:8080"
[cache.url]
method = "BAN"
path = "/"
headers = { X-Url = "{path}" }
[cache.drop]
method = "DELETE"
path = "/all"
"""
)


def test_what_is_asked_can_be_configured(tmp_path: Path) -> None:
    assert read(tmp_path, CONFIGURED) == []
    caches = load(tmp_path / "proxyd.toml").caches
    assert [[name for name, _ in cache.requests] for cache in caches] == [[], ["url", "tag"], ["url", "drop"]]
    assert caches[1].requests[0][1] == Request("PURGE", "{path}", (), "", (200, 404))
    # Known by all of it: other requests make another cache.
    assert len({*caches, *load(tmp_path / "proxyd.toml").caches}) == 3


PLACE = ", where a target could break out; wanted"
BAD = [
    ('method = "PURGE"\n', "", 23, "[cache.url] needs method: a method in capitals, not HEAD or CONNECT"),
    ('"PURGE"', '"purge"', 24, "method: 'purge' is not a method, in capitals"),
    ('"BAN"', '"B\\r\\nX"', 38, "method: 'B\\r\\nX' is not a method, in capitals"),
    ('"BAN"', '"HEAD"', 38,
     "method: HEAD cannot be pipelined: where its answer ends cannot be told; use GET"),
    ("[200, 404]", "[]", 25, "good: [] is not a list of statuses, 200 to 599"),
    ("[200, 404]", "[100]", 25, "good: [100] is not a list of statuses, 200 to 599"),
    ("[200, 404]", '"200"', 25, "good: got '200', wanted 1 or more of 200 to 599"),
    ('path = "/"', 'pth = "/"', 39, "unknown key 'pth' in [cache.url]; did you mean 'path'?"),
    ('"/all"', '"/all#"', 43,
     "path: got '/all#', wanted /, {path}, http:// or https:// first, and no space, no # and ASCII only"),
    ('"/all"', '"/all{host}"', 43, "path: got {host}, wanted no place"),
    ('path = "/all"', "", 41, "path: got {path}, wanted no place"),
    ('"/api/purge"', '"{path}"', 29, "path: got {path}, wanted {tag}"),
    ('path = "/"', 'path = "/p?u={path}"', 39, f"path: got {{path}}{PLACE} {{path:percent}}"),
    ("{tag:json}", "{tag}", 31, f"body: got {{tag}}{PLACE} {{tag:json}} or {{tag:percent}}"),
    ('"{path}"', '"{pth}"', 40, "headers: got {pth}, wanted {host} or {path}"),
    ('"{path}"', '"a\\r\\nB: c"', 40,
     "headers: X-Url: wanted 1 to 1024 of the characters 0x20 to 0x7e, no space around"),
    ("X-Url", '"X Url"', 40, "headers: 'X Url' is not a header's name"),
    ("X-Url", "Content-Length", 40, "headers: Content-Length is the agent's to set; take it out"),
    ("{ X-Url", '{ x-url = "a", X-Url', 40, "headers: a header stands there twice"),
    ('"{path}"', '"' + "{host}" * 9 + '"', 39,
     "path: got 9 places in path, headers and body, wanted at most 8"),
    ("[cache.drop]", "[cache.regex]", 41,
     "unknown key 'regex' in [[cache]]; did you mean 'purge'?"),
    ("[cache.drop]", "[cache.tags]", 41, "unknown key 'tags' in [[cache]]; did you mean 'tag'?"),
    ("[cache.drop]", "[[cache.drop]]", 41,
     "got a list, wanted a section [cache.drop]"),
    ('{ X-Url = "{path}" }', '"X-Key: s3cret"', 40,
     'headers: got a text, wanted at most 16 of NAME = "value"'),
    ('"{path}"', '"s3cret={path}"', 40, f"headers: got {{path}}{PLACE} {{path:percent}}"),
    ('kind = "http"', 'kind = "squid"', 23,
     "what kind 'squid' is asked is fixed; only kind 'http' has [cache.url]"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "fault"), BAD, ids=lambda value: str(value)[:24])
def test_each_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, fault: str) -> None:
    assert CONFIGURED.count(old) >= 1
    assert read(tmp_path, CONFIGURED.replace(old, new, 1)) == [f"{line}: {fault}"]


def test_a_kind_that_is_configured_needs_something(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "ats"', 'kind = "http"')
    known = "[cache.url], [cache.dir], [cache.tag], [cache.prefetch], [cache.drop]"
    assert read(tmp_path, text) == [f"20: kind 'http' needs at least one of {known}"]


def test_a_drop_may_be_configured(tmp_path: Path) -> None:
    text = CONFIGURED.replace("[slow]", "drop_after_s = 3600\n[slow]")
    assert read(tmp_path, text) == [
        "21: drop_after_s is set, but cache 't1' cannot drop all that it holds: its [[cache]] has no"
        " [cache.drop], which says what to ask for; take it out"
    ]
    dropped = '[cache.drop]\nmethod = "DELETE"\npath = "/"\n[cache.tag]'
    assert read(tmp_path, text.replace("[cache.tag]", dropped)) == []
