"""One exchange of the slow lane on its way: its URL, and what that names if it is a playlist. Pure."""

from __future__ import annotations

from proxyd.errors import BadTarget
from proxyd.evidence import Evidence
from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.prefetch.playlists import decode
from proxyd.prefetch.resource import Resource
from proxyd.prefetch.tree import Tree
from proxyd.targets import split_target
from proxyd.tasks import Exchange

# What a playlist names is fed so many at a time: enough for a lane's connections, few enough to be held.
WINDOW = 16


class Job:
    """`begin` gives its first resource; `ended` takes each that has ended and gives more."""

    __slots__ = (
        "_kind", "_limits", "began_at", "error", "exchange", "missed", "open", "over", "root",
        "size_bytes", "tree",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, kind: str, limits: PrefetchLimits, now: float) -> None:
        self.exchange = exchange
        self._kind = kind
        self._limits = limits
        self.began_at = now
        host, path = split_target(exchange.target)
        self.root = Resource(self, host, path, exchange.request, 0, kind, limits)
        self.tree: Tree | None = None
        self.open = 1
        """Resources that have begun, or are about to, and have not ended."""
        self.over = False
        """Whether its end was told: what is still in flight of it is of no interest."""
        self.size_bytes = 0
        self.missed = False
        self.error: str | None = None

    def ended(self, resource: Resource) -> None:
        """One of its resources has ended; `feed` is to follow."""
        self.open -= 1
        self.size_bytes += resource.size_bytes
        self.missed |= resource.missed
        tree = self.tree
        if resource.error is not None:
            if tree is None:
                self.error = resource.error
            else:
                tree.note_failure((resource.host, resource.path), resource.error)
        elif resource.body is not None:
            if tree is None:
                tree = self.tree = Tree((resource.host, resource.path), self._limits)
            self._expand(tree, resource)

    def _expand(self, tree: Tree, resource: Resource) -> None:
        address = (resource.host, resource.path)
        body, resource.body = resource.body, None
        try:
            text = decode(bytes(body or b""), resource.encoding)
        except BadPlaylist as error:
            tree.note_failure(address, str(error))
        else:
            tree.expand(address, resource.playlist, text, resource.depth)

    def feed(self) -> list[Resource]:
        """What may be begun now. Where that is nothing, `fed` says whether to ask again."""
        tree = self.tree
        if tree is None:
            return []
        fed: list[Resource] = []
        deed = self.exchange.deed
        for (host, path), depth in tree.take(WINDOW - self.open):
            try:
                request = deed.render(host, path)
            except BadTarget as error:
                tree.note_failure((host, path), str(error))
                continue
            fed.append(Resource(self, host, path, request, depth, self._kind, self._limits))
        self.open += len(fed)
        return fed

    @property
    def hungry(self) -> bool:
        """Whether `feed` may give more at once."""
        return self.tree is not None and not self.tree.exhausted and self.open < WINDOW

    @property
    def finished(self) -> bool:
        """Whether nothing of it is open."""
        return not self.open and (self.tree is None or self.tree.exhausted)

    def stop(self, why: str) -> None:
        """What of it has not begun is not begun."""
        if self.tree is not None:
            self.tree.stop()
        self.error = self.error or f"{why} before all of it was begun"

    @property
    def outcome(self) -> str | None:
        """Why it has failed, or None."""
        return self.error or (None if self.tree is None else self.tree.error)

    def prove(self, evidence: Evidence, now: float) -> None:
        """Writes down what came of it."""
        root = self.root
        evidence.status = root.status or None
        evidence.size_bytes = self.size_bytes
        evidence.took_ms = round((now - self.began_at) * 1000)
        evidence.hit = bool(root.status) and not self.missed and not root.error
        if root.requests > 1 or self.tree is not None:
            self._prove_more(evidence)

    def _prove_more(self, evidence: Evidence) -> None:
        asked, count = self.root.variants
        more: dict[str, int] = {"requests": self.root.requests}
        if count > 1:
            more |= {"variants": asked, "variants_wanted": count}
        if self.tree is not None:
            more |= self.tree.figures()
        evidence.more = {**evidence.more, **more}
