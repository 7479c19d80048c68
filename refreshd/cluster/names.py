"""What the keys in Redis are called, and the channel.

All are under one hash tag, so that they lie in one slot of a Redis Cluster and a
script may touch several of them.
"""

from __future__ import annotations

from wire.fields import read_id


class Names:
    """The names of one cluster of engines; several may share a Redis."""

    __slots__ = ("cluster", "engines", "leader", "memory", "news", "prefix")

    def __init__(self, cluster: str) -> None:
        """Raises: ValueError unless `cluster` is 1 to 64 of A-Za-z0-9._:-."""
        try:
            self.cluster = read_id(cluster)
        except ValueError:
            raise ValueError(
                f"{cluster[:80]!r} is not a cluster's name; wanted 1 to 64 of A-Za-z0-9._:-"
            ) from None
        self.prefix = f"refreshd:{{{cluster}}}:"
        self.engines = self.prefix + "engines"
        """A sorted set: ids of engines by when their leases end. Says where to look, not who lives."""
        self.leader = self.prefix + "leader"
        """Who leads, see `election`."""
        self.memory = self.prefix + "memory"
        """A word that Redis forgets when it forgets anything, see `registry`."""
        self.news = self.prefix + "news"
        """The channel on which engines tell each other to look at once."""

    def engine(self, engine_id: str) -> str:
        """The lease of one engine."""
        return f"{self.prefix}engine:{engine_id}"

    def __repr__(self) -> str:
        return f"<Names {self.prefix}>"
