"""The schema in a database: made once, by whoever comes first; never by an older version."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from refreshd.errors import StoreDamaged, StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.store import mysql_schema
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_schema import migrate, statements
from tests.refreshd.store.making import a_batch
from tests.refreshd.store.mysql_tools import Site
from tools.servers import MariaDb

pytestmark = pytest.mark.needs("mariadbd")


def works(url: MysqlUrl) -> bool:
    site = Site(url)
    site.lane(site.join()).commit(a_batch(b"t"))
    kept = site.content(1) == ({1: b"t"}, {1})
    versions = site.ask("SELECT number FROM schema_version") == [(1,), (2,), (3,)]
    site.close()
    return kept and versions


def test_several_processes_that_start_at_once(new_database: MysqlUrl) -> None:
    code = (
        "import sys, msgspec; from refreshd.mysql_url import MysqlUrl;"
        "from refreshd.store.mysql_schema import migrate;"
        "url = msgspec.json.decode(sys.argv[1], type=MysqlUrl);"
        "print('here', flush=True); sys.stdin.readline(); migrate(url)"
    )
    command = [sys.executable, "-W", "error", "-c", code, msgspec.json.encode(new_database).decode()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert works(new_database)


def test_one_that_was_killed_amid_a_migration(
    new_database: MysqlUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had done; the next one goes through all of it."""
    whole = list(statements((mysql_schema.resources.files("refreshd.store") / _FILE).read_text()))
    for cut in range(1, len(whole)):
        monkeypatch.setattr(
            mysql_schema, "statements", lambda _, cut=cut: [*whole[:cut], "KILL CONNECTION_ID()"]
        )
        with pytest.raises(StoreUnavailable):
            migrate(new_database)
    monkeypatch.undo()
    migrate(new_database)
    migrate(new_database)
    assert works(new_database)


_FILE = "schema/mysql/0001_initial.sql"


def test_a_statement_that_fails_is_no_version(
    new_database: MysqlUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_schema, "statements", lambda _: ["CREATE NONSENSE"])
    with pytest.raises(StoreFailed, match="NONSENSE"):
        migrate(new_database)
    monkeypatch.undo()
    migrate(new_database)
    assert works(new_database)


def test_a_database_of_a_newer_version(database: MysqlUrl) -> None:
    session = Session(database)
    session.query(b"INSERT INTO schema_version (number) VALUES (4)")
    try:
        with pytest.raises(StoreDamaged, match="has schema 4, this version knows 3; run a newer refreshd"):
            migrate(database)
    finally:
        session.query(b"DELETE FROM schema_version WHERE number = 4")
        session.drop()


def test_once_it_is_up_to_date_no_rights_to_change_it_are_needed(
    database: MysqlUrl, mariadb: MariaDb
) -> None:
    mariadb.query("CREATE USER IF NOT EXISTS reader@'%' IDENTIFIED BY 'r'")
    mariadb.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database.database}`.* TO reader@'%'")
    migrate(msgspec.structs.replace(database, user="reader", password="r"))


def test_who_may_not_make_tables_is_told_so(new_database: MysqlUrl, mariadb: MariaDb) -> None:
    mariadb.query("CREATE USER IF NOT EXISTS nobody@'%' IDENTIFIED BY 'n'")
    mariadb.query(f"GRANT SELECT ON `{new_database.database}`.* TO nobody@'%'")
    with pytest.raises(StoreUnavailable, match="CREATE command denied"):
        migrate(msgspec.structs.replace(new_database, user="nobody", password="n"))


def test_one_that_is_at_it_is_waited_for_but_not_for_ever(
    new_database: MysqlUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_schema, "LOCK_TIMEOUT_S", 0)
    holder = Session(new_database)
    mysql_schema._lock(holder)
    with pytest.raises(StoreUnavailable, match="another engine has been changing the schema"):
        migrate(new_database)
    holder.drop()
    monkeypatch.undo()
    migrate(new_database)
    assert works(new_database)


def test_a_migration_that_ends_amid_a_statement_is_a_fault_of_ours() -> None:
    assert list(statements("-- a; b\nCREATE x\n  (y);\n\nDROP z;\n")) == ["CREATE x\n  (y)", "DROP z"]
    with pytest.raises(ValueError, match="ends amid"):
        list(statements("CREATE x"))
