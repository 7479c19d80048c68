"""`sandbox.py UNIT COMMAND…`: becomes COMMAND, forbidden what UNIT forbids in a way that needs no privileges.

That is SystemCallFilter=, MemoryDenyWriteExecute=, RestrictAddressFamilies= and NoNewPrivileges=, as systemd
makes seccomp filters of them, but for one thing: what is forbidden ends the process, so that no library can
take the refusal silently. It inherits to all children.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.systemd.units import values

_PROT_WRITE, _PROT_EXEC = 2, 4
_KILL_PROCESS, _ALLOW, _REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | errno.EPERM
_PR_SET_NO_NEW_PRIVS = 38
_EQUAL, _MASKED_EQUAL = 4, 7


class _Compare(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def allowed_calls(unit: str) -> set[str]:
    """The system calls that the SystemCallFilter= lines of a unit leave."""
    groups = _groups()
    allowed = set(groups["@default"])
    for line in values(unit, "SystemCallFilter"):
        calls = {call for name in line.removeprefix("~").split() for call in groups.get(name, {name})}
        # What starts the process and ends it stays, as systemd has it.
        allowed = allowed - (calls - groups["@default"]) if line.startswith("~") else allowed | calls
    return allowed


def _groups() -> dict[str, set[str]]:
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    raw: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            raw[line] = members = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def expand(name: str) -> Iterator[str]:
        for member in raw[name]:
            if member.startswith("@"):
                yield from expand(member)
            else:
                yield member

    return {name: set(expand(name)) for name in raw}


class _Filter:
    """A seccomp filter that allows what it is told, and kills for all else."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(_KILL_PROCESS)))

    def allow(self, name: str, *compares: tuple[int, int, int, int]) -> None:
        """Allows a call, where all of (argument, comparison, value, value) hold."""
        self._add(_ALLOW, name, *compares)

    def refuse(self, name: str) -> None:
        """Has a call fail, as all that systemd forbids does."""
        self._add(_REFUSE, name)

    def _add(self, action: int, name: str, *compares: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            # None of this machine's.
            return
        conditions = (_Compare * len(compares))(*(_Compare(*compare) for compare in compares))
        error = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(compares), conditions
        )
        if error:
            raise OSError(-error, f"{name}: {errno.errorcode.get(-error, error)}")

    def load(self) -> None:
        """It holds from now on."""
        error = self._library.seccomp_load(self._context)
        if error:
            raise OSError(-error, "seccomp_load")


def confine(unit: str) -> None:
    """Forbids this process, and what comes of it, what the unit forbids."""
    calls = allowed_calls(unit)
    rules = _Filter()
    for protection in (0, _PROT_WRITE, _PROT_EXEC):
        rules.allow("mmap", (2, _MASKED_EQUAL, _PROT_WRITE | _PROT_EXEC, protection))
    rules.allow("mprotect", (2, _MASKED_EQUAL, _PROT_EXEC, 0))
    for family in values(unit, "RestrictAddressFamilies")[0].split():
        rules.allow("socket", (0, _EQUAL, getattr(socket, family), 0))
    for call in calls - {"mmap", "mprotect", "pkey_mprotect", "socket", "shmat"}:
        rules.allow(call)
    if os.geteuid() == 0:
        # SQLite gives new files to the folder's owner, but only where it is root, which the service is not.
        rules.refuse("fchown")
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    rules.load()


if __name__ == "__main__":
    confine(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
