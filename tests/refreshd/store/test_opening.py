"""Which store the configuration names, and how a worker opens it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from refreshd.config import Config, parse
from refreshd.errors import StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.store.base import ALL_SHARDS
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_store import MysqlStore
from refreshd.store.opening import SqliteStore, StoreKind, open_store
from refreshd.store.sqlite import SqliteLane
from tests.refreshd.store.making import a_batch, content_of, end
from tools.servers import MariaDb


def config_of(data: Path, url: str = "sqlite:", name: str = "e1") -> Config:
    config = parse(f'[engine]\ndata = "{data}"\nid = "{name}"\n')
    return msgspec.structs.replace(config, store=msgspec.structs.replace(config.store, url=url))


def test_files_in_the_data_folder(tmp_path: Path) -> None:
    kind: StoreKind = open_store(config_of(tmp_path))
    assert isinstance(kind, SqliteStore)
    assert kind.lanes(3) == 3
    assert kind.lanes(2) == 3, "fixed when it is first used"
    assert kind.join() is None
    with closing(kind.lane(1, 0, [0, 1], ALL_SHARDS)) as lane, closing(kind.reader(1, 3)) as reader:
        assert isinstance(lane, SqliteLane)
        lane.commit(end(a_batch(b"a", b"b"), 1, b"a"))
        assert content_of(reader) == ({1: b"a", 2: b"b"}, {2})
    # A standby does not look for ids at once: its predecessor gives them.
    with closing(kind.lane(1, 0, [0, 1])) as lane:
        assert lane.finished_serial(b"a") is None
    assert (tmp_path / "store" / "lane-1.made").exists()


@pytest.mark.needs("mariadbd")
def test_a_database(tmp_path: Path, database: MysqlUrl, mariadb: MariaDb) -> None:
    one: StoreKind = open_store(config_of(tmp_path, mariadb.url))
    two: StoreKind = open_store(config_of(tmp_path, mariadb.url, "e2"))
    assert isinstance(one, MysqlStore)
    assert (one.lanes(3), one.lanes(0), one.lanes(100)) == (3, 1, 64)
    with pytest.raises(RuntimeError, match="join"):
        one.lane(0, 0, [0])
    members = [shared for shared in (one.join(), two.join()) if shared is not None]
    assert [(member.number, member.epoch) for member in members] == [(1, 1), (2, 1)]
    assert members[0].peers_secret == members[1].peers_secret
    assert len(members[0].peers_secret) == 32
    with closing(one.lane(0, 0, [0], ALL_SHARDS)) as lane, closing(one.reader(0, 1)) as reader:
        assert isinstance(lane, MysqlLane)
        lane.commit(a_batch(b"a"))
        assert content_of(reader) == ({1: b"a"}, {1})
    with closing(two.reader(0, 1)) as reader:
        assert content_of(reader) == ({1: b"a"}, set())
    assert not any(tmp_path.iterdir()), "nothing is in the data folder"


@pytest.mark.needs("mariadbd")
def test_the_longest_request_must_fit_in_a_packet(
    tmp_path: Path, database: MysqlUrl, mariadb: MariaDb
) -> None:
    config = config_of(tmp_path, mariadb.url)
    large = msgspec.structs.replace(config, engine=msgspec.structs.replace(config.engine, line_max=16 << 20))
    with pytest.raises(StoreUnavailable, match=r"packets of 16,777,216 bytes, wanted 33,558,528"):
        open_store(large).join()


@pytest.mark.parametrize("url", ["mysql://u:hush@h", "mysql:", "postgres://u:hush@h/d", ""])
def test_a_url_that_cannot_be_read(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreFailed, match=r"store\.url cannot be used") as caught:
        open_store(config_of(tmp_path, url))
    assert "hush" not in str(caught.value)
