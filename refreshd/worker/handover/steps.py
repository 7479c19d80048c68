"""The steps of a hand-over, by name: what logs show, and where tests make a process stop or die."""

from __future__ import annotations

import structlog

log = structlog.get_logger()

GIVER_STEPS = (
    "begin",
    "copied",
    "frozen",
    "owned",
    "given",
    "switched",
    "state",
    "moving",
    "connection",
    "ended",
)
TAKER_STEPS = ("begun", "copying", "owning", "reading", "knowing", "listening", "adopting", "ending")


def reached(step: str) -> None:
    """This process has come to a step; tests put something else in its place."""
    log.debug("hand-over", step=step)
