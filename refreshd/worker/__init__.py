"""What runs in a worker: one uvloop, its shards, nobody else's."""
