"""A small caching HTTP server for machines without Varnish or Traffic Server; it purges like the Varnish of
proxyd/caches. For the demo and its tests: one process, in memory, loopback only.

It tells what it did: `x-cache` is hit, miss or pass, and a hit carries its `age` in seconds (RFC 9111, 5.1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tools.demo.http1 import Address, HttpError, Request, Response, fetch
from tools.demo.objects import Key, Objects, Stored

#: What Varnish gives an object whose origin says nothing (default_ttl).
DEFAULT_FRESH_S = 120.0
ORIGIN_TIMEOUT_S = 5.0

#: Headers of one connection, which no cache passes on (RFC 9110, 7.6.1), and the length, which is told anew.
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "upgrade", "proxy-connection", "content-length"}


def directives(headers: Mapping[str, str]) -> dict[str, str]:
    """The cache-control directives of HEADERS, lower case, each with its value ("" if none)."""
    parts = (part.strip().partition("=") for part in headers.get("cache-control", "").split(","))
    return {name.lower(): value.strip('"') for name, _, value in parts if name}


def fresh_for(response: Response) -> float:
    """Seconds for which RESPONSE may be served from a shared cache; 0: not at all.

    Stricter than RFC 9111 asks: with `vary` or `set-cookie` nothing is kept, for the key is the URL alone.
    """
    rules = directives(response.headers)
    if response.status != 200 or {"vary", "set-cookie"} & response.headers.keys():
        return 0.0
    if {"no-store", "no-cache", "private"} & rules.keys():
        return 0.0
    seconds = rules.get("s-maxage", rules.get("max-age"))
    if seconds is None:
        return DEFAULT_FRESH_S
    return float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0


def without_hops(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in HOP_BY_HOP}


class LittleCache:
    """In front of the one ORIGIN; `handle` is for http1.Server. NOW counts seconds, never backwards."""

    def __init__(self, origin: Address, now: Callable[[], float] = time.monotonic) -> None:
        self.objects = Objects()
        self._origin = origin
        self._now = now

    async def handle(self, request: Request) -> Response:
        """GET and HEAD; PURGE forgets the URL, BAN the URLs that begin with it, LOOK asks for it.

        Whether one was there is told, but is no error, as in Varnish. Raises: HttpError.
        """
        host = request.headers.get("host", "").lower()
        if not host:
            raise HttpError(400, "want a host header")
        key = (host, request.target)
        if request.method in ("GET", "HEAD"):
            return await self._get(key, request)
        if request.method == "PURGE":
            return self._told(self.objects.purge(key))
        if request.method == "BAN":
            return self._told(self.objects.ban(*key))
        if request.method == "LOOK":
            return self._look(key)
        return Response(405, {"allow": "GET, HEAD, PURGE, BAN, LOOK"})

    def _told(self, count: int) -> Response:
        headers = {"x-purged": str(count), "x-refreshd-now": f"{self._now():.3f}"}
        return Response(200, headers, f"purged {count}\n".encode())

    def _look(self, key: Key) -> Response:
        """As refreshd.vcl answers it. When it came says enough: nothing older than a purge is kept."""
        now = self._now()
        headers = {"x-refreshd-now": f"{now:.3f}", "x-refreshd-look": "Gone"}
        stored = self.objects.look_up(key, now)
        if stored is not None:
            headers |= {"x-refreshd-look": "There", "x-refreshd-begun": f"{stored.stored_s:.3f}"}
        return Response(299, headers)

    async def _get(self, key: Key, request: Request) -> Response:
        stored = self.objects.look_up(key, self._now())
        if stored is not None:
            return self._hit(stored)
        if request.method == "HEAD":
            return await self._pass(request)
        epoch = self.objects.epoch
        response = await self._ask_origin(request)
        kept = self.objects.store(
            key, response, now_s=self._now(), fresh_s=fresh_for(response), epoch=epoch
        )  # fmt: skip
        return marked(response, "miss" if kept else "pass")

    def _hit(self, stored: Stored) -> Response:
        age = int(self._now() - stored.stored_s)
        return marked(stored.response, "hit", age)

    async def _pass(self, request: Request) -> Response:
        return marked(await self._ask_origin(request), "pass")

    async def _ask_origin(self, request: Request) -> Response:
        asked = Request(request.method, request.target, without_hops(request.headers))
        try:
            response = await fetch(self._origin, asked, timeout_s=ORIGIN_TIMEOUT_S)
        except (OSError, TimeoutError, HttpError) as error:
            return Response(502, {}, f"the origin did not answer: {str(error) or 'too late'}\n".encode())
        return Response(response.status, without_hops(response.headers), response.body)


def marked(response: Response, how: str, age_s: int | None = None) -> Response:
    extra = {"x-cache": how} if age_s is None else {"x-cache": how, "age": str(age_s)}
    return Response(response.status, {**response.headers, **extra}, response.body)
