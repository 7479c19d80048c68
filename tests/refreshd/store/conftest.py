"""What the store's tests share."""

from tests.mysql_fixtures import (
    _made_database,
    database,
    mariadb,
    mariadb_template,
    new_database,
    own_mariadb,
)

__all__ = ["_made_database", "database", "mariadb", "mariadb_template", "new_database", "own_mariadb"]
