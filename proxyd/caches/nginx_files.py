"""nginx's cache folder: one file an object, named by the md5 of its key. This blocks: it runs in threads.

A file is *spoilt* before it is unlinked: the version at its beginning becomes 0, which no nginx serves.
That is for an nginx that has the file open (`open_file_cache`) and would go on with it; and should we die
between the two, what is left is never served. Visitors who are just being sent it get it to its end.

Variants. Where an answer has `Vary`, nginx keeps the first variant under the md5 of the key and each other
one under a hash of that and of the headers' values. It finds those by way of the first one, which tells it
that there is a `Vary`. So when the first is gone the others are not served, but as soon as it is fetched
anew they are, old as they may be. All have the same key in their `KEY:` line: they are found by reading
each file's head (a sweep). A URL is one unlink only if its first file was there, without `Vary`; or if the
operator says that there are no variants.

What each fault means:

    the folder is not there, or may not be looked at    everything fails, and the error says what to do
    a file is gone when we come to it                   done: nginx has thrown it out
    a file may not be changed                           what it stands for fails
    a head cannot be read, or has another version       a sweep fails: it may be what was sought
    a symbolic link, a pipe, under such a name          never followed; a sweep fails
    other names, as of a file that is being written     never touched
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import psutil

from proxyd.caches.nginx_key import KeyTemplate, Sought
from proxyd.hands import TAKE_ALONG, Pulse, TakeAlong, Work

# ngx_http_file_cache_header_t, version 5 (nginx 1.9.15 and later, 64 bits): where in it what we look at
# stands.
VERSION = 5
SPOILT = struct.pack("<Q", 0)
_HEADER_START_AT = 54
_VARY_LENGTH_AT = 187
_KEY_AT = 336
_KEY_MARK = b"\nKEY: "
# Most keys end in it; the others are read to their end.
HEAD_BYTES = 1024

FILE_NAME_CHARS = 32
# What nginx names files and folders; a file that it is writing has a dot and a number behind.
_OURS = re.compile(r"[0-9a-f]{1,2}|[0-9a-f]{32}").fullmatch
# How often it is looked whether the folders are as they should be: 30 µs.
CHECK_EVERY_S = 10.0
CHECKED_MAX = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# A sweep rests as long as it works, and is no quicker in unlinking than this: right after a mass purge an
# nginx on ext4 refills 1,500 to 2,700 objects/s, and what is not unlinked yet is served.
REMOVALS_PER_S = 5000
REST_EVERY_S = 0.01

_ADVICE = "run the agent as the user that nginx's workers run as, see docs/agent.md"


class NginxFiles(msgspec.Struct, frozen=True):
    """Where an nginx keeps its objects, and under which keys: as its configuration has it."""

    path: str
    levels: tuple[int, ...]
    key: str
    proxy_host: str
    variants: bool


class Head(msgspec.Struct, frozen=True):
    """What the beginning of a file says."""

    key: bytes
    varies: bool


class _Unknown(Exception):
    """A file that cannot be told to be this or that object."""


class NginxFolder:
    """The hands of a `LocalClient` in a cache folder."""

    def __init__(self, files: NginxFiles) -> None:
        self._files = files
        self._template = KeyTemplate(files.key, files.proxy_host)
        self._checked_at = -CHECK_EVERY_S

    def act(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | TakeAlong | None]:
        """Unlinks what a URL names; wants a sweep where that may not be all."""
        try:
            root = self._open_root()
        except OSError as error:
            return [self._explain(error)] * len(works)
        try:
            return [self._act(root, work, pulse) for work in works]
        finally:
            os.close(root)

    def _act(self, root: int, work: Work, pulse: Pulse) -> str | TakeAlong | None:
        pulse.beats += 1
        sought = self._template.of_url(work.host, work.path)
        certain = not sought.patterns
        for key in sought.keys:
            try:
                head = self._remove(root, hashlib.md5(key, usedforsecurity=False).hexdigest())
            except OSError as error:
                return self._explain(error)
            if self._files.variants and (head is None or head.varies):
                certain = False
        return None if certain else TAKE_ALONG

    def _remove(self, root: int, name: str) -> Head | None:
        """Removes one file; what it said of itself, or None if there was none. Raises: OSError."""
        opened: list[int] = []
        try:
            folder, end = root, len(name)
            for width in self._files.levels:
                folder = os.open(name[end - width : end], _FOLDER, dir_fd=folder)
                opened.append(folder)
                end -= width
            file = os.open(name, _FILE, dir_fd=folder)
            opened.append(file)
            try:
                head = _read_head(file)
            except _Unknown:
                # Its name says what it is. Whether it had variants is not known.
                head = Head(b"", varies=True)
            _spoil_and_unlink(file, name, folder)
        except FileNotFoundError:
            return None
        finally:
            for fd in opened:
                os.close(fd)
        return head

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        """Goes over the whole folder once and removes all that any of these asks for."""
        sought = [self._sought(work) for work in works]
        fits = _one_test(sought)
        faults = _Faults(len(works))
        pace = _Pace(pulse)
        _be_humble()
        try:
            root = self._open_root()
        except OSError as error:
            return [self._explain(error)] * len(works)
        try:
            for folder, name in self._walk(root, 0, faults, pace):
                try:
                    self._sweep_file(folder, name, fits, sought, faults, pace)
                except FileNotFoundError:
                    continue
                except (OSError, _Unknown) as error:
                    faults.of_all(self._explain(error, name))
                if pulse.stop.is_set():
                    break
        finally:
            os.close(root)
        if pulse.stop.is_set():
            faults.of_all("told to stop")
        return faults.results()

    def _sought(self, work: Work) -> Sought | None:
        """What a sweep looks for; None: everything."""
        if work.verb == DROP:
            return None
        seek = self._template.of_directory if work.verb == UNLINK_BELOW else self._template.of_url
        return seek(work.host, work.path)

    def _sweep_file(
        self,
        folder: int,
        name: str,
        fits: Callable[[bytes], bool],
        sought: list[Sought | None],
        faults: _Faults,
        pace: _Pace,
    ) -> None:
        file = os.open(name, _FILE, dir_fd=folder)
        try:
            head = _read_head(file)
            if head is None or not fits(head.key):
                return
            try:
                _spoil_and_unlink(file, name, folder)
            except OSError as error:
                concerned = [each is None or each.fits(head.key) for each in sought]
                faults.of_some(concerned, self._explain(error, name))
            pace.removed()
        finally:
            os.close(file)

    def _walk(self, folder: int, depth: int, faults: _Faults, pace: _Pace) -> Iterator[tuple[int, str]]:
        """Each file with its folder's descriptor. Nothing is followed out of the folder."""
        levels = self._files.levels
        with os.scandir(folder) as entries:
            for entry in entries:
                pace.step()
                name = entry.name
                if not _OURS(name):
                    continue
                is_file = depth == len(levels)
                if not (entry.is_file if is_file else entry.is_dir)(follow_symlinks=False):
                    faults.of_all(
                        f"{self._files.path}: {name} is no {'file' if is_file else 'folder'} of nginx's"
                    )
                    continue
                if len(name) != (FILE_NAME_CHARS if is_file else levels[depth]):
                    faults.of_all(self._misfit(name))
                    continue
                if is_file:
                    yield folder, name
                    continue
                try:
                    below = os.open(name, _FOLDER, dir_fd=folder)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    faults.of_all(self._explain(error, name))
                    continue
                try:
                    yield from self._walk(below, depth + 1, faults, pace)
                finally:
                    os.close(below)

    def _open_root(self) -> int:
        # This one may be a link: it is the operator's word.
        root = os.open(self._files.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check_levels(root)
        except BaseException:
            os.close(root)
            raise
        return root

    def _check_levels(self, root: int) -> None:
        """With other levels than nginx's no file would be found, and all be said to be gone.

        Raises: OSError.
        """
        now = time.monotonic()
        if now - self._checked_at < CHECK_EVERY_S:
            return
        folder = os.dup(root)
        try:
            for width in (*self._files.levels, 0):
                with os.scandir(folder) as entries:
                    first = itertools.islice(entries, CHECKED_MAX)
                    names = [entry.name for entry in first if _OURS(entry.name)]
                if odd := [name for name in names if len(name) != (width or FILE_NAME_CHARS)]:
                    raise OSError(self._misfit(odd[0]))
                if not names or not width:
                    break
                below = os.open(names[0], _FOLDER, dir_fd=folder)
                os.close(folder)
                folder = below
        except FileNotFoundError:
            # nginx has thrown it out meanwhile.
            return
        finally:
            os.close(folder)
        self._checked_at = now

    def _misfit(self, name: str) -> str:
        levels = ":".join(str(width) for width in self._files.levels)
        return f"{name} does not fit levels = {levels!r}; see proxy_cache_path"

    def _explain(self, error: Exception, name: str = "") -> str:
        place = f"{self._files.path}: {name}".removesuffix(": ")
        if not isinstance(error, OSError):
            return f"{place}: {error}"
        name = error.filename if isinstance(error.filename, str) else name
        place = name if name.startswith("/") else f"{self._files.path}: {name}".removesuffix(": ")
        if isinstance(error, PermissionError):
            return f"{place}: {error.strerror} ({_ADVICE})"
        if isinstance(error, FileNotFoundError):
            return f"{place}: {error.strerror} (is path what proxy_cache_path says, and has nginx run?)"
        return f"{place}: {error.strerror or error}"


UNLINK = b"UNLINK"
UNLINK_BELOW = b"UNLINK-BELOW"
DROP = b"UNLINK-ALL"


def _one_test(sought: Sequence[Sought | None]) -> Callable[[bytes], bool]:
    """Whether any of these fits a key, in one go: it is asked for each object of the cache."""
    if None in sought:
        return lambda _: True
    found = [each for each in sought if each is not None]
    keys = frozenset(key for each in found for key in each.keys)
    patterns = [pattern for each in found for pattern in each.patterns]
    heads = tuple(pattern.head for pattern in patterns)
    simple = tuple(pattern.head for pattern in patterns if pattern.whole is None)

    def fits(key: bytes) -> bool:
        if key in keys or key.startswith(simple):
            return True
        return key.startswith(heads) and any(pattern.fits(key) for pattern in patterns)

    return fits


def _read_head(file: int) -> Head | None:
    """What a file says of itself; None if nginx serves it to nobody. Raises: OSError, _Unknown."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise _Unknown("is no regular file; nginx writes none")
    head = os.pread(file, HEAD_BYTES, 0)
    if len(head) < _KEY_AT + len(_KEY_MARK):
        # Cut off, by a full disk say: nginx takes it for none, too.
        return None
    version: int = struct.unpack_from("<Q", head)[0]
    header_start: int = struct.unpack_from("<H", head, _HEADER_START_AT)[0]
    if not version:
        # Spoilt by us.
        return None
    if header_start > len(head):
        head += os.pread(file, header_start - len(head), len(head))
    key_line = head[_KEY_AT:header_start]
    if version != VERSION or not key_line.startswith(_KEY_MARK) or not key_line.endswith(b"\n"):
        raise _Unknown(
            f"its head (version {version}) is not of the form that this agent knows, version {VERSION}"
        )
    return Head(key_line[len(_KEY_MARK) : -1], varies=head[_VARY_LENGTH_AT] > 0)


def _spoil_and_unlink(file: int, name: str, folder: int) -> None:
    try:
        os.pwrite(file, SPOILT, 0)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


class _Faults:
    """What was wrong for each of the works of a sweep: the first thing, and how often."""

    def __init__(self, works: int) -> None:
        self._first: list[str | None] = [None] * works
        self._more = 0

    def of_all(self, text: str) -> None:
        self.of_some([True] * len(self._first), text)

    def of_some(self, concerned: Sequence[bool], text: str) -> None:
        self._more += 1
        for number, is_concerned in enumerate(concerned):
            if is_concerned and self._first[number] is None:
                self._first[number] = text

    def results(self) -> list[str | None]:
        more = f" (and {self._more - 1} more)" if self._more > 1 else ""
        return [None if text is None else text + more for text in self._first]


class _Pace:
    """Has a sweep rest as long as it works, see above."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._since = time.monotonic()
        self._removed = 0

    def step(self) -> None:
        """Called for each file."""
        self._pulse.beats += 1
        worked_s = time.monotonic() - self._since
        if worked_s >= REST_EVERY_S or self._removed >= REMOVALS_PER_S * REST_EVERY_S:
            rest_s = max(worked_s, self._removed / REMOVALS_PER_S - worked_s)
            self._pulse.stop.wait(rest_s)
            self._since, self._removed = time.monotonic(), 0

    def removed(self) -> None:
        """Called for each that was removed."""
        self._removed += 1


def _be_humble() -> None:
    """The disk serves others first. (The CPU does not: who has the interpreter's lock must not wait.)"""
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_BE, 7)
