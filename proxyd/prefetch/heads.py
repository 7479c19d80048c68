"""What is looked at of an answer: its status and a few of its header fields. Pure."""

from __future__ import annotations

WANTED = frozenset({
    b"cache-status", b"content-encoding", b"content-length", b"content-range", b"content-type",
    b"transfer-encoding", b"vary", b"x-cache", b"x-cache-status", b"x-varnish",
})  # fmt: skip

Fields = dict[bytes, bytes]
"""By names in lower case; a field that stands there twice has both values, with a comma between."""


class Head:
    """The head of one answer."""

    __slots__ = ("fields", "status")

    def __init__(self, status: int, fields: Fields) -> None:
        self.status = status
        self.fields = fields

    @property
    def length(self) -> int | None:
        """How long the body is; None where the head does not say."""
        text = self.fields.get(b"content-length", b"")
        return int(text) if text.isdigit() and b"transfer-encoding" not in self.fields else None

    def __repr__(self) -> str:
        return f"<Head {self.status} {self.fields}>"
