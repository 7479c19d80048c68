"""The small figures that comments in the code rest on."""

from __future__ import annotations

import re
import sqlite3
import time
import timeit
import uuid
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from refreshd.limits import Book, Limits, Page, Usage
from refreshd.task import read_terms
from tools.bench.lines import LINE_BYTES, id_of, post_lines
from tools.bench.report import Row
from tools.bench.rig import folder
from wire.fields import is_one_plain_url
from wire.heads import HeadTable
from wire.lines import is_plain, parse

_APPEND = "CREATE TABLE task (serial INTEGER PRIMARY KEY, id BLOB, plan INTEGER, body BLOB)"
_INDEX = "CREATE UNIQUE INDEX task_id ON task (id)"
_BATCHES = (1, 32, 512)
# How many: quick, in full.
ROWS = (20_480, 204_800)
# At least so long for each of three rounds of a small figure.
REPEAT_S = 0.2
# What `is_plain` and `is_one_plain_url` would be with a regular expression.
_PLAIN = re.compile(rb"[\n\x20-\x5b\x5d-\x7e]*").fullmatch
_URL = re.compile(rb"https?://[!\"$-~]+").fullmatch


def run(quick: bool) -> list[Row]:
    """Reading a line, checking a quota, and appending a row."""
    return [*_reading(), *_quotas(), *_appending(ROWS[not quick])]


def _reading() -> list[Row]:
    lines = post_lines(64, 1)[0]
    chunk = b"".join(lines)
    line = lines[0][:-1]
    heads = HeadTable("post_task", read_terms)
    targets = line.partition(b" -- ")[2]
    task_id = id_of(line)
    return [
        _timed("is_plain, a line (64 at a time)", lambda: is_plain(chunk), 64),
        _timed("the same by a regular expression", lambda: _PLAIN(chunk), 64),
        _timed("HeadTable.cut, a line", lambda: heads.cut(line)),
        _timed("wire.lines.parse, the same line", lambda: parse(line)),
        _timed("split and partition, the same line", lambda: _split(line)),
        _timed("is_one_plain_url, its target", lambda: is_one_plain_url(targets)),
        _timed("the same by a regular expression over each byte", lambda: _URL(targets)),
        _timed("zlib.crc32 of its id", lambda: crc32(task_id)),
    ]


def _split(line: bytes) -> tuple[dict[str, str], list[str]]:
    """The plain way to read a line, unchecked."""
    front, _, targets = line.decode().partition(" -- ")
    fields: dict[str, str] = {}
    for part in front.split(" ")[1:]:
        key, _, value = part.partition("=")
        fields[key] = value
    return fields, targets.split(" ")


def _timed(name: str, call: Callable[[], object], operations: int = 1) -> Row:
    timer = timeit.Timer(call, timer=time.process_time)
    number = 100
    while (best := min(timer.repeat(3, number))) < REPEAT_S:
        number *= 4
    return Row(f"micro: {name}", round(best / number / operations * 1e6, 3), "µs")


def _quotas() -> list[Row]:
    """With all kinds of limits, of which much is left."""
    rows: list[Row] = []
    for workers in (2, 8):
        page = Page()
        books = [Book(page, 2 * slot) for slot in range(workers)]
        usage = books[0].usage("acme")
        usage.configure(Limits(10**10, 10**7, 10**9, (10**12,) * 5))
        for number in (64, 1):
            call = _checks(usage, number)
            name = f"quota check, {number} a ms, {workers} workers"
            rows.append(_timed(name, call, number))
    return rows


def _checks(usage: Usage, number: int) -> Callable[[], None]:
    """So many tasks in a millisecond."""
    now_ms, wall_ms = 0, time.time_ns() // 1_000_000

    def check() -> None:
        nonlocal now_ms
        now_ms += 1
        for _ in range(number):
            usage.take(0, 1, now_ms, wall_ms)

    return check


def _appending(number: int) -> list[Row]:
    rows: list[Row] = []
    for name, schema in (("append", [_APPEND]), ("unique index over random ids", [_APPEND, _INDEX])):
        for batch in _BATCHES:
            # A commit of one row is mostly the sync: a few of them tell.
            rows.append(_sqlite(name, schema, number if batch > 1 else max(number // 50, 1), batch))
    return rows


def _sqlite(name: str, schema: list[str], number: int, batch: int) -> Row:
    """WAL, synchronous=FULL, one statement a commit; the CPU includes the kernel's share of the sync."""
    number -= number % batch
    body = b"x" * LINE_BYTES
    rows = [(serial, uuid.uuid4().hex.encode(), 7, body) for serial in range(number)]
    batches = [[value for row in rows[at : at + batch] for value in row] for at in range(0, number, batch)]
    insert = f"INSERT INTO task VALUES {','.join(['(?,?,?,?)'] * batch)}"  # noqa: S608 (only marks)
    with folder() as where:
        db = _open(where / "micro.db", schema)
        began, wall = time.process_time(), time.perf_counter()
        for values in batches:
            db.execute(insert, values)
        used, elapsed = time.process_time() - began, time.perf_counter() - wall
        db.close()
    extra = {"ms_a_commit": round(elapsed / len(batches) * 1000, 2)}
    title = f"micro: SQLite, {name}, {batch} rows a commit, {number:,} rows"
    return Row(title, round(used / number * 1e6, 2), "µs a row", extra=extra)


def _open(path: Path, schema: list[str]) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536"):
        db.execute(f"PRAGMA {pragma}")
    for statement in schema:
        db.execute(statement)
    return db
