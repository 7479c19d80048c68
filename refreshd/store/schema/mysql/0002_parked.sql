-- Unfinished tasks that are not in their engine's memory: they only wait for proxies that are away. A row may
-- outlive its task's stay here (what is in memory again keeps it until it ends); after a kill it holds. It belongs
-- to whoever owns the task.
CREATE TABLE IF NOT EXISTS parked (
    serial      BIGINT NOT NULL PRIMARY KEY,
    grp         BIGINT NOT NULL,
    layer       SMALLINT UNSIGNED NOT NULL,
    priority    TINYINT UNSIGNED NOT NULL,
    mask        BLOB NOT NULL,
    deadline_ms BIGINT NOT NULL,
    updated_ms  BIGINT NOT NULL,
    state       TINYINT UNSIGNED NOT NULL,
    failed      INT UNSIGNED NOT NULL,
    marks       MEDIUMBLOB,
    KEY of_group (grp, serial),
    KEY by_deadline (deadline_ms)
) ENGINE=InnoDB;
