"""The configuration files that the demo writes for its engine and its agent."""

from __future__ import annotations

from pathlib import Path

AGENT_NAME = "pop1"
GROUP = "demo"
#: Two, so that even the demo has requests that cross from one to the other.
WORKERS = 2

ENGINE = """\
[engine]
id = "demo"
listen = "127.0.0.1:{port}"
http = ""
data = "{data}"
workers = {workers}
auth = "none"

[[proxy]]
name = "{agent}"
group = "{group}"
layer = 0
"""

AGENT = """\
[agent]
name = "{agent}"
group = "{group}"
layer = 0
engines = ["127.0.0.1:{engine_port}"]

[[cache]]
name = "{cache_name}"
kind = "{cache_kind}"
address = "127.0.0.1:{cache_port}"
"""


def write_engine(path: Path, *, port: int, data: Path) -> None:
    """The engine's file: text RPC on PORT, all it keeps under DATA."""
    path.write_text(ENGINE.format(port=port, data=data, workers=WORKERS, agent=AGENT_NAME, group=GROUP))


def write_agent(path: Path, *, engine_port: int, cache_name: str, cache_kind: str, cache_port: int) -> None:
    """The agent's file: one engine, one cache."""
    path.write_text(
        AGENT.format(
            agent=AGENT_NAME,
            group=GROUP,
            engine_port=engine_port,
            cache_name=cache_name,
            cache_kind=cache_kind,
            cache_port=cache_port,
        )
    )
