"""Handing everything a worker has to its successor, while both serve. docs/handover.md is the protocol.

frames       what the two say on the mesh stream between them
shards       tasks, from one engine's memory into another's
connections  connections, from one process into another
giver        the old worker's part
taker        the new worker's part
taking_back  shards out of the store, when one of the two has died
"""
