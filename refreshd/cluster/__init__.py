"""What engines share in Redis: leases, the registry, the election of a leader, and take-over.

Nothing here is the only copy of anything. Redis may lose all of it at any moment;
it is made anew within one lease. Who owns a task, and whose word counts, is in SQL
(`truth.Truth`): an engine that Redis wrongly declares dead changes nothing any
more, but nothing is lost either.

    clock, names, lease, election, takeover   pure: what to do
    client, scripts, registry, seat, news     what is said to Redis
    acts                                      what is said to SQL
    coordinator                               worker 0 of an engine runs it
    watcher                                   every other worker reads along
    quotas                                    what keys have used, at all engines
"""
