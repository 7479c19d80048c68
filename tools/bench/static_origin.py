"""An origin that costs next to nothing: nginx that answers any URL with the same file."""

from __future__ import annotations

import os
import socket

from tools.servers.process import Server, find_program
from tools.servers.waiting import free_port

_CONFIG = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    open_file_cache max=10;
    client_body_temp_path {folder}/tmp/body;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location / {{ add_header Cache-Control max-age=3600; try_files /object =404; }}
    }}
}}
"""


class StaticOrigin(Server):
    """Each object has `size` bytes, and may be kept for an hour."""

    name = "nginx"
    tries = 3

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def _command(self) -> list[str]:
        self.port = free_port()
        (self.folder / "object").write_bytes(b"x" * self._size)
        (self.folder / "tmp").mkdir(exist_ok=True)
        # Started as root, its worker could not look into the folder as somebody else.
        user = "user root;" if os.geteuid() == 0 else ""
        path = self.folder / "nginx.conf"
        path.write_text(_CONFIG.format(folder=self.folder, port=self.port, user=user))
        log = f"{self.folder}/error.log"
        return [find_program("nginx"), "-p", str(self.folder), "-e", log, "-c", str(path)]

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True
