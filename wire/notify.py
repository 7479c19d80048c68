"""What a service tells its manager (sd_notify(3)), without I/O: the environment and the socket are passed in.

It is not the refresh protocol. It is here because engine and agent both speak it and
share nothing but wire/; each passes its own socket's `sendto` in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# The manager reads at most a page of a datagram; a state is a word, or a sentence for `systemctl status`.
VALUE_MAX_CHARS = 1000

Send = Callable[[bytes, str | bytes], object]


class Notifier:
    """Tells the manager named by NOTIFY_SOCKET what state this process is in; without one, nobody.

    `send_to(datagram, address)` sends without waiting and raises OSError when it cannot.
    """

    watchdog_s: float | None
    """How often `WATCHDOG=1` should be sent: half the time that the manager waits for it. None: never."""

    def __init__(self, environ: Mapping[str, str], pid: int, send_to: Send) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._send_to = send_to
        self.watchdog_s = _watchdog_s(environ, pid) if self._address else None

    def __repr__(self) -> str:
        return f"<Notifier to {self._address!r} watchdog_s={self.watchdog_s}>"

    def send(self, **state: str) -> None:
        """Sends `NAME=VALUE` lines, as one datagram. Never waits, never raises.

        A manager that does not take it is not told again: nobody here may wait for it.
        """
        if not self._address:
            return
        lines = [f"{name}={_one_line(value)}" for name, value in state.items()]
        try:
            self._send_to("\n".join(lines).encode(errors="replace"), self._address)
        except OSError:
            pass

    def reloading(self, now_s: float) -> None:
        """Tells that a reload begins, at this monotonic time; `send(READY="1")` tells its end.

        `Type=notify-reload` (systemd 253) takes the state only with the time.
        """
        self.send(RELOADING="1", MONOTONIC_USEC=str(int(now_s * 1_000_000)))


def _address(name: str) -> str | bytes:
    """What `sendto` takes for a path or an abstract name; "" for none, and for what is neither (vsock:…)."""
    if name.startswith("@"):
        return b"\0" + name[1:].encode(errors="surrogateescape")
    return name if name.startswith("/") else ""


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    # WATCHDOG_PID names whom it is meant for: children inherit the variables.
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    usec = environ.get("WATCHDOG_USEC", "")
    if not (usec.isascii() and usec.isdigit()):
        return None
    return int(usec) / 2_000_000 or None


def _one_line(value: str) -> str:
    return " ".join(value[:VALUE_MAX_CHARS].split("\n"))
