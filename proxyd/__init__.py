"""proxyd, the agent at a point of presence: acts on the caches there and reports to the engines.

What a task's way through it is, file by file:

    links.py ── session.py ──► dispatch.py ──► lanes.py ──► pipeline.py ──► cache
      ▲   (lines, PROTOCOL)     (targets.py,    (queues.py)   (blame.py)       │
      └────── outbox.py ◄────── tasks.py) ◄────────────────────────────────────┘

What each kind of cache is asked, and how its answers are judged, stands in caches/.
"""
