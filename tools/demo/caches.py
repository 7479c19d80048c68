"""The caches the demo can start, best first: Varnish, Traffic Server, and its own little one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.demo.http1 import Address, Server
from tools.demo.littlecache import LittleCache
from tools.demo.processes import Child

SHIPPED = Path(__file__).resolve().parents[2] / "proxyd" / "caches"
#: Daemons live in sbin, which is not on the PATH of every user.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


@dataclass(frozen=True, slots=True)
class Running:
    """A cache that was started: where it listens, and its process (None: it runs inside the demo)."""

    address: Address
    child: Child | None


Starter = Callable[[Path, Address], AbstractAsyncContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a cache is called on the command line, to the agent (`kind` in proxyd.toml) and to people."""

    name: str
    agent_kind: str
    title: str
    program: str | None
    start: Starter

    def is_installed(self) -> bool:
        return self.program is None or find_program(self.program) is not None


def find_program(name: str) -> str | None:
    return shutil.which(name, path=SEARCH_PATH)


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


VCL = """\
vcl 4.1;
include "{shipped}";
backend origin {{ .host = "{host}"; .port = "{port}"; }}
sub vcl_deliver {{
    set resp.http.x-cache = "miss";
    if (obj.hits > 0) {{
        set resp.http.x-cache = "hit";
    }}
}}
"""


@asynccontextmanager
async def start_varnish(folder: Path, origin: Address) -> AsyncIterator[Running]:
    """Varnish with the VCL that is shipped, in memory."""
    port = free_port()
    vcl = folder / "demo.vcl"
    vcl.write_text(varnish_vcl(origin))
    # -j none: run as who we are; the default jail of root drops to a user who may not read this folder.
    command = [find_program("varnishd") or "varnishd", "-F", "-j", "none", "-n", str(folder / "varnish"),
               "-a", f"127.0.0.1:{port}", "-f", str(vcl), "-s", "malloc,32m"]  # fmt: skip
    child = await Child.start("varnishd", command, log=folder / "varnishd.log", cwd=folder)
    try:
        yield Running(("127.0.0.1", port), child)
    finally:
        await child.stop()


def varnish_vcl(origin: Address) -> str:
    """A VCL as an operator would write it: the shipped file included, a backend, `x-cache` for visitors."""
    host, port = origin
    return VCL.format(shipped=SHIPPED / "varnish" / "refreshd.vcl", host=host, port=port)


@asynccontextmanager
async def start_traffic_server(folder: Path, origin: Address) -> AsyncIterator[Running]:
    """Traffic Server with the settings that are shipped, in a run root of its own."""
    port = free_port()
    root = folder / "ats"
    write_run_root(root, port, origin)
    child = await Child.start(
        "traffic_server",
        [find_program("traffic_server") or "traffic_server"],
        log=folder / "traffic_server.log",
        cwd=folder,
        env={"TS_RUNROOT": str(root)},
    )
    try:
        yield Running(("127.0.0.1", port), child)
    finally:
        await child.stop()


RUN_ROOT = """\
prefix: {root}
exec_prefix: /usr
bindir: /usr/bin
sbindir: /usr/bin
libdir: /usr/lib/trafficserver
libexecdir: /usr/lib/trafficserver/modules
includedir: /usr/include
sysconfdir: {root}/etc
datadir: {root}/cache
localstatedir: {root}/run
runtimedir: {root}/run
logdir: {root}/log
cachedir: {root}/cache
"""

#: What goes before the shipped settings: no other user than us ("#-1"), where to listen, and little memory.
RECORDS = """\
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.http.server_ports STRING {port}:ipv4:ip-in=127.0.0.1
CONFIG proxy.config.cache.ram_cache.size INT 16777216
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.http.wait_for_cache INT 1
CONFIG proxy.config.crash_log_helper STRING
"""


def write_run_root(root: Path, port: int, origin: Address) -> None:
    """The folders and files of a Traffic Server that writes nowhere else."""
    for name in ("etc", "cache", "run", "log"):
        (root / name).mkdir(parents=True)
    (root / "runroot.yaml").write_text(RUN_ROOT.format(root=root))
    etc = root / "etc"
    shipped = (SHIPPED / "ats" / "records.config").read_text()
    (etc / "records.config").write_text(RECORDS.format(port=port) + shipped)
    (etc / "storage.config").write_text("cache 32M\n")
    (etc / "remap.config").write_text(f"map / http://{origin[0]}:{origin[1]}/\n")
    shutil.copy(SHIPPED / "ats" / "ip_allow.yaml", etc)


@asynccontextmanager
async def start_little(_folder: Path, origin: Address) -> AsyncIterator[Running]:
    """The little cache, inside the demo's own process."""
    async with Server(LittleCache(origin).handle) as server:
        yield Running(server.address, None)


KINDS = (
    Kind("varnish", "varnish", "Varnish", "varnishd", start_varnish),
    Kind("ats", "ats", "Apache Traffic Server", "traffic_server", start_traffic_server),
    Kind("little", "varnish", "the demo's own little one, which purges like Varnish", None, start_little),
)


def choose(name: str | None) -> Kind:
    """The cache called NAME, or the first that is installed."""
    if name is not None:
        return next(kind for kind in KINDS if kind.name == name)
    return next(kind for kind in KINDS if kind.is_installed())
