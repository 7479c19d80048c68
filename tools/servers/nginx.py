"""A private nginx, with the configuration that proxyd ships."""

from __future__ import annotations

import http.client
import os
from pathlib import Path

from tools.servers.process import Server, find_program
from tools.servers.waiting import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "proxyd" / "caches" / "nginx" / "refreshd.conf"
KEY = "$scheme$proxy_host$request_uri"

# What makes it private and small stands outside of the server; the rest is as docs/agent.md has it.
CONFIG = """\
{user}
daemon off;
worker_processes {workers};
pid {folder}/pid;
error_log {folder}/error.log {log_level};
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/tmp/body;
    proxy_temp_path {folder}/tmp/proxy;
    fastcgi_temp_path {folder}/tmp/fastcgi;
    uwsgi_temp_path {folder}/tmp/uwsgi;
    scgi_temp_path {folder}/tmp/scgi;
    large_client_header_buffers 8 32k;
    # An object whose key and head do not fit into this is not stored.
    proxy_buffer_size 32k;
    proxy_buffers 8 32k;
    proxy_busy_buffers_size 64k;

    include {shipped};
    proxy_cache_path {folder}/cache levels={levels} keys_zone=one:10m inactive=1h {path_more};

    server {{
        listen 127.0.0.1:{port};
        {server_more}
        location / {{
            proxy_pass http://{origin};
            proxy_set_header Host $http_host;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache one;
            proxy_cache_key "{key}";
            proxy_cache_bypass $refreshd_bypass;
            add_header X-Cache $upstream_cache_status always;
            {more}
        }}
        location = /.ready {{ return 204; }}
    }}
}}
"""


class Nginx(Server):
    """`nginx` in front of `origin` ("HOST:PORT") for every host name; answers carry `X-Cache: HIT|MISS|…`.

    `key` and `levels` are those of its cache, `more` stands in its location, `server_more` in its server.
    """

    name = "nginx"
    tries = 3

    def __init__(
        self,
        origin: str,
        *,
        key: str = KEY,
        levels: str = "1:2",
        workers: int = 1,
        more: str = "",
        server_more: str = "",
        path_more: str = "",
        log_level: str = "error",
    ) -> None:
        super().__init__()
        self._settings = {
            "origin": origin,
            "key": key,
            "levels": levels,
            "workers": workers,
            "more": more,
            "server_more": server_more,
            "path_more": path_more,
            "log_level": log_level,
        }

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return self.folder / "cache"

    def files(self) -> list[Path]:
        """What is stored."""
        return [path for path in self.cache.rglob("*") if path.is_file()]

    def error_log(self) -> str:
        """What it complained of."""
        return (self.folder / "error.log").read_text()

    def _command(self) -> list[str]:
        self.port = free_port()
        (self.folder / "tmp").mkdir(exist_ok=True)
        # As root its workers would become another user, who may not look into our folder.
        user = "user root;" if os.geteuid() == 0 else ""
        config = CONFIG.format(
            folder=self.folder, port=self.port, user=user, shipped=SHIPPED, **self._settings
        )
        (self.folder / "nginx.conf").write_text(config)
        # "-e": until it has read its configuration it would log where the package does.
        log = str(self.folder / "error.log")
        return [
            find_program("nginx"),
            "-p",
            str(self.folder),
            "-e",
            log,
            "-c",
            str(self.folder / "nginx.conf"),
        ]

    def log(self) -> str:
        """The tail of its output and of its error log."""
        path = self.folder / "error.log"
        return super().log() + (path.read_text(errors="replace")[-2000:] if path.exists() else "")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/.ready")
            return connection.getresponse().status == 204
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
