"""What `--json` prints of values and errors: keys are the names on the wire."""

from __future__ import annotations

from typing import Any

import msgspec

from wire.errors import Refused, TimedOut, WireError


def document(value: msgspec.Struct) -> dict[str, Any]:
    """A value's fields by name; those without a value are left out."""
    return {key: item for key, item in msgspec.structs.asdict(value).items() if item is not None}


def error_document(error: Exception) -> dict[str, Any]:
    """An error's code (of the protocol, or what stands for it) and message."""
    if isinstance(error, Refused):
        found = {"code": error.code, "msg": error.msg, "field": error.field, "ref": error.ref}
        return {key: item for key, item in found.items() if item is not None}
    if isinstance(error, TimedOut):
        return {"code": "timed_out", "msg": str(error)}
    return {"code": "unreachable" if isinstance(error, WireError) else "usage", "msg": str(error)}
