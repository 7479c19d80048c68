"""Any other cache that can be told over HTTP: what it is to be asked stands in the configuration.

    [[cache]]
    name = "n1"
    kind = "http"
    address = "127.0.0.1:8080"

    [cache.dir]                                   # url, dir, tag, prefetch or drop
    method = "PURGE"
    path = "/purge"                               # without it: {path}, the target's own
    headers = { X-Purge-Prefix = "{path}" }       # besides Host, which is the target's unless it stands here
    body = ""
    good = [200, 204]                             # the statuses that mean done

What may stand in the places is told in `template.py`. One thing more could be broken out of: where a target
goes on with a path that is not its own (`/purge{path}`), a `..` in it would lead to whatever else that server
can be asked. Servers decode before they walk, so no encoding helps: such a target is refused (`_leads_up`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from proxyd.caches.base import NOT_YET, CacheKind, Deed
from proxyd.caches.template import Template, count_places, find_fault
from proxyd.errors import BadTarget

PLACES = {
    "url": ("host", "path"),
    "dir": ("host", "path"),
    "tag": ("tag",),
    "prefetch": ("host", "path"),
    "drop": (),
}
"""What can be configured, and which places there are in its templates."""

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}").fullmatch
# An answer to HEAD has a length and no body, one to CONNECT is none: where it ends cannot be told.
_METHODS_REFUSED = ("HEAD", "CONNECT")
# They go with a length even where that is 0 (RFC 9110, 8.6).
_WITH_LENGTH = ("POST", "PUT", "PATCH")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}").fullmatch
_HEADER_VALUE = re.compile(r"[!-~](?:[ !-~]{0,1022}[!-~])?").fullmatch
# Those say where a request ends, or what becomes of the connection: they are the agent's.
_HEADERS_REFUSED = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_PATH = re.compile(r"(?:/|https?://|\{path\})[!\"$-~]*").fullmatch
# A configuration is a page; and each target in a queue holds its request.
HEADERS_MAX = 16
BODY_MAX_CHARS = 4096
PLACES_MAX = 8


class Request(msgspec.Struct, frozen=True):
    """What is asked for one task type, as it stands in the configuration."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: str
    good: tuple[int, ...]


class TemplateDeed(Deed, frozen=True, kw_only=True):
    """A request that was configured."""

    place: str
    """What the second part of a target is called: path or tag."""
    head: Template
    body: Template | None
    below: bool
    """Whether what it is about goes on with a path that is not its own."""

    def render(self, host: bytes, path: bytes) -> bytes:
        """The request as it goes out. Raises: BadTarget for one that would lead elsewhere."""
        if self.below and _leads_up(path):
            raise BadTarget(
                "it has a .. in its path, which would lead out of where this cache takes requests"
            )
        values = {"host": host, self.place: path}
        head = self.head.fill(values)
        if self.body is None:
            return head + b"\r\n"
        body = self.body.fill(values)
        return b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def make_kind(requests: Mapping[str, Request]) -> CacheKind:
    """The kind that does what was configured, and refuses the rest. `requests` are by task type."""
    deeds = {task_type: _make_deed(task_type, request) for task_type, request in requests.items()}
    drop = deeds.pop("drop", None)
    refused = {
        task_type: f"its [[cache]] has no [cache.{task_type}], which says what to ask for"
        for task_type in PLACES
        if task_type not in requests
    }
    no_drop = refused.pop("drop", "")
    refused["regex"] = NOT_YET.format("pattern")
    return CacheKind("http", deeds, refused, drop, no_drop, configurable=frozenset(PLACES))


def _make_deed(task_type: str, request: Request) -> TemplateDeed:
    names = PLACES[task_type]
    headers = list(request.headers)
    if not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("Host", "{host}" if "host" in names else "localhost"))
    lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return TemplateDeed(
        method=request.method.encode(),
        good=frozenset(request.good),
        place="tag" if "tag" in names else "path",
        head=Template.parse("".join(f"{line}\r\n" for line in lines)),
        body=Template.parse(request.body) if request.body or request.method in _WITH_LENGTH else None,
        below=_goes_on(request.path),
    )


_OWN_PATH = re.compile(r"(?:https?://(?:\{host\}|[A-Za-z0-9.:-]+))?\{path\}").fullmatch
_STEP_UP = re.compile(rb"(?:^|[/\\])\.\.(?:[/\\;?]|$)").search


def _goes_on(path: str) -> bool:
    return not _OWN_PATH(path) and any(f"{{{name}" in path.partition("?")[0] for name in ("path", "tag"))


def _leads_up(path: bytes) -> bool:
    return bool(_STEP_UP(path) or _STEP_UP(unquote_to_bytes(path)))


# What is wrong with one value, for the table of settings; what a place may be depends on the type, see below.


def method_fault(value: Any) -> str | None:
    """Of a method."""
    if value in _METHODS_REFUSED:
        return f"{value} cannot be pipelined: where its answer ends cannot be told; use GET"
    return None if _METHOD(value) else f"{value!r} is not a method, in capitals"


def path_fault(value: Any) -> str | None:
    """Of what stands behind the method."""
    if _PATH(value):
        return None
    return f"got {value!r}, wanted /, {{path}}, http:// or https:// first, and no space, no # and ASCII only"


def headers_fault(value: Any) -> str | None:
    """Of all headers of a request."""
    if len(value) > HEADERS_MAX:
        return f"got {len(value)} headers, wanted at most {HEADERS_MAX}"
    for name, text in value.items():
        if not _HEADER_NAME(name):
            return f"{name!r} is not a header's name"
        if name.lower() in _HEADERS_REFUSED:
            return f"{name} is the agent's to set; take it out"
        if not isinstance(text, str) or not _HEADER_VALUE(text):
            # The value is not shown: it may be a secret.
            return f"{name}: wanted 1 to 1024 of the characters 0x20 to 0x7e, no space around"
    names = [name.lower() for name in value]
    return "a header stands there twice" if len(set(names)) < len(names) else None


def body_fault(value: Any) -> str | None:
    """Of a body."""
    return (
        None
        if len(value) <= BODY_MAX_CHARS
        else f"got {len(value)} characters, wanted at most {BODY_MAX_CHARS}"
    )


def good_fault(value: Any) -> str | None:
    """Of the statuses that mean done."""
    if value and all(type(status) is int and 200 <= status <= 599 for status in value):
        return None
    return f"{value!r} is not a list of statuses, 200 to 599"


def find_faults(task_type: str, request: Request) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each template of a request whose values are well, each by itself."""
    texts = [
        ("path", request.path),
        *(("headers", value) for _, value in request.headers),
        ("body", request.body),
    ]
    for key, text in texts:
        if fault := find_fault(text, PLACES[task_type], is_path=key == "path"):
            yield key, fault
    if (count := sum(count_places(text) for _, text in texts)) > PLACES_MAX:
        yield "path", f"got {count} places in path, headers and body, wanted at most {PLACES_MAX}"
