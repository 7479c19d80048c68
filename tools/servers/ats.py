"""A private Traffic Server, with the settings that proxyd ships."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path

import psutil

from tools.servers.process import START_TIMEOUT_S, Server, find_program
from tools.servers.waiting import free_port, wait_until

SHIPPED = Path(__file__).resolve().parents[2] / "proxyd" / "caches" / "ats"

SHIPPED_RULES = "/var/lib/proxyd/ats.rules"
SHIPPED_RULES_STATE = "/var/lib/trafficserver/refreshd.state"

# What makes it private and small; the rest is what proxyd ships.
RECORDS = """
CONFIG proxy.config.http.server_ports STRING {port}
CONFIG proxy.config.admin.user_id STRING {user}
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.cache.threads_per_disk INT 2
CONFIG proxy.config.cache.ram_cache.size INT 16M
CONFIG proxy.config.cache.min_average_object_size INT 8000
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.diags.output.diag STRING E
CONFIG proxy.config.dns.resolv_conf STRING NULL
CONFIG proxy.config.http.wait_for_cache INT 1
CONFIG proxy.config.http.insert_response_via_str INT 2
CONFIG proxy.config.url_remap.remap_required INT 1
"""
# Without a helper of its own; traffic_manager passes an empty one on as something.
ALONE = "CONFIG proxy.config.crash_log_helper STRING\n"
MANAGED = "CONFIG proxy.config.proxy_binary_opts STRING -M --run-root={folder}/runroot.yaml\n"
RUNROOT = """
prefix: {folder}
exec_prefix: {folder}
bindir: /usr/bin
sbindir: /usr/bin
sysconfdir: {folder}/etc
datadir: {folder}/share
includedir: {folder}
libdir: {folder}
libexecdir: {modules}
localstatedir: {folder}/run
runtimedir: {folder}/run
logdir: {folder}/log.d
cachedir: {folder}/cache
"""
MODULES = Path("/usr/lib/trafficserver/modules")


class TrafficServer(Server):
    """`traffic_server` in front of `origin` ("HOST:PORT") for every host name.

    A `Via` in the answers says hit or miss, see `was_hit`. `storage_mb` is the size of the cache file.
    With `rules` it has a traffic_manager, which reloads, and regex_revalidate with the files `rules` and
    `rules_state`; `remap` is what remap.config says instead.
    """

    name = "ats"
    tries = 3

    def __init__(
        self, origin: str, *, storage_mb: int = 64, records: str = "", rules: bool = False, remap: str = ""
    ) -> None:
        super().__init__()
        self._origin = origin
        self._storage_mb = storage_mb
        self._records = records
        self._managed = rules
        self._remap = remap

    @property
    def rules(self) -> Path:
        """What regex_revalidate reads."""
        return self.folder / "etc" / "refreshd.rules"

    @property
    def rules_state(self) -> Path:
        """What regex_revalidate writes."""
        return self.folder / "run" / "refreshd.state"

    @property
    def remap(self) -> Path:
        """Its remap.config."""
        return self.folder / "etc" / "remap.config"

    @property
    def reload(self) -> list[str]:
        """The command that has it read its files."""
        return [find_program("traffic_ctl"), f"--run-root={self.folder}/runroot.yaml", "config", "reload"]

    def restart(self) -> None:
        """Kills the traffic_server that a traffic_manager started; it starts another, which is waited for."""
        for child in psutil.Process(self.pid).children():
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        wait_until(self._is_ready, START_TIMEOUT_S, "traffic_server is back")

    @staticmethod
    def was_hit(via: str) -> bool:
        """Whether the `Via` header of an answer tells of a hit ("[cHs…" on disk, "[cRs…" in memory)."""
        return via.partition("[")[2][:2] in ("cH", "cR")

    def _command(self) -> list[str]:
        self.port = free_port()
        self._write_settings()
        program = "traffic_manager" if self._managed else "traffic_server"
        return [find_program(program), f"--run-root={self.folder}/runroot.yaml"]

    def _write_settings(self) -> None:
        for name in ("etc", "run", "log.d", "cache", "share"):
            (self.folder / name).mkdir(exist_ok=True)
        etc = self.folder / "etc"
        # "#-1": stay who we are; the default would be a user of the package, to change to as root.
        mine = RECORDS.format(port=self.port, user="#-1") + self._records
        mine += MANAGED.format(folder=self.folder) if self._managed else ALONE
        (etc / "records.config").write_text((SHIPPED / "records.config").read_text() + mine)
        (etc / "ip_allow.yaml").write_text((SHIPPED / "ip_allow.yaml").read_text())
        # A rule without a host fits every host and port; which of them was asked for stays in the cache key.
        self.remap.write_text((self._remap or "map / http://{origin}/\n").format(origin=self._origin))
        (etc / "storage.config").write_text(f"{self.folder}/cache {self._storage_mb}M\n")
        plugins = (SHIPPED / "plugin.config").read_text() if self._managed else ""
        for shipped, ours in ((SHIPPED_RULES, self.rules), (SHIPPED_RULES_STATE, self.rules_state)):
            plugins = plugins.replace(shipped, str(ours))
        (etc / "plugin.config").write_text(plugins)
        runroot = RUNROOT.format(folder=self.folder, modules=MODULES)
        (self.folder / "runroot.yaml").write_text(runroot)

    def _environment(self) -> dict[str, str]:
        return {"TS_RUNROOT": str(self.folder / "runroot.yaml"), "HOME": os.environ.get("HOME", "/")}

    def _is_ready(self) -> bool:
        # It listens before its cache is there (and answers 500-something then): ask for what is in no cache.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("PURGE", "/.ready", headers={"Host": "ready.invalid"})
            return connection.getresponse().status in (200, 404)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
