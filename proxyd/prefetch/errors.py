"""What can be wrong with a playlist."""

from __future__ import annotations


class BadPlaylist(Exception):
    """What came cannot be read as a playlist; the text says why."""
