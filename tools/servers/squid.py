"""A private Squid, with the settings that proxyd ships."""

from __future__ import annotations

import http.client
import os
from pathlib import Path

from tools.servers.process import Server, find_program
from tools.servers.waiting import free_port

SHIPPED = Path(__file__).resolve().parents[2] / "proxyd" / "caches" / "squid" / "refreshd.conf"

# A site as docs/agent.md shows it, and what makes it private and small.
CONF = """\
{access}
http_access allow all
http_port 127.0.0.1:{port} accel vhost
cache_peer {host} parent {origin_port} 0 no-query no-digest originserver name=origin
{more}
visible_hostname squid.test
cache_mem {storage_mb} MB
maximum_object_size_in_memory 8 MB
pid_filename none
coredump_dir none
access_log none
cache_log /dev/null
netdb_filename none
pinger_enable off
hosts_file none
dns_nameservers 127.0.0.1
max_filedescriptors 1024
shutdown_lifetime 0 seconds
"""
# Squid keeps segments here while it runs, named after its service; they stay when it is killed.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where POSIX shared memory is)


class Squid(Server):
    """`squid` in front of `origin` ("HOST:PORT") for every host name.

    An `X-Cache` in the answers says hit or miss, see `was_hit`. It keeps all in memory,
    `storage_mb` of it. `access` replaces what is shipped, `more` is put behind it.
    """

    name = "squid"
    tries = 3

    def __init__(
        self, origin: str, *, storage_mb: int = 64, access: str | None = None, more: str = ""
    ) -> None:
        super().__init__()
        self._origin = origin
        self._storage_mb = storage_mb
        self._access = SHIPPED.read_text() if access is None else access
        self._more = more

    def stop(self) -> None:
        """Like `Server.stop`."""
        super().stop()
        for segment in SHARED_MEMORY.glob(f"{self._service}-*"):
            segment.unlink(missing_ok=True)

    @property
    def _service(self) -> str:
        """Two that run at once have two names."""
        return f"refreshd{self.port}"

    @staticmethod
    def was_hit(x_cache: str) -> bool:
        """Whether the `X-Cache` header of an answer tells of a hit."""
        return x_cache.startswith("HIT ")

    def _command(self) -> list[str]:
        self.port = free_port()
        host, _, origin_port = self._origin.rpartition(":")
        text = CONF.format(
            access=self._access, more=self._more, port=self.port, host=host, origin_port=origin_port,
            storage_mb=self._storage_mb,
        )  # fmt: skip
        if os.geteuid() == 0:
            # It refuses to stay root. It writes nothing, so it needs no folder of its own.
            text += "cache_effective_user nobody\n"
        (self.folder / "squid.conf").write_text(text)
        # One process, in the foreground, that says on stderr what is wrong.
        return [find_program("squid"), "-N", "-d1", "-n", self._service, "-f", f"{self.folder}/squid.conf"]

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("PURGE", "/.ready", headers={"Host": "ready.invalid"})
            # 403: `access` does not allow it.
            return connection.getresponse().status in (200, 403, 404)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
