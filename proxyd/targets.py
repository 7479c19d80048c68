"""A target as a cache must see it: Host and path, byte for byte.

A cache's key is bytes, so nothing here decodes, re-encodes or normalises. What
cannot stand in a request line, or never reaches a cache, is refused.
"""

from __future__ import annotations

import re

from proxyd.errors import BadTarget
from wire.patterns import pattern_fault

# Varnish takes 32 KiB of request and Traffic Server 64 KiB by default, headers
# included; no client sends a URL this long. With the pipeline's depth it bounds
# what one connection buffers.
TARGET_MAX_BYTES = 16 * 1024
TAG_MAX_BYTES = 256

# Authority and path of an absolute URL. "#" (0x23) is left out: a fragment never
# reaches a cache. One match both checks and cuts: 0.5 µs for 60 bytes.
_TARGET = re.compile(
    rb"https?://((?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?)([/?][!\"$-~]*)?"
).fullmatch


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Cuts a target into (Host, path with query). An empty path becomes `/`, as RFC 9112, 3.2.1 has it.

    http and https mean the same here: caches keep one object for both.
    Raises: BadTarget.
    """
    match = _TARGET(target)
    if match is None or len(target) > TARGET_MAX_BYTES:
        raise BadTarget(_explain(target))
    host, path = match.groups()
    if not path:
        return host, b"/"
    return host, path if path[0] == 0x2F else b"/" + path


def split_directory(target: bytes) -> tuple[bytes, bytes]:
    """Like `split_target`, for a prefix that must end in `/`. Raises: BadTarget."""
    if not target.endswith(b"/"):
        raise BadTarget("a directory ends in /")
    return split_target(target)


def split_pattern(target: bytes) -> tuple[bytes, bytes]:
    """Host and pattern of a `regex` target: all that follows the host. Raises: BadTarget."""
    # Anything may stand in a pattern that may stand in a line: a #, too, which no URL has.
    host, _ = split_target(target.replace(b"#", b"."))
    pattern = target.split(b"://", 1)[1][len(host) :]
    fault = pattern_fault(pattern.decode("ascii"))
    if fault is None and not pattern.startswith(b"/"):
        fault = "the pattern begins with the / of the path"
    if fault is not None:
        raise BadTarget(fault)
    return host, pattern


def split_tag(target: bytes) -> tuple[bytes, bytes]:
    """A host for a request that is of none, and the tag. Raises: BadTarget."""
    if not 0 < len(target) <= TAG_MAX_BYTES or any(not 0x21 <= byte <= 0x7E for byte in target):
        raise BadTarget(f"a tag has 1 to {TAG_MAX_BYTES} of the bytes 0x21 to 0x7e")
    return b"localhost", target


TARGET_OF_DROP = b""
"""A drop of the whole cache is of no URL."""


def split_drop(target: bytes) -> tuple[bytes, bytes]:
    """Host and path of a request that is about neither. Raises: BadTarget."""
    if target != TARGET_OF_DROP:
        raise BadTarget("a drop of the whole cache has no target")
    return b"localhost", b"/"


def _explain(target: bytes) -> str:
    if len(target) > TARGET_MAX_BYTES:
        return f"{len(target)} bytes long; at most {TARGET_MAX_BYTES} reach a cache"
    if not target.startswith((b"http://", b"https://")):
        return "not an absolute http:// or https:// URL"
    if any(not 0x21 <= byte <= 0x7E for byte in target):
        return "only the bytes 0x21 to 0x7e may stand in a URL; percent-encode the others"
    if b"#" in target:
        return "a fragment (#…) never reaches a cache; leave it out"
    return "its authority is not a host with an optional port"
