"""Two tiers of caches under readers while what they hold changes: is anything stale once a task is complete?

`python -m tools.tiers`: a Traffic Server behind a Varnish, an agent beside each, one engine.
"""
