"""sd_notify with the master's own socket; what is said, and when, see `wire.notify`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from wire import notify


class Notifier(notify.Notifier):
    """Tells systemd, or whoever NOTIFY_SOCKET names, how the engine is. Never waits, never raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        # Unconnected, so that a manager that starts anew is reached as well.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        super().__init__(environ, os.getpid(), self._socket.sendto)

    def close(self) -> None:
        """Nothing is sent any more."""
        self._socket.close()
