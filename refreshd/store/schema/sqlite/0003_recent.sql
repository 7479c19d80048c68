-- The upper level of the index of ids, see store/sqlite_index.py. Only a table is added, as
-- a worker of the version before may have the file open while this is run.
CREATE TABLE recent (
    crc    INTEGER NOT NULL,
    id     BLOB NOT NULL,
    serial INTEGER NOT NULL,
    PRIMARY KEY (crc, id)
) WITHOUT ROWID;
