"""Whom the engine tells what becomes of tasks. It knows no more of them than this."""

from __future__ import annotations

from typing import Protocol

from refreshd.fanout import Log
from refreshd.store.base import Parked
from refreshd.task import Task
from refreshd.worker.turns import Turn


class Listener(Protocol):
    """Who is told what becomes of tasks: pusher, watchers."""

    def log_made(self, log: Log) -> None:
        """There is a new log; whoever reads it is to be attached."""

    def log_gone(self, log: Log) -> None:
        """A log is no more; it was empty."""

    def log_grew(self, log: Log) -> None:
        """A task was appended to a log."""

    def task_changed(self, task: Task) -> None:
        """A task has another state or other counts, for all to see."""

    def tasks_parked(self, parking: list[tuple[Task, Parked]], kept: bool) -> None:
        """What was to be kept of tasks that may leave memory is on stable storage, or is not."""

    def task_withdrawn(self, task: Task) -> None:
        """A task that may have been pushed is closing without its proxies having ended it."""

    def id_is_finished(self, task: Task, serial: int, turn: Turn, place: int) -> None:
        """The id of a new task belongs to the finished task `serial`: fill the turn's place."""
