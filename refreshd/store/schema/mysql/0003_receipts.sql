-- What proxies signed of tasks (wire/receipts.py), of all engines; kept for as long as the task is.
CREATE TABLE IF NOT EXISTS receipt (
    serial BIGINT NOT NULL,
    proxy  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    body   MEDIUMBLOB NOT NULL,
    PRIMARY KEY (serial, proxy)
) ENGINE=InnoDB;
