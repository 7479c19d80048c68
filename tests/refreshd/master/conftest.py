"""Engines with fake workers for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.refreshd.master.driver import Engine, MakeEngine


@pytest.fixture
def make_engine(tmp_path: Path) -> Iterator[MakeEngine]:
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(tmp_path, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.__exit__()


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine().start_up()
