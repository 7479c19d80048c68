"""The demo's origin: a few objects in memory, which anyone may change with PUT, and a count of visits."""

from __future__ import annotations

from collections import Counter

from tools.demo.http1 import Request, Response

#: As many objects as a demo may put; the next is refused.
OBJECTS_MAX = 1000


class Origin:
    """Serves `objects` (target to body) as fresh for an hour; `visits` counts the GETs of each target.

    The count is the proof of a hit: a page that came while the count stood still came from the cache.
    """

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.visits: Counter[bytes] = Counter()

    async def handle(self, request: Request) -> Response:
        """GET, HEAD and PUT."""
        if request.method == "PUT":
            return self._put(request)
        if request.method not in ("GET", "HEAD"):
            return Response(405, {"allow": "GET, HEAD, PUT"})
        return self._get(request)

    def _put(self, request: Request) -> Response:
        known = request.target in self.objects
        if not known and len(self.objects) >= OBJECTS_MAX:
            return Response(413, {}, b"the demo's origin is full\n")
        self.objects[request.target] = request.body
        return Response(200 if known else 201, {}, b"changed\n" if known else b"new\n")

    def _get(self, request: Request) -> Response:
        body = self.objects.get(request.target)
        if body is None:
            return Response(404, {"cache-control": "no-store"}, b"no such object\n")
        self.visits[request.target] += 1
        headers = {"cache-control": "public, max-age=3600", "content-type": "text/plain; charset=utf-8"}
        return Response(200, headers, body)
