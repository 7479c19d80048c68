"""The small figures that comments in the code rest on."""

from __future__ import annotations

import sqlite3
import timeit
import uuid
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from refreshd.task import read_terms
from tools.bench.load import post_lines
from tools.bench.report import Row
from tools.bench.rig import Cpu, Folder
from wire.fields import is_one_plain_url
from wire.heads import HeadTable
from wire.lines import is_plain, parse

_APPEND = "CREATE TABLE task (serial INTEGER PRIMARY KEY, id BLOB, plan INTEGER, body BLOB)"
_INDEX = "CREATE UNIQUE INDEX task_id ON task (id)"


def run(quick: bool) -> list[Row]:
    """Parsing, and appending to SQLite."""
    lines = post_lines(64, 1)[0]
    chunk = b"".join(lines)
    line = lines[0][:-1]
    heads = HeadTable("post_task", read_terms)
    targets = line.partition(b" -- ")[2]
    task_id = line[18:50]
    rows = [
        _timed("wire.lines.is_plain, a line of 64", lambda: is_plain(chunk), 64),
        _timed("HeadTable.cut", lambda: heads.cut(line)),
        _timed("wire.lines.parse", lambda: parse(line)),
        _timed("is_one_plain_url", lambda: is_one_plain_url(targets)),
        _timed("zlib.crc32 of an id", lambda: crc32(task_id)),
    ]
    number = 20_480 if quick else 204_800
    for name, schema in (("append only", [_APPEND]), ("unique index over random ids", [_APPEND, _INDEX])):
        rows += [_sqlite(name, schema, number, batch) for batch in (32, 512)]
    return rows


def _timed(name: str, call: Callable[[], object], operations: int = 1) -> Row:
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return Row(name, "µs", round(min(timer.repeat(3, number)) / number / operations * 1e6, 3))


def _sqlite(name: str, schema: list[str], number: int, batch: int) -> Row:
    body = b"x" * 330
    with Folder() as folder:
        db = sqlite3.connect(Path(folder) / "micro.db", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            "PRAGMA cache_size=-65536",
            *schema,
        ):
            db.execute(statement)
        rows = [(serial, uuid.uuid4().hex.encode(), 7, body) for serial in range(number)]
        insert = f"INSERT INTO task VALUES {','.join(['(?,?,?,?)'] * batch)}"  # noqa: S608 (only marks)
        cpu = Cpu([])
        for at in range(0, number - batch + 1, batch):
            db.execute(insert, [value for row in rows[at : at + batch] for value in row])
        used = cpu.us_per(number)["generator"]
        db.close()
    return Row(f"SQLite, {name}, {batch} rows a commit", "µs a row", used)
