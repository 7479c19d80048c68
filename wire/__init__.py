"""The refresh line protocol, version 1 (see PROTOCOL.md beside this file).

Everything here is pure but `client.py`: bytes go in, values come out, the time
is passed in. The engine, the agent and the tools share it and nothing else.
"""

PROTOCOL_VERSION = 1
SHARDS = 64
DEFAULT_LINE_MAX_BYTES = 1 << 20
