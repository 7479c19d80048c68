-- One lane. Everything that is written per task is appended, in order of `serial`:
-- an index over random ids costs 12 µs a row, appending 2.5 (tools/bench micro).

-- What a scope meant when a task was accepted: `0=pop1,pop2;1=edge1`.
CREATE TABLE plan (
    number INTEGER PRIMARY KEY,
    text   TEXT NOT NULL
);

-- Every task that was acknowledged. `body` is the request line as it came, `body_crc` its
-- CRC-32: SQLite checks its log but not its pages, and a flipped bit must not be purged.
CREATE TABLE task (
    serial   INTEGER PRIMARY KEY,
    id       BLOB NOT NULL,
    plan     INTEGER NOT NULL,
    body     BLOB NOT NULL,
    body_crc INTEGER NOT NULL
);

-- The end of a task; a task without one is unfinished. `marks`: see refreshd/task.py.
CREATE TABLE result (
    serial     INTEGER PRIMARY KEY,
    state      INTEGER NOT NULL,
    done       INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    marks      BLOB
);

-- To list the tasks that did not simply complete (state 2) without walking past those that did.
CREATE INDEX result_not_complete ON result (state, serial) WHERE state <> 2;

-- Id → serial of finished tasks (the others are in memory), written in bulk and in
-- order of the CRC, so that a page takes many entries at a time. See store/ids.py.
CREATE TABLE finished (
    crc    INTEGER NOT NULL,
    id     BLOB NOT NULL,
    serial INTEGER NOT NULL,
    PRIMARY KEY (crc, id)
) WITHOUT ROWID;

-- Proxies that registered without being listed in the configuration.
CREATE TABLE proxy (
    name  TEXT PRIMARY KEY,
    grp   TEXT NOT NULL,
    layer INTEGER NOT NULL
) WITHOUT ROWID;

-- Tasks that were still unfinished long after they were accepted: a few old ones must not
-- make a start look through everything that came after them.
CREATE TABLE straggler (
    serial INTEGER PRIMARY KEY
);

-- `low SLOT of SLOTS`: every task with a smaller serial that this one of the workers
-- that share the lane owns is finished and in `finished`, or is a straggler.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
