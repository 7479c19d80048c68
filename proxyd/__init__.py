"""proxyd, the agent at a point of presence: acts on the caches there and reports to the engines.

What a task's way through it is, file by file:

    link.py ── session.py ──► dispatch.py ──► pipeline.py ──► connection.py ──► cache
      ▲  (PROTOCOL)            (targets.py,    (queues.py)      (blame.py)        │
      └────── outbox.py ◄────── tasks.py) ◄───────────────────────────────────────┘

`links.py`, `engine.py` and `slot.py` keep the connections to the engines up, also to those that engines name
(`roster.py`, `introduce.py`); `agent.py` puts all together. What is not done twice: `scope.py`, `done.py`.
After an absence: `catching_up.py` says when it is over, `marker.py` and `health.py` show it, `merging.py` and
`replay.py` save work and keep order until then.
What each kind of cache is asked, and how its answers are judged, stands in caches/.
"""

__version__ = "0.1.0"
