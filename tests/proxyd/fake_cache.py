"""A cache that answers everything, as a test sees it: what it was asked, and what it holds back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

TIMEOUT_S = 20.0


class FakeCache:
    """Answers every request well, but holds back those for /held until `release`.

    `on_asked` is told the path of each, before it is answered.
    """

    def __init__(self, on_asked: Callable[[str], None] = lambda path: None) -> None:
        self._on_asked = on_asked
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[str] = []
        self.open = 0
        """Connections that have not ended."""
        self._released = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self) -> None:
        """Answers what was held, and all that comes."""
        self._released.set()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self.open += 1
        try:
            with sock, sock.makefile("rb") as stream:
                while line := stream.readline():
                    while stream.readline().strip():
                        pass
                    method, path = line.decode().split(" ")[:2]
                    self.asked.append(path)
                    self._on_asked(self.asked[-1])
                    if "/held" in self.asked[-1]:
                        self._released.wait(TIMEOUT_S)
                    status = b"299 Dropped" if method == "DROP" else b"200 OK"
                    sock.sendall(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
        except OSError:
            pass
        self.open -= 1

    def close(self) -> None:
        """Ends it."""
        self.release()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
