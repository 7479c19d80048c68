"""The configuration file: read at the start, and again at each reload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from refreshd.config import Config, parse
from refreshd.errors import ConfigError

CONFIG_FILE_MAX_BYTES = 4 * 1024 * 1024
SECRET_MAX_BYTES = 4096


class ConfigFile(NamedTuple):
    """Where the configuration stands; without a path, all defaults hold."""

    path: str | None

    def load(self) -> Config:
        """What the file says now, secrets included. Raises: ConfigError."""
        return self.read()[1]

    def read(self) -> tuple[str, Config]:
        """The file's text, for the lines of faults, and what it says. Raises: ConfigError."""
        text = "" if self.path is None else _read_config(self.path)
        return text, parse(text, os.environ, read_secret)


def _read_config(path: str) -> str:
    try:
        data = _read_bounded(path, CONFIG_FILE_MAX_BYTES)
        return data.decode()
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"line {line}: not UTF-8"]) from None
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def read_secret(path: str) -> bytes:
    """What a secret file holds, without the line end after it. Raises: OSError, ValueError."""
    secret = _read_bounded(path, SECRET_MAX_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ValueError("the file is empty; wanted a secret")
    return secret


def _read_bounded(path: str, size_max: int) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise ValueError(f"the file has more than {size_max:,} bytes")
    return data
