"""Faults for the worker processes of an engine that is started with this folder in PYTHONPATH.

REFRESHD_SYNC_FAILS=FILE   while FILE is there, every fsync and fdatasync of a worker fails with EIO:
                           by a seccomp filter, so that SQLite meets the error where a disk would give it.
                           A worker that once saw FILE keeps failing; the next one starts afresh.
REFRESHD_STEPS=FOLDER      a worker that comes to a step of a hand-over (refreshd/worker/handover/steps.py)
                           for which there is a file of that name in FOLDER renames it to STEP.PID and stops
                           by SIGSTOP: then it, or the other side, can be killed there.
REFRESHD_CONSTANTS=JSON    other values for constants: {"refreshd.worker.proxies": {"OFFLINE_AFTER_MS": 3000}}
"""

import ctypes
import errno
import importlib
import json
import os
import platform
import signal
import struct
import sys
import threading
import time

_SYSCALLS = {"x86_64": (317, (74, 75)), "aarch64": (277, (82, 83))}
"""Machine → the number of seccomp(2), and those of fsync and fdatasync."""
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _FLAG_TSYNC = 38, 1, 1
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def _fail_syncs() -> None:
    """From now on no sync of any thread of this process succeeds."""
    seccomp, numbers = _SYSCALLS[platform.machine()]
    steps = [(_LOAD_NUMBER, 0, 0, 0)]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        steps.append((_JUMP_IF_EQUAL, left, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EIO)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.c_char_p(header)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _watch(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)
    _fail_syncs()
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def _stop_at(folder: str) -> None:
    def reached(step: str) -> None:
        try:
            # Whoever comes first has it.
            os.rename(os.path.join(folder, step), os.path.join(folder, f"{step}.{os.getpid()}"))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGSTOP)

    importlib.import_module("refreshd.worker.handover.steps").reached = reached


if "refreshd.worker" in sys.orig_argv:
    # First of all, as others import the function.
    if _path := os.environ.get("REFRESHD_STEPS"):
        _stop_at(_path)
    for _module, _values in json.loads(os.environ.get("REFRESHD_CONSTANTS", "{}")).items():
        for _name, _value in _values.items():
            setattr(importlib.import_module(_module), _name, _value)
    if _path := os.environ.get("REFRESHD_SYNC_FAILS"):
        threading.Thread(target=_watch, args=(_path,), daemon=True).start()
