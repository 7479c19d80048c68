"""The file that is there only while the agent has caught up, for a balancer's check on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from proxyd.logs import Log


class Marker:
    """Keeps the file as it should be. What cannot be done is logged, and tried again at the next call."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._shown: tuple[str, bool] = ("", False)
        """(path, whether it is there), as it was made last."""

    def show(self, path: str, caught_up: bool) -> None:
        """Makes it so; `path` is empty where no file is wanted."""
        if (path, caught_up) == self._shown:
            return
        before = self._shown[0]
        try:
            if before and before != path:
                Path(before).unlink(missing_ok=True)
            if path and caught_up:
                _create(path)
            elif path:
                Path(path).unlink(missing_ok=True)
        except OSError as error:
            self._log.sampled(
                "caught_up_file", "caught_up_file cannot be written or removed",
                file=error.filename, caught_up=caught_up, error=error.strerror,
            )  # fmt: skip
            return
        self._shown = (path, caught_up)


def _create(path: str) -> None:
    """Whoever looks sees it whole or not at all. Raises: OSError."""
    fresh = f"{path}.{os.getpid()}.new"
    try:
        with open(fresh, "w") as file:
            file.write("caught up\n")
            # Whoever may look into the folder may read it, whatever the agent's umask is.
            os.fchmod(file.fileno(), 0o644)
        os.replace(fresh, path)
    except OSError:
        Path(fresh).unlink(missing_ok=True)
        raise
