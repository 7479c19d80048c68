"""The configuration files that the demo writes for its engine and its agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

AGENT_NAME = "pop1"
GROUP = "demo"
#: Two, so that even the demo has requests that cross from one to the other.
WORKERS = 2

ENGINE = """\
[engine]
id = "{id}"
listen = "127.0.0.1:{port}"
http = ""
data = "{data}"
workers = {workers}
auth = "none"

{more}[[proxy]]
name = "{agent}"
group = "{group}"
layer = 0
"""

#: What engines that share a database have besides. A short lease, so that a dead one is not waited for long.
SHARED = """\
[store]
url = "{database}"

[redis]
url = "{redis}"
lease_s = 3

"""

AGENT = """\
[agent]
name = "{agent}"
group = "{group}"
layer = 0
engines = [{engines}]

[[cache]]
name = "{cache_name}"
kind = "{cache_kind}"
address = "127.0.0.1:{cache_port}"
"""


def write_engine(path: Path, *, port: int, data: Path, name: str = "demo", more: str = "") -> None:
    """The file of the engine NAME: text RPC on PORT, all it keeps under DATA, unless MORE says otherwise."""
    path.write_text(
        ENGINE.format(
            id=name, port=port, data=data, workers=WORKERS, more=more, agent=AGENT_NAME, group=GROUP
        )
    )


def write_agent(
    path: Path, *, engine_ports: Sequence[int], cache_name: str, cache_kind: str, cache_port: int
) -> None:
    """The agent's file: all engines, one cache."""
    path.write_text(
        AGENT.format(
            agent=AGENT_NAME,
            group=GROUP,
            engines=", ".join(f'"127.0.0.1:{port}"' for port in engine_ports),
            cache_name=cache_name,
            cache_kind=cache_kind,
            cache_port=cache_port,
        )
    )
