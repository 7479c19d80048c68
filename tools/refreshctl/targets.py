"""Targets from arguments, files and stdin: checked before anything is sent, then parted into tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tools.refreshctl.exits import usage
from wire import DEFAULT_LINE_MAX_BYTES
from wire.fields import target_fault
from wire.lines import escape

# Left free in a line for the fields before the targets: the longest scope and callback that make sense.
HEAD_BYTES = 16 * 1024
TASK_BYTES_MAX = DEFAULT_LINE_MAX_BYTES - HEAD_BYTES


def gather(words: list[str], file: str | None, task_type: str) -> list[str]:
    """All targets, in order. Raises: Failure, naming the first that is wrong and its line."""
    sources: list[Iterable[tuple[str, str]]] = []
    if file is not None:
        sources.append(_read_file(file))
    arguments = [word for word in words if word != "-"]
    sources.append((f"argument {number}", word) for number, word in enumerate(arguments, 1))
    if len(arguments) < len(words):
        sources.append(_read_file("-"))
    targets = [target for source in sources for target in _checked(source, task_type)]
    if not targets:
        raise usage("no targets; give them as arguments, with -f FILE, or - for stdin")
    return targets


def _checked(source: Iterable[tuple[str, str]], task_type: str) -> Iterator[str]:
    for place, target in source:
        fault = target_fault(task_type, target)
        if fault is not None:
            shown = target if len(target) <= 80 else target[:77] + "..."
            raise usage(f"{place}: {shown!r}: {fault}; nothing was submitted")
        yield target


def _read_file(name: str) -> Iterator[tuple[str, str]]:
    if name == "-":
        yield from read_lines(sys.stdin.buffer, "stdin")
        return
    try:
        with open(name, "rb") as file:
            yield from read_lines(file, name)
    except OSError as error:
        raise usage(f"cannot read {name}: {error.strerror}") from None


def read_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """(place, target) of each line but empty ones and those that begin with `#`."""
    for number, raw in enumerate(file, 1):
        place = f"{name} line {number}"
        if len(raw) > TASK_BYTES_MAX:
            raise usage(f"{place}: longer than {TASK_BYTES_MAX} bytes; wanted one target a line")
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            raise usage(f"{place}: not UTF-8; wanted one target a line; nothing was submitted") from None
        if text and not text.startswith("#"):
            yield place, text


def split(targets: list[str], per_task: int) -> list[tuple[str, ...]]:
    """Parts the targets into tasks of at most `per_task` that each fit a line."""
    if per_task < 1:
        raise usage(f"--per-task: got {per_task}, wanted 1 or more")
    tasks: list[tuple[str, ...]] = []
    task: list[str] = []
    size = 0
    for target in targets:
        size_here = _wire_bytes(target)
        if task and (len(task) >= per_task or size + size_here > TASK_BYTES_MAX):
            tasks.append(tuple(task))
            task, size = [], 0
        task.append(target)
        size += size_here
    return [*tasks, tuple(task)]


def _wire_bytes(target: str) -> int:
    return len(escape(target).encode()) + 1
