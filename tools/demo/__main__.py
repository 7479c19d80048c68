"""`python -m tools.demo demo`: the story, then stop; exit 0 only if each step was seen to work.
`python -m tools.demo run`: the same, then stay up until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.demo.caches import KINDS, Kind, choose
from tools.demo.folder import claim
from tools.demo.http1 import Address
from tools.demo.processes import ChildDied
from tools.demo.show import BOLD, DIM, Show
from tools.demo.stage import ROOT, SITE, NotReady, Stage, set_up
from tools.demo.story import NEWS, StepFailed, Story
from tools.demo.two import TwoEngines

#: No demo takes longer, whatever hangs; it takes about two seconds.
DEMO_S = 120.0
#: How often it is looked whether all still run, while the demo stays up.
CHECK_S = 0.5
RUN_FOLDER = ROOT / ".run"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all was seen to work, 1 something was not, 130 stopped before the end."""
    options = parser().parse_args(argv)
    kind = choose(options.cache)
    show = Show()
    if not kind.is_installed():
        show.failed("start", f"{kind.title} is not installed (no {kind.program})")
        return 1
    os.chdir(ROOT)
    try:
        return asyncio.run(play(options.mode, kind, options.engines, show))
    except (KeyboardInterrupt, asyncio.CancelledError):
        show.line("stopped before the end")
        return 130
    except BrokenPipeError:
        # Whoever read our lines has gone; the interpreter must not fail again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    found.add_argument("mode", choices=["run", "demo"])
    found.add_argument(
        "--engines", type=int, choices=[1, 2], default=1, help="two share a MariaDB and a Redis"
    )
    found.add_argument("--cache", choices=[kind.name for kind in KINDS], help="default: the first installed")
    return found


async def play(mode: str, kind: Kind, engines: int, show: Show) -> int:
    """One whole demo in a folder of its own, which goes if all went well."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with claim(RUN_FOLDER, mode) as folder:
        title = f"refreshd {mode}; the cache is {kind.title}"
        show.line(f"{title}; two engines share a MariaDB and a Redis" if engines == 2 else title, BOLD)
        show.line(f"files and logs: {folder.relative_to(ROOT)}/", DIM)
        show.line()
        if await tell(mode, kind, engines, folder, show):
            shutil.rmtree(folder, ignore_errors=True)
            return 0
        show.line()
        show.line(f"This did not work. The logs: {folder.relative_to(ROOT)}/*.log")
        return 1


async def tell(mode: str, kind: Kind, engines: int, folder: Path, show: Show) -> bool:
    """Whether all of it was seen to work. What did not was shown."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(DEMO_S) as limit, set_up(folder, kind, engines) as stage:
            show.done("cache, origin, engine and agent are up", time.perf_counter() - began, places(stage))
            await Story(stage, show).play()
            if engines == 2:
                await TwoEngines(stage, show).play()
            show.line()
            if mode == "run":
                limit.reschedule(None)
                await stay_up(stage, show)
            else:
                show.line("Every step was seen to work.", BOLD)
    except StepFailed:
        return False
    except (ChildDied, NotReady, TimeoutError) as error:
        show.failed("the demo ends here", str(error) or f"it took longer than {DEMO_S:.0f} s")
        return False
    return True


def places(stage: Stage) -> list[str]:
    origin, cache = at(stage.origin_address), at(stage.cache_address)
    ports = [stage.engine_port, *([stage.partner.port] if stage.partner else [])]
    engines = " and ".join(f"127.0.0.1:{port}" for port in ports)
    return [f"origin {origin}, cache {cache}, engine {engines}"]


def at(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


async def stay_up(stage: Stage, show: Show) -> None:
    """Until Ctrl-C or SIGTERM. Raises: ChildDied."""
    show_what_to_try(stage, show)
    try:
        while True:
            stage.check()
            await asyncio.sleep(CHECK_S)
    except asyncio.CancelledError:
        show.line()
        show.line("Stopping.")


def show_what_to_try(stage: Stage, show: Show) -> None:
    """Commands that can be copied, for a second terminal in the same folder."""
    page = f"http://{SITE}{NEWS}"
    cache, origin = (f"http://{at(address)}{NEWS}" for address in (stage.cache_address, stage.origin_address))
    control = shlex.join(stage.refreshctl_command())
    show.line("It stays up. Try this in another terminal, in this folder:", BOLD)
    for what, command in (
        ("what a visitor gets", f"curl -si -H 'Host: {SITE}' {cache}"),
        ("change the page", f"curl -s -X PUT -d 'edition 3' {origin}"),
        ("refresh it", f"{control} submit --wait {page}"),
        ("the tasks so far", f"{control} list"),
        ("the figures", f"{control} stats"),
        ("the agents", f"{control} proxies"),
        ("the protocol by hand", f"echo ping | nc -q 1 127.0.0.1 {stage.engine_port}"),
    ):
        show.line()
        show.line(f"  # {what}", DIM)
        show.line(f"  {command}")
    show.line()
    show.line("Ctrl-C stops all of it.", BOLD)


if __name__ == "__main__":
    sys.exit(main())
