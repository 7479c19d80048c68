"""Every error the engine itself raises.

RefreshdError
├── ConfigError       the configuration cannot be used; one line a fault
├── BootError         the engine cannot start here; trying again will not help
├── StateRefused      what the master before a re-execution left cannot be gone on with
├── ClusterUnavailable   Redis did not do what it was asked; what the engine owns it goes on with
└── StoreError        the store did not do what it was asked
    ├── StoreUnavailable   it may answer later (full disk, locked file); nothing was kept
    ├── StoreDamaged       what is on disk is not what was written
    ├── StoreFailed        it can no longer be trusted (a sync failed): the worker must restart
    ├── StoreFenced        this engine's tasks were given to others: the worker must restart and register anew
    └── NotLeader          another engine leads by now: what the leader wanted to do was not done
"""

from __future__ import annotations


class RefreshdError(Exception):
    """Base of all errors of the engine."""


class ConfigError(RefreshdError):
    """The configuration cannot be used. `faults` has one line for each thing that is wrong."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class BootError(RefreshdError):
    """The engine cannot start here; trying again will not help."""


class StateRefused(RefreshdError):
    """This code cannot go on with what the master before a re-execution left."""


class ClusterUnavailable(RefreshdError):
    """Redis did not do what it was asked; it may have done so and not said it."""


class StoreError(RefreshdError):
    """The store did not do what it was asked."""


class StoreUnavailable(StoreError):
    """The store may answer later; nothing of the batch was kept."""


class StoreDamaged(StoreError):
    """What is on disk is not what was written."""


class StoreFailed(StoreError):
    """The store can no longer be trusted; the process must end and start anew."""


class StoreFenced(StoreError):
    """This engine was fenced: its epoch is over. Nothing was kept; the process must end and register anew."""


class NotLeader(StoreError):
    """Another engine leads by now. Nothing was changed; whoever asked must stop acting as the leader."""
