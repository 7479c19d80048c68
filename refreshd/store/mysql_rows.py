"""Many rows in few statements: what the engine's values look like in SQL.

Bytes are written as hex literals, or as they are where nothing in them would have to be
escaped: no escaping to get wrong, safe in any sql_mode.
Numbers are formatted by `%d`, which takes nothing else. Ends go as one JSON text
that holds only numbers and base64, so it can stand between quotes as it is.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated
from zlib import crc32

import msgspec
import structlog

from refreshd.errors import StoreFailed, StoreUnavailable
from refreshd.shard import SERIAL_MAX
from refreshd.store.base import Parked, ReceiptRow, ResultRow, TaskRow

log = structlog.get_logger()

# Ends that go in one statement; fewer where that is longer than a packet.
ENDS_MAX = 4_096
_INSERT_TASKS = b"INSERT INTO task (serial, id, plan, body, body_crc, owner) VALUES "
# Changes nothing of a row whose id (or serial) is there: such a one is not counted as inserted.
_KEEP_TASKS = b" ON DUPLICATE KEY UPDATE serial=task.serial"
_PARK_TASKS = (
    b"REPLACE INTO parked"
    b" (serial, grp, layer, priority, mask, deadline_ms, updated_ms, state, failed, marks) VALUES "
)
_KEEP_RECEIPTS = b"REPLACE INTO receipt (serial, proxy, body) VALUES "
# JSON_TABLE cuts and zeroes what does not fit its columns, without a word. So they are wider than those of
# `task`, which do complain, and what is put in is checked before (`_Ends`).
_END_TASKS = (
    b"UPDATE JSON_TABLE('%b', '$[*]' COLUMNS ("
    b"serial BIGINT PATH '$[0]', state BIGINT PATH '$[1]', done BIGINT PATH '$[2]',"
    b" failed BIGINT PATH '$[3]', updated_ms BIGINT PATH '$[4]', marks LONGTEXT PATH '$[5]')) AS ended"
    b" STRAIGHT_JOIN task ON task.serial = ended.serial"
    b" SET task.state=ended.state, task.owner=0, task.done=ended.done, task.failed=ended.failed,"
    b" task.updated_ms=ended.updated_ms, task.marks=FROM_BASE64(ended.marks)"
    b" WHERE task.owner IN (0,%d)"
)

_Serial = Annotated[int, msgspec.Meta(ge=0, le=SERIAL_MAX)]
_State = Annotated[int, msgspec.Meta(ge=1, le=255)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_Marks = Annotated[bytes, msgspec.Meta(max_length=(1 << 24) - 1)]
_Ends = list[tuple[_Serial, _State, _Count, _Count, _Serial, _Marks | None]]


def hexed(value: bytes) -> bytes:
    """A hex literal."""
    return b"x'%b'" % hexlify(value)


def numbers(values: Iterable[int]) -> bytes:
    """What stands in `IN (…)`."""
    return ",".join(map(str, values)).encode()


def insert_tasks(tasks: Sequence[TaskRow], owner: int, packet_bytes: int) -> Iterator[bytes]:
    """Statements that write tasks whose ids are new; each at most `packet_bytes`.

    Raises: StoreUnavailable for a task that does not fit in a packet.
    """
    end = b",%d)" % owner
    if _is_plain(b"".join([part for row in tasks for part in row[1::2]])):
        rows = [
            b"(%d,'%b',%d,'%b',%d%b" % (serial, task_id, plan, body, crc32(body), end)
            for serial, task_id, plan, body in tasks
        ]
    else:
        rows = [
            b"(%d,x'%b',%d,x'%b',%d%b" % (serial, hexlify(task_id), plan, hexlify(body), crc32(body), end)
            for serial, task_id, plan, body in tasks
        ]
    room = packet_bytes - len(_INSERT_TASKS) - len(_KEEP_TASKS)
    for some in _fitting(rows, room):
        yield b"%b%b%b" % (_INSERT_TASKS, b",".join(some), _KEEP_TASKS)


def _is_plain(text: bytes) -> bool:
    """Whether it may stand between quotes as it is, in any sql_mode: ASCII with nothing to escape.

    Nearly all requests are like that, so a whole commit is looked at: as hex, a row is twice as long.
    """
    return text.isascii() and not (b"'" in text or b"\\" in text or b"\0" in text)


def _fitting(rows: list[bytes], room: int) -> Iterator[list[bytes]]:
    """The rows in pieces that, with commas, are at most `room` bytes each."""
    if sum(map(len, rows)) + len(rows) <= room:
        if rows:
            yield rows
        return
    some: list[bytes] = []
    left = room
    for row in rows:
        if len(row) >= room:
            raise StoreUnavailable(
                f"a row of {len(row):,} bytes does not fit in a packet of {room:,}; "
                "raise the database's max_allowed_packet"
            )
        if len(row) >= left:
            yield some
            some, left = [], room
        some.append(row)
        left -= len(row) + 1
    yield some


def park_tasks(parked: Sequence[Parked], packet_bytes: int) -> Iterator[bytes]:
    """Statements that write how far parked tasks have come; each at most `packet_bytes`.

    Raises: StoreUnavailable for a row that does not fit in a packet.
    """
    rows = [
        b"(%d,%d,%d,%d,%b,%d,%d,%d,%d,%b)"
        % (*row[:4], hexed(row.mask), *row[5:9], b"NULL" if row.marks is None else hexed(row.marks))
        for row in parked
    ]
    for some in _fitting(rows, packet_bytes - len(_PARK_TASKS)):
        yield _PARK_TASKS + b",".join(some)


def unpark_tasks(serials: Sequence[int]) -> Iterator[bytes]:
    """Statements that take out tasks that have ended, parked or not."""
    for at in range(0, len(serials), ENDS_MAX):
        yield b"DELETE FROM parked WHERE serial IN (%b)" % numbers(serials[at : at + ENDS_MAX])


def keep_receipts(receipts: Sequence[ReceiptRow], packet_bytes: int) -> Iterator[bytes]:
    """Statements that write receipts; each at most `packet_bytes`.

    One that fits in no packet is left out, with a word in the log: it must not keep tasks from ending.
    """
    room = packet_bytes - len(_KEEP_RECEIPTS)
    rows = []
    for receipt in receipts:
        row = b"(%d,%b,%b)" % (receipt.serial, hexed(receipt.proxy.encode()), hexed(receipt.text))
        if len(row) < room:
            rows.append(row)
        else:
            log.warning(
                "a receipt is left out: it does not fit in a packet; raise the database's max_allowed_packet",
                proxy=receipt.proxy,
                bytes=len(row),
                room=room,
            )
    for some in _fitting(rows, room):
        yield _KEEP_RECEIPTS + b",".join(some)


def end_tasks(results: Sequence[ResultRow], owner: int, packet_bytes: int) -> Iterator[bytes]:
    """Statements that end tasks, also those that have the same end already; each at most `packet_bytes`.

    Raises: StoreFailed for a value that its column does not hold; StoreUnavailable
    for an end that does not fit in a packet.
    """
    try:
        # bytes: or else text would be taken for base64.
        msgspec.convert(results, _Ends, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise StoreFailed(f"the end of a task cannot be kept: {error}") from error
    for at in range(0, len(results), ENDS_MAX):
        yield from _end_some(results[at : at + ENDS_MAX], owner, packet_bytes)


def _end_some(results: Sequence[ResultRow], owner: int, packet_bytes: int) -> Iterator[bytes]:
    statement = _END_TASKS % (msgspec.json.encode(results), owner)
    if len(statement) <= packet_bytes:
        yield statement
        return
    if len(results) == 1:
        raise StoreUnavailable(
            f"the end of task {results[0][0]} does not fit in a packet of {packet_bytes:,} bytes; "
            "raise the database's max_allowed_packet"
        )
    half = len(results) // 2
    yield from _end_some(results[:half], owner, packet_bytes)
    yield from _end_some(results[half:], owner, packet_bytes)


def packets(statements: Iterable[bytes], packet_bytes: int) -> Iterator[list[bytes]]:
    """Statements, as many at a time as one packet holds."""
    some: list[bytes] = []
    # As long as START TRANSACTION, which may be put before them.
    used = 32
    for statement in statements:
        if some and used + len(statement) + 1 > packet_bytes:
            yield some
            some, used = [], 0
        some.append(statement)
        used += len(statement) + 1
    if some:
        yield some
