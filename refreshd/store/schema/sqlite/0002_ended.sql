-- What has ended and may not be in `finished` yet: after a kill, only this is looked through,
-- not all that has ended since `low`. See store/sqlite_journal.py. Only a table is added, as
-- a worker of the version before may have the file open while this is run.
CREATE TABLE ended (
    n       INTEGER PRIMARY KEY,
    slot    INTEGER NOT NULL,
    writer  INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    serials BLOB NOT NULL
);

-- In `meta`, `from SLOT of SLOTS` takes the place of `low SLOT of SLOTS`: every task with a
-- smaller serial that this worker owns is finished, and in `finished` or in `ended`, or is a straggler.
