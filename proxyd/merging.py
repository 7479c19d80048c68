"""The queue of refreshes of one cache while the agent catches up: one request does what many ask for. Pure.

    queued: /a  /b/1  /a  /b/2  /b/      sent: /a (and the second /a)   /b/ (and /b/1, /b/2), where /b/1 stood

The rule: **what is sent to the cache satisfies everything that is queued for that cache at that moment and
asks for no more.** A refresh of a URL asks for no more than one of the same URL, of a directory that it
lies under, or a drop of the whole cache; one of a directory for no more than one of the same, or of a
directory above it; one by pattern or tag for no more than the same. `force` must be the same. What is merged
ends as that does which it was merged into.

Why it is sound. A refresh that was queued at t promises: once it is reported done, nothing is served from
this cache that was fetched before t. What is sent at s ≥ t throws out all that was fetched before s, of all
that the refresh asks for. So it keeps the promise, whatever else stands between the two: what anybody
fetched meanwhile is as old as before s, and what is fetched later is newer than t. It also does so earlier
than asked, which costs at the most one more fetch. What was *sent* already satisfies nothing: the content
may have changed since.

A directory refresh takes the place of the first that it satisfies, rather than these waiting for its own.
By the same argument it may pass whatever stands between, prefetches too: the prefetch that it passes
fetches what is newer than the directory refresh, so its object is fresh and stays. What must not happen is
the other way round, that a prefetch passes a refresh of its URL: it would find the old object there, and
the refresh would throw that out, so that the URL is cold though it was prefetched last. That is held by
`replay.py`. (A prefetch that the cache is busy with while a refresh comes is like a visitor's miss at that
moment: it is the cache's to know that what it gets is old.)

That a directory refresh takes all that begins with it is the meaning of `dir` (PROTOCOL.md); a cache whose
own rewriting makes that untrue is wrong without us as well.

How it is kept: a tree a value of `force`, host first, then what stands between slashes. No entry of it lies
under another: whoever comes joins the entry that satisfies it, or takes those in that it satisfies. So an
exchange is looked at a few times at most, however many there are: 7 to 10 µs in all (a plain queue: 0.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from proxyd.errors import BadTarget
from proxyd.queues import PriorityQueue
from proxyd.targets import split_target
from proxyd.tasks import Exchange

DROP = "drop"
"""The type of a task that drops the whole cache."""
# Places of entries that were taken in stay in the queue until they are reached, or until there are more of
# them than of others, and than this.
VACANT_MIN = 1024


Key = tuple[str, bool, bytes]
"""(type, force, target)"""


class Entry:
    """A place in the queue: an exchange that is to be sent, and those that it satisfies."""

    __slots__ = ("exchange", "followers", "key", "number", "path", "priority", "tree", "vacant")

    def __init__(self, exchange: Exchange, priority: int, number: int) -> None:
        self.exchange = exchange
        self.vacant = False
        """Whether what stood here stands elsewhere now."""
        self.followers: list[Exchange] = []
        self.priority = priority
        self.number = number
        self.tree: Node | None = None
        """The tree that it stands in, at `path`; None where it stands in none."""
        self.path: list[bytes] = []
        self.key: Key | None = None
        """What it is known by where it stands in no tree."""


class Node:
    """What is queued at one place of the tree, and below it."""

    __slots__ = ("below", "directory", "url")

    def __init__(self) -> None:
        self.below: dict[bytes, Node] = {}
        self.url: Entry | None = None
        self.directory: Entry | None = None


class MergingQueue:
    """In place of a `PriorityQueue`: priority 9 first, then first come, first served, and merged.

    What comes out of `take` has in `followers` what it satisfies. The length counts all exchanges.
    """

    def __init__(self) -> None:
        self._queue: PriorityQueue[Entry] = PriorityQueue()
        self._trees = {False: Node(), True: Node()}
        self._others: dict[Key, Entry] = {}
        """What stands in no tree."""
        self._drop: Entry | None = None
        self._number = 0
        self._size = 0
        self._entries = 0

    def __len__(self) -> int:
        return self._size

    def put(self, exchange: Exchange, priority: int) -> None:
        """Adds an exchange: it joins an entry that satisfies it, or becomes one."""
        self._size += 1
        head = exchange.task.head
        if head.type == DROP:
            self._put_drop(exchange, priority)
            return
        if self._drop is not None:
            self._join(self._drop, [exchange], priority)
            return
        path = _path_of(exchange)
        if path is None:
            self._put_same(exchange, priority)
            return
        tree = self._trees[head.force]
        entry = _find(tree, path, head.type == "dir")
        if entry is not None:
            self._join(entry, [exchange], priority)
            return
        entry = self._enter(exchange, priority)
        entry.path = path
        self._place(entry, tree, head.type == "dir")

    def _put_same(self, exchange: Exchange, priority: int) -> None:
        """A pattern or a tag: nothing but the same again is known to be satisfied by it."""
        head = exchange.task.head
        key = (head.type, head.force, exchange.target)
        entry = self._others.get(key)
        if entry is not None:
            self._join(entry, [exchange], priority)
            return
        entry = self._others[key] = self._enter(exchange, priority)
        entry.key = key

    def _put_drop(self, exchange: Exchange, priority: int) -> None:
        if self._drop is not None:
            self._join(self._drop, [exchange], priority)
            return
        before = list(self._live())
        self._trees = {False: Node(), True: Node()}
        self._others = {}
        self._drop = self._enter(exchange, priority)
        # All that waits, whatever it is: nothing is left of the cache.
        self._take_in(self._drop, before)

    def _enter(self, exchange: Exchange, priority: int) -> Entry:
        self._number += 1
        entry = Entry(exchange, priority, self._number)
        self._queue.put(entry, priority)
        self._entries += 1
        return entry

    def _join(self, entry: Entry, exchanges: list[Exchange], priority: int) -> None:
        """More is satisfied by an entry, which goes as soon as any of it would have."""
        entry.followers += exchanges
        if priority > entry.priority:
            self._move(entry, priority)

    def _move(self, entry: Entry, priority: int) -> None:
        """Another place for an entry: at the end of a higher priority. Its old place stays, vacant."""
        fresh = self._enter(entry.exchange, priority)
        fresh.followers, entry.followers = entry.followers, []
        self._replace(entry, fresh)
        self._vacate(entry)

    def _replace(self, entry: Entry, other: Entry) -> None:
        """`other` stands for what `entry` stood for."""
        if self._drop is entry:
            self._drop, other.tree = other, None
            return
        other.tree, other.path, other.key = entry.tree, entry.path, entry.key
        if entry.key is not None:
            self._others[entry.key] = other
        if entry.tree is not None:
            node = _node_at(entry.tree, entry.path)
            if node.url is entry:
                node.url = other
            else:
                node.directory = other

    def _vacate(self, entry: Entry) -> None:
        entry.vacant = True
        entry.tree = None
        self._entries -= 1
        vacant = len(self._queue) - self._entries
        if vacant > VACANT_MIN and vacant > self._entries:
            live = list(self._live())
            self._queue = PriorityQueue()
            for each in live:
                self._queue.put(each, each.priority)

    def _place(self, entry: Entry, tree: Node, is_directory: bool) -> None:
        """Puts an entry that nothing satisfies into its tree; it takes in what it satisfies."""
        entry.tree = tree
        node = _node_at(tree, entry.path)
        if not is_directory:
            node.url = entry
            return
        below, node.below = node.below, {}
        node.directory = entry
        if below:
            self._take_in(entry, list(_all_of(below)))

    def _take_in(self, entry: Entry, others: list[Entry]) -> None:
        """`entry` stands where the first of all these stood."""
        if not others:
            return
        first = min([entry, *others], key=lambda each: (-each.priority, each.number))
        followers = entry.followers
        for other in others:
            followers.append(other.exchange)
            followers += other.followers
            other.followers = []
        if first is not entry:
            # The place is the other's, what stands there is ours.
            first.exchange, first.followers = entry.exchange, followers
            entry.followers = []
            self._replace(entry, first)
        for each in [entry, *others]:
            if each is not first:
                self._vacate(each)

    def satisfying(self, task_type: str, target: bytes, *, force: bool) -> Exchange | None:
        """What is queued and would do what such a refresh asks for; None if that would be sent itself."""
        if self._drop is not None:
            return self._drop.exchange
        path = _path_to(task_type, target)
        entry = None if path is None else _find(self._trees[force], path, task_type == "dir")
        return None if entry is None else entry.exchange

    def take(self, count: int) -> list[Exchange]:
        """Removes and returns the first that are to be sent, at most `count`."""
        return [exchange for exchange, _ in self.take_placed(count)]

    def take_placed(self, count: int) -> list[tuple[Exchange, int]]:
        """As `take`, each with the priority that it went by."""
        taken: list[tuple[Exchange, int]] = []
        while len(taken) < count and (entries := self._queue.take(count - len(taken))):
            for entry in entries:
                if not entry.vacant:
                    taken.append((entry.exchange, entry.priority))
                    self._leave(entry)
        return taken

    def remove(self, fits: Callable[[Exchange], bool]) -> list[Exchange]:
        """Removes and returns all that fits; what was merged into that stands for itself again."""
        removed: list[Exchange] = []
        stay: list[Exchange] = []
        for entry in list(self._live()):
            out = [exchange for exchange in (entry.exchange, *entry.followers) if fits(exchange)]
            if not out:
                continue
            removed += out
            left = [exchange for exchange in entry.followers if not fits(exchange)]
            if out[0] is not entry.exchange:
                self._size -= len(out)
                entry.followers = left
                continue
            self._size -= 1 + len(entry.followers)
            stay += left
            if self._drop is entry:
                self._drop = None
            elif entry.key is not None:
                del self._others[entry.key]
            elif entry.tree is not None:
                _remove(entry.tree, entry)
            self._vacate(entry)
        for exchange in stay:
            self.put(exchange, exchange.task.head.priority)
        return removed

    def _leave(self, entry: Entry) -> None:
        self._entries -= 1
        self._size -= 1 + len(entry.followers)
        if entry.followers:
            entry.exchange.followers = entry.followers
        if self._drop is entry:
            self._drop = None
        elif entry.key is not None:
            del self._others[entry.key]
        elif entry.tree is not None:
            _remove(entry.tree, entry)

    def _live(self) -> Iterator[Entry]:
        return (entry for entry in self._queue if not entry.vacant)

    def __iter__(self) -> Iterator[Exchange]:
        """All that waits, first what goes first, each followed by what it satisfies."""
        for entry in self._live():
            yield entry.exchange
            yield from entry.followers

    def __repr__(self) -> str:
        return f"<MergingQueue {self._entries} to be sent for {self._size}>"


def _path_of(exchange: Exchange) -> list[bytes] | None:
    return _path_to(exchange.task.head.type, exchange.target)


def _path_to(task_type: str, target: bytes) -> list[bytes] | None:
    """Where in the tree a refresh belongs; None if it belongs to no tree."""
    if task_type not in ("url", "dir"):
        return None
    try:
        host, path = split_target(target)
    except BadTarget:
        return None
    # A directory ends in a slash: nothing stands behind that.
    parts = path.split(b"/")[1 : -1 if task_type == "dir" else None]
    return [host.lower(), *parts]


def _find(tree: Node, path: list[bytes], is_directory: bool) -> Entry | None:
    """The entry that satisfies what belongs at `path`."""
    node = tree
    last = len(path) - 1
    for depth, part in enumerate(path):
        below = node.below.get(part)
        if below is None:
            return None
        node = below
        # The URL /a does not lie under the directory /a/.
        if node.directory is not None and (depth < last or is_directory):
            return node.directory
    return None if is_directory else node.url


def _node_at(tree: Node, path: list[bytes]) -> Node:
    """The node, which is made if it is missing."""
    node = tree
    for part in path:
        below = node.below.get(part)
        if below is None:
            below = node.below[part] = Node()
        node = below
    return node


def _all_of(below: dict[bytes, Node]) -> Iterator[Entry]:
    """All entries of a part of a tree. A path may be as deep as it is long, so this does not call itself."""
    nodes = list(below.values())
    while nodes:
        node = nodes.pop()
        nodes += node.below.values()
        if node.url is not None:
            yield node.url
        if node.directory is not None:
            yield node.directory


def _remove(tree: Node, entry: Entry) -> None:
    """Takes an entry out of its tree, and the branches that bear nothing any more."""
    nodes = [tree]
    for part in entry.path:
        nodes.append(nodes[-1].below[part])
    leaf = nodes[-1]
    if leaf.url is entry:
        leaf.url = None
    else:
        leaf.directory = None
    for depth in range(len(entry.path), 0, -1):
        node = nodes[depth]
        if node.below or node.url is not None or node.directory is not None:
            return
        del nodes[depth - 1].below[entry.path[depth - 1]]
