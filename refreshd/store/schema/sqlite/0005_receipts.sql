-- What proxies signed of tasks (wire/receipts.py). Whoever checks the signature finds a flipped bit, so there is no
-- CRC. The rows lie in order of `serial`, as do all that are written per task; the key is another tree, of small
-- rows. Only a table is added, as a worker of the version before may have the file open while this is run.
CREATE TABLE receipt (
    serial INTEGER NOT NULL,
    proxy  TEXT NOT NULL,
    body   BLOB NOT NULL,
    PRIMARY KEY (serial, proxy)
);
