"""A private Varnish, with the VCL that proxyd ships."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.servers.process import Server, find_program

SHIPPED_VCL = Path(__file__).resolve().parents[2] / "proxyd" / "caches" / "varnish" / "refreshd.vcl"
MODULES_VCL = SHIPPED_VCL.with_name("refreshd-modules.vcl")
XKEY = "/usr/lib/*/varnish/vmods/libvmod_xkey.so"
"""What that needs; Debian's package varnish-modules has it."""

# The VCL of a site that has nothing of its own: as docs/agent.md shows, and X-Cache for tests and the demo.
VCL = """\
vcl 4.1;
{includes}

backend origin {{
    .host = "{host}";
    .port = "{port}";
}}

sub vcl_deliver {{
    set resp.http.X-Cache = "miss";
    if (obj.hits > 0) {{
        set resp.http.X-Cache = "hit";
    }}
}}
"""


class Varnish(Server):
    """`varnishd` in front of `origin` ("HOST:PORT"); answers carry `X-Cache: hit|miss`.

    `storage_mb` bounds its memory; `params` are varnishd parameters ("name=value"); `vcl` replaces the VCL.
    `modules`: it has those that refreshd-modules.vcl makes use of.
    """

    name = "varnish"

    def __init__(
        self,
        origin: str,
        *,
        storage_mb: int = 64,
        params: tuple[str, ...] = (),
        vcl: str | None = None,
        modules: bool = False,
    ) -> None:
        super().__init__()
        host, _, port = origin.rpartition(":")
        shipped = (MODULES_VCL, SHIPPED_VCL) if modules else (SHIPPED_VCL,)
        includes = "\n".join(f'include "{path}";' for path in shipped)
        self._vcl = vcl or VCL.format(includes=includes, host=host, port=port)
        self._storage_mb = storage_mb
        self._params = params

    def _command(self) -> list[str]:
        (self.folder / "site.vcl").write_text(self._vcl)
        # One small thread pool: many servers run beside each other in the tests.
        params = ("thread_pools=1", "thread_pool_min=20", *self._params)
        return [
            find_program("varnishd"),
            "-F",
            *("-n", str(self.folder / "work")),
            # The kernel picks the port, so that no two servers can want the same.
            *("-a", "127.0.0.1:0"),
            *("-f", str(self.folder / "site.vcl")),
            *("-s", f"malloc,{self._storage_mb}m"),
            # No jail: it would want root, and a user of its own to own the folder.
            *("-j", "none"),
            *(word for param in params for word in ("-p", param)),
        ]

    def _is_ready(self) -> bool:
        words = self._ask("debug.listen_address").split()
        if len(words) < 3 or self._ask("status") != "Child in state running":
            return False
        self.port = int(words[2])
        return True

    def adm(self, *words: str) -> str:
        """The answer of `varnishadm` to a command, without white space around it."""
        return self._ask(*words, check=True)

    def _ask(self, *words: str, check: bool = False) -> str:
        command = [find_program("varnishadm"), "-n", str(self.folder / "work"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=check)
        return done.stdout.strip() if done.returncode == 0 else ""

    def stat(self) -> str:
        """What `varnishstat -1` prints."""
        command = [find_program("varnishstat"), "-1", "-n", str(self.folder / "work")]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    def counter(self, name: str) -> int:
        """One of the figures of `stat`."""
        rows = [line.split() for line in self.stat().splitlines()]
        return next((int(row[1]) for row in rows if row and row[0] == name), 0)

    def bans(self) -> list[str]:
        """The expressions of the bans that Varnish holds, newest first, without its own."""
        lines = self.adm("ban.list").splitlines()[1:]
        return [" ".join(words[3:]) for line in lines if len(words := line.split()) > 3]
