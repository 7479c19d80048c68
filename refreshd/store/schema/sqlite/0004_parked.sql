-- Unfinished tasks that are not in memory: they only wait for proxies that are away. A row may outlive
-- its task's stay here (what is in memory again keeps it until it ends); after a kill it holds. Only
-- a table is added, as a worker of the version before may have the file open while this is run.
CREATE TABLE parked (
    serial      INTEGER PRIMARY KEY,
    grp         INTEGER NOT NULL,
    layer       INTEGER NOT NULL,
    priority    INTEGER NOT NULL,
    mask        BLOB NOT NULL,
    deadline_ms INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    state       INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    marks       BLOB
);

-- What waits for the same proxies, in order: appended to, and read when one of them is back.
CREATE INDEX parked_group ON parked (grp, serial);

-- What expires next.
CREATE INDEX parked_deadline ON parked (deadline_ms);
