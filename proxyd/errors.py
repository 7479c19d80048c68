"""Every error of the agent.

ProxydError
├── ConfigError     the configuration is wrong; the agent does not start
├── BadTarget       a target that no cache can be asked for
└── LinkError       a connection to an engine cannot go on
    ├── LinkRefused     the engine said `err` to hello or ready
    └── LinkBroken      it ended, fell silent, or spoke another protocol
"""

from __future__ import annotations


class ProxydError(Exception):
    """Base of all errors of the agent."""


class ConfigError(ProxydError):
    """What is wrong with a configuration, all of it: one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadTarget(ProxydError):
    """A target that no cache can be asked for. `str()` says why."""


class LinkError(ProxydError):
    """A connection to an engine cannot go on."""


class LinkRefused(LinkError):
    """The engine answered `err` to a greeting. `field` is what it named, or None."""

    def __init__(self, text: str, field: str | None = None, retry_ms: int | None = None) -> None:
        super().__init__(text)
        self.field = field
        self.retry_ms = retry_ms


class LinkBroken(LinkError):
    """The connection ended, fell silent, or the peer does not speak the protocol."""
