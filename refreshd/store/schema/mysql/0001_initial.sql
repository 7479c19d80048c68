-- One database for all engines and lanes. A statement ends at a `;` at the end of a line. A statement
-- commits as it runs, so each can be run again: a migration that was killed is begun anew.

-- The engines there have been. `number` is what `owner` in `task` says. Who has `alive` = 0 was
-- fenced: its tasks are given to others, and nothing more is taken from it under its old epoch.
CREATE TABLE IF NOT EXISTS engine (
    number TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    name   VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL UNIQUE,
    epoch  BIGINT UNSIGNED NOT NULL,
    alive  TINYINT UNSIGNED NOT NULL
) ENGINE=InnoDB;

-- One row: who leads. Whoever wins an election raises the epoch; also the lock under which engines and hand-outs change.
CREATE TABLE IF NOT EXISTS cluster (
    one          TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    leader_epoch BIGINT UNSIGNED NOT NULL,
    leader       TINYINT UNSIGNED NOT NULL
) ENGINE=InnoDB;
INSERT IGNORE INTO cluster VALUES (1, 0, 0);

-- What was given to an engine that it does not know of: its unfinished tasks with serials from `first_serial` to `last_serial`.
CREATE TABLE IF NOT EXISTS handout (
    id           BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    owner        TINYINT UNSIGNED NOT NULL,
    first_serial BIGINT NOT NULL,
    last_serial  BIGINT NOT NULL,
    at_ms        BIGINT NOT NULL,
    KEY of_owner (owner, id),
    KEY by_age (at_ms)
) ENGINE=InnoDB;

-- What a scope meant when a task was accepted: `0=pop1,pop2;1=edge1`.
CREATE TABLE IF NOT EXISTS plan (
    number BIGINT NOT NULL PRIMARY KEY,
    text   MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL
) ENGINE=InnoDB;

-- Every task that was acknowledged. `body` is the request line as it came, `body_crc` its CRC-32 as the engine
-- worked it out. `state` 0: unfinished, and `owner` the engine whose task it is; else its end (see refreshd/task.py
-- for the numbers and for `marks`), and `owner` 0.
CREATE TABLE IF NOT EXISTS task (
    serial     BIGINT NOT NULL PRIMARY KEY,
    id         VARBINARY(64) NOT NULL,
    owner      TINYINT UNSIGNED NOT NULL,
    plan       BIGINT NOT NULL,
    body       MEDIUMBLOB NOT NULL,
    body_crc   INT UNSIGNED NOT NULL,
    state      TINYINT UNSIGNED NOT NULL DEFAULT 0,
    done       INT UNSIGNED NOT NULL DEFAULT 0,
    failed     INT UNSIGNED NOT NULL DEFAULT 0,
    updated_ms BIGINT NOT NULL DEFAULT 0,
    marks      MEDIUMBLOB,
    shard      TINYINT UNSIGNED GENERATED ALWAYS AS (CRC32(id) % 64) STORED,
    UNIQUE KEY by_id (id),
    KEY by_state (state, owner, serial, shard)
) ENGINE=InnoDB;

-- Proxies that registered without being listed in the configuration.
CREATE TABLE IF NOT EXISTS proxy (
    name  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    grp   VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    layer TINYINT UNSIGNED NOT NULL
) ENGINE=InnoDB;

-- One row: what engines sign their greetings with when they ask each other about tasks.
CREATE TABLE IF NOT EXISTS peers (
    one    TINYINT UNSIGNED NOT NULL PRIMARY KEY,
    secret VARBINARY(64) NOT NULL
) ENGINE=InnoDB;
