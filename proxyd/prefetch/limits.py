"""The bounds of the slow lane, and what it warms of each target."""

from __future__ import annotations

import msgspec

from proxyd.connection import Limits

Variant = tuple[tuple[bytes, bytes], ...]
"""Header names and values, as they are sent."""


class PrefetchLimits(Limits, frozen=True):
    """The bounds of one `PrefetchClient`; 0 is none, where that is said. For the others see `Limits`."""

    per_host: int = 4
    """Requests in flight for one origin host."""
    bytes_per_s: int = 0
    """Of bodies and heads, from this cache; 0: none."""
    host_bytes_per_s: int = 0
    """The same for one origin host; 0: none."""
    range_bytes: int = 0
    """Objects are asked for in ranges of so many bytes; 0: whole."""
    variants: tuple[Variant, ...] = ()
    """Header sets; each is warmed. None: what the request has by itself."""
    skip_hits: bool = True
    playlists: bool = True
    """What a playlist names is warmed, too."""
    playlist_max: int = 10_000
    """How many of them, a target."""
    follow_hosts: bool = False
    """Also of other hosts than the playlist's."""


def as_it_is(limits: PrefetchLimits) -> PrefetchLimits:
    """The limits of a request that is no GET: it is sent as it was configured, its answer is only counted."""
    return msgspec.structs.replace(limits, range_bytes=0, variants=(), skip_hits=False, playlists=False)


def limits_of(limits: Limits) -> PrefetchLimits:
    """Limits of any lane as the slow lane has them: what they do not say is as it is by default."""
    if isinstance(limits, PrefetchLimits):
        return limits
    return PrefetchLimits(**{name: getattr(limits, name) for name in Limits.__struct_fields__})
